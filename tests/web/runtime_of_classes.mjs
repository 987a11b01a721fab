// In place of ort/ort.wasm.min.mjs: the weights are JSON with the classes that the model says.

export const env = { wasm: {} };

export class Tensor {
  constructor(type, data, dims) {
    Object.assign(this, { type, data, dims });
  }
}

export const InferenceSession = {
  async create(weights) {
    const { ids, frames, classes } = JSON.parse(new TextDecoder().decode(weights));
    return { run: async ({ state }) => outputs(ids, frames, classes, state.data[0]) };
  },
};

function outputs(ids, frames, classes, first) {
  const data = new Float32Array(frames * classes);
  for (let i = 0; i < frames; i++) data[i * classes + (ids[first + i] ?? 0)] = 1;
  return { log_probs: { data, dims: [1, frames, classes] }, new_state: { data: Float32Array.of(first + frames) } };
}

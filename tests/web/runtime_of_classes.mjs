// In place of ort/ort.wasm.min.mjs: the weights are JSON with the classes that the model says, and the one at which
// it fails. A model that is released is none of `models` any more.

export const env = { wasm: {} };
export const models = new Set();

export class Tensor {
  constructor(type, data, dims) {
    Object.assign(this, { type, data, dims });
  }
}

export const InferenceSession = {
  async create(weights) {
    const { ids, frames, classes, fails } = JSON.parse(new TextDecoder().decode(weights));
    const model = {
      async run({ state }) {
        if (state.data[0] >= (fails ?? Infinity)) throw new Error("out of memory");
        return outputs(ids, frames, classes, state.data[0]);
      },
      async release() {
        if (!models.delete(model)) throw new Error("released twice");
      },
    };
    models.add(model);
    return model;
  },
};

function outputs(ids, frames, classes, first) {
  const data = new Float32Array(frames * classes);
  for (let i = 0; i < frames; i++) data[i * classes + (ids[first + i] ?? 0)] = 1;
  return { log_probs: { data, dims: [1, frames, classes] }, new_state: { data: Float32Array.of(first + frames) } };
}

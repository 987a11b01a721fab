// A model that says the classes `ids`, `frames` of them in a window, whatever it hears; at the class `fails` it
// fails.
export function modelOf(symbols, ids, frames, fails = Infinity) {
  return {
    window: 4 * frames, shift: 4 * frames, subsampling: 4, vocabSize: symbols.length, initialState: () => 0,
    async step(window, state) {
      if (state >= fails) throw new Error("out of memory");
      const logProbs = new Float32Array(frames * symbols.length);
      for (let i = 0; i < frames; i++) logProbs[i * symbols.length + (ids[state + i] ?? 0)] = 1;
      return { logProbs, frames, state: state + frames };
    },
  };
}

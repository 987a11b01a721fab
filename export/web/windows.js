// Samples in pieces of any size in, the windows that the model takes out.
// The twin of kdasr.streaming.SampleWindows: window k holds samples [160 shift k - 120, ...), the
// audio is mirrored before its start and after its end, and silence follows.

const HOP = 160;
const LEFT = 120;
const EXTRA = 240;
const HALF_WINDOW = 200;

// `samples` with `before` and `after` more, mirrored at the edges (the edge sample is repeated).
export function mirrored(samples, before, after) {
  const size = samples.length;
  const out = new Float32Array(before + size + after);
  for (let i = 0; i < out.length; i++) {
    const period = (((i - before) % (2 * size)) + 2 * size) % (2 * size);
    out[i] = samples[period < size ? period : 2 * size - 1 - period];
  }
  return out;
}

export class SampleWindows {
  constructor(window, shift) {
    this.window = window;
    this.shift = shift;
    this.size = window * HOP + EXTRA;
    this.pending = new Float32Array(0);
    this.numSamples = 0;
    this.started = false;
    this.first = 0;
  }

  get numFeatures() {
    return Math.floor((this.numSamples + HOP / 2) / HOP);
  }

  *accept(samples) {
    this.numSamples += samples.length;
    this.#push(samples);
    if (!this.started && this.pending.length >= LEFT) {
      this.pending = mirrored(this.pending, LEFT, 0);
      this.started = true;
    }
    while (this.started && this.pending.length >= this.size) yield this.#pop(this.window);
  }

  *finish() {
    if (this.numFeatures === 0) return;
    this.pending = mirrored(this.pending, this.started ? 0 : LEFT, HALF_WINDOW);
    this.started = true;
    while (this.first < this.numFeatures) {
      if (this.pending.length < this.size) this.#push(new Float32Array(this.size - this.pending.length));
      yield this.#pop(Math.min(this.window, this.numFeatures - this.first));
    }
  }

  #push(samples) {
    const joined = new Float32Array(this.pending.length + samples.length);
    joined.set(this.pending);
    joined.set(samples, this.pending.length);
    this.pending = joined;
  }

  #pop(validFrames) {
    const samples = this.pending.slice(0, this.size);
    this.pending = this.pending.slice(this.shift * HOP);
    this.first += this.shift;
    return { samples, validFrames };
  }
}

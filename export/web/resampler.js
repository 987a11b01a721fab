// Samples at another rate in, samples at the wanted rate out, piece by piece. The twin of
// kdasr.streaming.StreamingResampler: a sinc in a Hann window, six zero crossings to either side.

const ZERO_CROSSINGS = 6;
const ROLLOFF = 0.99;

export class Resampler {
  constructor(from, to) {
    this.from = from;
    this.to = to;
    this.scale = (ROLLOFF * Math.min(from, to)) / from; // zero crossings in an input sample
    this.reach = Math.ceil(ZERO_CROSSINGS / this.scale);
    this.filters = new Map(); // by the place of an output sample between two input samples
    this.pending = new Float32Array(this.reach); // silence before the start
    this.first = -this.reach; // input sample that the pending ones begin with
    this.next = 0; // output sample
  }

  // The output samples that are certain now.
  accept(samples) {
    const joined = new Float32Array(this.pending.length + samples.length);
    joined.set(this.pending);
    joined.set(samples, this.pending.length);
    const out = [];
    let start = this.#start();
    for (; start + 2 * this.reach <= joined.length; start = this.#start()) {
      const filter = this.#filter();
      let sum = 0;
      for (let i = 0; i < filter.length; i++) sum += filter[i] * joined[start + i];
      out.push(sum);
      this.next++;
    }
    this.pending = joined.slice(start);
    this.first += start;
    return new Float32Array(out);
  }

  // The rest: beyond the end there is silence.
  flush() {
    return this.accept(new Float32Array(this.reach));
  }

  // Where in the pending samples the filter of the next output sample begins.
  #start() {
    return Math.floor((this.next * this.from) / this.to) - this.reach + 1 - this.first;
  }

  #filter() {
    const phase = (this.next * this.from) % this.to;
    if (!this.filters.has(phase)) {
      const weights = Float64Array.from({ length: 2 * this.reach }, (_, i) => {
        const t = (i - this.reach + 1 - phase / this.to) * this.scale;
        if (Math.abs(t) >= ZERO_CROSSINGS) return 0;
        const sinc = t === 0 ? 1 : Math.sin(Math.PI * t) / (Math.PI * t);
        return this.scale * sinc * Math.cos((Math.PI * t) / (2 * ZERO_CROSSINGS)) ** 2;
      });
      this.filters.set(phase, weights);
    }
    return this.filters.get(phase);
  }
}

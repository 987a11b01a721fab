// One stream of audio: pieces of samples in, text so far out. The twin of
// kdasr.streaming.EndpointingSession, with greedy CTC decoding.

import { SampleWindows } from "./windows.js";

// kdasr.streaming.TAIL_MS: the silence that is heard after the end of the audio.
export const TAIL_MS = 320;
// kdasr.streaming.words.WORD_PAUSE_S: seconds without a new unit after which a word is over.
const WORD_PAUSE_S = 1.0;

const BLANK = 0;
const WORD_START = "\u2581";
// Classes of foreign tables that stand for no text: <s>, <unk>, [PAD], <|en|>.
const CONTROL = /^(<[^<>]+>|\[[^[\]]+\])$/;
// kdasr.audio: floats may overshoot 1 after resampling; a peak above this is integer PCM.
const PEAK_OF_UNSCALED_PCM = 100;

export class Session {
  // model: { window, shift, subsampling, vocabSize, initialState(), step(window, state) }
  // rules: { minSilence, maxSegment }, seconds without a new unit that end a segment and seconds after
  // which it is cut before its last word, or null for one segment.
  constructor(model, symbols, rules = null) {
    this.model = model;
    this.symbols = symbols;
    this.rules = rules;
    this.frameSeconds = 0.01 * model.subsampling;
    this.pauseFrames = Math.round(1e6 * (WORD_PAUSE_S / this.frameSeconds)) / 1e6;
    this.frontEnd = new SampleWindows(model.window, model.shift);
    this.state = model.initialState();
    this.tokens = [];
    this.segments = [];
    this.#forgetText();
    this.numSamples = 0; // of the audio
    this.numFrames = 0; // of the tail too, at last
    this.lastId = BLANK;
    this.finished = false;
    this.failure = null; // what ended the stream before its end
    this.turn = Promise.resolve(); // of the next call, when those before it are done
  }

  // Of the tokens that are in no segment yet.
  get text() {
    return [...this.words, this.open].filter(Boolean).join(" ");
  }

  // What of the text is new since the last call: `words` that are finished since, and the last one, `open`,
  // which may still grow; `anew` where both are the whole text, for what was told before is in segments now.
  news() {
    const news = { anew: this.told === 0, words: this.words.slice(this.told), open: this.open };
    this.told = this.words.length;
    return news;
  }

  // samples: Float32Array in [-1, 1] at 16 kHz. onChunk(milliseconds) is called for every chunk that was computed.
  // Calls need not wait for each other: they take their turns. Nothing of a refused piece is used, and the
  // session goes on with the next one; where the model fails, the stream is over, and what was heard until then
  // is in segments.
  async accept(samples, onChunk = () => {}) {
    checkSamples(samples);
    const piece = samples.slice(); // the caller may fill its own anew before this call has its turn
    await this.#inTurn(() => this.#accept(piece, onChunk));
  }

  // Ends the stream: runs what is left of the audio, and its tail. A second call does nothing.
  async finish(onChunk = () => {}) {
    await this.#inTurn(() => this.#finish(onChunk));
  }

  #inTurn(work) {
    const done = this.turn.then(work);
    this.turn = done.catch(() => {}); // the error is this call's alone
    return done;
  }

  async #accept(samples, onChunk) {
    if (this.finished) throw new Error("The stream is finished: start a new session");
    await this.#orBreakOff(() => this.#hear(samples, onChunk));
  }

  async #finish(onChunk) {
    if (this.finished) return;
    await this.#orBreakOff(() => this.#hearRest(onChunk));
    this.finished = true;
  }

  // A window that the model failed at is lost, and so is the place of all that follows it.
  async #orBreakOff(work) {
    if (this.failure) throw new Error(`The stream was aborted: ${this.failure.message ?? this.failure}`);
    try {
      await work();
    } catch (error) {
      this.failure = error;
      this.#commit(this.tokens.length);
      throw error;
    }
  }

  async #hear(samples, onChunk) {
    this.numSamples += samples.length;
    for (const window of this.frontEnd.accept(samples)) {
      await this.#step(window, Infinity, onChunk);
      this.#cut(); // after every window, so that the cuts do not depend on the sizes of the pieces
    }
  }

  async #hearRest(onChunk) {
    const ends = this.#numFramesHeard();
    const tail = new Float32Array(ends > 0 ? 16 * TAIL_MS : 0);
    for (const window of this.frontEnd.accept(tail)) await this.#step(window, Infinity, onChunk);
    for (const window of this.frontEnd.finish()) {
      await this.#step(window, this.#numFramesHeard() - this.numFrames, onChunk);
    }
    for (const token of this.tokens) token.frame = Math.min(token.frame, ends - 1);
    this.#cut();
    this.#commit(this.tokens.length);
  }

  // Output frames of all samples that were heard.
  #numFramesHeard() {
    return Math.ceil(this.frontEnd.numFeatures / this.model.subsampling);
  }

  async #step(window, maxFrames, onChunk) {
    const began = performance.now();
    const { logProbs, frames, state } = await this.model.step(window, this.state);
    this.state = state;
    const count = Math.min(frames, maxFrames);
    for (let frame = 0; frame < count; frame++) this.#emit(logProbs, frame);
    this.#spell();
    onChunk(performance.now() - began);
  }

  #emit(logProbs, frame) {
    const start = frame * this.model.vocabSize;
    let best = 0;
    for (let id = 1; id < this.model.vocabSize; id++) {
      if (logProbs[start + id] > logProbs[start + best]) best = id;
    }
    if (best !== BLANK && best !== this.lastId) this.tokens.push({ id: best, frame: this.numFrames });
    this.lastId = best;
    this.numFrames += 1;
  }

  // Ends every segment that is over.
  #cut() {
    for (let count = this.#overAt(); count > 0; count = this.#overAt()) this.#commit(count);
  }

  // How many of the waiting tokens make a segment that is over; 0 if none does.
  #overAt() {
    if (!this.rules) return 0;
    for (const [i, { frame }] of this.tokens.entries()) {
      const end = this.tokens[i + 1]?.frame ?? this.numFrames;
      if ((frame + 1 - this.tokens[0].frame) * this.frameSeconds >= this.rules.maxSegment) {
        return this.#beforeLastWord(i + 1);
      }
      if ((end - frame - 1) * this.frameSeconds >= this.rules.minSilence) return i + 1;
    }
    return 0;
  }

  // The cut at or before `count` that halves no word, or `count` where one word fills all.
  #beforeLastWord(count) {
    const starts = []; // of words; a mark of a word start alone belongs to none
    let inWord = false;
    for (let i = 0; i < count; i++) {
      const symbol = this.symbols[this.tokens[i].id];
      if (symbol.startsWith(WORD_START)) inWord = false;
      if (symbol === WORD_START) continue;
      if (!inWord) starts.push(i);
      inWord = true;
    }
    return starts.length > 1 ? starts.at(-1) : count;
  }

  #commit(count) {
    const taken = this.tokens.splice(0, count);
    const text = this.#decode(taken);
    if (text) this.segments.push({ text, start: this.#startOf(taken) * this.frameSeconds });
    this.#forgetText();
    this.#spell();
  }

  // The frame where the first word begins that has text; a mark of a word start alone belongs to none.
  #startOf(tokens) {
    let start = null; // of the word
    for (const [number, token] of tokens.entries()) {
      if (this.#beginsWord(tokens, number)) start = null;
      if (this.symbols[token.id] === WORD_START) continue;
      start ??= token.frame;
      if (this.#decode([token])) break;
    }
    return start;
  }

  #forgetText() {
    this.words = []; // that are finished, any number of them in each string
    this.known = 0; // how many tokens they have
    this.told = 0; // how many of these strings news() gave
    this.open = ""; // the last word
  }

  // Brings the text up to date: the last word alone is spelt again, so that a long file takes linear time.
  #spell() {
    let last = this.tokens.length - 1;
    while (last > this.known && !this.#beginsWord(this.tokens, last)) last--;
    if (last > this.known) {
      const text = this.#decode(this.tokens.slice(this.known, last));
      if (text) this.words.push(text);
      this.known = last;
    }
    this.open = this.#decode(this.tokens.slice(this.known));
  }

  #beginsWord(tokens, number) {
    const { id, frame } = tokens[number];
    const silent = number > 0 ? frame - tokens[number - 1].frame - 1 : 0;
    return this.symbols[id].startsWith(WORD_START) || silent >= this.pauseFrames;
  }

  #decode(tokens) {
    return decode(tokens, this.symbols, this.pauseFrames);
  }
}

// As kdasr.streaming.check_samples.
function checkSamples(samples) {
  if (!(samples instanceof Float32Array)) {
    throw new Error("The samples are not a Float32Array in [-1, 1]: divide 16-bit samples by 32768");
  }
  if (!samples.every(Number.isFinite)) throw new Error("The audio contains NaN or infinite samples");
  const peak = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
  if (peak > PEAK_OF_UNSCALED_PCM) {
    throw new Error(`The samples are not scaled to [-1, 1] (their peak is ${Math.round(peak)}): divide them by 32768`);
  }
}

// A word is over, too, where nothing is said in `pauseFrames` output frames.
export function decode(tokens, symbols, pauseFrames = Infinity) {
  const spoken = [];
  for (const [number, { id, frame }] of tokens.entries()) {
    if (number > 0 && frame - tokens[number - 1].frame - 1 >= pauseFrames) spoken.push(WORD_START);
    if (!CONTROL.test(symbols[id])) spoken.push(symbols[id]);
  }
  return spoken.join("").replaceAll(WORD_START, " ").split(/\s+/).filter(Boolean).join(" ");
}

export function parseTokens(text) {
  const symbols = [];
  for (const line of text.split("\n")) {
    const cut = line.lastIndexOf(" ");
    if (cut >= 0) symbols[Number(line.slice(cut + 1))] = line.slice(0, cut);
  }
  return symbols;
}

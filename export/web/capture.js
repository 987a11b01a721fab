// Runs in the audio thread: hands the microphone's samples to the page, 20 ms at a time: so much later than it
// could the text may come.

const PIECE = Math.round(sampleRate / 50);

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Float32Array(PIECE);
    this.filled = 0;
    this.stopped = false;
    this.port.onmessage = () => {
      this.port.postMessage({ samples: this.piece.slice(0, this.filled), last: true });
      this.stopped = true;
    };
  }

  process([channels]) {
    const block = channels[0];
    if (block && !this.stopped) {
      for (const sample of block) {
        this.piece[this.filled++] = sample;
        if (this.filled === PIECE) {
          this.port.postMessage({ samples: this.piece.slice(), last: false });
          this.filled = 0;
        }
      }
    }
    return !this.stopped;
  }
}

registerProcessor("capture", Capture);

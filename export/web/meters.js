// Small pictures of what goes on: the loudness that comes in, and how long each chunk took.

import { countSamples } from "./audio.js";

const BARS = 96;

export class Bars {
  // limit: the value that fills the height; values above it are drawn in the colour of a warning.
  constructor(canvas, limit) {
    this.canvas = canvas;
    this.limit = limit;
    this.values = [];
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  clear() {
    this.values = [];
    this.draw();
  }

  push(value) {
    this.values.push(value);
    if (this.values.length > BARS) this.values.shift();
    this.draw();
  }

  draw() {
    const scale = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = clientWidth * scale;
    this.canvas.height = clientHeight * scale;
    const context = this.canvas.getContext("2d");
    context.scale(scale, scale);
    const style = getComputedStyle(this.canvas);
    const step = clientWidth / BARS;
    const empty = Array(BARS - this.values.length).fill(0); // a dotted line where nothing was yet
    [...empty, ...this.values].forEach((value, index) => {
      const height = Math.max(2, Math.min(1, value / this.limit) * clientHeight);
      const colour = value > this.limit ? "--warn" : index < empty.length && "--line";
      context.fillStyle = colour ? style.getPropertyValue(colour) : style.color;
      const x = index * step;
      context.beginPath();
      context.roundRect(x + 0.15 * step, this.canvas.dataset.middle ? (clientHeight - height) / 2 : clientHeight - height,
        0.7 * step, height, 0.35 * step);
      context.fill();
    });
  }
}

// Loudness of some pieces of samples, 0 at -60 dB and 1 at full scale.
export function loudness(pieces) {
  let sum = 0;
  for (const piece of pieces) for (const sample of piece) sum += sample * sample;
  const decibels = 10 * Math.log10(sum / Math.max(1, countSamples(pieces)) + 1e-12);
  return Math.max(0, 1 + decibels / 60);
}

export function percentile(values, fraction) {
  if (!values.length) return NaN;
  const sorted = [...values].sort((a, b) => a - b);
  const place = fraction * (sorted.length - 1);
  const low = Math.floor(place);
  return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

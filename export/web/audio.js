// Where samples come from: a microphone or a file, as mono 16 kHz; and where they can be kept.

import { Resampler } from "./resampler.js";

export const RATE = 16000;

// An audio thread that was halted may never say that it stopped.
const PATIENCE_MS = 1000;

// Calls onSamples(Float32Array) every 20 ms, onGone() where the microphone is taken away, and onPause(why) where
// it gives nothing for a while: null where it gives again. Returns a function that stops and waits for the rest.
export async function openMicrophone({ onSamples, onGone, onPause }) {
  if (!navigator.mediaDevices) throw new Error("browsers allow it only on https and localhost pages");
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
  });
  let source = null;
  const release = async () => {
    for (const track of stream.getTracks()) track.stop();
    if (source && source.context.state !== "closed") await source.context.close();
  };
  try {
    source = await connected(stream);
    const stop = await capture(source, onSamples);
    const [track] = stream.getAudioTracks();
    if (track.readyState === "ended") throw new Error("it has stopped");
    watch(source.context, track, onGone, onPause);
    return () => stop().finally(release);
  } catch (error) {
    await release(); // or the browser would go on showing that it listens
    throw error;
  }
}

// A call, a sleep or another program may halt the audio, and not all browsers start it again of themselves.
function watch(context, track, onGone, onPause) {
  const look = () => {
    if (context.state === "closed") return; // by us
    const halted = context.state !== "running";
    onPause(halted ? "interrupted" : track.muted ? "muted" : null);
    if (halted) context.resume().catch(() => onGone());
  };
  track.onended = onGone;
  track.onmute = track.onunmute = context.onstatechange = look;
  look();
}

// The stream in a context of 16 kHz, or of its own rate: Firefox may connect it to no other.
async function connected(stream) {
  for (const options of [{ sampleRate: RATE }, {}]) {
    const context = new AudioContext(options);
    try {
      return context.createMediaStreamSource(stream);
    } catch (error) {
      await context.close();
      if (!options.sampleRate) throw error;
    }
  }
}

async function capture(source, onSamples) {
  const { context } = source;
  await context.audioWorklet.addModule(new URL("./capture.js", import.meta.url));
  const node = new AudioWorkletNode(context, "capture", { channelCount: 1, channelCountMode: "explicit" });
  const resampler = context.sampleRate === RATE ? null : new Resampler(context.sampleRate, RATE);
  let done;
  const stopped = new Promise((resolve) => (done = resolve));
  const give = (samples) => samples.length && onSamples(samples);
  node.port.onmessage = ({ data }) => {
    give(resampler ? resampler.accept(data.samples) : data.samples);
    if (!data.last) return;
    if (resampler) give(resampler.flush());
    done();
  };
  source.connect(node).connect(context.destination);
  return () => {
    node.port.postMessage("stop");
    setTimeout(done, PATIENCE_MS);
    return stopped;
  };
}

// The samples of an audio file, resampled and mixed down by the browser.
export async function decodeFile(file) {
  const context = new OfflineAudioContext(1, 1, RATE);
  let buffer;
  try {
    buffer = await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} is not audio that this browser can decode`);
  }
  if (!buffer.length) throw new Error(`${file.name} contains no samples`);
  const mono = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const samples = buffer.getChannelData(channel);
    for (let i = 0; i < mono.length; i++) mono[i] += samples[i] / buffer.numberOfChannels;
  }
  return { mono, buffer };
}

// Plays it. Returns a function that stops before the end.
export function play(buffer) {
  const context = new AudioContext();
  const source = context.createBufferSource();
  source.buffer = buffer;
  source.connect(context.destination);
  source.onended = () => context.close();
  source.start();
  return () => source.stop();
}

export function countSamples(pieces) {
  return pieces.reduce((sum, piece) => sum + piece.length, 0);
}

// A WAV file of 32-bit floats: exactly what the model heard.
export function encodeWav(pieces) {
  const count = countSamples(pieces);
  const view = new DataView(new ArrayBuffer(44 + 4 * count));
  const text = (at, string) => [...string].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 4 * count, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 3, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, 4 * RATE, true);
  view.setUint16(32, 4, true);
  view.setUint16(34, 32, true);
  text(36, "data");
  view.setUint32(40, 4 * count, true);
  let at = 44;
  for (const piece of pieces) for (const sample of piece) view.setFloat32((at += 4) - 4, sample, true);
  return new Blob([view], { type: "audio/wav" });
}

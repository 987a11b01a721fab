// Where samples come from: a microphone or a file, as mono 16 kHz; and where they can be kept.

export const RATE = 16000;

// Calls onSamples(Float32Array) every 100 ms. Returns a function that stops and waits for the rest.
export async function openMicrophone(onSamples) {
  if (!navigator.mediaDevices) throw new Error("browsers give it to https and localhost pages only");
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
  });
  const context = new AudioContext({ sampleRate: RATE });
  await context.audioWorklet.addModule(new URL("./capture.js", import.meta.url));
  const capture = new AudioWorkletNode(context, "capture", { channelCount: 1, channelCountMode: "explicit" });
  let done;
  const stopped = new Promise((resolve) => (done = resolve));
  capture.port.onmessage = ({ data }) => {
    if (data.samples.length) onSamples(data.samples);
    if (data.last) done();
  };
  context.createMediaStreamSource(stream).connect(capture).connect(context.destination);
  return async () => {
    capture.port.postMessage("stop");
    await stopped;
    for (const track of stream.getTracks()) track.stop();
    await context.close();
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
  if (!buffer.length) throw new Error(`${file.name} holds no samples`);
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

// A WAV file of 32-bit floats: exactly what the model heard.
export function encodeWav(pieces) {
  const count = pieces.reduce((sum, piece) => sum + piece.length, 0);
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

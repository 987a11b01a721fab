// Loads the model and computes beside the page, so that the page stays fluent.
// in:  {type: "load", precision} {type: "start", rules} {type: "samples", samples} {type: "finish"}
// out: {type: "ready", …} {type: "update", …} {type: "final", …} {type: "error", message}

import * as ort from "./ort/ort.wasm.min.mjs";
import { Session, parseTokens } from "./session.js";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1;

let model = null;
let symbols = null;
let session = null;
let chunks = [];
let queue = Promise.resolve();

const handlers = { load, start, samples, finish };

self.onmessage = ({ data }) => {
  queue = queue.then(() => handlers[data.type](data)).catch((error) => {
    session = null; // what still comes of this recording is of no use
    self.postMessage({ type: "error", message: String(error.message ?? error) });
  });
};

async function fetched(path) {
  // "no-cache": a card and weights that were kept at different times may not belong together.
  const response = await fetch(new URL(path, import.meta.url), { cache: "no-cache" }).catch(() => {
    throw new Error(`${path} cannot be loaded: no network, and no copy of it was kept`);
  });
  if (!response.ok) throw new Error(`${path} cannot be loaded (${response.status})`);
  return response;
}

// The weights that the card means: a length tells what is cut off, a hash what is another model's.
async function fetchedWeights({ file, bytes, sha256 }) {
  const weights = new Uint8Array(await (await fetched(`./model/${file}`)).arrayBuffer());
  if (weights.length !== bytes) {
    throw new Error(`${file} has ${weights.length} bytes, not ${bytes}: it is truncated or of another export`);
  }
  // Browsers hash on https and localhost pages only.
  const hash = crypto.subtle && new Uint8Array(await crypto.subtle.digest("SHA-256", weights));
  if (hash && Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("") !== sha256) {
    throw new Error(`${file} is of another export than model.json: load the page again`);
  }
  return weights;
}

async function load({ precision }) {
  const began = performance.now();
  const card = await (await fetched("./model/model.json")).json();
  if (card.format !== "kdasr-export" || card.version !== 1 || card.file_format !== "wave-onnx") {
    throw new Error("model.json is not the card of a wave-onnx export of this version: export the model again");
  }
  const table = parseTokens(await (await fetched("./model/tokens.txt")).text());
  if (table.length !== Number(card.metadata.vocab_size) || table.includes(undefined)) {
    throw new Error(`tokens.txt has ${table.length} symbols, but the model ${card.metadata.vocab_size} classes`);
  }
  const chosen = card.files[precision] ? precision : "float32";
  const entry = card.files[chosen];
  const runtime = await ort.InferenceSession.create(await fetchedWeights(entry), { executionProviders: ["wasm"] });
  const loaded = chunkModel(runtime, card.metadata);
  await loaded.step({ samples: new Float32Array(loaded.numSamples), validFrames: loaded.window }, loaded.initialState());
  [model, symbols] = [loaded, table]; // only now: until here an earlier model is whole and in use
  self.postMessage({
    type: "ready",
    card,
    precision: chosen,
    bytes: entry.bytes,
    chunkMs: 10 * model.shift,
    milliseconds: performance.now() - began,
  });
}

function chunkModel(runtime, metadata) {
  const stateSize = Number(metadata.state_floats) + 1;
  const numSamples = Number(metadata.num_samples);
  return {
    window: Number(metadata.T),
    shift: Number(metadata.decode_chunk_len),
    subsampling: Number(metadata.subsampling),
    vocabSize: Number(metadata.vocab_size),
    numSamples,
    initialState: () => new Float32Array(stateSize),
    async step(window, state) {
      const out = await runtime.run({
        samples: new ort.Tensor("float32", window.samples, [1, numSamples]),
        valid_frames: new ort.Tensor("float32", [window.validFrames], [1]),
        state: new ort.Tensor("float32", state, [1, stateSize]),
      });
      return { logProbs: out.log_probs.data, frames: out.log_probs.dims[1], state: out.new_state.data };
    },
  };
}

function start({ rules }) {
  session = new Session(model, symbols, rules);
  chunks = [];
}

async function samples({ samples }) {
  if (!session) return;
  await session.accept(samples, (milliseconds) => chunks.push(milliseconds));
  if (chunks.length) report("update"); // else nothing was computed, and all is as it was
}

async function finish() {
  if (!session) return;
  await session.finish((milliseconds) => chunks.push(milliseconds));
  report("final");
  session = null; // nothing comes after its end
}

// All but the seconds is what is new since the last report, so that a long file takes linear time.
function report(type) {
  self.postMessage({
    type,
    news: session.news(),
    segments: session.segments.splice(0),
    seconds: session.numSamples / 16000,
    chunks: chunks.splice(0),
  });
}

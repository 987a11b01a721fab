// Loads the model and computes beside the page, so that the page stays fluent.
// in:  {type: "load", precision or null} {type: "start", rules} {type: "samples", samples} {type: "finish"}
// out: {type: "ready", …} {type: "update", …} {type: "final", …} {type: "error", message}
//      A recording that an error ends has its final first.

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
  queue = queue.then(() => handlers[data.type](data)).catch(fail);
};

// Of a recording that an error ends, what was heard until then is given all the same.
async function fail(error) {
  if (session) await finish().catch(() => report("final"));
  session = null; // what still comes of this recording is of no use
  self.postMessage({ type: "error", message: String(error.message ?? error) });
}

async function fetched(path) {
  // "no-cache": a card and weights cached at different times may not belong together.
  const response = await fetch(new URL(path, import.meta.url), { cache: "no-cache" }).catch(() => {
    throw new Error(`${path} cannot be loaded: the server does not answer`);
  });
  if (!response.ok) throw new Error(`${path} cannot be loaded (${response.status})`);
  return response;
}

// The weights of the chosen precision, or of the first that is there: a folder may be without one of them.
async function fetchedWeights(files, chosen) {
  const named = files[chosen] ? [chosen] : ["int8", "float32"].filter((precision) => files[precision]);
  let trouble = new Error("model.json names no weights: export the model again");
  for (const precision of named) {
    const response = await fetched(`./model/${files[precision].file}`).catch((error) => {
      trouble = error;
    });
    if (response) return { precision, weights: await checkedWeights(response, files[precision]) };
  }
  throw trouble;
}

// The weights that the card means: a length tells what is cut off, a hash what is another model's.
async function checkedWeights(response, { file, bytes, sha256 }) {
  const weights = new Uint8Array(await response.arrayBuffer());
  if (weights.length !== bytes) {
    throw new Error(`${file} has ${weights.length} bytes, not ${bytes}: it is truncated or from another export`);
  }
  // Browsers hash on https and localhost pages only.
  const hash = crypto.subtle && new Uint8Array(await crypto.subtle.digest("SHA-256", weights));
  if (hash && Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("") !== sha256) {
    throw new Error(`${file} is from another export than model.json: reload the page`);
  }
  return weights;
}

async function load({ precision: chosen }) {
  const began = performance.now();
  session = null; // of a recording that the page gave up: its model may go
  const card = await (await fetched("./model/model.json")).json();
  if (card.format !== "kdasr-export" || card.version !== 1 || card.file_format !== "wave-onnx") {
    throw new Error("model.json is not the card of a wave-onnx export of this version: export the model again");
  }
  const table = parseTokens(await (await fetched("./model/tokens.txt")).text());
  if (table.length !== Number(card.metadata.vocab_size) || table.includes(undefined)) {
    throw new Error(`tokens.txt has ${table.length} symbols, but the model has ${card.metadata.vocab_size} classes`);
  }
  const { precision, weights } = await fetchedWeights(card.files, chosen);
  const runtime = await ort.InferenceSession.create(weights, { executionProviders: ["wasm"] });
  const loaded = await triedModel(runtime, card.metadata);
  const earlier = model;
  [model, symbols] = [loaded, table]; // only now: until here an earlier model is whole and in use
  await earlier?.release();
  self.postMessage({
    type: "ready",
    card,
    precision,
    bytes: weights.length,
    chunkMs: 10 * model.shift,
    milliseconds: performance.now() - began,
  });
}

// The model, once it computed a window. What runs it is memory that no garbage collector gives back.
async function triedModel(runtime, metadata) {
  try {
    const tried = chunkModel(runtime, metadata);
    await tried.step({ samples: new Float32Array(tried.numSamples), validFrames: tried.window }, tried.initialState());
    return tried;
  } catch (error) {
    await runtime.release();
    throw error;
  }
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
    release: () => runtime.release(),
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
  session = null; // or an error here would end what was heard before
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

// The page: buttons, text and figures. Computing is in worker.js.

import { countSamples, decodeFile, encodeWav, openMicrophone, play, RATE } from "./audio.js";
import { Bars, loudness, percentile } from "./meters.js";

const PIECE = RATE / 10; // of a file; those of a microphone are shorter
const BAR_SAMPLES = RATE / 10; // of a bar of loudness
// What is kept of a stream that may run for hours: for the figures, and for "Save".
const KEPT_CHUNKS = 1000;
const KEPT_SAMPLES = 600 * RATE; // ten minutes
// Characters after which a new paragraph begins: of what is not final yet, browsers lay out the last alone.
const PARAGRAPH = 500;
const PRECISIONS = { int8: "8 bit", float32: "32 bit" };
// When a live stretch is over, as `kdasr transcribe` has it.
const RULES = { minSilence: 1.0, maxSegment: 20.0 };

const $ = (id) => document.getElementById(id);
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const levels = new Bars($("loudness"), 1);
const lastWord = document.createElement("span"); // of what is not final yet: it may still grow
let times = null; // bars of chunk times, once the length of a chunk is known
let ready = null; // what the worker said of the model
let recording = null; // what is or was heard: pieces of samples, milliseconds of the last chunks and of all
let stop = null; // ends what is live, the microphone or a file that is listened to
let busy = false;

function status(text, state) {
  $("status").textContent = text;
  $("status").dataset.state = state;
}

function fail(error) {
  if (recording) recording.failed = true;
  setStop(null)?.();
  if (ready) $("precision").value = ready.precision;
  status(error.message ?? String(error), "error");
  $("hint").hidden = $("segments").children.length > 0 || !$("nothing").hidden;
  $("partial").hidden = true;
  setBusy(false);
}

function setBusy(value) {
  busy = value;
  $("file").disabled = value || !ready;
  $("precision").disabled = value || !ready;
  $("microphone").disabled = !ready || (value && !stop);
}

// Makes `end` what the large button does, or null for nothing to end. Returns what it was.
function setStop(end) {
  const before = stop;
  stop = end;
  $("microphone").setAttribute("aria-pressed", String(Boolean(end)));
  $("microphone").querySelector("span").textContent = end ? "Stop" : "Speak";
  setBusy(busy);
  return before;
}

function begin(name, rules) {
  recording = { heard: [], kept: 0, shortened: false, unshown: [], chunkTimes: [], computed: 0, failed: false };
  Object.assign(recording, { doing: null, paused: null, spoilt: false, troubles: [] }); // what is said of it
  levels.clear();
  times.clear();
  for (const name of ["p50", "p95", "rtf"]) $(name).textContent = "–";
  $("hint").hidden = $("nothing").hidden = true;
  $("segments").replaceChildren();
  $("partial").hidden = false;
  showPartial({ anew: true, words: [], open: "" });
  $("source").textContent = name;
  $("copy").disabled = $("save").disabled = true;
  setBusy(true);
  worker.postMessage({ type: "start", rules });
  return recording;
}

// Samples and the end of a recording that failed may come late: they are not to reach the next one.
function isLive(target) {
  return target === recording && !target.failed;
}

// Says what is done with a recording from now on, or what keeps it from being done.
function showDoing(target, doing = target.doing) {
  target.doing = doing;
  if (!isLive(target) || !doing) return;
  const listens = doing === "listening";
  if (listens && target.paused) status(`the microphone is ${target.paused}`, "interrupted");
  else status(target.spoilt ? `${doing} (invalid samples are silenced)` : doing, listens ? "listening" : "working");
}

// Silence in place of samples that are no numbers: what a driver does wrong for a moment ends no recording.
function mend(target, samples) {
  if (samples.every(Number.isFinite)) return;
  samples.forEach((sample, i) => Number.isFinite(sample) || (samples[i] = 0));
  if (target.spoilt) return;
  target.spoilt = true;
  target.troubles.push("Some samples were NaN or infinite and were replaced by silence");
  showDoing(target);
}

function feed(target, samples) {
  if (!isLive(target)) return;
  mend(target, samples);
  keep(target, samples);
  showLoudness(target, samples);
  worker.postMessage({ type: "samples", samples });
}

function keep(target, samples) {
  target.heard.push(samples);
  target.kept += samples.length;
  while (target.kept > KEPT_SAMPLES) {
    target.kept -= target.heard.shift().length;
    target.shortened = true;
  }
}

function showLoudness(target, samples) {
  target.unshown.push(samples);
  if (countSamples(target.unshown) < BAR_SAMPLES) return;
  levels.push(loudness(target.unshown));
  target.unshown = [];
}

function finish(target) {
  if (isLive(target)) worker.postMessage({ type: "finish" });
}

// ------------------------------------------------------------------ sources

// Ends what is live. `trouble` is what the page then says in place of "ready".
async function end(trouble) {
  const target = recording;
  if (trouble) target.troubles.push(trouble);
  showDoing(target, "finishing");
  await setStop(null)();
  finish(target);
}

async function toggle() {
  if (stop) return end(null);
  const target = begin("microphone", RULES);
  status("opening the microphone", "working");
  const onSamples = (samples) => feed(target, samples);
  const onGone = () => isLive(target) && stop && end("The microphone has stopped: its audio is kept").catch(fail);
  const onPause = (why) => {
    target.paused = why;
    showDoing(target);
  };
  let close;
  try {
    close = await openMicrophone({ onSamples, onGone, onPause });
  } catch (error) {
    fail(new Error(`The microphone cannot be used: ${error.message}`));
    return;
  }
  if (!isLive(target)) return close();
  setStop(close);
  showDoing(target, "listening");
}

async function transcribeFile(file) {
  if (!file || busy || !ready) return;
  const target = begin(file.name, null);
  showDoing(target, "working");
  try {
    const { mono, buffer } = await decodeFile(file);
    if ($("listen").checked) await feedAlong(target, mono, buffer);
    else for (let start = 0; start < mono.length; start += PIECE) feed(target, mono.slice(start, start + PIECE));
    finish(target);
  } catch (error) {
    fail(error);
  }
}

// Feeds the samples while the file is heard, at the pace of a clock, to its end or until it is stopped.
async function feedAlong(target, mono, buffer) {
  let stopped = false;
  const silence = play(buffer);
  setStop(() => {
    stopped = true;
    silence();
  });
  const began = performance.now();
  for (let start = 0; start < mono.length; start += PIECE) {
    const due = began + (1000 * (start + PIECE)) / RATE;
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, due - performance.now())));
    if (stopped) return;
    feed(target, mono.slice(start, start + PIECE));
  }
  setStop(null);
}

// ------------------------------------------------------------------ what the worker says

const says = {
  ready(data) {
    ready = data;
    times ??= new Bars($("chunks"), 1);
    times.limit = data.chunkMs / 10;
    $("latency").textContent = `${Math.round(data.card.streaming.latency_ms)} ms`;
    $("size").textContent = `${(data.bytes / 1e6).toFixed(1)} MB`;
    const parameters = data.card.student.parameters;
    $("size-what").textContent = parameters ? `${(parameters / 1e6).toFixed(2)} M parameters` : "model";
    $("source").textContent = data.card.name;
    const named = Object.keys(PRECISIONS).filter((precision) => data.card.files[precision]);
    $("precision").replaceChildren(...named.map((precision) => new Option(PRECISIONS[precision], precision)));
    $("precision").value = data.precision;
    status("ready", "ready");
    setBusy(false);
  },
  update(data) {
    if (recording.failed) return;
    showText(data);
    showChunks(data);
  },
  final(data) {
    if (recording.failed) return;
    showText(data);
    showChunks(data);
    $("partial").hidden = true;
    $("save").textContent = recording.shortened ? "Save the last 10 minutes" : "Save the audio";
    const texts = Array.from(document.querySelectorAll("#segments span"), (span) => span.textContent);
    document.body.dataset.text = texts.join(" ");
    $("nothing").hidden = texts.length > 0;
    $("copy").disabled = !texts.length;
    $("save").disabled = false;
    recording.doing = null;
    if (recording.troubles.length) status(recording.troubles.join(". "), "error");
    else status("ready", "ready");
    setBusy(false);
  },
  error: fail,
};

worker.onmessage = ({ data }) => says[data.type](data);
worker.onerror = (event) => fail(new Error(event.message || "The worker could not be started"));

function showText({ segments, news }) {
  const list = $("segments");
  for (const segment of segments) {
    const item = document.createElement("li");
    const time = document.createElement("time");
    const text = document.createElement("span");
    const minutes = Math.floor(segment.start / 60);
    time.textContent = `${minutes}:${(segment.start % 60).toFixed(1).padStart(4, "0")}`;
    text.textContent = segment.text;
    item.append(time, text);
    list.append(item);
  }
  showPartial(news);
}

function showPartial({ anew, words, open }) {
  const partial = $("partial");
  if (anew) partial.replaceChildren();
  lastWord.textContent = open;
  for (const piece of [...words.map((text) => `${text} `), lastWord]) {
    if (!(partial.lastChild?.textContent.length < PARAGRAPH)) partial.append(document.createElement("span"));
    partial.lastChild.append(piece);
  }
}

function showChunks({ chunks, seconds }) {
  const { chunkTimes } = recording;
  for (const milliseconds of chunks) {
    chunkTimes.push(milliseconds);
    if (chunkTimes.length > KEPT_CHUNKS) chunkTimes.shift();
    recording.computed += milliseconds;
    times.push(milliseconds);
  }
  if (!chunkTimes.length) return;
  $("p50").textContent = `${percentile(chunkTimes, 0.5).toFixed(1)} ms`;
  $("p95").textContent = `${percentile(chunkTimes, 0.95).toFixed(1)} ms`;
  $("rtf").textContent = `${(recording.computed / Math.max(10 * seconds, 1)).toFixed(1)} %`;
}

// ------------------------------------------------------------------ the rest of the page

$("microphone").onclick = () => toggle().catch(fail);
$("file").onchange = ({ target }) => transcribeFile(target.files[0]).finally(() => (target.value = ""));
$("choose").onkeydown = ({ key }) => (key === "Enter" || key === " ") && $("file").click();
$("precision").onchange = ({ target }) => {
  status("loading the model", "loading");
  setBusy(true);
  worker.postMessage({ type: "load", precision: target.value });
};
$("copy").onclick = () => navigator.clipboard.writeText(document.body.dataset.text);
$("save").onclick = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(encodeWav(recording.heard));
  link.download = "heard.wav";
  link.click();
  URL.revokeObjectURL(link.href);
};
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", name === "dragover");
    if (name === "drop") transcribeFile(event.dataTransfer.files[0]);
  });
}
worker.postMessage({ type: "load", precision: null }); // of those that there are, the smaller one
removeEarlierWorker().catch(() => {}); // private windows and pages without https have none

// An earlier version of this page registered a service worker, which would go on answering for whatever program
// comes next at this address. The cache tells it from a worker of such a program.
async function removeEarlierWorker() {
  if (await caches.delete("kdasr")) await (await navigator.serviceWorker.getRegistration())?.unregister();
}

// The worker takes steps, each of them messages up to the last one's answer. What it posts is written as JSON, and
// how many models the runtime holds after each step. In place of ONNX Runtime it has one whose weights are the
// classes that it says, and files in place of a network. Samples are told as {type: "samples", all: VALUE}.
// usage: node worker.mjs PAGE_FOLDER < {steps: [{messages, until: TYPE}]}
import { readFileSync } from "node:fs";

const folder = process.argv[2];
const posted = [];
const held = [];
let heard = () => {};
globalThis.self = globalThis;
globalThis.fetch = async (url) => new Response(readFileSync(url));
globalThis.postMessage = (message) => {
  posted.push(message);
  heard(message);
};
await import(`${folder}/worker.js`);
const { models } = await import(`${folder}/ort/ort.wasm.min.mjs`);

function take({ messages, until }) {
  return new Promise((resolve, reject) => {
    heard = ({ type, message }) => (type === until ? resolve() : type === "error" && reject(new Error(message)));
    for (const { all, ...data } of messages) {
      self.onmessage({ data: all === undefined ? data : { ...data, samples: new Float32Array(1600).fill(all) } });
    }
  });
}

for (const step of JSON.parse(readFileSync(0)).steps) {
  await take(step);
  held.push(models.size);
}
console.log(JSON.stringify({ posted, held }));

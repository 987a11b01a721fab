// The worker hears a file of silence in pieces of 100 ms; what it posts is written as JSON. In place of ONNX
// Runtime it has one whose weights are the classes that it says, and files in place of a network.
// usage: node long_file.mjs PAGE_FOLDER SECONDS
import { readFileSync } from "node:fs";

const [, , folder, seconds] = process.argv;
const posted = [];
let heard = () => {};
globalThis.self = globalThis;
globalThis.fetch = async (url) => new Response(readFileSync(url));
globalThis.postMessage = (message) => {
  posted.push(message);
  heard(message.type);
};
await import(`${folder}/worker.js`);

// Sends messages, the last of which is answered with such a type.
function send(messages, type) {
  return new Promise((resolve, reject) => {
    heard = (found) => (found === type ? resolve() : found === "error" && reject(new Error(posted.at(-1).message)));
    for (const data of messages) self.onmessage({ data });
  });
}

const pieces = Array.from({ length: 10 * seconds }, () => ({ type: "samples", samples: new Float32Array(1600) }));
await send([{ type: "load", precision: null }], "ready");
await send([{ type: "start", rules: null }, ...pieces, { type: "finish" }], "final");
console.log(JSON.stringify(posted));

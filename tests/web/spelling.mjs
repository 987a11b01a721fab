// A session hears classes, a window at a time. Its text, and what it tells of it piece by piece, is held to
// all tokens spelt anew, and the symbols that it looks up for it are counted.
// usage: node spelling.mjs PAGE_FOLDER < {symbols, ids, frames, rules, every}
import { readFileSync } from "node:fs";
import { modelOf } from "./model_of_classes.mjs";

const { Session, decode } = await import(`${process.argv[2]}/session.js`);
const { symbols, ids, frames, rules, every } = JSON.parse(readFileSync(0));
let lookedUp = 0;
const counting = new Proxy(symbols, {
  get(target, key) {
    lookedUp += /^\d+$/.test(key);
    return target[key];
  },
});
const session = new Session(modelOf(symbols, ids, frames), counting, rules);
const shown = [];
const wrong = [];
let compared = 0;

function look(compares) {
  const { anew, words, open } = session.news();
  if (anew) shown.length = 0;
  shown.push(...words);
  if (!compares) return;
  const expected = decode(session.tokens, symbols, 25);
  const texts = [session.text, [...shown, open].filter(Boolean).join(" ")];
  compared += expected.length > 0;
  if (texts.some((text) => text !== expected)) wrong.push([expected, ...texts]);
}

const pieces = Math.ceil((ids.length * 640) / 1600);
for (let piece = 0; piece < pieces; piece++) {
  await session.accept(new Float32Array(1600));
  look(piece % every === 0);
}
await session.finish();
look(true);
console.log(JSON.stringify({ segments: session.segments, wrong, compared, lookedUp }));

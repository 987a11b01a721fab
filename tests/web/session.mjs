// What `code` makes of a session, as JSON. It has `session` and `piece(number)`, 100 ms of samples.
// usage: node session.mjs PAGE_FOLDER < {code, symbols, ids, frames, fails}
import { readFileSync } from "node:fs";
import { modelOf } from "./model_of_classes.mjs";

const { Session } = await import(`${process.argv[2]}/session.js`);
const { code, symbols, ids, frames, fails } = JSON.parse(readFileSync(0));
const session = new Session(modelOf(symbols, ids, frames, fails ?? undefined), symbols);
const piece = (number = 0) => new Float32Array(1600).fill(number / 100);
const said = (promise) => promise.then(() => "done", (error) => error.message);
const AsyncFunction = (async () => {}).constructor;
console.log(JSON.stringify(await new AsyncFunction("session", "piece", "said", code)(session, piece, said)));

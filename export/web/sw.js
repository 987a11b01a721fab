// Keeps everything that the page needs, so that it works without a network once it was loaded.
// The network comes first: a new model or a new page is never hidden behind an old copy.
// A model's files are kept together or not at all: weights beside another model's card would be a lie.

const CACHE = "kdasr";
const SHELL = [
  "./", "style.css", "app.js", "audio.js", "capture.js", "resampler.js", "session.js", "windows.js", "worker.js",
  "meters.js", "icon.svg",
  "ort/ort.wasm.min.mjs", "ort/ort-wasm-simd-threaded.mjs", "ort/ort-wasm-simd-threaded.wasm",
];
const CARD = "model/model.json";

async function download(path) {
  const response = await fetch(path, { cache: "no-cache" });
  if (!response.ok) throw new Error(`${path} cannot be loaded (${response.status})`);
  return [path, new Response(await response.blob(), { headers: response.headers })];
}

async function keepModel(cache) {
  const [, card] = await download(CARD);
  const { files } = await card.clone().json();
  const paths = ["model/tokens.txt", ...Object.values(files).map(({ file }) => `model/${file}`)];
  const whole = await Promise.all(paths.map(download));
  await cache.delete(CARD);
  for (const [path, response] of whole) await cache.put(path, response);
  await cache.put(CARD, card); // last: it says that the others are there
}

async function keepAll() {
  const cache = await caches.open(CACHE);
  await cache.addAll(SHELL.map((path) => new Request(path, { cache: "no-cache" })));
  await keepModel(cache);
}

async function keepOtherModel(cache, card) {
  const kept = await cache.match(CARD);
  if (!kept || (await kept.text()) !== (await card.text())) await keepModel(cache);
}

async function networkFirst(event) {
  const { request } = event;
  const path = request.url.slice(self.registration.scope.length);
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok && path === CARD) event.waitUntil(keepOtherModel(cache, response.clone()));
    if (response.ok && !path.startsWith("model/")) await cache.put(request, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}

self.addEventListener("install", (event) => event.waitUntil(keepAll().then(() => self.skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET") event.respondWith(networkFirst(event));
});

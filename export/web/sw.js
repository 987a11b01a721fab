// Keeps everything that the page needs, so that it works without a network once it was loaded.
// The network comes first: a new model or a new page is never hidden behind an old copy.

const CACHE = "kdasr";
const SHELL = [
  "./", "style.css", "app.js", "audio.js", "capture.js", "session.js", "windows.js", "worker.js", "meters.js",
  "icon.svg", "ort/ort.wasm.min.mjs", "ort/ort-wasm-simd-threaded.mjs", "ort/ort-wasm-simd-threaded.wasm",
  "model/model.json", "model/tokens.txt",
];

async function keepAll() {
  const cache = await caches.open(CACHE);
  await cache.addAll(SHELL);
  const card = await (await cache.match("model/model.json")).json();
  await cache.addAll(Object.values(card.files).map((entry) => `model/${entry.file}`));
}

async function networkFirst(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone());
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
  if (event.request.method === "GET") event.respondWith(networkFirst(event.request));
});

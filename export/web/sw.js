// Keeps the page, so that it works without a network once it was loaded; kept.js keeps the model beside it.
// The network comes first: a new model or a new page is never hidden behind an old copy.

const CACHE = "kdasr";
const SHELL = [
  "./", "style.css", "app.js", "audio.js", "capture.js", "kept.js", "resampler.js", "session.js", "windows.js",
  "worker.js", "meters.js", "icon.svg",
  "ort/ort.wasm.min.mjs", "ort/ort-wasm-simd-threaded.mjs", "ort/ort-wasm-simd-threaded.wasm",
];

async function keepPage() {
  const cache = await caches.open(CACHE);
  await cache.addAll(SHELL.map((path) => new Request(path, { cache: "no-cache" })));
}

async function networkFirst(event) {
  const { request } = event;
  const path = request.url.slice(self.registration.scope.length);
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok && !path.startsWith("model/")) await cache.put(request, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}

self.addEventListener("install", (event) => event.waitUntil(keepPage().then(() => self.skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET") event.respondWith(networkFirst(event));
});

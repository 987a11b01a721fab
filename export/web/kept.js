// Keeps the model that runs, so that it runs without a network. sw.js gives what is kept.
// Of a model that is loaded this is the card, the symbols and the weights that are in use: other weights are
// not asked for, and need not be there.

const CACHE = "kdasr"; // that of sw.js

// folder: address of the model's folder. files: their contents by name, of the model that the card describes.
export async function keepModel(folder, card, files) {
  const cache = await caches.open(CACHE);
  const place = `${folder}model.json`;
  const kept = await cache.match(place);
  // Weights beside another model's card would be a lie: of one model only, and the card is there last.
  if (!kept || (await kept.text()) !== card) await forget(cache, folder);
  for (const [name, content] of Object.entries(files)) await keep(cache, folder + name, content);
  await keep(cache, place, card);
}

async function forget(cache, folder) {
  await cache.delete(`${folder}model.json`); // first: it says that the others are there
  for (const { url } of await cache.keys()) if (url.startsWith(folder)) await cache.delete(url);
}

async function keep(cache, address, content) {
  if (!(await cache.match(address))) await cache.put(address, new Response(content));
}

// The page without a network: its own files are kept for one version as a whole, and a new version takes over when the
// last tab of the old one is closed. Weights are not handled here: model_cache.js keeps them.

/** @typedef {{version: string, files: string[]}} Precache */

/** @type {ServiceWorkerGlobalScope & {PRECACHE: Precache}} */
const worker = /** @type {any} */ (self);

importScripts('precache.js');

const SCOPE = new URL('.', worker.location.href);
const PREFIX = `moebius-page ${SCOPE.pathname} `;
const CURRENT = PREFIX + worker.PRECACHE.version;
const FILES = new Set(worker.PRECACHE.files.map((name) => new URL(name, SCOPE).href));

/** With these a browser gives the page threads, also on a host that cannot send them. */
const ISOLATION = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' };

worker.addEventListener('install', (event) => {
  event.waitUntil(
    caches.open(CURRENT).then((cache) => cache.addAll([...FILES].map((url) => new Request(url, { cache: 'reload' })))),
  );
});

worker.addEventListener('activate', (event) => {
  const old = caches.keys().then((names) => names.filter((name) => name.startsWith(PREFIX) && name !== CURRENT));
  event.waitUntil(old.then((names) => Promise.all(names.map((name) => caches.delete(name)))).then(() => worker.clients.claim()));
});

worker.addEventListener('fetch', (event) => {
  const url = new URL(event.request.url);
  url.search = '';
  url.hash = '';
  if (url.href === SCOPE.href) url.pathname += 'index.html';
  if (event.request.method !== 'GET' || !FILES.has(url.href)) return;
  event.respondWith(answer(url.href, event.request));
});

/**
 * @param {string} url
 * @param {Request} request
 */
async function answer(url, request) {
  const kept = await (await caches.open(CURRENT)).match(url);
  const response = kept ?? (await fetch(request));
  if (!response.ok) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATION)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

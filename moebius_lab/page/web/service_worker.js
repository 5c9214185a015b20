// The page without a network, and the newest page with one. Files of a version lie in a folder that bears its name, and are
// kept together: what a page has begun with, it goes on with. Weights are not handled here: model_cache.js keeps them.

/** @typedef {{version: string, files: string[]}} Precache */

/** @type {ServiceWorkerGlobalScope & {PRECACHE: Precache}} */
const worker = /** @type {any} */ (self);

importScripts('precache.js');

const { version: VERSION, files: FILES } = worker.PRECACHE;
const SCOPE = new URL('.', worker.location.href);
const PREFIX = `moebius-page ${SCOPE.pathname} `; // of the names of caches and of the locks that open pages hold, one a version
const CURRENT = PREFIX + VERSION;
const NEWEST = ['index.html', 'manifest.json']; // whose addresses stay while their content changes
const PATIENCE = 4000; // ms that the network may take for one of them before the kept one is shown

/** With these a browser gives the page threads, also on a host that cannot send them. */
const ISOLATION = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' };

worker.addEventListener('install', (event) => event.waitUntil(keep().then(() => worker.skipWaiting())));
worker.addEventListener('activate', (event) => event.waitUntil(tidy().then(() => worker.clients.claim())));

worker.addEventListener('fetch', (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== 'GET' || !url.href.startsWith(SCOPE.href)) return;
  const name = url.pathname.slice(SCOPE.pathname.length) || 'index.html';
  const version = url.searchParams.get('version');
  if (NEWEST.includes(name)) event.respondWith(version ? kept(name, request, [PREFIX + version]) : newest(name, request));
  else if (name.startsWith('page-') || FILES.includes(name)) event.respondWith(kept(name, request));
});

/** Keep this version's files, all or none: while a site is being replaced some may still be of another. */
async function keep() {
  try {
    const cache = await caches.open(CURRENT);
    await cache.addAll(FILES.map((name) => new Request(new URL(name, SCOPE), { cache: 'no-cache' })));
    for (const name of NEWEST) {
      const text = await (await cache.match(address(name)))?.text();
      if (!text?.includes(VERSION)) throw new Error(`${name} is of another version`);
    }
  } catch (error) {
    await caches.delete(CURRENT);
    throw error;
  }
}

/** Remove the versions that no page runs any more. */
async function tidy() {
  const { held = [] } = await worker.navigator.locks.query();
  const open = new Set(held.map((lock) => lock.name));
  for (const name of await versions()) if (name !== CURRENT && !open.has(name)) await caches.delete(name);
}

async function versions() {
  return (await caches.keys()).filter((name) => name.startsWith(PREFIX));
}

/** @param {string} name */
function address(name) {
  return new URL(name, SCOPE).href;
}

/**
 * A file that never changes: the kept one.
 *
 * @param {string} name
 * @param {Request} request
 * @param {string[]} [where] caches
 */
async function kept(name, request, where) {
  for (const cache of where ?? [CURRENT, ...(await versions())]) {
    const found = (await caches.has(cache)) && (await (await caches.open(cache)).match(address(name)));
    if (found) return isolated(found);
  }
  return isolated(await fetch(request));
}

/**
 * A file that changes: the server's, or the kept one where the server does not answer.
 *
 * @param {string} name
 * @param {Request} request
 */
async function newest(name, request) {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), PATIENCE);
  const answer = await fetch(new Request(request, { cache: 'no-cache' }), { signal: abort.signal }).catch(() => null);
  clearTimeout(timer);
  if (answer && (answer.ok || answer.type === 'opaqueredirect')) return isolated(answer);
  const found = await (await caches.open(CURRENT)).match(address(name));
  return found ? isolated(found) : (answer ?? Response.error());
}

/** @param {Response} response */
function isolated(response) {
  if (!response.ok) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATION)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

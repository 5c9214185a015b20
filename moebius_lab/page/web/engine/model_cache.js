// The files of a model: fetched a few at a time, each checked by its SHA-256 and kept in Cache Storage under that hash,
// so that a broken download goes on at the file where it broke, and a new version fetches only what it changed.

import { EngineError, cancelled } from './errors.js';

/** @import { Examined, Files, LoadProgress, Manifest, StoredEntry, StoredFile, Wanted } from './types.js' */
/** @import { Formula } from './recorded/weights.js' */

const PARALLEL = 4; // downloads at a time
const ATTEMPTS = 4; // of one file, when the connection breaks
const FIRST_PAUSE = 500; // ms before the second attempt; doubles
const RATE_WINDOW = 4000; // ms over which the rate is taken
const REPORT_EVERY = 100; // ms
const DAMAGED = 'A stored file was damaged and is fetched again.';
const UNKEPT = 'This browser does not let the page keep files: the model will be fetched again next time.';

export class ModelCache {
  /**
   * @param {URL} manifestUrl files of one page are kept apart from those of another on the same host
   * @param {Manifest} manifest
   * @param {MessagePort} [helper] to helper.js
   */
  constructor(manifestUrl, manifest, helper) {
    this.manifestUrl = manifestUrl;
    this.manifest = manifest;
    this.helper = helper;
    this.name = `moebius-model ${new URL('.', manifestUrl).pathname}`;
    /** @type {Cache|null} */
    this.opened = null;
  }

  /**
   * Have every wanted file, one by one, fetched and stored if it is not there. Who reads one waits for it, and gets what the manifest names
   * or the error 'unreadable': what is stored is checked then.
   *
   * @param {Wanted[]} wanted
   * @param {(progress: LoadProgress) => void} onProgress
   * @param {AbortSignal} signal
   * @returns {Promise<Files>}
   */
  async provide(wanted, onProgress, signal) {
    const store = await this.open();
    const progress = new Progress(wanted, onProgress);
    /** @type {Map<string, Blob>} */
    const memory = new Map();
    /** @type {Set<string>} fetched, so checked, just now */
    const checked = new Set();
    if (!store) progress.toMemory(UNKEPT);

    /** @param {Wanted} item */
    const fetched = async (item) => {
      const blob = await download(item, progress, signal, this.helper);
      checked.add(item.file.sha256);
      const refused = store && progress.storage === 'cache' && (await this.#put(store, item, blob));
      if (refused) progress.toMemory(refused);
      if (progress.storage === 'memory') memory.set(item.file.sha256, blob);
      return blob;
    };

    const kept = async (/** @type {StoredFile} */ { sha256 }) =>
      memory.get(sha256) ?? (await (await store?.match(this.#key(sha256)))?.blob());

    /** @param {Wanted} item */
    const have = async (item) => {
      const stored = await kept(item.file).catch(() => null);
      if (stored?.size === item.file.bytes) return progress.found(item.file.bytes);
      if (stored) progress.say(DAMAGED);
      await fetched(item);
    };

    /** @type {Map<string, (done: Promise<void>) => void>} */
    const tell = new Map();
    const arrived = new Map(wanted.map(({ file: { sha256 } }) => [sha256, new Promise((resolve) => tell.set(sha256, resolve))]));
    const had = (/** @type {Wanted} */ item) => {
      const done = have(item);
      tell.get(item.file.sha256)?.(done);
      return done;
    };
    for (const promise of arrived.values()) promise.catch(() => {}); // who waits for a file, or for all, hears of an error
    const whole = inParallel(wanted, had, signal).then(() => progress.report(true));
    whole.catch(() => {});
    const read = async (/** @type {StoredFile} */ file, /** @type {Formula[]} */ formulas) => {
      const bytes = await (await kept(file))?.arrayBuffer(); // in two thirds of response.arrayBuffer's time
      if (bytes?.byteLength !== file.bytes) return null;
      const found = await examined(bytes, !checked.has(file.sha256), formulas, this.helper);
      return [file.sha256, ''].includes(found.hash) ? found : null;
    };
    const file = async (/** @type {string} */ sha256, /** @type {Formula[]} */ formulas = []) => {
      const item = wanted.find(({ file }) => file.sha256 === sha256);
      if (!item) throw new EngineError('bad-input', `No file ${sha256} of the model was asked for.`);
      await Promise.race([arrived.get(sha256), whole]);
      const attempt = () => read(item.file, formulas).catch(() => null);
      const found = (await attempt()) ?? (await attempt()); // some were read wrong once
      if (found) return found;
      progress.found(-item.file.bytes);
      progress.say(DAMAGED);
      try {
        return await examined(await (await fetched(item)).arrayBuffer(), false, formulas, this.helper);
      } catch (error) {
        if (signal.aborted) throw error;
        const what = 'A stored file of the model cannot be read, and could not be fetched again.';
        throw new EngineError('unreadable', `${what} Reload the page.`, error);
      }
    };
    return {
      file,
      whole,
      get storage() {
        return progress.storage; // which a file that is fetched again may change
      },
    };
  }

  /** @returns {Promise<Set<string>>} hashes of the files that are stored */
  async held() {
    const store = await this.open();
    const keys = await store?.keys().catch(() => null); // unreadable: fetched again
    return new Set(keys?.map((request) => request.url.split('/').pop() ?? ''));
  }

  /** @returns {Promise<StoredEntry[]>} */
  async stored() {
    const store = await this.open();
    if (!store) return [];
    const current = this.#current();
    const entries = [];
    for (const request of await store.keys()) {
      const headers = (await store.match(request))?.headers;
      if (!headers) continue;
      entries.push({
        url: headers.get('x-source') ?? request.url,
        bytes: Number(headers.get('content-length')),
        graph: headers.get('x-graph') ?? '',
        precision: headers.get('x-precision') ?? '',
        current: current.has(request.url.split('/').pop() ?? ''),
      });
    }
    return entries;
  }

  /** @returns {Promise<{used: number, quota: number, persisted: boolean}>} */
  async usage() {
    const storage = globalThis.navigator?.storage;
    if (!storage) return { used: 0, quota: 0, persisted: false };
    const { usage = 0, quota = 0 } = await storage.estimate();
    return { used: usage, quota, persisted: await storage.persisted() };
  }

  /** @param {{onlyOld?: boolean}} [options] */
  async clear({ onlyOld = false } = {}) {
    const store = await this.open();
    if (!store) return;
    const current = onlyOld ? this.#current() : new Set();
    for (const request of await store.keys()) {
      if (!current.has(request.url.split('/').pop() ?? '')) await store.delete(request);
    }
  }

  /** @returns {Set<string>} hashes of every file that this version names */
  #current() {
    const graphs = Object.values(this.manifest.precisions).flatMap(({ graphs, recording }) => [
      ...Object.values(graphs).flat(),
      ...(recording ? [recording] : []),
    ]);
    const runtimes = Object.values(this.manifest.runtime.builds).map((build) => build.wasm);
    return new Set([...graphs, ...runtimes].map((file) => file.sha256));
  }

  /**
   * A private window of WebKit forgets a cache that nobody has open, as between two workers: this object keeps it open.
   *
   * @returns {Promise<Cache|null>} null where the browser blocks storage
   */
  async open() {
    try {
      return (this.opened = await caches.open(this.name));
    } catch {
      return null;
    }
  }

  /** The address of an entry is its hash, wherever the file came from: a host may redirect or change. */
  #key(/** @type {string} */ sha256) {
    return new URL(`model/${sha256}`, this.manifestUrl).href;
  }

  /**
   * @param {Cache} store
   * @param {Wanted} item
   * @param {Blob} blob
   * @returns {Promise<string>} empty, or why the browser refused
   */
  async #put(store, { graph, precision, file, url }, blob) {
    const headers = {
      'content-type': 'application/octet-stream',
      'content-length': String(file.bytes),
      'x-source': url.href,
      'x-graph': graph,
      'x-precision': precision,
    };
    const put = () => store.put(this.#key(file.sha256), new Response(blob, { headers }));
    const isFull = (/** @type {unknown} */ error) => error instanceof DOMException && error.name === 'QuotaExceededError';
    try {
      await put().catch(async (error) => {
        if (!isFull(error)) throw error;
        await this.clear({ onlyOld: true });
        await put();
      });
      return '';
    } catch (error) {
      return isFull(error)
        ? 'The browser has no more room for this page: the model runs from memory and will be fetched again next time.'
        : UNKEPT;
    }
  }
}

/** What one download bar shows: bytes of all files together. */
class Progress {
  /**
   * @param {Wanted[]} wanted
   * @param {(progress: LoadProgress) => void} onProgress
   */
  constructor(wanted, onProgress) {
    this.total = wanted.reduce((sum, { file }) => sum + file.bytes, 0);
    this.onProgress = onProgress;
    this.cached = 0;
    this.fetched = 0;
    this.active = 0;
    /** @type {'cache'|'memory'} */
    this.storage = 'cache';
    this.message = ''; // of what lasts
    this.passing = ''; // of what is over with the next bytes
    /** @type {[number, number][]} time and bytes */
    this.received = [];
    this.reported = -Infinity;
  }

  /** @param {number} bytes that were stored already; negative for those that are no longer */
  found(bytes) {
    this.cached += bytes;
    this.report();
  }

  /** @param {number} bytes that came over the network; negative for those thrown away */
  receive(bytes) {
    this.fetched += bytes;
    if (bytes > 0) {
      this.received.push([performance.now(), bytes]);
      this.passing = '';
    }
    this.report();
  }

  /** @param {string} message */
  say(message) {
    this.passing = message;
    this.report(true);
  }

  /** @param {string} message */
  toMemory(message) {
    this.storage = 'memory';
    this.message = message;
    this.report(true);
  }

  report(always = false) {
    const now = performance.now();
    if (!always && now - this.reported < REPORT_EVERY) return;
    this.reported = now;
    this.received = this.received.filter(([time]) => now - time < RATE_WINDOW);
    const since = this.received.length ? now - this.received[0][0] : 0;
    const rate = since > 0 ? (1000 * this.received.reduce((sum, [, bytes]) => sum + bytes, 0)) / since : 0;
    const done = this.cached + this.fetched;
    const message = this.passing || this.message;
    this.onProgress({
      phase: this.active || this.fetched ? 'download' : 'verify',
      doneBytes: done,
      totalBytes: this.total,
      cachedBytes: Math.max(this.cached, 0),
      rate,
      secondsLeft: done >= this.total ? 0 : rate > 0 ? (this.total - done) / rate : Infinity,
      storage: this.storage,
      ...(message && { message }),
    });
  }
}

/**
 * Fetch one file and check it. A broken connection is tried again after a pause, wrong bytes once more past every cache.
 *
 * @param {Wanted} item
 * @param {Progress} progress
 * @param {AbortSignal} signal
 * @param {MessagePort} [helper]
 * @returns {Promise<Blob>}
 */
async function download(item, progress, signal, helper) {
  progress.active++;
  try {
    let wrong = false;
    for (let attempt = 1; ; attempt++) {
      try {
        const fetched = await fetchBytes(item, progress, signal);
        const { hash, bytes } = await examined(fetched.buffer, true, [], helper);
        if (hash === item.file.sha256) return new Blob([bytes]);
        progress.receive(-bytes.byteLength);
        if (wrong) throw corrupt(item);
        wrong = true;
        progress.say('A file arrived damaged and is fetched again.');
      } catch (error) {
        if (error instanceof EngineError) throw error;
        if (signal.aborted) throw cancelled();
        if (attempt === ATTEMPTS) {
          const advice = 'What has arrived is kept: try again to go on from there.';
          throw new EngineError('network', `The connection to ${item.url.host} broke. ${advice}`, error);
        }
        progress.say('The connection broke; trying again.');
        await pause(FIRST_PAUSE * 2 ** (attempt - 1), signal);
      }
    }
  } finally {
    progress.active--;
  }
}

/** @param {Wanted} item */
function corrupt({ file, url }) {
  const advice = 'Reload the page; if that does not help, the bundle on the server is damaged.';
  return new EngineError('corrupt', `${file.file} from ${url.host} is not the file that the manifest names. ${advice}`);
}

/**
 * @param {Wanted} item
 * @param {Progress} progress
 * @param {AbortSignal} signal
 * @returns {Promise<Uint8Array<ArrayBuffer>>} exactly as many bytes as the manifest says
 */
async function fetchBytes(item, progress, signal) {
  const { file, url } = item;
  const response = await fetch(url, { signal, cache: 'no-store' });
  if (response.status === 404 || response.status === 410) {
    const advice = 'Reload the page; if that does not help, put the whole bundle on the server.';
    throw new EngineError('not-found', `${url.href} is not there (${response.status}). ${advice}`);
  }
  if (!response.ok || !response.body) throw new Error(`${url.href} answered ${response.status}`);
  const bytes = new Uint8Array(file.bytes);
  const reader = response.body.getReader();
  let length = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      if (length + value.length > bytes.length) {
        await reader.cancel();
        throw corrupt(item);
      }
      bytes.set(value, length);
      length += value.length;
      progress.receive(value.length);
    }
    if (length < bytes.length && !cutShort(response, length)) throw corrupt(item);
    if (length < bytes.length) throw new Error(`${url.href} ended after ${length} of ${bytes.length} bytes`);
    return bytes;
  } catch (error) {
    progress.receive(-length);
    throw error;
  }
}

/** Whether a short answer is a broken connection; a whole answer of the wrong length is another file. */
function cutShort(/** @type {Response} */ response, /** @type {number} */ length) {
  const stated = Number(response.headers.get('content-length') ?? NaN);
  return response.headers.has('content-encoding') || stated !== length;
}

/**
 * What a file is and, of a recording's, what weights it gives.
 *
 * @param {ArrayBuffer} bytes
 * @param {boolean} check whether to hash them
 * @param {Formula[]} formulas that read this file alone
 * @param {MessagePort} [helper] does it
 * @returns {Promise<Examined>}
 */
export async function examined(bytes, check, formulas, helper) {
  if (check && !globalThis.crypto?.subtle) {
    throw new EngineError('worker', 'Open this page over https or from this computer: elsewhere browsers cannot check files.');
  }
  if (helper) {
    const { port1, port2 } = new MessageChannel();
    helper.postMessage([bytes, check, formulas], [bytes, port2]);
    const { data } = await new Promise((done) => (port1.onmessage = done));
    port1.close();
    if (data instanceof Error) throw data;
    return data;
  }
  const digest = check ? new Uint8Array(await crypto.subtle.digest('SHA-256', bytes)) : [];
  const hash = Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
  const compute = async () => (await import('./recorded/weights.js')).derivedOf(bytes, formulas);
  const numbers = formulas.length && (await compute().catch(() => null)); // who asked does it then, and tells why it fails
  return { bytes, hash, numbers: numbers || new Map() };
}

/**
 * @template T
 * @param {T[]} items
 * @param {(item: T) => Promise<void>} work stops at its first error; work that has begun then ends before this does
 * @param {AbortSignal} signal
 */
async function inParallel(items, work, signal) {
  const queue = [...items];
  /** @type {unknown[]} */
  const errors = [];
  const lane = async () => {
    while (queue.length && !errors.length) {
      if (signal.aborted) throw cancelled();
      await work(/** @type {T} */ (queue.shift())).catch((error) => errors.push(error));
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, lane));
  if (errors.length) throw errors[0];
}

/**
 * @param {number} ms
 * @param {AbortSignal} signal
 */
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener('abort', () => (clearTimeout(timer), reject(cancelled())), { once: true });
  });
}

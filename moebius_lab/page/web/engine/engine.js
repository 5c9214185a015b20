// The page's face of the model: everything heavy runs in worker.js, one worker for each model that is loaded.

import { EngineError, cancelled, fromMessage } from './errors.js';
import { buildFor, filesOf, isOutdated, readManifest } from './manifest.js';
import { ModelCache } from './model_cache.js';

export { EngineError };

const GONE = ['not-found', 'corrupt', 'worker']; // codes of errors that a newer version on the server would explain

/** @typedef {import('./manifest.js').Manifest} Manifest */
/** @typedef {{width: number, height: number, data: Uint8ClampedArray}} Picture RGBA, as ImageData */
/** @typedef {import('./settings.js').Settings} Settings */
/** @typedef {import('./settings.js').Pace} Pace */
/** @typedef {{vendor: string, architecture: string, description: string, fallback: boolean}} Adapter */
/** @typedef {{provider: 'webgpu'|'wasm', precision: string, bytes: number, cachedBytes: number, note: string}} Choice */

/**
 * @typedef {object} Detected
 * @property {{available: boolean, reason: string, adapter: Adapter|null, features: string[]}} webgpu
 * @property {{threads: number, isolated: boolean}} wasm
 * @property {Choice[]} choices
 * @property {number} preferred index into choices
 */

/**
 * @typedef {object} LoadProgress
 * @property {'download'|'verify'|'session'} phase
 * @property {number} doneBytes of totalBytes, those that were stored already included
 * @property {number} totalBytes
 * @property {number} cachedBytes
 * @property {number} rate bytes a second over the network, of the last seconds
 * @property {number} secondsLeft Infinity while it is unknown
 * @property {'cache'|'memory'} storage where the files are kept
 * @property {string} [message] something the person should know
 */

/**
 * @typedef {object} Loaded
 * @property {'webgpu'|'wasm'} provider the one that really runs
 * @property {string} precision
 * @property {Adapter|null} adapter the device's own words; null on wasm
 * @property {string[]} features of the device
 * @property {number} threads of wasm
 * @property {Record<string, {nodes: Record<string, number>}>} placed for each graph, how many nodes run on which provider
 * @property {boolean} captured whether the step is replayed from a capture
 * @property {number} workspace bytes on the device for all that captured graphs compute
 * @property {string} device what it runs on, in a few words: the adapter, or the processor
 * @property {string} evidence all of it in one sentence
 * @property {'cache'|'memory'} storage
 */

/**
 * @typedef {object} StepProgress
 * @property {number} window from 0
 * @property {number} windows
 * @property {number} step done in this window, from 1; 0 when the windows are planned and nothing is computed yet
 * @property {number} steps
 * @property {number} msPerStep median so far; 0 before the first step
 * @property {Pace} pace so far
 * @property {string} plan how many windows of which size, in words
 * @property {{left: number, top: number, width: number, height: number, data: Uint8ClampedArray}} [preview] a region of the
 *   picture with the prediction of this moment pasted in
 */

/** @typedef {{dims: number[], data: Float32Array}} Values a float32 tensor */
/** @typedef {{image: Picture, timings: Pace & {step: number, total: number}, provider: string}} Result milliseconds; `step` is the median of both kinds */
/** @typedef {{onProgress?: (progress: any) => void, signal?: AbortSignal}} CallOptions */

/** Dispatches 'lost' with an EngineError as `detail` when the graphics device or the worker is gone; `load` starts anew. */
export class Engine extends EventTarget {
  /**
   * @param {URL|string} manifestUrl
   * @param {{workerUrl?: URL|string}} [options]
   * @returns {Promise<Engine>}
   * @throws {EngineError} code 'manifest', 'manifest-version' or 'network'
   */
  static async open(manifestUrl, { workerUrl = new URL('worker.js', import.meta.url) } = {}) {
    const url = new URL(manifestUrl, import.meta.url);
    return new Engine(url, await readManifest(url), workerUrl);
  }

  /**
   * @param {URL} url
   * @param {Manifest} manifest
   * @param {URL|string} workerUrl
   */
  constructor(url, manifest, workerUrl) {
    super();
    this.manifest = manifest;
    /** @type {Loaded|null} */
    this.loaded = null;
    this.url = url;
    this.workerUrl = workerUrl;
    this.cache = new ModelCache(url, manifest);
    /** @type {Worker|null} */
    this.worker = null;
    /** @type {Map<number, {resolve: (value: any) => void, reject: (error: EngineError) => void, onProgress?: (p: any) => void}>} */
    this.calls = new Map();
    this.nextCall = 1;
  }

  /**
   * What this browser offers, without loading anything.
   *
   * @returns {Promise<Detected>}
   */
  async detect() {
    const webgpu = await findAdapter();
    const isolated = globalThis.crossOriginIsolated === true;
    const wasm = { isolated, threads: wasmThreads() };
    const offered = Object.entries(this.manifest.precisions);
    /** @type {Choice[]} */
    const choices = [];
    const held = await this.cache.held();
    for (const provider of /** @type {const} */ (['webgpu', 'wasm'])) {
      if (provider === 'webgpu' && !webgpu.available) continue;
      for (const [precision, form] of offered) {
        const possible = form.providers.includes(provider) && form.requires.every((feature) => webgpu.features.includes(feature));
        if (!possible) continue;
        const files = filesOf(this.manifest, precision, buildFor(provider)).map(({ file }) => file);
        const sum = (/** @type {typeof files} */ list) => list.reduce((bytes, file) => bytes + file.bytes, 0);
        const cachedBytes = sum(files.filter((file) => held.has(file.sha256)));
        choices.push({
          provider,
          precision,
          bytes: sum(files),
          cachedBytes,
          note: noteFor(provider, form.note, webgpu, wasm.threads),
        });
      }
    }
    const first = webgpu.adapter?.fallback ? choices.findIndex((choice) => choice.provider === 'wasm') : 0;
    return { webgpu, wasm, choices, preferred: Math.max(first, 0) };
  }

  /**
   * Fetch what is missing and start the model on one provider. A model that was loaded before is dropped first.
   *
   * @param {{provider: 'webgpu'|'wasm', precision: string, capture?: boolean}} choice
   * @param {{onProgress?: (progress: LoadProgress) => void, signal?: AbortSignal}} [options]
   * @returns {Promise<Loaded>}
   */
  async load(choice, options = {}) {
    this.close();
    this.#startWorker();
    navigator.storage?.persist?.().catch(() => false); // some browsers ask the person, who need not hurry
    const args = { manifest: this.manifest, manifestUrl: this.url.href, threads: wasmThreads(), ...choice };
    try {
      this.loaded = /** @type {Loaded} */ (await this.#call('load', args, options));
    } catch (error) {
      this.close();
      if (!(error instanceof EngineError)) throw error;
      if (GONE.includes(error.code) && (await isOutdated(this.url, this.manifest))) throw outdated(error);
      if (error.code !== 'uncapturable') throw error;
      // in a new worker, for a capture that failed may have left the runtime half-way
      const loaded = await this.load({ ...choice, capture: false }, options);
      loaded.evidence += `. ${error.message}`;
      return loaded;
    }
    return this.loaded;
  }

  /**
   * Fill the hole of a picture of any size; `mask` is a byte a pixel, 128 and more is the hole.
   *
   * @param {{image: Picture, mask: Uint8Array, settings: Settings}} job
   * @param {{onProgress?: (progress: StepProgress) => void, signal?: AbortSignal}} [options]
   * @returns {Promise<Result>}
   */
  inpaint({ image, mask, settings }, options = {}) {
    const { width, height, data } = image;
    return this.#call('inpaint', { image: { width, height, data }, mask, settings }, options);
  }

  /**
   * Run one graph as it is, for measurements.
   *
   * @param {string} graph
   * @param {Record<string, Values>} feeds
   * @param {{times?: number}} [options] run it so often; `milliseconds` has one entry each
   * @returns {Promise<{outputs: Record<string, Values>, milliseconds: number[]}>}
   */
  run(graph, feeds, { times = 1 } = {}) {
    return this.#call('run', { graph, feeds, times }, {});
  }

  /**
   * Time one step as the sampling loop runs it, again and again: the state stays where it is computed.
   *
   * @param {Record<string, Values>} feeds of the step graph; whether it is guided, its conditions say
   * @param {number} times
   * @returns {Promise<number[]>} milliseconds of each step
   */
  timeSteps(feeds, times) {
    return this.#call('timeSteps', { feeds, times }, {});
  }

  /**
   * Profile one graph in a session of its own.
   *
   * @param {string} graph
   * @param {Record<string, Values>} feeds
   * @param {number} times after a first run, which is in the profile too
   * @returns {Promise<string>} what ONNX Runtime writes at the end: a JSON list of events, in its own form
   */
  profile(graph, feeds, times) {
    return this.#call('profile', { graph, feeds, times }, {});
  }

  /** Files of models kept in this browser for this page. */
  stored() {
    return this.cache.stored();
  }

  /** @returns {Promise<{used: number, quota: number, persisted: boolean}>} bytes of this origin */
  usage() {
    return this.cache.usage();
  }

  /** @param {{onlyOld?: boolean}} [options] only what this version of the model does not use */
  clearStored(options) {
    return this.cache.clear(options);
  }

  /** Drop the model and its memory; whatever runs is cancelled. */
  close() {
    this.worker?.terminate();
    this.worker = null;
    this.loaded = null;
    for (const call of this.calls.values()) call.reject(cancelled());
    this.calls.clear();
  }

  #startWorker() {
    const worker = new Worker(this.workerUrl, { type: 'module', name: 'model' });
    worker.onmessage = ({ data }) => this.#receive(data);
    worker.onerror = (event) => {
      event.preventDefault();
      const cause = event.message || 'worker.js could not be started';
      this.#lose(new EngineError('worker', `The model's worker stopped (${cause}). Load the model again.`));
    };
    this.worker = worker;
  }

  /** @param {any} message */
  #receive(message) {
    if (message.lost) {
      this.#lose(fromMessage(message.lost));
      return;
    }
    const call = this.calls.get(message.id);
    if (!call) return;
    if (message.progress) {
      call.onProgress?.(message.progress);
      return;
    }
    this.calls.delete(message.id);
    if (message.error) call.reject(fromMessage(message.error));
    else call.resolve(message.result);
  }

  /** @param {EngineError} error */
  #lose(error) {
    const waiting = [...this.calls.values()];
    this.calls.clear();
    this.close();
    for (const call of waiting) call.reject(error);
    this.dispatchEvent(new CustomEvent('lost', { detail: error }));
  }

  /**
   * @param {string} method
   * @param {object} args
   * @param {CallOptions} options
   * @returns {Promise<any>}
   */
  #call(method, args, { onProgress, signal }) {
    const { worker } = this;
    if (!worker) return Promise.reject(new EngineError('worker', 'No model is loaded. Load one first.'));
    if (signal?.aborted) return Promise.reject(cancelled());
    const id = this.nextCall++;
    const stop = () => worker.postMessage({ cancel: id });
    signal?.addEventListener('abort', stop, { once: true });
    /** @type {PromiseWithResolvers<any>} */
    const { promise, resolve, reject } = Promise.withResolvers();
    this.calls.set(id, { resolve, reject, onProgress });
    worker.postMessage({ id, method, args });
    return promise.finally(() => signal?.removeEventListener('abort', stop));
  }
}

/** @param {unknown} [cause] */
export function outdated(cause) {
  const why = 'A newer version of this page was published, and the files of this one may be gone from the server.';
  return new EngineError('outdated', `${why} Reload the page: a saved picture and its mask come back.`, cause);
}

/** @returns {number} */
function wasmThreads() {
  return globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
}

/** @returns {Promise<Detected['webgpu']>} */
async function findAdapter() {
  const none = (/** @type {string} */ why) => ({ available: false, reason: why, adapter: null, features: [] });
  if (!globalThis.isSecureContext) return none('The page was not opened over https or from this computer.');
  if (!navigator.gpu) return none('This browser has no WebGPU.');
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: 'high-performance' }).catch(() => null);
  if (!adapter) return none('This browser has WebGPU, but offers no graphics device.');
  const { vendor, architecture, description, isFallbackAdapter } = adapter.info;
  const words = { vendor, architecture, description, fallback: isFallbackAdapter === true };
  return { available: true, reason: '', adapter: words, features: [...adapter.features].sort() };
}

/**
 * @param {'webgpu'|'wasm'} provider
 * @param {string} note
 * @param {Detected['webgpu']} webgpu
 * @param {number} threads
 */
function noteFor(provider, note, webgpu, threads) {
  if (provider === 'webgpu') {
    return webgpu.adapter?.fallback ? `${note} This adapter is software: the processor (wasm) is faster.` : note;
  }
  const alone = threads === 1 ? ' with one thread, because the server does not isolate the page' : '';
  return `${note} Runs on the processor${alone}: expect seconds a step instead of milliseconds.`;
}

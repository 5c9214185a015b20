// The page's face of the model: everything heavy runs in worker.js, one worker for each model that is loaded.

import { EngineError, cancelled, fromMessage, mayPass } from './errors.js';
import { filesOf, isOutdated, readManifest, recordingFor } from './manifest.js';
import { ModelCache } from './model_cache.js';
import { Seen, inOrder, isTooMuch, lacking, plannedMemory } from './suited.js';

export { EngineError };

/** @type {{[code: string]: {recorded?: false, capture?: false}}} another way to load, by the code of the error that asks for it */
const INSTEAD = { unplayable: { recorded: false }, uncapturable: { capture: false } };
const STUCK = 10_000; // ms in which the next silent one must speak
const GONE = ['not-found', 'corrupt', 'worker']; // codes of errors that a newer version on the server would explain

/** @import { CallOptions, Choice, Detected, Job, Loaded, LoadProgress, Manifest, Result, StepProgress, ToLoad, Values } from './types.js' */

/** Dispatches 'lost' with an EngineError as `detail` when the graphics device or the worker is gone; `load` starts anew. */
export class Engine extends EventTarget {
  /**
   * @param {URL|string} manifestUrl
   * @returns {Promise<Engine>}
   * @throws {EngineError} code 'manifest', 'manifest-version' or 'network'
   */
  static async open(manifestUrl) {
    const url = new URL(manifestUrl, import.meta.url);
    const [worker, helper] = ['worker.js', 'helper.js'].map((name) => new URL(name, import.meta.url));
    return new Engine(url, await readManifest(url), worker, helper);
  }

  /**
   * @param {URL} url
   * @param {Manifest} manifest
   * @param {URL|string} worker the address of worker.js
   * @param {URL|string} helper of helper.js
   */
  constructor(url, manifest, worker, helper) {
    super();
    this.manifest = manifest;
    /** @type {Loaded|null} */
    this.loaded = null;
    this.url = url;
    this.workerUrls = [worker, helper];
    this.cache = new ModelCache(url, manifest);
    this.seen = new Seen('');
    /** @type {Worker[]} the model's and its helper */
    this.workers = [];
    /** @type {Map<number, {resolve: (value: any) => void, reject: (error: EngineError) => void, onProgress?: (p: any) => void}>} */
    this.calls = new Map();
    this.nextCall = 1;
    this.silent = 0; // the helper and threads that have not spoken
    this.patience = 0; // the timer for them
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
    /** @type {Choice[]} */
    const choices = [];
    /** @type {Choice[]} */
    const distilled = [];
    /** @type {Detected['withheld']} */
    const withheld = [];
    const held = await this.cache.held();
    const place = `${navigator.userAgent} ${this.manifest.version}`;
    const device = webgpu.adapter ? JSON.stringify(webgpu.adapter) : '';
    if (this.seen.place !== place || (device && this.seen.device !== device)) this.seen = new Seen(place, device);
    for (const provider of /** @type {const} */ (['webgpu', 'wasm'])) {
      if (provider === 'webgpu' && !webgpu.available) continue;
      for (const [precision, form] of Object.entries(this.manifest.precisions)) {
        if (!form.providers.includes(provider)) continue;
        const lacks = provider === 'webgpu' ? lacking(form, webgpu) : [];
        if (lacks.length) {
          if (!form.distilled) withheld.push({ precision, lacks });
          continue;
        }
        const recorded = this.#isRecorded(provider, precision);
        const files = filesOf(this.manifest, precision, provider, { recorded }).map(({ file }) => file);
        const sum = (/** @type {typeof files} */ list) => list.reduce((bytes, file) => bytes + file.bytes, 0);
        const memory = plannedMemory(form, provider, webgpu, recorded);
        (form.distilled ? distilled : choices).push({
          provider,
          precision,
          bytes: sum(files),
          cachedBytes: sum(files.filter((file) => held.has(file.sha256))),
          memory,
          tight: isTooMuch(memory),
          seen: this.seen.of({ provider, precision }),
          note: noteFor(provider, form.note, webgpu, wasm.threads),
          distilled: form.distilled,
        });
      }
    }
    const ordered = inOrder(choices);
    const first = webgpu.adapter?.fallback ? ordered.findIndex(({ provider }) => provider === 'wasm') : 0;
    return { webgpu, wasm, choices: ordered, distilled, withheld, preferred: Math.max(first, 0) };
  }

  /** Whether a choice runs from the bundle's recording: there is one, which this device was not seen to refuse. */
  #isRecorded(/** @type {Choice['provider']} */ provider, /** @type {string} */ precision) {
    const refused = this.seen.of({ provider: 'recording', precision }) === 'failed';
    return Boolean(recordingFor(this.manifest, precision, provider)) && !refused;
  }

  /**
   * Fetch what is missing and start the model on one provider. A model that was loaded before is dropped first.
   *
   * @param {ToLoad} choice
   * @param {{onProgress?: (progress: LoadProgress) => void, signal?: AbortSignal}} [options]
   * @param {boolean} [again] once more after an error that may pass
   * @returns {Promise<Loaded>}
   */
  async load(choice, options = {}, again = true) {
    void this.cache.open();
    this.close();
    const helper = this.#startWorkers(again ? this.workerUrls : this.workerUrls.slice(0, 1));
    const { workers } = this;
    navigator.storage?.persist?.().catch(() => false); // some browsers ask the person, who need not hurry
    const { provider, precision, capture = true, recorded = capture } = choice;
    const played = recorded && this.#isRecorded(provider, precision);
    const args = {
      manifest: this.manifest,
      manifestUrl: this.url.href,
      threads: wasmThreads(),
      ...choice,
      recorded: played,
      helper,
    };
    try {
      this.loaded = /** @type {Loaded} */ (await this.#call('load', args, options, helper && [helper]));
    } catch (error) {
      if (this.workers === workers) this.close(); // else another load has begun
      if (!(error instanceof EngineError)) throw error;
      if (GONE.includes(error.code) && (await isOutdated(this.url, this.manifest))) throw outdated(error);
      if (again && mayPass(error)) return this.load(choice, options, false);
      const instead = INSTEAD[error.code];
      if (!instead) throw error;
      if (played && this.seen.place) this.seen.note({ provider: 'recording', precision }, 'failed');
      // in a new worker, for a capture that failed may have left the runtime half-way
      const loaded = await this.load({ ...choice, ...instead }, options, again);
      loaded.evidence += `. ${error.message}`;
      return loaded;
    }
    return this.loaded;
  }

  /**
   * Fill the hole of a picture of any size; `mask` is a byte a pixel, 128 and more is the hole.
   *
   * @param {Job} job
   * @param {{onProgress?: (progress: StepProgress) => void, signal?: AbortSignal}} [options]
   * @returns {Promise<Result>}
   */
  inpaint({ image, mask, settings, extension = null }, options = {}) {
    const { width, height, data } = image;
    const [pixels, values] = [data.slice(), mask.slice()]; // which the worker then owns: copied once, not twice
    const job = { image: { width, height, data: pixels }, mask: values, settings, extension };
    return this.#call('inpaint', job, options, [pixels.buffer, values.buffer]);
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

  /**
   * How long the commands of a captured graph take, each alone, and what the device does at most.
   *
   * @param {string} run one of the manifest's; empty: only what the device does
   * @returns {Promise<{commands: import('./kernels/measures.js').CommandTime[], limits: import('./kernels/measures.js').Limits}>}
   */
  commandTimes(run) {
    return this.#call('commandTimes', { run }, {});
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
    this.#drop(cancelled());
  }

  /** @param {(URL|string)[]} urls @returns {MessagePort|undefined} to the helper */
  #startWorkers(urls) {
    this.workers = urls.map((url) => {
      const worker = new Worker(url, { type: 'module' });
      worker.onmessage = ({ data }) => this.#receive(data);
      worker.onerror = (event) => {
        event.preventDefault();
        const cause = event.message || 'it could not be started';
        this.#lose(new EngineError('worker', `The model's worker stopped (${cause}). Load the model again.`));
      };
      return worker;
    });
    const [, helper] = this.workers;
    if (!helper) return;
    this.#await(1);
    const { port1, port2 } = new MessageChannel();
    helper.postMessage(null, [port2]);
    return port1;
  }

  /** @param {number} more that were begun, or -1 where one has spoken */
  #await(more) {
    clearTimeout(this.patience);
    this.silent += more;
    if (this.silent) this.patience = setTimeout(() => this.#lose(stuck()), STUCK);
  }

  /** @param {any} message */
  #receive(message) {
    if (message.silent) {
      this.#await(message.silent);
      return;
    }
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
    const had = this.loaded; // else `load` tells
    this.#drop(error);
    if (had) this.dispatchEvent(new CustomEvent('lost', { detail: error }));
  }

  /** @param {EngineError} error of all that is under way */
  #drop(error) {
    clearTimeout(this.patience);
    this.silent = 0;
    for (const worker of this.workers) worker.terminate();
    this.workers = [];
    this.loaded = null;
    for (const call of this.calls.values()) call.reject(error);
    this.calls.clear();
  }

  /**
   * @param {string} method
   * @param {object} args
   * @param {CallOptions} options
   * @param {Transferable[]} [handed] over to the worker
   * @returns {Promise<any>}
   */
  #call(method, args, { onProgress, signal }, handed = []) {
    const [worker] = this.workers;
    if (!worker) return Promise.reject(new EngineError('worker', 'No model is loaded. Load one first.'));
    if (signal?.aborted) return Promise.reject(cancelled());
    const id = this.nextCall++;
    const stop = () => worker.postMessage({ cancel: id });
    signal?.addEventListener('abort', stop, { once: true });
    const answer = new Promise((resolve, reject) => this.calls.set(id, { resolve, reject, onProgress }));
    worker.postMessage({ id, method, args }, handed);
    return answer.finally(() => signal?.removeEventListener('abort', stop));
  }
}

/** @param {unknown} [cause] */
export function outdated(cause) {
  const why = 'A newer version of this page was published, and the files of this one may be gone from the server.';
  return new EngineError('outdated', `${why} Reload the page: a saved picture and its mask come back.`, cause);
}

function stuck() {
  return new EngineError('stuck', 'The browser did not start a thread of the model. Reload the page, or restart the browser.');
}

function wasmThreads() {
  return globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
}

/** @returns {Promise<Detected['webgpu']>} */
async function findAdapter() {
  const none = (/** @type {string} */ why) => ({ available: false, reason: why, adapter: null, features: [], limits: {} });
  if (!globalThis.isSecureContext) return none('The page was not opened over https or from this computer.');
  if (!navigator.gpu) return none('This browser has no WebGPU.');
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: 'high-performance' }).catch(() => null);
  if (!adapter) return none('This browser has WebGPU, but offers no graphics device.');
  const { vendor, architecture, description, isFallbackAdapter } = adapter.info;
  const words = { vendor, architecture, description, fallback: isFallbackAdapter === true };
  /** @type {Record<string, number>} */
  const limits = {};
  for (const name in adapter.limits) limits[name] = /** @type {any} */ (adapter.limits)[name];
  return { available: true, reason: '', adapter: words, features: [...adapter.features].sort(), limits };
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

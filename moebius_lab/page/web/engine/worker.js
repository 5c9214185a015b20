// The worker in which one model lives: fetches its files, starts ONNX Runtime on one provider and answers the page.

import { EngineError, classify, deviceLost, toMessage } from './errors.js';
import { inpaint } from './inpaint.js';
import { BESIDE, GRAPHS, buildFor, filesOf } from './manifest.js';
import { ModelCache } from './model_cache.js';
import { OneAhead, nextTask } from './turns.js';

/** @import { Files, Loaded, Manifest, ToLoad, Values } from './types.js' */
/** @import { GraphBackend } from './graph_backend.js' */
/** @typedef {(progress: any) => void} Report */

/** A thread of the runtime. In Firefox some are never made or never begin: the page counts those that are silent. */
class Thread extends Worker {
  /** @param {string|URL} url @param {WorkerOptions} [options] */
  constructor(url, options) {
    postMessage({ silent: 1 });
    super(url, options);
    this.addEventListener('message', () => postMessage({ silent: -1 }), { once: true });
  }
}
globalThis.Worker = Thread;

/** @type {GraphBackend|null} */
let backend = null;

/** @type {Map<number, AbortController>} the calls that are under way */
const running = new Map();

/**
 * @param {ToLoad & {manifest: Manifest, manifestUrl: string, threads: number, recorded: boolean, helper?: MessagePort}} choice
 * @param {Report} report
 * @param {AbortSignal} signal
 * @returns {Promise<Loaded>}
 */
async function load(choice, report, signal) {
  const { manifest, manifestUrl, provider, precision, threads, recorded, capture = true, kernels = 'fastest', trying } = choice;
  if (!manifest.precisions[precision]) throw new EngineError('bad-input', `This bundle has no precision "${precision}".`);
  const page = new URL(manifestUrl);
  const base = new URL(manifest.weights_base, page);
  let last = { doneBytes: 0, totalBytes: 0, cachedBytes: 0, rate: 0, secondsLeft: 0 };
  const onProgress = (/** @type {any} */ progress) => report((last = progress));
  const provide = (/** @type {boolean} */ recorded) => {
    // as a recording's are read; or with those for measurements
    const graphs = recorded ? GRAPHS.toReversed() : Object.keys(manifest.precisions[precision].graphs);
    const wanted = filesOf(manifest, precision, provider, { graphs, recorded }).map(({ graph, file }) => {
      const url = new URL(file.file, BESIDE.includes(graph) ? page : base);
      return { graph, file, url, precision: graph === 'runtime' ? '' : precision };
    });
    return new ModelCache(page, manifest, choice.helper).provide(wanted, onProgress, signal);
  };
  const runtime = async (/** @type {Files} */ { file, whole }, /** @type {boolean} */ capture) => {
    await whole;
    signal.throwIfAborted();
    const build = manifest.runtime.builds[buildFor(provider)];
    const { bytes: wasm } = await file(build.wasm.sha256);
    const module = new URL(build.module, page);
    const { OrtBackend } = await import('./backend.js');
    return OrtBackend.start({ provider, manifest, precision, module, wasm, threads, capture, kernels, trying, page, file });
  };
  const player = async (/** @type {Files} */ { file }) => {
    const { RecordedBackend } = await import('./recorded/backend.js');
    const later = async () => runtime(await provide(false), false);
    return RecordedBackend.start({ manifest, precision, kernels, trying, page, file, runtime: later });
  };
  const files = await provide(recorded);
  let fetching = true;
  const fetched = () => {
    fetching = false;
    report({ ...last, phase: 'session', secondsLeft: 0 });
  };
  files.whole.then(fetched, () => {}); // who waits for a file hears of an error
  const made = await (recorded ? player(files) : runtime(files, capture));
  /** @type {Loaded['placed']} */
  const placed = {};
  for (const graph of GRAPHS) {
    placed[graph] = { nodes: (await made.open(graph)).nodes };
    signal.throwIfAborted();
    checkFeatures(manifest, precision, made.device);
  }
  await made.settle((share) => fetching || report({ ...last, phase: 'kernels', share, secondsLeft: 0 }));
  signal.throwIfAborted();
  made.device?.lost.then(({ message }) => {
    postMessage({ lost: toMessage(deviceLost(new Error(message))) });
  });
  backend = made;
  const features = made.device ? [...made.device.features].sort() : [];
  const limits = Object.keys(made.device ? made.form.needs.limits : {});
  const used = made.device ? 0 : threads;
  const device = deviceName(made.adapter, threads);
  const facts = {
    provider,
    precision,
    adapter: made.adapter,
    device,
    features,
    limits: Object.fromEntries(limits.map((name) => [name, /** @type {any} */ (made.device?.limits)[name]])),
    threads: used,
    placed,
    captured: made.captured.has('step'),
    recorded: made.recorded,
    workspace: made.workspace,
    kernels: made.ours,
  };
  return { ...facts, evidence: evidence(facts, manifest), storage: files.storage };
}

/**
 * The runtime makes its programs when they first run: what the device cannot do is said before that.
 *
 * @param {Manifest} manifest
 * @param {string} precision
 * @param {GPUDevice|null} device
 */
function checkFeatures(manifest, precision, device) {
  const missing = manifest.precisions[precision].requires.filter((feature) => !device?.features.has(feature));
  if (missing.length) {
    throw new EngineError(
      'shader',
      `This device lacks ${missing.join(', ')}, which ${precision} needs. Under Runs on, choose fp32 or fp16-storage.`,
    );
  }
}

/**
 * @param {Loaded['adapter']} adapter
 * @param {number} threads of wasm
 */
function deviceName(adapter, threads) {
  if (!adapter) return `processor (wasm), threads: ${threads}`;
  const { vendor, architecture, description, fallback } = adapter;
  const name = description || [vendor, architecture].filter(Boolean).join(' ') || 'an adapter that the browser does not name';
  return `WebGPU on ${name}${fallback ? ' (a software adapter)' : ''}`;
}

/**
 * @param {Omit<Loaded, 'evidence'|'storage'>} facts
 * @param {Manifest} manifest
 */
function evidence({ precision, adapter, device, placed, captured, recorded, kernels }, manifest) {
  const nodes = Object.entries(placed).map(([graph, { nodes }]) => {
    const counts = Object.entries(nodes).map(([where, count]) => `${count} on ${where}`);
    return `${graph} ${counts.join(', ')}`;
  });
  const { replaced, commands, note } = kernels;
  const ours = replaced ? `, kernels of our own for ${replaced} of ${commands} commands` : '';
  const when = recorded ? ' when the bundle was made, no ONNX Runtime here' : '';
  const how = adapter ? `, step ${captured ? '' : 'not '}captured${when}${ours}${note && ` (${note})`}` : '';
  const log = `ONNX Runtime ${manifest.runtime.version}'s own log${recorded ? ' of that' : ''}`;
  return `${device}; ${precision}${how}; nodes by ${log}: ${nodes.join('; ')}`;
}

function loaded() {
  if (!backend) throw new EngineError('worker', 'No model is loaded. Load one first.');
  return backend;
}

/** @type {Record<string, (args: any, report: Report, signal: AbortSignal) => Promise<any>>} */
const methods = {
  load,

  async inpaint(job, report, signal) {
    const stopped = async () => {
      await nextTask(); // lets messages in: a run on wasm never returns to the event loop by itself
      return signal.aborted;
    };
    const { constants, preview } = loaded();
    return inpaint(loaded(), job, constants, preview, report, stopped);
  },

  /** @param {{graph: string, feeds: Record<string, Values>, times: number}} job */
  async run({ graph, feeds, times }) {
    /** @type {Record<string, Values>} */
    let outputs = {};
    const milliseconds = [];
    for (let i = 0; i < times; i++) {
      const began = performance.now();
      outputs = await loaded().run(graph, feeds);
      milliseconds.push(performance.now() - began);
    }
    return { outputs, milliseconds };
  },

  /** @param {{feeds: Record<string, Values>, times: number}} job */
  async timeSteps({ feeds, times }) {
    const { state, mask, masked_latents: maskedLatents, ...rest } = feeds;
    const loop = await loaded().denoise(state.data, mask.data, maskedLatents.data);
    /** @type {number[]} */
    const milliseconds = [];
    let last = performance.now();
    const ended = () => {
      const now = performance.now();
      milliseconds.push(now - last);
      last = now;
    };
    const queue = new OneAhead();
    try {
      for (let i = 0; i < times; i++) {
        await queue.add(loop.step(rest).then(ended));
        if (!loop.queues) await queue.end();
      }
      await queue.end();
    } finally {
      loop.close();
    }
    return milliseconds;
  },

  /** @param {{graph: string, feeds: Record<string, Values>, times: number}} job */
  profile({ graph, feeds, times }) {
    return loaded().profile(graph, feeds, times);
  },

  /** @param {{run: string}} job */
  async commandTimes({ run }) {
    const { device, captures } = loaded();
    const captured = captures.get(run);
    if (!device || (run && !captured)) throw new EngineError('bad-input', `There is no capture of "${run}" here.`);
    const { commandTimes, limitsOf } = await import('./kernels/measures.js');
    return { commands: captured ? await commandTimes(device, captured) : [], limits: await limitsOf(device) };
  },
};

let before = Promise.resolve(); // one call after another: a picture's state is on the device, where there is room for one

addEventListener('message', ({ data: { id, method, args, cancel } }) => {
  if (cancel) {
    running.get(cancel)?.abort();
    return;
  }
  const controller = new AbortController();
  running.set(id, controller);
  before = before.then(async () => {
    try {
      const result = await methods[method](args, (progress) => postMessage({ id, progress }), controller.signal);
      postMessage({ id, result }, { transfer: result?.image ? [result.image.data.buffer] : [] }); // a filled picture is handed over
    } catch (error) {
      postMessage({ id, error: toMessage(classify(error)) });
    } finally {
      running.delete(id);
    }
  });
});

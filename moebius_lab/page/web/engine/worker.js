// The worker in which one model lives: fetches its files, starts ONNX Runtime on one provider and answers the page.

import { OrtBackend } from './backend.js';
import { EngineError, classify, toMessage } from './errors.js';
import { inpaint, nextTask } from './inpaint.js';
import { GRAPHS, buildFor, filesOf } from './manifest.js';
import { ModelCache } from './model_cache.js';

/** @typedef {import('./manifest.js').Manifest} Manifest */
/** @typedef {import('./engine.js').Loaded} Loaded */
/** @typedef {import('./engine.js').Values} Values */
/** @typedef {(progress: any) => void} Report */

/** @type {OrtBackend|null} */
let backend = null;

/** @type {Map<number, AbortController>} the calls that are under way */
const running = new Map();

/**
 * @param {{manifest: Manifest, manifestUrl: string, provider: 'webgpu'|'wasm', precision: string, threads: number, capture?: boolean}} choice
 * @param {Report} report
 * @param {AbortSignal} signal
 * @returns {Promise<Loaded>}
 */
async function load({ manifest, manifestUrl, provider, precision, threads, capture = true }, report, signal) {
  if (!manifest.precisions[precision]) throw new EngineError('bad-input', `This bundle has no precision "${precision}".`);
  const page = new URL(manifestUrl);
  const base = new URL(manifest.weights_base, page);
  const build = manifest.runtime.builds[buildFor(provider)];
  const graphs = Object.keys(manifest.precisions[precision].graphs);
  const wanted = filesOf(manifest, precision, buildFor(provider), graphs).map(({ graph, file }) => {
    const url = new URL(file.file, graph === 'runtime' ? page : base);
    return { graph, file, url, precision: graph === 'runtime' ? '' : precision };
  });
  let last = { doneBytes: 0, totalBytes: 0, cachedBytes: 0, rate: 0, secondsLeft: 0 };
  const onProgress = (/** @type {any} */ progress) => report((last = progress));
  const files = await new ModelCache(page, manifest).provide(wanted, onProgress, signal);
  signal.throwIfAborted();

  report({ ...last, phase: 'session', secondsLeft: 0 });
  const wasm = await (await files.file(build.wasm.sha256)).arrayBuffer();
  const module = new URL(build.module, page);
  const made = await OrtBackend.start({ provider, manifest, precision, module, wasm, threads, capture, file: files.file });
  /** @type {Loaded['placed']} */
  const placed = {};
  for (const graph of GRAPHS) {
    placed[graph] = { nodes: (await made.open(graph)).nodes };
    signal.throwIfAborted();
    checkFeatures(manifest, precision, made.device);
  }
  await made.settle();
  signal.throwIfAborted();
  made.device?.lost.then(({ message }) => {
    const error = new EngineError('device-lost', DEVICE_LOST, new Error(message));
    postMessage({ lost: toMessage(error) });
  });
  backend = made;
  const features = made.device ? [...made.device.features].sort() : [];
  const used = made.device ? 0 : threads;
  const device = deviceName(made.adapter, threads);
  const facts = {
    provider,
    precision,
    adapter: made.adapter,
    device,
    features,
    threads: used,
    placed,
    captured: made.captured.has('step'),
    workspace: made.workspace,
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
      `This device lacks ${missing.join(', ')}, which ${precision} needs: choose fp32 or fp16-storage.`,
    );
  }
}

const DEVICE_LOST = 'The graphics device was lost. Load the model again; nothing you painted is gone.';

/**
 * @param {Loaded['adapter']} adapter
 * @param {number} threads of wasm
 */
function deviceName(adapter, threads) {
  if (!adapter) return `processor (wasm), threads: ${threads}`;
  const { vendor, architecture, description, fallback } = adapter;
  return `WebGPU on ${description || [vendor, architecture].filter(Boolean).join(' ')}${fallback ? ' (a software adapter)' : ''}`;
}

/**
 * @param {Omit<Loaded, 'evidence'|'storage'>} facts
 * @param {Manifest} manifest
 */
function evidence({ precision, adapter, device, placed, captured }, manifest) {
  const nodes = Object.entries(placed).map(([graph, { nodes }]) => {
    const counts = Object.entries(nodes).map(([where, count]) => `${count} on ${where}`);
    return `${graph} ${counts.join(', ')}`;
  });
  return `${device}; ${precision}${adapter ? `, step ${captured ? '' : 'not '}captured` : ''}; nodes by ONNX Runtime ${manifest.runtime.version}'s own log: ${nodes.join('; ')}`;
}

/** @returns {OrtBackend} */
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
    const milliseconds = [];
    try {
      for (let i = 0; i < times; i++) {
        const began = performance.now();
        await loop.step(rest);
        milliseconds.push(performance.now() - began);
      }
    } finally {
      loop.close();
    }
    return milliseconds;
  },

  /** @param {{graph: string, feeds: Record<string, Values>, times: number}} job */
  profile({ graph, feeds, times }) {
    return loaded().profile(graph, feeds, times);
  },
};

addEventListener('message', async ({ data: { id, method, args, cancel } }) => {
  if (cancel) {
    running.get(cancel)?.abort();
    return;
  }
  const controller = new AbortController();
  running.set(id, controller);
  try {
    const result = await methods[method](args, (progress) => postMessage({ id, progress }), controller.signal);
    postMessage({ id, result });
  } catch (error) {
    postMessage({ id, error: toMessage(classify(error)) });
  } finally {
    running.delete(id);
  }
});

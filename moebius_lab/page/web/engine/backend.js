// The three graphs on ONNX Runtime Web: one provider, and what it says about itself.

import { EngineError, reason } from './errors.js';
import { watchPrograms } from './capture.js';
import { ReplayedLoop, captureGraph, placeTogether } from './captured_graph.js';

/** @typedef {import('./manifest.js').Manifest} Manifest */
/** @typedef {import('./manifest.js').StoredFile} StoredFile */
/** @typedef {import('./engine.js').Adapter} Adapter */
/** @typedef {import('./engine.js').Values} Values */
/** @typedef {import('./captured_graph.js').GraphCapture} GraphCapture */
/** @typedef {import('./captured_graph.js').CapturedGraph} CapturedGraph */
/** @typedef {typeof import('onnxruntime-web')} Runtime */
/** @typedef {import('onnxruntime-web').InferenceSession} InferenceSession */
/** @typedef {import('onnxruntime-web').Tensor} Tensor */
/** @typedef {{session: InferenceSession, nodes: Record<string, number>}} Placed nodes on each provider, in ONNX Runtime's words */

const VERBOSE = 0; // the level at which ONNX Runtime says where it placed every node
const WARNING = 2;
const CHATTER = /\[[VI]:onnxruntime/; // of a session made at VERBOSE: a line for every dispatch, whatever a run's own level
const STEP = 'step';
const NEXT_STATE = 'next_state';
const UNSHARED = { storageBufferCacheMode: 'lazyRelease', uniformBufferCacheMode: 'lazyRelease' }; // no placeholder is kept

export class OrtBackend {
  /**
   * Start ONNX Runtime.
   *
   * @param {object} options
   * @param {'webgpu'|'wasm'} options.provider
   * @param {Manifest} options.manifest
   * @param {string} options.precision
   * @param {URL} options.module the build of ONNX Runtime Web
   * @param {ArrayBuffer} options.wasm
   * @param {number} options.threads
   * @param {boolean} options.capture capture the graphs of which all runs on the device, and replay them without the runtime
   * @param {(sha256: string) => Promise<Blob>} options.file
   */
  static async start({ provider, manifest, precision, module, wasm, threads, capture, file }) {
    const log = new RuntimeLog();
    const capturing = capture && provider === 'webgpu';
    if (capturing) watchPrograms();
    /** @type {Runtime} */
    const ort = await import(module.href);
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = 'warning';
    const { options, options_require: needed } = manifest.precisions[precision];
    const extra = provider === 'wasm' || (await adapterHas(needed)) ? options : {};
    return new OrtBackend(ort, log, provider, manifest, precision, extra, capturing, file);
  }

  /**
   * @param {Runtime} ort
   * @param {RuntimeLog} log
   * @param {'webgpu'|'wasm'} provider
   * @param {Manifest} manifest
   * @param {string} precision
   * @param {Record<string, string>} extra entries of the sessions' configuration
   * @param {boolean} capturing
   * @param {(sha256: string) => Promise<Blob>} file
   */
  constructor(ort, log, provider, manifest, precision, extra, capturing, file) {
    this.ort = ort;
    this.log = log;
    this.provider = provider;
    this.constants = manifest.constants;
    this.preview = manifest.preview;
    this.layouts = manifest.layouts;
    this.runs = manifest.runs;
    this.form = manifest.precisions[precision];
    this.extra = extra;
    this.capturing = capturing;
    this.file = file;
    /** @type {Map<string, GraphCapture>} by the names of `runs` */
    this.captures = new Map();
    /** @type {Map<string, CapturedGraph>} */
    this.captured = new Map();
    this.workspace = 0; // bytes for what the captured graphs compute
    /** @type {Map<string, Placed>} */
    this.sessions = new Map();
    /** @type {GPUDevice|null} */
    this.device = null;
    /** @type {unknown} an error that the device reported between two calls */
    this.deviceError = null;
  }

  /**
   * Make the session of a graph.
   *
   * @param {string} graph
   * @returns {Promise<Placed>}
   */
  async open(graph) {
    const known = this.sessions.get(graph);
    if (known) return known;
    const { body, options, gpu } = await this.#source(graph);
    const create = (/** @type {0|2} */ logSeverityLevel) =>
      this.ort.InferenceSession.create(body, /** @type {any} */ ({ ...options, logSeverityLevel }));
    const { value: talking, lines } = await this.log.during(() => create(VERBOSE));
    const nodes = placement(lines);
    if (gpu && !this.device) await this.#watchDevice();
    const whole = this.capturing && Object.keys(nodes).join() === 'WebGpu';
    // the autoencoder's lines take less time than the device; a captured graph writes none
    const session = gpu && graph === STEP && !whole ? await this.#quiet(talking, () => create(WARNING)) : talking;
    if (whole) await this.#capture(graph, session);
    const placed = { session, nodes };
    this.sessions.set(graph, placed);
    return placed;
  }

  /**
   * Capture a graph in every way in which a picture runs it: its weights are on the device once.
   *
   * @param {string} graph
   * @param {InferenceSession} session
   */
  async #capture(graph, session) {
    const { ort, device, runs } = this;
    let earlier;
    for (const [name, run] of Object.entries(runs)) {
      if (run.graph !== graph) continue;
      earlier = await captureGraph(ort, session, /** @type {GPUDevice} */ (device), run.sizes, earlier);
      this.captures.set(name, earlier);
    }
  }

  /**
   * The capture of a graph that takes these inputs, where there is one: of the step, by how many conditions it is evaluated on.
   *
   * @param {string} graph
   * @param {Record<string, Values>} feeds
   */
  capturedFor(graph, { conditions }) {
    const fits = (/** @type {import('./manifest.js').Run} */ run) =>
      run.graph === graph && Object.values(run.sizes).every((size) => size === conditions?.dims[0]);
    const found = Object.keys(this.runs).find((name) => fits(this.runs[name]));
    return found && this.captured.get(found);
  }

  /** When all graphs are open, allocate memory for those that are captured. */
  async settle() {
    if (!this.device || !this.captures.size) return;
    const { graphs, bytes } = placeTogether(this.device, this.captures);
    this.captured = graphs;
    this.workspace = bytes;
    await this.device.queue.onSubmittedWorkDone(); // so that what the device says about it is here
    this.throwDeviceError();
  }

  /**
   * What a session of a graph is made from.
   *
   * @param {string} graph
   */
  async #source(graph) {
    const files = this.form.graphs[graph];
    if (!files) throw new EngineError('bad-input', `There is no graph "${graph}" in this bundle.`);
    const blobs = await Promise.all(files.map(({ sha256 }) => this.file(sha256)));
    // as arrays: with Blobs one WebGPU session in six never came back from folding its constants (ONNX Runtime Web 1.30)
    const [body, ...weights] = await Promise.all(blobs.map(async (blob) => new Uint8Array(await blob.arrayBuffer())));
    const gpu = this.provider === 'webgpu';
    const options = {
      executionProviders: [
        gpu ? { name: 'webgpu', preferredLayout: this.layouts[graph], ...(this.capturing && UNSHARED) } : { name: 'wasm' },
      ],
      externalData: weights.map((data, i) => ({ path: files[i + 1].name, data })),
      extra: { ...this.extra }, // the runtime adds to it
      ...(gpu && { preferredOutputLocation: 'gpu-buffer' }),
    };
    return { body, options, gpu };
  }

  /**
   * The same session once more: one that tells where its nodes are goes on writing a line for every dispatch.
   *
   * @param {InferenceSession} talking
   * @param {() => Promise<InferenceSession>} create
   * @returns {Promise<InferenceSession>}
   */
  async #quiet(talking, create) {
    const alone = this.sessions.size === 0; // the last session takes the device with it
    if (!alone) await talking.release(); // before the other needs the same memory
    const session = await create();
    if (alone) await talking.release();
    return session;
  }

  async #watchDevice() {
    const device = /** @type {GPUDevice} */ (/** @type {unknown} */ (await this.ort.env.webgpu.device));
    device.addEventListener('uncapturederror', (event) => {
      this.deviceError ??= /** @type {GPUUncapturedErrorEvent} */ (event).error;
    });
    this.device = device;
  }

  /** @returns {Adapter|null} */
  get adapter() {
    const info = this.device?.adapterInfo;
    if (!info) return null;
    const { vendor, architecture, description, isFallbackAdapter } = info;
    return { vendor, architecture, description, fallback: isFallbackAdapter === true };
  }

  /**
   * @param {string} graph
   * @param {Record<string, Tensor>} feeds
   * @param {string[]} [names] of the outputs that are wanted; all if left out
   * @returns {Promise<Record<string, Tensor>>}
   */
  async runTensors(graph, feeds, names) {
    const { session } = await this.open(graph);
    const outputs = await session.run(feeds, names ?? session.outputNames, { logSeverityLevel: WARNING });
    this.throwDeviceError();
    return /** @type {Record<string, Tensor>} */ (outputs);
  }

  throwDeviceError() {
    const error = this.deviceError;
    this.deviceError = null;
    if (error) throw new Error(`the graphics device reported ${reason(error)}`, { cause: error });
  }

  /**
   * Run one graph, from arrays to arrays.
   *
   * @param {string} graph
   * @param {Record<string, Values>} feeds
   * @returns {Promise<Record<string, Values>>}
   */
  async run(graph, feeds) {
    await this.open(graph);
    const captured = this.capturedFor(graph, feeds);
    if (captured) {
      for (const [name, { data }] of Object.entries(feeds)) captured.write(name, data);
      await captured.run();
      this.throwDeviceError();
      return captured.values();
    }
    const tensors = Object.entries(feeds).map(([name, { dims, data }]) => [name, this.tensor(data, dims)]);
    const outputs = await this.runTensors(graph, Object.fromEntries(tensors));
    /** @type {Record<string, Values>} */
    const values = {};
    for (const [name, tensor] of Object.entries(outputs)) {
      values[name] = { dims: [...tensor.dims], data: /** @type {Float32Array} */ (await tensor.getData(true)) };
    }
    return values;
  }

  /**
   * Run a graph in a session of its own that ONNX Runtime profiles.
   *
   * @param {string} graph
   * @param {Record<string, Values>} feeds
   * @param {number} times after a first run
   * @returns {Promise<string>} the events as ONNX Runtime writes them
   */
  async profile(graph, feeds, times) {
    const { body, options } = await this.#source(graph);
    const profiled = { ...options, enableProfiling: true, logSeverityLevel: WARNING };
    const session = await this.ort.InferenceSession.create(body, /** @type {any} */ (profiled));
    try {
      const tensors = Object.entries(feeds).map(([name, { dims, data }]) => [name, this.tensor(data, dims)]);
      for (let i = 0; i <= times; i++) {
        const outputs = await session.run(Object.fromEntries(tensors));
        await this.device?.queue.onSubmittedWorkDone();
        for (const tensor of Object.values(outputs)) tensor.dispose();
      }
      return (await this.log.during(async () => session.endProfiling())).lines.join('\n');
    } finally {
      await session.release();
    }
  }

  /**
   * @param {Float32Array} data
   * @param {readonly number[]} dims
   * @returns {Tensor}
   */
  tensor(data, dims) {
    return new this.ort.Tensor('float32', data, dims);
  }

  /** @param {Float32Array} image (1, 3, S, S) in [-1, 1] */
  async encode(image) {
    const { image_size: S } = this.constants;
    const { mean, std } = await this.run('vae_encoder', { image: { dims: [1, 3, S, S], data: image } });
    return { mean: mean.data, std: std.data };
  }

  /** @param {Float32Array} latent (1, 4, s, s), unscaled */
  async decode(latent) {
    const { latent_channels, latent_size: s } = this.constants;
    const { image } = await this.run('vae_decoder', { latent: { dims: [1, latent_channels, s, s], data: latent } });
    return image.data;
  }

  /**
   * @param {Float32Array} state
   * @param {Float32Array} mask
   * @param {Float32Array} maskedLatents
   */
  async denoise(state, mask, maskedLatents) {
    const captured = this.captured.get(STEP);
    if (!captured) return new TensorLoop(this, state, mask, maskedLatents);
    for (const [name, data] of Object.entries({ state, mask, masked_latents: maskedLatents })) captured.write(name, data);
    const graphFor = (/** @type {Record<string, Values>} */ feeds) =>
      /** @type {CapturedGraph} */ (this.capturedFor(STEP, feeds));
    return new ReplayedLoop(graphFor, captured, () => this.throwDeviceError());
  }
}

/** Steps whose state never leaves the device on WebGPU: one run's output is the next run's input. */
class TensorLoop {
  /**
   * @param {OrtBackend} backend
   * @param {Float32Array} state
   * @param {Float32Array} mask
   * @param {Float32Array} maskedLatents
   */
  constructor(backend, state, mask, maskedLatents) {
    const { latent_channels: channels, latent_size: s } = backend.constants;
    this.backend = backend;
    this.current = backend.tensor(state, [state.length / (channels * s * s), channels, s, s]);
    this.fixed = {
      mask: backend.tensor(mask, [1, 1, s, s]),
      masked_latents: backend.tensor(maskedLatents, [1, channels, s, s]),
    };
  }

  /** @param {Record<string, Values>} feeds */
  async step(feeds) {
    const own = Object.entries(feeds).map(([name, { dims, data }]) => [name, this.backend.tensor(data, dims)]);
    const inputs = { ...this.fixed, state: this.current, ...Object.fromEntries(own) };
    const outputs = await this.backend.runTensors(STEP, inputs, [NEXT_STATE]);
    await this.backend.device?.queue.onSubmittedWorkDone();
    this.current.dispose();
    this.current = outputs[NEXT_STATE];
  }

  /** @returns {Promise<Float32Array>} */
  async state() {
    return /** @type {Float32Array} */ (await this.current.getData(false)).slice();
  }

  close() {
    this.current.dispose();
  }
}

/** @param {string[]} features */
async function adapterHas(features) {
  if (!features.length) return true;
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: 'high-performance' });
  return features.every((feature) => adapter?.features.has(feature));
}

/**
 * The runtime's log goes to the console methods that it finds when it starts: these, which keep the lines while somebody
 * listens and pass warnings and errors on otherwise.
 */
class RuntimeLog {
  constructor() {
    /** @type {string[]|null} */
    this.lines = null;
    for (const method of /** @type {const} */ (['log', 'info', 'debug', 'warn', 'error'])) {
      const write = console[method].bind(console);
      console[method] = (...words) => {
        if (this.lines) this.lines.push(words.join(' '));
        else if ((method === 'warn' || method === 'error') && !CHATTER.test(words[0])) write(...words);
      };
    }
  }

  /**
   * @template T
   * @param {() => Promise<T>} work
   * @returns {Promise<{value: T, lines: string[]}>} what was written meanwhile
   */
  async during(work) {
    const lines = (this.lines = /** @type {string[]} */ ([]));
    try {
      return { value: await work(), lines };
    } finally {
      this.lines = null;
    }
  }
}

/**
 * How many nodes the runtime placed on each provider, from its log: one line where all are on one, else one a provider.
 *
 * @param {string[]} lines
 * @returns {Record<string, number>}
 */
export function placement(lines) {
  /** @type {Record<string, number>} */
  const nodes = {};
  for (const line of lines) {
    const found = /(?:nodes|node\(s\)) placed on \[(\w+?)(?:ExecutionProvider)?\]\. Number of nodes: (\d+)/i.exec(line);
    if (found) nodes[found[1]] = Number(found[2]);
  }
  return nodes;
}

// The three graphs on ONNX Runtime Web: one provider, and what it says about itself.

import { EngineError } from './errors.js';
import { GraphBackend, STEP } from './graph_backend.js';
import { deviceFor } from './device.js';
import { NEXT_STATE, watchPrograms } from './capture.js';
import { WARNING, captureGraph } from './captured_graph.js';

/** @import { Manifest, RuntimeOptions, Values } from './types.js' */
/** @import { InferenceSession, Tensor } from 'onnxruntime-web' */
/** @typedef {typeof import('onnxruntime-web')} Runtime */
/** @typedef {{session: InferenceSession, nodes: Record<string, number>}} Placed nodes on each provider, in ONNX Runtime's words */

const VERBOSE = 0; // the level at which ONNX Runtime says where it placed every node
const CHATTER = /\[[VI]:onnxruntime/; // of a session made at VERBOSE: a line for every dispatch, whatever a run's own level
const UNSHARED = { storageBufferCacheMode: 'lazyRelease', uniformBufferCacheMode: 'lazyRelease' }; // no placeholder is kept

export class OrtBackend extends GraphBackend {
  /** Start ONNX Runtime. @param {RuntimeOptions} options */
  static async start(options) {
    const { provider, manifest, precision, module, wasm, threads, capture, kernels, trying, page, file } = options;
    const log = new RuntimeLog();
    const capturing = capture && provider === 'webgpu';
    if (capturing) watchPrograms();
    /** @type {Runtime} */
    const ort = await import(module.href);
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = 'warning';
    const form = manifest.precisions[precision];
    const device = provider === 'webgpu' ? (options.device ?? (await deviceFor(form, kernels))) : null;
    const extra = !device || form.options_require.every((feature) => device.features.has(feature)) ? form.options : {};
    const made = new OrtBackend(ort, log, manifest, precision, device, extra, capturing, file);
    if (capturing) made.useKernels(kernels, page, manifest, precision, trying);
    return made;
  }

  /**
   * @param {Runtime} ort
   * @param {RuntimeLog} log
   * @param {Manifest} manifest
   * @param {string} precision
   * @param {GPUDevice|null} device
   * @param {Record<string, string>} extra entries of the sessions' configuration
   * @param {boolean} capturing
   * @param {(sha256: string) => Promise<{bytes: ArrayBuffer}>} file
   */
  constructor(ort, log, manifest, precision, device, extra, capturing, file) {
    super(manifest, precision, device);
    this.ort = ort;
    this.log = log;
    this.layouts = manifest.layouts;
    this.extra = extra;
    this.capturing = capturing;
    this.file = file;
    /** @type {Map<string, Placed>} */
    this.sessions = new Map();
  }

  /**
   * Make the session of a graph.
   *
   * @override
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
   * What a session of a graph is made from.
   *
   * @param {string} graph
   */
  async #source(graph) {
    const files = this.form.graphs[graph];
    if (!files) throw new EngineError('bad-input', `There is no graph "${graph}" in this bundle.`);
    // as arrays: with Blobs one WebGPU session in six never came back from folding its constants (ONNX Runtime Web 1.30)
    const [body, ...weights] = await Promise.all(
      files.map(async ({ sha256 }) => new Uint8Array((await this.file(sha256)).bytes)),
    );
    const gpu = this.provider === 'webgpu';
    const options = {
      executionProviders: [
        gpu
          ? { name: 'webgpu', device: this.device, preferredLayout: this.layouts[graph], ...(this.capturing && UNSHARED) }
          : { name: 'wasm' },
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

  /**
   * @override
   * @param {string} graph
   * @param {Record<string, Values>} feeds
   */
  async runUncaptured(graph, feeds) {
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
   * @override
   * @param {string} graph
   * @param {Record<string, Values>} feeds
   * @param {number} times
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

  /**
   * @override
   * @param {Float32Array} state
   * @param {Float32Array} mask
   * @param {Float32Array} maskedLatents
   */
  loopUncaptured(state, mask, maskedLatents) {
    return new TensorLoop(this, state, mask, maskedLatents);
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
    this.queues = false; // the state is an argument
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

  async state() {
    return /** @type {Float32Array} */ (await this.current.getData(false)).slice();
  }

  close() {
    this.current.dispose();
  }
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

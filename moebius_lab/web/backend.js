// The three graphs on ONNX Runtime Web: one provider, and what it says about itself.

import { EngineError, reason } from './errors.js';

/** @typedef {import('./manifest.js').Manifest} Manifest */
/** @typedef {import('./manifest.js').StoredFile} StoredFile */
/** @typedef {import('./engine.js').Adapter} Adapter */
/** @typedef {import('./engine.js').Values} Values */
/** @typedef {import('./ddim.js').Step} Step */
/** @typedef {typeof import('onnxruntime-web')} Runtime */
/** @typedef {import('onnxruntime-web').InferenceSession} InferenceSession */
/** @typedef {import('onnxruntime-web').Tensor} Tensor */
/** @typedef {{session: InferenceSession, nodes: Record<string, number>}} Placed nodes on each provider, in ONNX Runtime's words */

const VERBOSE = 0; // the level at which ONNX Runtime says where it placed every node
const WARNING = 2;
const LATENTS = 'next_latents';

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
   * @param {(sha256: string) => Promise<Blob>} options.file
   */
  static async start({ provider, manifest, precision, module, wasm, threads, file }) {
    const log = new RuntimeLog();
    /** @type {Runtime} */
    const ort = await import(module.href);
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = 'warning';
    return new OrtBackend(ort, log, provider, manifest, precision, file);
  }

  /**
   * @param {Runtime} ort
   * @param {RuntimeLog} log
   * @param {'webgpu'|'wasm'} provider
   * @param {Manifest} manifest
   * @param {string} precision
   * @param {(sha256: string) => Promise<Blob>} file
   */
  constructor(ort, log, provider, manifest, precision, file) {
    this.ort = ort;
    this.log = log;
    this.provider = provider;
    this.constants = manifest.constants;
    this.form = manifest.precisions[precision];
    this.file = file;
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
    const files = this.form.graphs[graph];
    if (!files) throw new EngineError('bad-input', `There is no graph "${graph}" in this bundle.`);
    const [body, ...weights] = await Promise.all(files.map(({ sha256 }) => this.file(sha256)));
    const gpu = this.provider === 'webgpu';
    const options = {
      executionProviders: [gpu ? { name: 'webgpu', preferredLayout: 'NCHW' } : { name: 'wasm' }],
      externalData: weights.map((data, i) => ({ path: files[i + 1].name, data })),
      logSeverityLevel: VERBOSE,
      extra: { session: this.form.session },
      ...(gpu && graph === 'step' && { preferredOutputLocation: 'gpu-buffer' }),
    };
    const bytes = new Uint8Array(await body.arrayBuffer());
    const { value: session, lines } = await this.log.during(() => this.ort.InferenceSession.create(bytes, /** @type {any} */ (options)));
    const placed = { session, nodes: placement(lines) };
    if (gpu && !this.device) await this.#watchDevice();
    this.sessions.set(graph, placed);
    return placed;
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
   * @returns {Promise<Record<string, Tensor>>}
   */
  async runTensors(graph, feeds) {
    const { session } = await this.open(graph);
    const outputs = await session.run(feeds, { logSeverityLevel: WARNING });
    if (this.deviceError) {
      const error = this.deviceError;
      this.deviceError = null;
      throw new Error(`the graphics device reported ${reason(error)}`, { cause: error });
    }
    return /** @type {Record<string, Tensor>} */ (outputs);
  }

  /**
   * Run one graph, from arrays to arrays.
   *
   * @param {string} graph
   * @param {Record<string, Values>} feeds
   * @returns {Promise<Record<string, Values>>}
   */
  async run(graph, feeds) {
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
   * @param {Float32Array} latents
   * @param {Float32Array} mask
   * @param {Float32Array} maskedLatents
   * @param {number} guidance
   */
  async denoise(latents, mask, maskedLatents, guidance) {
    return new GpuLoop(this, latents, mask, maskedLatents, guidance);
  }
}

/** Steps whose latents never leave the device on WebGPU: one run's output is the next run's input. */
class GpuLoop {
  /**
   * @param {OrtBackend} backend
   * @param {Float32Array} latents
   * @param {Float32Array} mask
   * @param {Float32Array} maskedLatents
   * @param {number} guidance
   */
  constructor(backend, latents, mask, maskedLatents, guidance) {
    const { latent_channels: channels, latent_size: s } = backend.constants;
    this.backend = backend;
    this.current = backend.tensor(latents, [1, channels, s, s]);
    this.fixed = {
      mask: backend.tensor(mask, [1, 1, s, s]),
      masked_latents: backend.tensor(maskedLatents, [1, channels, s, s]),
      guidance: this.#scalar(guidance),
    };
  }

  /** @param {number} value */
  #scalar(value) {
    return this.backend.tensor(Float32Array.of(value), [1]);
  }

  /** @param {Step} step */
  async step({ timestep, latentScale, noiseScale }) {
    const outputs = await this.backend.runTensors('step', {
      ...this.fixed,
      latents: this.current,
      timestep: this.#scalar(timestep),
      latent_scale: this.#scalar(latentScale),
      noise_scale: this.#scalar(noiseScale),
    });
    await this.backend.device?.queue.onSubmittedWorkDone();
    this.current.dispose();
    this.current = outputs[LATENTS];
  }

  /** @returns {Promise<Float32Array>} */
  async latents() {
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
        else if (method === 'warn' || method === 'error') write(...words);
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

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

const { GPUBufferUsage, GPUMapMode } = /** @type {any} */ (globalThis); // flags that TypeScript's library lacks
const VERBOSE = 0; // the level at which ONNX Runtime says where it placed every node
const WARNING = 2;
const CHATTER = /\[[VI]:onnxruntime/; // of a session made at VERBOSE: a line for every dispatch, whatever a run's own level
const STEP = 'step';
const LATENTS = 'next_latents';
const SHADER_READS = 16; // bytes: the runtime's shaders read four numbers at a time

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
   * @param {boolean} options.capture record the step at its first run and replay it afterwards, where all of it runs on the device
   * @param {(sha256: string) => Promise<Blob>} options.file
   */
  static async start({ provider, manifest, precision, module, wasm, threads, capture, file }) {
    const log = new RuntimeLog();
    /** @type {Runtime} */
    const ort = await import(module.href);
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = 'warning';
    const { options, options_require: needed } = manifest.precisions[precision];
    const extra = provider === 'wasm' || (await adapterHas(needed)) ? options : {};
    return new OrtBackend(ort, log, provider, manifest, precision, extra, capture && provider === 'webgpu', file);
  }

  /**
   * @param {Runtime} ort
   * @param {RuntimeLog} log
   * @param {'webgpu'|'wasm'} provider
   * @param {Manifest} manifest
   * @param {string} precision
   * @param {Record<string, string>} extra entries of the sessions' configuration
   * @param {boolean} capture
   * @param {(sha256: string) => Promise<Blob>} file
   */
  constructor(ort, log, provider, manifest, precision, extra, capture, file) {
    this.ort = ort;
    this.log = log;
    this.provider = provider;
    this.constants = manifest.constants;
    this.preview = manifest.preview;
    this.layouts = manifest.layouts;
    this.form = manifest.precisions[precision];
    this.extra = extra;
    this.capture = capture;
    this.file = file;
    /** @type {Recording|null} */
    this.recording = null;
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
    const create = (/** @type {0|2} */ logSeverityLevel, enableGraphCapture = false) =>
      this.ort.InferenceSession.create(body, /** @type {any} */ ({ ...options, logSeverityLevel, enableGraphCapture }));
    const wanted = this.capture && graph === STEP;
    const made = this.log.during(() => create(VERBOSE, wanted));
    // the runtime makes no session to record where a node is not on the device
    const { value: talking, lines } = await (wanted ? made.catch(() => this.log.during(() => create(VERBOSE))) : made);
    const nodes = placement(lines);
    const record = wanted && Object.keys(nodes).join() === 'WebGpu';
    // the autoencoder's lines take less time than the device; a replayed step writes none
    const session = gpu && graph === STEP && !record ? await this.#quiet(talking, () => create(WARNING)) : talking;
    const placed = { session, nodes };
    if (gpu && !this.device) await this.#watchDevice();
    this.sessions.set(graph, placed);
    if (record) this.recording = new Recording(this.ort, session, /** @type {GPUDevice} */ (this.device));
    return placed;
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
      executionProviders: [gpu ? { name: 'webgpu', preferredLayout: this.layouts[graph] } : { name: 'wasm' }],
      externalData: weights.map((data, i) => ({ path: files[i + 1].name, data })),
      extra: { ...this.extra }, // the runtime adds to it
      ...(gpu && graph === STEP && { preferredOutputLocation: 'gpu-buffer' }),
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
    if (this.recording && graph === STEP) {
      for (const [name, { data }] of Object.entries(feeds)) this.recording.write(name, data);
      await this.recording.replay();
      return this.recording.values();
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
   * @param {Float32Array} latents
   * @param {Float32Array} mask
   * @param {Float32Array} maskedLatents
   * @param {number} guidance
   */
  async denoise(latents, mask, maskedLatents, guidance) {
    if (!this.recording) return new TensorLoop(this, latents, mask, maskedLatents, guidance);
    const first = { latents, mask, masked_latents: maskedLatents, guidance: Float32Array.of(guidance) };
    for (const [name, data] of Object.entries(first)) this.recording.write(name, data);
    return new RecordedLoop(this, this.recording);
  }
}

/** Steps whose latents never leave the device on WebGPU: one run's output is the next run's input. */
class TensorLoop {
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
    const feeds = {
      ...this.fixed,
      latents: this.current,
      timestep: this.#scalar(timestep),
      latent_scale: this.#scalar(latentScale),
      noise_scale: this.#scalar(noiseScale),
    };
    const outputs = await this.backend.runTensors(STEP, feeds, [LATENTS]);
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

/** The step with its inputs in buffers that stay the same, which is what a recording needs: it knows no others. */
class Recording {
  /**
   * @param {Runtime} ort
   * @param {InferenceSession} session
   * @param {GPUDevice} device
   */
  constructor(ort, session, device) {
    this.session = session;
    this.device = device;
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    /** @type {Map<string, {buffer: GPUBuffer, tensor: Tensor}>} */
    this.inputs = new Map();
    for (const input of /** @type {readonly any[]} */ (session.inputMetadata)) {
      if (input.type !== 'float32') throw new Error(`input ${input.name} is ${input.type}: only float32 can be recorded`);
      const size = Math.ceil(bytesOf(input.shape) / SHADER_READS) * SHADER_READS;
      const buffer = device.createBuffer({ size, usage });
      const tensor = ort.Tensor.fromGpuBuffer(buffer, { dataType: 'float32', dims: input.shape });
      this.inputs.set(input.name, { buffer, tensor });
    }
    this.feeds = Object.fromEntries([...this.inputs].map(([name, { tensor }]) => [name, tensor]));
    /** @type {Record<string, Tensor>} in buffers of the runtime's, the same after every run */
    this.outputs = {};
  }

  /** @param {string} name */
  #buffer(name) {
    const input = this.inputs.get(name);
    if (!input) throw new EngineError('bad-input', `The step has no input "${name}".`);
    return input.buffer;
  }

  /**
   * @param {string} name
   * @param {Float32Array} data
   */
  write(name, data) {
    this.device.queue.writeBuffer(this.#buffer(name), 0, new Float32Array(data)); // a copy: shared memory is refused
  }

  async replay() {
    const outputs = await this.session.run(this.feeds, { logSeverityLevel: WARNING });
    this.outputs = /** @type {Record<string, Tensor>} */ (outputs);
    await this.device.queue.onSubmittedWorkDone();
  }

  /** Make the next latents the current ones, on the device. */
  advance() {
    const { gpuBuffer, dims } = this.outputs[LATENTS];
    const encoder = this.device.createCommandEncoder();
    encoder.copyBufferToBuffer(/** @type {GPUBuffer} */ (gpuBuffer), 0, this.#buffer('latents'), 0, bytesOf(dims));
    this.device.queue.submit([encoder.finish()]);
  }

  /** @returns {Promise<Float32Array>} the current latents */
  async latents() {
    return this.#read(this.#buffer('latents'));
  }

  /** @returns {Promise<Record<string, Values>>} all outputs */
  async values() {
    /** @type {Record<string, Values>} */
    const values = {};
    for (const [name, { gpuBuffer, dims }] of Object.entries(this.outputs)) {
      const data = await this.#read(/** @type {GPUBuffer} */ (gpuBuffer), bytesOf(dims));
      values[name] = { dims: [...dims], data };
    }
    return values;
  }

  /**
   * @param {GPUBuffer} buffer
   * @param {number} [bytes]
   */
  async #read(buffer, bytes = buffer.size) {
    const copy = this.device.createBuffer({ size: bytes, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
    const encoder = this.device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, 0, copy, 0, bytes);
    this.device.queue.submit([encoder.finish()]);
    await copy.mapAsync(GPUMapMode.READ);
    const values = new Float32Array(copy.getMappedRange()).slice();
    copy.destroy();
    return values;
  }
}

/** @param {string[]} features */
async function adapterHas(features) {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: 'high-performance' });
  return features.every((feature) => adapter?.features.has(feature));
}

/** @param {readonly number[]} dims of float32 */
function bytesOf(dims) {
  return 4 * dims.reduce((product, side) => product * side, 1);
}

/** Steps replayed from a recording. */
class RecordedLoop {
  /**
   * @param {OrtBackend} backend
   * @param {Recording} recording
   */
  constructor(backend, recording) {
    this.backend = backend;
    this.recording = recording;
  }

  /** @param {Step} step */
  async step({ timestep, latentScale, noiseScale }) {
    const numbers = { timestep, latent_scale: latentScale, noise_scale: noiseScale };
    for (const [name, value] of Object.entries(numbers)) this.recording.write(name, Float32Array.of(value));
    await this.recording.replay();
    this.backend.throwDeviceError();
    this.recording.advance();
  }

  latents() {
    return this.recording.latents();
  }

  /** The buffers stay for the next picture. */
  close() {}
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

// Graphs that are captured once and then replayed without ONNX Runtime, all in memory that is planned for them together.

import { EngineError, reason } from './errors.js';
import { Capture, Replay, plan } from './capture.js';

/** @typedef {import('./engine.js').Values} Values */
/** @typedef {import('./ddim.js').Step} Step */
/** @typedef {typeof import('onnxruntime-web')} Runtime */
/** @typedef {import('onnxruntime-web').InferenceSession} InferenceSession */
/** @typedef {import('onnxruntime-web').Tensor} Tensor */
/** @typedef {import('./capture.js').Placeholder} Placeholder */
/** @typedef {import('./capture.js').Lifetime} Lifetime */
/** @typedef {import('./capture.js').Allocation} Allocation */
/** @typedef {import('./capture.js').Region} Region */

const { GPUBufferUsage, GPUMapMode } = /** @type {any} */ (globalThis); // flags that TypeScript's library lacks
const LATENTS = 'next_latents';
const SHADER_READS = 16; // bytes: the runtime's shaders read four numbers at a time
const WARNING = 2;

/**
 * @typedef {object} GraphCapture of a graph, without memory for what it computes
 * @property {Capture} capture
 * @property {Map<string, GPUBuffer>} inputs
 * @property {Map<string, {buffer: Placeholder, dims: number[]}>} outputs
 * @property {Lifetime[]} lifetimes
 */

/**
 * Capture a run of a session whose nodes are all on the device.
 *
 * @param {Runtime} ort
 * @param {InferenceSession} session
 * @param {GPUDevice} device
 * @returns {Promise<GraphCapture>}
 * @throws {EngineError} code 'uncapturable': it does something that a capture cannot hold; the runtime may be broken now
 */
export async function captureGraph(ort, session, device) {
  /** @type {GraphCapture['inputs']} */
  const inputs = new Map();
  /** @type {GraphCapture['outputs']} */
  const outputs = new Map();
  /** @type {Record<string, Tensor>} */
  const feeds = {};
  try {
    for (const { name, type, shape } of /** @type {readonly any[]} */ (session.inputMetadata)) {
      if (type !== 'float32') throw new Error(`its input ${name} is ${type}, and only float32 can be captured`);
      const buffer = storage(device, Math.ceil(bytesOf(shape) / SHADER_READS) * SHADER_READS);
      inputs.set(name, buffer);
      feeds[name] = ort.Tensor.fromGpuBuffer(buffer, { dataType: 'float32', dims: shape });
    }
    const { capture, value } = await Capture.make(device, () => session.run(feeds, { logSeverityLevel: WARNING }));
    for (const [name, tensor] of Object.entries(/** @type {Record<string, any>} */ (value))) {
      outputs.set(name, { buffer: tensor.gpuBuffer, dims: [...tensor.dims] });
      tensor.dispose();
    }
    return { capture, inputs, outputs, lifetimes: capture.lifetimes([...outputs.values()].map(({ buffer }) => buffer)) };
  } catch (error) {
    throw new EngineError('uncapturable', `A graph cannot be captured: ${reason(error)}.`, error);
  }
}

/**
 * Allocate memory for captures, of which one is replayed at a time.
 *
 * @param {GPUDevice} device
 * @param {Map<string, GraphCapture>} captures
 * @returns {{graphs: Map<string, CapturedGraph>, bytes: number}} `bytes` for all that they compute
 */
export function placeTogether(device, captures) {
  const { sizes, allocations } = plan(
    [...captures.values()].map(({ lifetimes }) => lifetimes),
    device.limits.minStorageBufferOffsetAlignment,
  );
  const buffers = sizes.map((size) => storage(device, size));
  const region = (/** @type {Lifetime} */ lifetime) => {
    const { index, offset } = /** @type {Allocation} */ (allocations.get(lifetime));
    return { buffer: buffers[index], offset };
  };
  const graphs = new Map([...captures].map(([name, captured]) => [name, new CapturedGraph(device, captured, region)]));
  return { graphs, bytes: sizes.reduce((sum, size) => sum + size, 0) };
}

/** A graph whose capture is replayed each time it runs. */
export class CapturedGraph {
  /**
   * @param {GPUDevice} device
   * @param {GraphCapture} captured
   * @param {(lifetime: Lifetime) => Region} region
   */
  constructor(device, { capture, inputs, outputs, lifetimes }, region) {
    this.device = device;
    this.inputs = inputs;
    this.replay = new Replay(device, capture, lifetimes, region);
    /** @type {Map<string, {region: Region, dims: number[]}>} */
    this.outputs = new Map();
    for (const [name, { buffer, dims }] of outputs) {
      const lifetime = /** @type {Lifetime} */ (lifetimes.findLast((lifetime) => lifetime.buffer === buffer));
      this.outputs.set(name, { region: region(lifetime), dims });
    }
  }

  /** @param {string} name */
  #input(name) {
    const buffer = this.inputs.get(name);
    if (!buffer) throw new EngineError('bad-input', `The graph has no input "${name}".`);
    return buffer;
  }

  /**
   * @param {string} name
   * @param {Float32Array} data
   */
  write(name, data) {
    this.device.queue.writeBuffer(this.#input(name), 0, new Float32Array(data)); // a copy: shared memory is refused
  }

  /** Run it on what the inputs hold. */
  async run() {
    this.replay.run();
    await this.device.queue.onSubmittedWorkDone();
  }

  /** Make the next latents the current ones, on the device. */
  advance() {
    const { region: next } = /** @type {{region: Region}} */ (this.outputs.get(LATENTS));
    const latents = this.#input('latents');
    const encoder = this.device.createCommandEncoder();
    encoder.copyBufferToBuffer(next.buffer, next.offset, latents, 0, latents.size);
    this.device.queue.submit([encoder.finish()]);
  }

  /** @returns {Promise<Float32Array>} the current latents */
  async latents() {
    const buffer = this.#input('latents');
    return this.#read({ buffer, offset: 0 }, buffer.size);
  }

  /** @returns {Promise<Record<string, Values>>} all outputs */
  async values() {
    /** @type {Record<string, Values>} */
    const values = {};
    for (const [name, { region, dims }] of this.outputs) {
      values[name] = { dims, data: await this.#read(region, bytesOf(dims)) };
    }
    return values;
  }

  /**
   * @param {Region} region
   * @param {number} bytes
   */
  async #read({ buffer, offset }, bytes) {
    const copy = this.device.createBuffer({ size: bytes, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
    const encoder = this.device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, offset, copy, 0, bytes);
    this.device.queue.submit([encoder.finish()]);
    await copy.mapAsync(GPUMapMode.READ);
    const values = new Float32Array(copy.getMappedRange()).slice();
    copy.destroy();
    return values;
  }
}

/**
 * @param {GPUDevice} device
 * @param {number} size
 */
function storage(device, size) {
  return device.createBuffer({ size, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST });
}

/** @param {readonly number[]} dims of float32 */
function bytesOf(dims) {
  return 4 * dims.reduce((product, side) => product * side, 1);
}

/** Steps replayed from a capture. */
export class ReplayedLoop {
  /**
   * @param {CapturedGraph} graph
   * @param {() => void} check throws what the device reported meanwhile
   */
  constructor(graph, check) {
    this.graph = graph;
    this.check = check;
  }

  /** @param {Step} step */
  async step({ timestep, latentScale, noiseScale }) {
    const numbers = { timestep, latent_scale: latentScale, noise_scale: noiseScale };
    for (const [name, value] of Object.entries(numbers)) this.graph.write(name, Float32Array.of(value));
    await this.graph.run();
    this.check();
    this.graph.advance();
  }

  latents() {
    return this.graph.latents();
  }

  /** The buffers are kept for the next picture. */
  close() {}
}

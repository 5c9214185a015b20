// Graphs that are captured once and then replayed without ONNX Runtime, all in memory that is planned for them together.

import { EngineError, classify, reason } from './errors.js';
import { Capture, NEXT_STATE, Replay, plan } from './capture.js';

/** @import { Allocation, GraphCapture, Lifetime, Region, Values } from './types.js' */
/** @import { InferenceSession, Tensor } from 'onnxruntime-web' */
/** @typedef {typeof import('onnxruntime-web')} Runtime */

const { GPUBufferUsage, GPUMapMode } = /** @type {any} */ (globalThis); // flags that TypeScript's library lacks
const STATE = 'state';
const SHADER_READS = 16; // bytes: the runtime's shaders read four numbers at a time
export const WARNING = 2;
const FAILS_ANYHOW = ['shader', 'device-lost', 'out-of-memory']; // codes of what would fail without a capture too

/**
 * Capture a run of a session whose nodes are all on the device. Inputs of one size that another capture of the session has are shared.
 *
 * @param {Runtime} ort
 * @param {InferenceSession} session
 * @param {GPUDevice} device
 * @param {Record<string, number>} sizes of the dimensions that the graph leaves free, by name
 * @param {GraphCapture} [other] an earlier capture of this session
 * @returns {Promise<GraphCapture>}
 * @throws {EngineError} what the device refuses; or code 'uncapturable': a capture cannot hold what it does, and the runtime may be broken now
 */
export async function captureGraph(ort, session, device, sizes, other) {
  /** @type {GraphCapture['inputs']} */
  const inputs = new Map();
  /** @type {GraphCapture['outputs']} */
  const outputs = new Map();
  /** @type {Record<string, Tensor>} */
  const feeds = {};
  try {
    for (const { name, type, shape } of /** @type {readonly any[]} */ (session.inputMetadata)) {
      if (type !== 'float32') throw new Error(`its input ${name} is ${type}, and only float32 can be captured`);
      const dims = shape.map((/** @type {number|string} */ side) => sizes[side] ?? side);
      if (!dims.every(Number.isInteger))
        throw new Error(`its input ${name} has the shape ${dims.join(' x ')}, which leaves a size open`);
      const size = Math.ceil(bytesOf(dims) / SHADER_READS) * SHADER_READS;
      const known = other?.inputs.get(name);
      const buffer = known?.size === size ? known : storage(device, size);
      inputs.set(name, buffer);
      feeds[name] = ort.Tensor.fromGpuBuffer(buffer, { dataType: 'float32', dims });
    }
    const { capture, value } = await Capture.make(device, () => session.run(feeds, { logSeverityLevel: WARNING }));
    for (const [name, tensor] of Object.entries(/** @type {Record<string, any>} */ (value))) {
      outputs.set(name, { buffer: tensor.gpuBuffer, dims: [...tensor.dims] });
      tensor.dispose();
    }
    return { capture, inputs, outputs, lifetimes: capture.lifetimes([...outputs.values()].map(({ buffer }) => buffer)) };
  } catch (error) {
    const known = classify(error);
    if (FAILS_ANYHOW.includes(known.code)) throw known;
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

  /** Have the device run it on what the inputs hold, behind what it was asked for before. */
  run() {
    this.replay.run();
  }

  /** Wait until the device is done with all that it was asked for. */
  async done() {
    await this.device.queue.onSubmittedWorkDone();
  }

  /** Make the next state the current one, on the device. */
  advance() {
    const { region: next } = /** @type {{region: Region}} */ (this.outputs.get(NEXT_STATE));
    const state = this.#input(STATE);
    const encoder = this.device.createCommandEncoder();
    encoder.copyBufferToBuffer(next.buffer, next.offset, state, 0, state.size);
    this.device.queue.submit([encoder.finish()]);
  }

  /** @returns {Promise<Float32Array>} the current state */
  async state() {
    const buffer = this.#input(STATE);
    const [state] = await this.#read([{ buffer, offset: 0, bytes: buffer.size }]);
    return state;
  }

  /** @returns {Promise<Record<string, Values>>} all outputs, once the device has run it */
  async values() {
    const outputs = [...this.outputs];
    const read = await this.#read(outputs.map(([, { region, dims }]) => ({ ...region, bytes: bytesOf(dims) })));
    return Object.fromEntries(outputs.map(([name, { dims }], i) => [name, { dims, data: read[i] }]));
  }

  /**
   * Read from the device, waiting for it once.
   *
   * @param {(Region & {bytes: number})[]} regions
   * @returns {Promise<Float32Array[]>}
   */
  async #read(regions) {
    const size = regions.reduce((sum, { bytes }) => sum + bytes, 0);
    const copy = this.device.createBuffer({ size, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
    const encoder = this.device.createCommandEncoder();
    let at = 0;
    const places = regions.map(({ buffer, offset, bytes }) => {
      encoder.copyBufferToBuffer(buffer, offset, copy, at, bytes);
      return (at += bytes) - bytes;
    });
    this.device.queue.submit([encoder.finish()]);
    await copy.mapAsync(GPUMapMode.READ);
    const all = copy.getMappedRange();
    const values = regions.map(({ bytes }, i) => new Float32Array(all, places[i], bytes / 4).slice());
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

/** Steps replayed from captures of their graph, guided or not, which share the state. */
export class ReplayedLoop {
  /**
   * @param {(feeds: Record<string, Values>) => CapturedGraph} graphFor the capture that takes these inputs
   * @param {CapturedGraph} first any of them
   * @param {() => void} check throws what the device reported meanwhile
   */
  constructor(graphFor, first, check) {
    this.graphFor = graphFor;
    this.first = first;
    this.check = check;
    this.queues = true;
  }

  /**
   * @param {Record<string, Values>} feeds
   * @returns {Promise<void>} when the device is done with it; another step can be asked for at once
   */
  async step(feeds) {
    const graph = this.graphFor(feeds);
    for (const [name, { data }] of Object.entries(feeds)) graph.write(name, data);
    graph.run();
    graph.advance();
    await graph.done();
    this.check();
  }

  state() {
    return this.first.state();
  }

  /** The buffers are kept for the next picture. */
  close() {}
}

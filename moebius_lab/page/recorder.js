// What recording.py has done in a page of its own: ONNX Runtime Web is asked for each graph once, on a device with default limits and no
// features, and what it asks of that device is told as data. Python hands this module to the page. It is no file of a bundle.

/** @import { Command, GraphCapture, Manifest, Place } from './web/engine/types.js' */
/** @import { RecordedPlace, RecordedRun, Recording } from './web/engine/recorded/recording.js' */
/**
 * @typedef {object} Job
 * @property {string} engine URL of the folder of the engine's modules
 * @property {string} runtime URL of the folder of ONNX Runtime Web's files
 * @property {Record<'jspi'|'asyncify', [string, string]>} builds module and wasm of each build, in that folder
 * @property {string} version of ONNX Runtime Web
 * @property {import('./web/engine/types.js').Precision} form its files' names are URLs
 * @property {Manifest['runs']} runs
 * @property {Manifest['layouts']} layouts
 */

const PIECE = 32768; // bytes that become text at once, each an argument of one call
const PRECISION = 'recorded';
const { GPUBufferUsage, GPUMapMode } = /** @type {any} */ (globalThis); // flags that TypeScript's library lacks

/** @type {{device: GPUDevice, buffers: GPUBuffer[]}|undefined} the device of the last recording, and its weights */
let last;

/**
 * @param {Job} job
 * @returns {Promise<Omit<Recording, 'weights'> & {weights: {bytes: number, sha256: string}[]}>} `weights` by the hashes of what the
 *   device's buffers hold
 * @throws {Error} something of it cannot be recorded
 */
export async function record({ engine, runtime, builds, version, form, runs, layouts }) {
  last?.device.destroy();
  /** @type {typeof import('./web/engine/backend.js')} */
  const { OrtBackend } = await import(`${engine}backend.js`);
  /** @type {typeof import('./web/engine/manifest.js')} */
  const { GRAPHS, buildFor } = await import(`${engine}manifest.js`);
  /** @type {typeof import('./web/engine/model_cache.js')} */
  const { examined } = await import(`${engine}model_cache.js`);
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) throw new Error('this browser offers no graphics device');
  const device = await adapter.requestDevice({ requiredLimits: form.needs.limits });
  /** @type {typeof import('./web/engine/capture.js')} */
  const { known, programOf } = await import(`${engine}capture.js`);
  sparePrograms(device, known);
  const [module, wasm] = builds[/** @type {'jspi'|'asyncify'} */ (buildFor('webgpu'))].map((name) => new URL(name, runtime));
  const files = new Map(Object.values(form.graphs).flatMap((list) => list.map(({ sha256, file }) => [sha256, file])));
  const backend = await OrtBackend.start({
    provider: 'webgpu',
    manifest: /** @type {any} */ ({ runs, layouts, precisions: { [PRECISION]: form } }),
    precision: PRECISION,
    module,
    wasm: await (await fetch(wasm)).arrayBuffer(),
    threads: 1,
    capture: true,
    kernels: 'none',
    page: new URL(engine),
    file: async (sha256) => ({ bytes: await (await fetch(/** @type {string} */ (files.get(sha256)))).arrayBuffer() }),
    device,
  });
  /** @type {Recording['nodes']} */
  const nodes = {};
  for (const graph of GRAPHS) nodes[graph] = (await backend.open(graph)).nodes;
  backend.throwDeviceError();
  const writer = new Writer(programOf);
  for (const name of Object.keys(runs)) {
    const captured = backend.captures.get(name);
    if (!captured) throw new Error(`not all nodes of ${runs[name].graph} run on the device`);
    writer.add(name, captured);
  }
  last = { device, buffers: [...writer.weights.keys()] };
  const weights = [];
  for (const buffer of last.buffers) {
    const { hash: sha256 } = await examined(await contentOf(device, buffer), true, []);
    weights.push({ bytes: buffer.size, sha256 });
  }
  const { programs, numbers, runs: recorded } = writer;
  return { runtime: version, nodes, programs: [...programs.values()], numbers: [...numbers.keys()], weights, runs: recorded };
}

/**
 * What some weights of the last recording hold, one after the other.
 *
 * @param {number[]} indices
 * @returns {Promise<string>} in base64
 */
export async function contents(indices) {
  if (!last) throw new Error('nothing is recorded');
  const { device, buffers } = last;
  const parts = [];
  for (const i of indices) parts.push(await contentOf(device, buffers[i]));
  return packed(new Uint8Array(await new Blob(parts).arrayBuffer()));
}

/**
 * From now on only name the pipelines that a capture asks for: they run nothing, and compiling them takes most of the time.
 *
 * @param {GPUDevice} device
 * @param {typeof import('./web/engine/capture.js').known} known
 */
function sparePrograms(device, known) {
  for (const method of /** @type {const} */ (['createComputePipeline', 'createComputePipelineAsync'])) {
    /** @type {any} */ (device)[method] = (/** @type {GPUComputePipelineDescriptor} */ descriptor) => {
      const capturing = Object.hasOwn(device, 'createBindGroup');
      if (!capturing) return /** @type {any} */ (GPUDevice.prototype[method]).call(device, descriptor); // as it is by then
      const pipeline = known({ getBindGroupLayout: () => ({}) }, descriptor);
      return method.endsWith('Async') ? Promise.resolve(pipeline) : pipeline;
    };
  }
}

/** Captures as data, with what they share written once. */
class Writer {
  /** @param {typeof import('./web/engine/capture.js').programOf} programOf */
  constructor(programOf) {
    this.programOf = programOf;
    /** @type {Map<string, Recording['programs'][number] & {index: number}>} by all that they are */
    this.known = new Map();
    /** @type {Map<string, number>} in base64 */
    this.numbers = new Map();
    /** @type {Map<GPUBuffer, number>} */
    this.weights = new Map();
    /** @type {Record<string, RecordedRun>} */
    this.runs = {};
  }

  get programs() {
    return [...this.known.values()].map(({ index: _, ...program }) => program);
  }

  /** @param {string} name of the run @param {GraphCapture} captured */
  add(name, { capture, inputs, outputs }) {
    const names = new Map([...inputs].map(([input, buffer]) => [/** @type {unknown} */ (buffer), input]));
    /** @type {Map<Place, number>} */
    const values = new Map();
    const place = (/** @type {any} */ place) => {
      const input = names.get(place);
      if (input !== undefined) return `i${input}`;
      if (place instanceof GPUBuffer) return `w${indexIn(this.weights, place)}`;
      if (!place.uniform) return `v${indexIn(values, place)}`;
      const bytes = new Uint8Array(place.size);
      bytes.set(place.written ?? []);
      return `n${indexIn(this.numbers, packed(bytes))}`;
    };
    const commands = capture.commands.map((command) => this.#command(command, place));
    this.runs[name] = {
      inputs: Object.fromEntries([...inputs].map(([input, { size }]) => [input, size])),
      outputs: Object.fromEntries([...outputs].map(([output, { buffer, dims }]) => [output, { place: place(buffer), dims }])),
      values: [...values.keys()].map(({ size }) => size),
      commands,
    };
  }

  /**
   * @param {Command} command
   * @param {(place: any) => string} place
   * @returns {RecordedRun['commands'][number]}
   */
  #command(command, place) {
    const computed = (/** @type {Place} */ target) => {
      const named = place(target);
      if (!named.startsWith('v')) throw new Error('a command writes to a weight or to an input');
      return named;
    };
    if ('source' in command) {
      const { source, sourceOffset, target, targetOffset, size } = command;
      return { copy: [place(source), sourceOffset, computed(target), targetOffset, size] };
    }
    if ('cleared' in command) return { clear: [computed(command.cleared), command.offset, command.size] };
    const { pipeline, groups, workgroups } = command;
    const program = this.programOf(pipeline);
    if (!program) throw new Error('a program is not known');
    const bindings = groups.flatMap(({ entries }) => /** @type {any[]} */ ([...entries])).sort((a, b) => a.binding - b.binding);
    const bound = bindings.map(({ binding, resource: { buffer, offset = 0, size = buffer.size - offset } }, i) => {
      if (binding !== i) throw new Error(`a program has no binding ${i}`);
      const named = program.uses.get(i) === 'read' ? place(buffer) : computed(buffer);
      return /** @type {RecordedPlace} */ (size === buffer.size ? named : [named, offset, size]);
    });
    return { run: this.#program(program), on: bound, workgroups };
  }

  /** @param {import('./web/engine/types.js').Program} program */
  #program({ label, code, constants }) {
    const key = JSON.stringify([label, code, constants]);
    const known = this.known.get(key) ?? { label, code, constants, index: this.known.size };
    this.known.set(key, known);
    return known.index;
  }
}

/** @template T @param {Map<T, number>} map @param {T} key @returns {number} its place among those that were asked for */
function indexIn(map, key) {
  const index = map.get(key) ?? map.size;
  map.set(key, index);
  return index;
}

/** @param {GPUDevice} device @param {GPUBuffer} buffer @returns {Promise<ArrayBuffer>} */
async function contentOf(device, buffer) {
  const copy = device.createBuffer({ size: buffer.size, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, copy, 0, buffer.size);
  device.queue.submit([encoder.finish()]);
  await copy.mapAsync(GPUMapMode.READ);
  const content = copy.getMappedRange().slice(0);
  copy.destroy();
  return content;
}

/** @param {Uint8Array} bytes @returns {string} in base64 */
function packed(bytes) {
  let text = '';
  for (let i = 0; i < bytes.length; i += PIECE) text += String.fromCharCode(...bytes.subarray(i, i + PIECE));
  return btoa(text);
}

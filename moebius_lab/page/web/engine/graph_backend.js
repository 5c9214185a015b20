// What runs the three graphs, whichever way: captures of them in memory that is planned together, and the device's words.

import { reason } from './errors.js';
import { ReplayedLoop, placeTogether } from './captured_graph.js';

/** @import { Adapter, Denoising, GraphCapture, Manifest, Values } from './types.js' */
/** @import { CapturedGraph } from './captured_graph.js' */
/** @import { Wish } from './kernels/choices.js' */
/** @import { Wanted } from './kernels/replacement.js' */
/** @typedef {{nodes: Record<string, number>}} Placed nodes on each provider, in ONNX Runtime's words */

export const STEP = 'step';

/**
 * One way to run the graphs on one device. A subclass opens graphs, and runs what is not captured.
 *
 * @abstract
 */
export class GraphBackend {
  /**
   * @param {Manifest} manifest
   * @param {string} precision
   * @param {GPUDevice|null} device null on the processor
   */
  constructor(manifest, precision, device) {
    this.constants = manifest.constants;
    this.preview = manifest.preview;
    this.runs = manifest.runs;
    this.form = manifest.precisions[precision];
    /** @type {'webgpu'|'wasm'} */
    this.provider = device ? 'webgpu' : 'wasm';
    this.recorded = false; // whether captures come from a recording
    /** @type {Map<string, GraphCapture>} by the names of `runs` */
    this.captures = new Map();
    /** @type {Map<string, CapturedGraph>} */
    this.captured = new Map();
    this.workspace = 0; // bytes for what the captured graphs compute
    /** @type {Omit<Wish, 'report'|'filled'>|null} */
    this.kernels = null;
    /** @type {Promise<void>|null} when the weights are on the device, where that goes on meanwhile */
    this.filled = null;
    /** @type {import('./types.js').Loaded['kernels']} */
    this.ours = { replaced: 0, commands: 0, left: 0, note: '', choices: {}, took: { trying: 0, comparing: 0, making: 0 } };
    this.device = device;
    /** @type {unknown} an error that the device reported between two calls */
    this.deviceError = null;
    device?.addEventListener('uncapturederror', (event) => {
      this.deviceError ??= /** @type {GPUUncapturedErrorEvent} */ (event).error;
    });
  }

  /**
   * Let kernels of our own stand for commands of captured graphs, unless that cannot save time.
   *
   * @param {Wanted} wanted
   * @param {URL} page the manifest's
   * @param {Manifest} manifest
   * @param {string} precision
   * @param {number} [trying] seconds in which ways are tried
   */
  useKernels(wanted, page, { version, runtime }, precision, trying) {
    if (wanted !== 'all' && wanted !== 'none' && this.device?.adapterInfo.isFallbackAdapter)
      this.ours.note = 'a software adapter takes longer to try kernels than they could save';
    else if (this.device && wanted !== 'none') {
      const { device, recorded } = this;
      const wish = { wanted, page, precision, recorded, version, runtime: runtime.version, trying };
      const soon = async () => (await import('./kernels/choices.js')).begin(device, wish);
      const begun = soon();
      begun.catch(() => {}); // it is awaited when kernels are chosen
      this.kernels = { ...wish, begun };
    }
  }

  /**
   * Make a graph ready to run.
   *
   * @abstract
   * @param {string} _graph
   * @returns {Promise<Placed>}
   */
  async open(_graph) {
    throw new Error('a subclass opens graphs');
  }

  /**
   * Run a graph that is open and not captured, from arrays to arrays.
   *
   * @abstract
   * @param {string} _graph
   * @param {Record<string, Values>} _feeds
   * @returns {Promise<Record<string, Values>>}
   */
  async runUncaptured(_graph, _feeds) {
    throw new Error('a subclass runs what is not captured');
  }

  /**
   * Steps of a graph that is not captured.
   *
   * @abstract
   * @param {Float32Array} _state
   * @param {Float32Array} _mask
   * @param {Float32Array} _maskedLatents
   * @returns {Denoising}
   */
  loopUncaptured(_state, _mask, _maskedLatents) {
    throw new Error('a subclass runs what is not captured');
  }

  /**
   * Run a graph in a session of its own that ONNX Runtime profiles.
   *
   * @abstract
   * @param {string} _graph
   * @param {Record<string, Values>} _feeds
   * @param {number} _times after a first run
   * @returns {Promise<string>} the events as ONNX Runtime writes them
   */
  async profile(_graph, _feeds, _times) {
    throw new Error('a subclass profiles');
  }

  /**
   * The capture of a graph that takes these inputs, where there is one: of the step, by how many conditions it is evaluated on.
   *
   * @param {string} graph
   * @param {Record<string, Values>} feeds
   */
  capturedFor(graph, { conditions }) {
    const fits = (/** @type {import('./types.js').Run} */ run) =>
      run.graph === graph && Object.values(run.sizes).every((size) => size === conditions?.dims[0]);
    const found = Object.keys(this.runs).find((name) => fits(this.runs[name]));
    return found && this.captured.get(found);
  }

  /**
   * When all graphs are open, choose the kernels of those that are captured, and allocate memory for them.
   *
   * @param {(share: number) => void} report how much of the choosing is done, from 0 to 1
   */
  async settle(report) {
    if (!this.device || !this.captures.size) return;
    this.captures = await this.chosen(report);
    const { graphs, bytes } = placeTogether(this.device, this.captures);
    this.captured = graphs;
    this.workspace = bytes;
    await this.device.queue.onSubmittedWorkDone(); // so that what the device says about it is here
    this.throwDeviceError();
  }

  /**
   * The captures with kernels of our own in the place of the runtime's commands.
   *
   * @param {(share: number) => void} report how much of the choosing is done, from 0 to 1
   */
  async chosen(report) {
    if (!this.kernels) return this.captures;
    const { withOurKernels } = await import('./kernels/choices.js');
    const { filled } = this;
    const made = await withOurKernels(/** @type {GPUDevice} */ (this.device), this.captures, { ...this.kernels, filled, report });
    const { captures, ...ours } = made;
    this.ours = ours;
    return captures;
  }

  /** @returns {Adapter|null} */
  get adapter() {
    const info = this.device?.adapterInfo;
    if (!info) return null;
    const { vendor, architecture, description, isFallbackAdapter } = info;
    return { vendor, architecture, description, fallback: isFallbackAdapter === true };
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
    if (!captured) return this.runUncaptured(graph, feeds);
    for (const [name, { data }] of Object.entries(feeds)) captured.write(name, data);
    captured.run();
    const values = await captured.values();
    this.throwDeviceError();
    return values;
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
   * @returns {Promise<Denoising>}
   */
  async denoise(state, mask, maskedLatents) {
    const captured = this.captured.get(STEP);
    if (!captured) return this.loopUncaptured(state, mask, maskedLatents);
    for (const [name, data] of Object.entries({ state, mask, masked_latents: maskedLatents })) captured.write(name, data);
    const graphFor = (/** @type {Record<string, Values>} */ feeds) =>
      /** @type {CapturedGraph} */ (this.capturedFor(STEP, feeds));
    return new ReplayedLoop(graphFor, captured, () => this.throwDeviceError());
  }
}

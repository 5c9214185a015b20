// The three graphs from a recording: ONNX Runtime is fetched only for what that cannot do.

import { EngineError, classify, reason } from '../errors.js';
import { GraphBackend } from '../graph_backend.js';
import { deviceFor } from '../device.js';
import { capturesOf, makePipelines, readRecording } from './recording.js';
import { computeOnce } from './once.js';
import { fillWeights, placeWeights } from './weights.js';

/** @import { Widened } from '../capture.js' */
/** @import { Manifest, PlayerOptions, StoredFile, Values } from '../types.js' */
/** @import { Recording } from './recording.js' */

const ITS_OWN = ['shader', 'worker']; // codes of errors that the same graphs may not have on ONNX Runtime

export class RecordedBackend extends GraphBackend {
  /**
   * Make the programs of a recording on the device, while its weights are read: they are there when all is settled.
   *
   * @param {PlayerOptions} options of a precision that has a recording
   * @returns {Promise<RecordedBackend>}
   * @throws {EngineError} code 'unplayable': the recording does not run on this device
   */
  static start({ manifest, precision, kernels, trying, page, file, runtime }) {
    return played(async () => {
      const form = manifest.precisions[precision];
      const { sha256 } = /** @type {StoredFile} */ (form.recording);
      const [{ recording, own }, device] = await Promise.all([
        file(sha256).then(({ bytes }) => readRecording(bytes)),
        deviceFor(form, kernels),
      ]);
      const made = new RecordedBackend(manifest, precision, device, recording, runtime);
      made.useKernels(kernels, page, manifest, precision, trying);
      made.weights = placeWeights(device, recording, Boolean(made.kernels));
      made.filled = fillWeights(device, recording, made.weights, own, file);
      made.filled.catch(() => {}); // it is awaited when kernels are chosen
      made.captures = capturesOf(device, recording, await makePipelines(device, recording), made.weights, manifest.runs);
      return made;
    });
  }

  /**
   * @param {Manifest} manifest
   * @param {string} precision
   * @param {GPUDevice} device
   * @param {Recording} recording
   * @param {() => Promise<GraphBackend>} runtime
   */
  constructor(manifest, precision, device, recording, runtime) {
    super(manifest, precision, device);
    this.recorded = true;
    this.nodes = recording.nodes;
    this.runtime = runtime;
    /** @type {(GPUBuffer|Widened)[]} */
    this.weights = [];
    this.once = 0; // bytes that are computed of the weights and kept beside them
  }

  /**
   * @override
   * @param {string} graph
   */
  async open(graph) {
    if (!this.nodes[graph]) throw new EngineError('bad-input', `There is no graph "${graph}" in this bundle.`);
    return { nodes: this.nodes[graph] };
  }

  /**
   * @override
   * @param {(share: number) => void} report
   */
  async chosen(report) {
    const captures = await super.chosen(report);
    await this.filled;
    const made = await computeOnce(/** @type {GPUDevice} */ (this.device), captures, this.weights, Boolean(this.kernels));
    this.once = made.bytes;
    return made.captures;
  }

  /**
   * @override
   * @param {(share: number) => void} report
   */
  async settle(report) {
    const device = /** @type {GPUDevice} */ (this.device);
    await played(async () => {
      device.pushErrorScope('validation');
      let refused = null;
      try {
        await super.settle(report);
        for (const { replay } of this.captured.values()) replay.check();
      } finally {
        refused = await device.popErrorScope();
      }
      if (refused) throw new Error(refused.message);
    });
  }

  /**
   * @override
   * @param {string} graph
   * @param {Record<string, Values>} feeds
   * @returns {Promise<Record<string, Values>>}
   */
  async runUncaptured(graph, feeds) {
    const given = Object.entries(feeds).map(([name, { dims }]) => `${name} ${dims.join(' x ')}`);
    throw new EngineError('bad-input', `The recording has no run of ${graph} with ${given.join(', ')}.`);
  }

  /**
   * @override
   * @param {string} graph
   * @param {Record<string, Values>} feeds
   * @param {number} times
   */
  async profile(graph, feeds, times) {
    return (await this.runtime()).profile(graph, feeds, times);
  }
}

/**
 * @template T
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 * @throws {EngineError} as `work`, but what ONNX Runtime may not have trouble with has the code 'unplayable'
 */
async function played(work) {
  try {
    return await work();
  } catch (error) {
    const known = classify(error);
    if (!ITS_OWN.includes(known.code)) throw known;
    const why = reason(error).split('\n')[0];
    throw new EngineError('unplayable', `The recording of the model does not run here (${why}).`, error);
  }
}

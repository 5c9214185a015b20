// A recording: what ONNX Runtime Web asked of a device for each run of the graphs, as recorder.js wrote it.
//
// It says how each weight is made from the files of the bundle, and holds itself what stands in none of them.

import { Capture, Placeholder, pipelineOf } from '../capture.js';
import { USAGE } from './weights.js';

/** @import { Command, GraphCapture, Run } from '../types.js' */
/** @import { Widened } from '../capture.js' */
/**
 * @typedef {string} PlaceName of a buffer: a letter, then its index, or the name of an input
 *   i: input of the graph; v: computed; w: weight; n: numbers that go with a dispatch
 */
/** @typedef {PlaceName|[PlaceName, number, number]} RecordedPlace a buffer, or from which byte of it on how many */
/** @typedef {{run: number, on: RecordedPlace[], workgroups: [number, number, number]}} RecordedDispatch of a program; `on` by binding */
/** @typedef {{copy: [PlaceName, number, PlaceName, number, number]}} RecordedCopy source, its byte, target, its byte, bytes */
/** @typedef {{clear: [PlaceName, number, number]}} RecordedClear buffer, its byte, bytes */
/** @typedef {RecordedDispatch|RecordedCopy|RecordedClear} RecordedCommand */
/**
 * @typedef {object} RecordedRun
 * @property {Record<string, number>} inputs bytes of each
 * @property {Record<string, {place: PlaceName, dims: number[]}>} outputs
 * @property {number[]} values bytes of each that is computed
 * @property {RecordedCommand[]} commands
 */
/**
 * @typedef {object} RecordedWeight
 * @property {string} name of the initializer, or of what the graph computes; empty where its numbers stand in the recording alone
 * @property {import('./weights.js').Formula} formula how it is made
 * @property {number} bytes of its buffer
 */
/**
 * @typedef {object} Recording
 * @property {string} runtime version of ONNX Runtime Web
 * @property {Record<string, Record<string, number>>} nodes of each graph by provider, in its words
 * @property {{label: string, code: string, constants: Record<string, number>}[]} programs
 * @property {string[]} numbers in base64
 * @property {RecordedWeight[]} weights
 * @property {Record<string, RecordedRun>} runs
 */

const { GPUBufferUsage } = /** @type {any} */ (globalThis); // flags that TypeScript's library lacks
const HEADER = 4; // bytes before the description: how long it is

/**
 * @param {ArrayBuffer} file
 * @returns {Promise<{recording: Recording, own: Uint8Array}>} `own`: numbers that stand in no other file
 */
export async function readRecording(file) {
  const stream = new Blob([file]).stream().pipeThrough(new DecompressionStream('gzip'));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const end = HEADER + new DataView(bytes.buffer).getUint32(0, true);
  return { recording: JSON.parse(new TextDecoder().decode(bytes.subarray(HEADER, end))), own: bytes.subarray(end) };
}

/**
 * @param {GPUDevice} device
 * @param {Recording} recording
 * @returns {Promise<GPUComputePipeline[]>} all made at once; rejected where the device refuses one
 */
export function makePipelines(device, { programs }) {
  return Promise.all(programs.map(({ label, code, constants }) => pipelineOf(device, label, code, constants)));
}

/**
 * The captures that a recording stands for. Inputs of one name and size that runs of one graph have are shared.
 *
 * @param {GPUDevice} device
 * @param {Recording} recording
 * @param {GPUComputePipeline[]} pipelines
 * @param {(GPUBuffer|Widened)[]} weights
 * @param {Record<string, Run>} runs
 * @returns {Map<string, GraphCapture>} by the names of `runs`
 */
export function capturesOf(device, recording, pipelines, weights, runs) {
  const layouts = pipelines.map((pipeline) => pipeline.getBindGroupLayout(0));
  const numbers = recording.numbers.map((text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
  /** @type {Map<string, GPUBuffer>} */
  const shared = new Map();
  /** @type {Map<string, GraphCapture>} */
  const captures = new Map();
  for (const [name, { graph }] of Object.entries(runs)) {
    const run = recording.runs[name];
    /** @type {GraphCapture['inputs']} */
    const inputs = new Map();
    for (const [input, size] of Object.entries(run.inputs)) {
      const key = `${graph} ${input} ${size}`;
      const buffer = shared.get(key) ?? device.createBuffer({ size, usage: USAGE });
      shared.set(key, buffer);
      inputs.set(input, buffer);
    }
    const values = run.values.map((size) => new Placeholder({ size, usage: GPUBufferUsage.STORAGE }));
    const placeOf = (/** @type {PlaceName} */ place) => {
      const which = place.slice(1);
      if (place[0] === 'n') return uniform(numbers[Number(which)]);
      return /** @type {any} */ ({ i: () => inputs.get(which), v: () => values[Number(which)], w: () => weights[Number(which)] })[
        place[0]
      ]();
    };
    const capture = new Capture();
    capture.commands = run.commands.map((command) => commandOf(command, placeOf, pipelines, layouts));
    /** @type {GraphCapture['outputs']} */
    const outputs = new Map();
    for (const [output, { place, dims }] of Object.entries(run.outputs)) outputs.set(output, { buffer: placeOf(place), dims });
    const lifetimes = capture.lifetimes([...outputs.values()].map(({ buffer }) => buffer));
    captures.set(name, { capture, inputs, outputs, lifetimes });
  }
  return captures;
}

/**
 * @param {RecordedCommand} command
 * @param {(place: PlaceName) => any} placeOf
 * @param {GPUComputePipeline[]} pipelines
 * @param {GPUBindGroupLayout[]} layouts of their group
 * @returns {Command}
 */
function commandOf(command, placeOf, pipelines, layouts) {
  if ('copy' in command) {
    const [source, sourceOffset, target, targetOffset, size] = command.copy;
    return { source: placeOf(source), sourceOffset, target: placeOf(target), targetOffset, size };
  }
  if ('clear' in command) {
    const [cleared, offset, size] = command.clear;
    return { cleared: placeOf(cleared), offset, size };
  }
  const { run, on, workgroups } = command;
  const entries = on.map((bound, binding) => {
    const [place, offset, size] = Array.isArray(bound) ? bound : [bound];
    return { binding, resource: { buffer: placeOf(place), ...(size !== undefined && { offset, size }) } };
  });
  return { pipeline: pipelines[run], groups: [{ layout: layouts[run], entries }], workgroups };
}

/** @param {Uint8Array} written */
function uniform(written) {
  const place = new Placeholder({ size: written.length, usage: GPUBufferUsage.UNIFORM });
  place.written = written;
  return place;
}

// Kernels of ours beside the runtime's commands, on the model's own numbers.
//
// All of a graph's commands run, and after each node that is replaced its kernel runs on the same inputs into memory of its own, so
// that no error of one reaches another. A third kernel keeps the largest difference and the largest magnitude.

import { Placeholder, Replay, Widened, plan, usesOf } from '../capture.js';
import { memoryBack } from '../device.js';
import { HALVES } from './operations.js';
import { reading, storage, widening } from './launch.js';

/** @import { Allocation, Command, GraphCapture, Lifetime } from '../types.js' */
/** @import { Graph, Node } from './graph.js' */
/** @import { Launch, Programs } from './launch.js' */
/** @import { Narrow, Value } from './operations.js' */

const { GPUBufferUsage, GPUMapMode } = /** @type {any} */ (globalThis); // flags that TypeScript's library lacks
const GROUPS = 64; // workgroups that compare one tensor
const LONG = 300; // ms of a run that is not repeated
const CLEAR = 1.3; // times as fast
const NUMBERS = 8; // bytes of a difference and a magnitude

/** @param {Narrow|null} stored how the numbers of both are */
function comparing(stored) {
  const [one, other] = [reading('X', 'four', stored), reading('Y', 'four', stored)];
  return `${storage({ ...one.types, ...other.types })}
${one.code}
${other.code}
@group(0) @binding(2) var<storage, read_write> worst: array<atomic<u32>>;
struct U { count: u32, slot: u32 };
@group(0) @binding(3) var<uniform> u: U;
fn largest(v: vec4f) -> u32 { let b = bitcast<vec4u>(abs(v)); return max(max(b.x, b.y), max(b.z, b.w)); }
@compute @workgroup_size(256) fn main(@builtin(global_invocation_id) g: vec3u) {
  var difference = 0u; var magnitude = 0u; // numbers above zero are in the order of their bits, and what is no number above all
  for (var i = g.x; i < u.count; i += ${256 * GROUPS}u) {
    let x = fourOfX(i); difference = max(difference, largest(x - fourOfY(i))); magnitude = max(magnitude, largest(x));
  }
  atomicMax(&worst[2u * u.slot], difference); atomicMax(&worst[2u * u.slot + 1u], magnitude);
}`;
}

const ACCEPTED = 2e-5; // of a tensor's largest magnitude: sums of thousands of products in another order differ by a tenth of it
const ACCEPTED_HALVES = 1e-2; // in 16 bits, where a step in between is rounded there and not here
const ROUNDED = 2 ** -10; // times the root of a sum's terms: the runtime rounds each to 16 bits

/** Whether what our kernel for a node computes has 16 bits. @param {Node} node @param {Value} value one that it writes */
function isHalf({ operation }, value) {
  if (operation?.kind === 'layer norm') return operation.halves.includes(value);
  const kind = operation?.kind;
  const [first] = kind === 'products' ? operation.products : kind === 'middle' ? [operation.value] : [operation];
  const made = first?.kind === 'norm depthwise' ? first.depthwise : first;
  return Boolean(made && 'half' in made && made.half);
}

/** How far a kernel of ours may be from the runtime's, as a share of the largest magnitude. @param {Node} node */
export function accepted(node) {
  if (!node.writes.some((value) => isHalf(node, value))) return ACCEPTED;
  const { operation } = node;
  const products = operation?.kind === 'products' ? operation.products : operation?.kind === 'product' ? [operation] : [];
  return Math.max(ACCEPTED_HALVES, ...products.map(({ K }) => ROUNDED * Math.sqrt(K)));
}

/**
 * How far our kernels are from the runtime's, each as a share of the largest magnitude of what it computes.
 *
 * @param {GPUDevice} device
 * @param {Programs} programs
 * @param {Graph} graph of which every input is filled with numbers from 0 to 1
 * @param {Map<Node, Launch[]>} ours
 * @returns {Promise<Map<Node, number>>} NaN where one of them is no number
 */
export async function differences(device, programs, graph, ours) {
  for (const buffer of new Set(graph.inputs.values())) {
    device.queue.writeBuffer(buffer, 0, new Float32Array(buffer.size / 4).map(Math.random));
  }
  const slots = [...ours.keys()].flatMap((node) => node.writes.map((value) => ({ node, value })));
  const size = Math.max(16, NUMBERS * slots.length);
  const worst = device.createBuffer({ size, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
  /** @type {Command[]} */
  const commands = [];
  /** @type {Set<unknown>} */
  const widened = new Set();
  for (const node of graph.ordered()) {
    for (const { place } of node.commands.flatMap(usesOf)) {
      if (!(place instanceof Widened) || widened.has(place)) continue;
      widened.add(place);
      commands.push(await programs.dispatch(widening(place)));
    }
    commands.push(...node.commands);
    const launches = ours.get(node);
    if (!launches) continue;
    const copies = new Map(node.writes.map((value) => [value, new Placeholder(value)]));
    const own = (/** @type {Value} */ value) => copies.get(/** @type {any} */ (value)) ?? value;
    for (const launch of launches) commands.push(await programs.dispatch({ ...launch, values: launch.values.map(own) }));
    for (const value of node.writes) {
      const slot = slots.findIndex((one) => one.node === node && one.value === value);
      const stored = isHalf(node, value) ? HALVES : null;
      const numbers = Uint32Array.of(value.size / (stored ? 8 : 16), slot);
      const values = /** @type {Value[]} */ ([value, own(value), worst]);
      commands.push(await programs.dispatch({ code: comparing(stored), values, numbers, workgroups: [GROUPS, 1, 1] }));
    }
  }
  const captured = graph.captured(commands);
  const { replays, close } = replaysOf(device, [captured]);
  replays[0].run();
  const read = device.createBuffer({ size, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(worst, 0, read, 0, size);
  device.queue.submit([encoder.finish()]);
  await read.mapAsync(GPUMapMode.READ);
  const found = new Float32Array(read.getMappedRange().slice(0));
  for (const buffer of [worst, read]) buffer.destroy();
  await close();
  /** @type {Map<Node, number>} */
  const shares = new Map();
  slots.forEach(({ node }, i) => {
    const [difference, magnitude] = found.subarray(2 * i, 2 * i + 2);
    const share = difference === 0 ? 0 : difference / magnitude;
    const before = shares.get(node) ?? 0;
    shares.set(node, share > before || Number.isNaN(share) ? share : before);
  });
  return shares;
}

/**
 * Captures of one graph, ready to run, in memory that is given back.
 *
 * @param {GPUDevice} device
 * @param {GraphCapture[]} captures
 */
function replaysOf(device, captures) {
  const { sizes, allocations } = plan(
    captures.map(({ lifetimes }) => lifetimes),
    device.limits.minStorageBufferOffsetAlignment,
  );
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const memory = sizes.map((size) => device.createBuffer({ size, usage }));
  const place = (/** @type {Lifetime} */ lifetime) => {
    const { index, offset } = /** @type {Allocation} */ (allocations.get(lifetime));
    return { buffer: memory[index], offset };
  };
  const replays = captures.map(({ capture, lifetimes }) => new Replay(device, capture, lifetimes, place));
  const close = () => {
    for (const buffer of memory) buffer.destroy();
    return memoryBack(device);
  };
  return { replays, close };
}

/**
 * How long two captures of one graph take as a whole, in milliseconds.
 *
 * @param {GPUDevice} device
 * @param {[GraphCapture, GraphCapture]} captures
 * @returns {Promise<number[]>}
 */
export async function timesOf(device, captures) {
  const { replays, close } = replaysOf(device, captures);
  const runs = async () => {
    const times = [];
    for (const replay of replays) {
      const began = performance.now();
      replay.run();
      await device.queue.onSubmittedWorkDone();
      times.push(performance.now() - began);
    }
    return times;
  };
  const [one, other] = await runs();
  // the first may have met a device that rests: where it is much faster anyway, that is enough
  const again = one * CLEAR < other || Math.max(one, other) > LONG ? [one, other] : await runs();
  await close();
  return [Math.min(one, again[0]), Math.min(other, again[1])];
}

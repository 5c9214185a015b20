// For those who want to know why: how long each command of a captured graph takes, and what the device does at most.

import { Placeholder, programOf } from '../capture.js';
import { Programs, grid, repeat, storage } from './launch.js';
import { OURS } from './options.js';
import { TILES, launchProduct, nameOf, threadsOf } from './product.js';
import { Trial } from './trial.js';
import { digest } from './replacement.js';
import { plainProduct } from './operations.js';

/** @import { Dispatch, GraphCapture } from '../types.js' */
/** @import { Launch } from './launch.js' */
/** @typedef {{label: string, ours: boolean, count: number, milliseconds: number}} CommandTime of all dispatches of one program's name */
/** @typedef {{name: string, gflops: number, fetches: number, reads: number, sums: number}} TileTime numbers that a product needs from memory,
 *   and from its workgroup's, for each multiplication; sums that a thread keeps */
/** @typedef {{gigabytes: number, gflops: number, sides: number[], tiles: TileTime[]}} Limits a second, of a large copy, and of arithmetic in
 *   registers; tiles of a product of these sides: M, N, K */

const { GPUBufferUsage } = /** @type {any} */ (globalThis); // flags that TypeScript's library lacks
const SIZES = {
  card: { copied: 2 ** 26, loops: 4096, side: 2048, sums: 128 },
  software: { copied: 2 ** 22, loops: 32, side: 128, sums: 32 },
};
const CHAINS = 8; // of vectors, none of which waits for another
const THREADS = 2 ** 16;

/**
 * How long the dispatches of a captured graph take, each measured alone, those with equal programs, sizes and numbers once. What
 * they compute is of no use.
 *
 * @param {GPUDevice} device
 * @param {GraphCapture} captured
 * @returns {Promise<CommandTime[]>}
 */
export async function commandTimes(device, { capture }) {
  const dispatches = /** @type {Dispatch[]} */ (capture.commands.filter((command) => 'pipeline' in command));
  const trial = new Trial(device);
  /** @type {Map<string, CommandTime>} */
  const times = new Map();
  try {
    for (const equal of Map.groupBy(dispatches, formOf).values()) {
      const { milliseconds } = await trial.fastest([[equal[0]]]);
      const { label = '' } = programOf(equal[0].pipeline) ?? {};
      const ours = label.startsWith(OURS);
      const name = label.replace(OURS, '');
      const time = times.get(label) ?? { label: name, ours, count: 0, milliseconds: 0 };
      times.set(label, {
        ...time,
        count: time.count + equal.length,
        milliseconds: time.milliseconds + equal.length * milliseconds[0],
      });
    }
  } finally {
    await trial.close();
  }
  return [...times.values()];
}

/** @param {Dispatch} command */
function formOf({ pipeline, groups, workgroups }) {
  const buffers = groups.flatMap(({ entries }) => [...entries].map(({ resource }) => /** @type {any} */ (resource).buffer));
  const facts = buffers.map((buffer) => [buffer.size, buffer.written ?? ''].join(' '));
  return [digest(programOf(pipeline)?.code ?? ''), workgroups, ...facts].join(' ');
}

/**
 * What a device does at most, and what a product reaches with each tile. A software adapter gets small work: it would take seconds.
 *
 * @param {GPUDevice} device
 * @returns {Promise<Limits>}
 */
export async function limitsOf(device) {
  const sizes = SIZES[device.adapterInfo.isFallbackAdapter ? 'software' : 'card'];
  const copied = Math.min(sizes.copied, device.limits.maxStorageBufferBindingSize);
  const { side } = sizes;
  const tiles = Object.values(TILES).filter(
    (tile) =>
      side % tile.N === 0 && tile.m * tile.n <= sizes.sums && threadsOf(tile) <= device.limits.maxComputeInvocationsPerWorkgroup,
  );
  const programs = new Programs(device);
  const trial = new Trial(device);
  const seconds = async (/** @type {Launch[]} */ launches) => {
    const way = await Promise.all(launches.map((launch) => programs.dispatch(launch)));
    return (await trial.fastest([way])).milliseconds[0] / 1000;
  };
  try {
    const gigabytes = (2 * copied) / (await seconds([copy(copied)])) / 1e9;
    const gflops = (THREADS * sizes.loops * CHAINS * 8) / (await seconds([arithmetic(sizes.loops)])) / 1e9;
    const sides = { M: side, N: side, K: side };
    const [A, B, C] = [tensor(4 * side * side), tensor(4 * side * side), tensor(4 * side * side)];
    /** @type {TileTime[]} */
    const reached = [];
    for (const tile of tiles) {
      const took = await seconds(launchProduct(plainProduct({ ...sides, A, B, C }), tile));
      const [fetches, reads] = [1 / tile.M + 1 / tile.N, 1 / tile.m + 1 / tile.n];
      reached.push({ name: nameOf(tile), gflops: (2 * side ** 3) / took / 1e9, fetches, reads, sums: tile.m * tile.n });
    }
    return { gigabytes, gflops, sides: Object.values(sides), tiles: reached };
  } finally {
    await trial.close();
  }
}

/** @param {number} size bytes */
function tensor(size) {
  return new Placeholder({ size, usage: GPUBufferUsage.STORAGE });
}

/** @param {number} size bytes @returns {Launch} */
function copy(size) {
  const { workgroups, id } = grid(size / 16, 256);
  const code = `${storage({ X: 'vec4f', '!Y': 'vec4f' })}
@compute @workgroup_size(256) fn main(@builtin(global_invocation_id) global: vec3u) { ${id} Y[id] = X[id]; }`;
  return { code, values: [tensor(size), tensor(size)], workgroups };
}

/** Chains of x = x a + b, which is kept so that none is left out. @param {number} loops @returns {Launch} */
function arithmetic(loops) {
  const { workgroups, id } = grid(THREADS, 256);
  const code = `${storage({ X: 'vec4f', '!Y': 'vec4f' })}
@compute @workgroup_size(256) fn main(@builtin(global_invocation_id) global: vec3u) {
  ${id}
  let a = X[0]; let b = X[1]; ${repeat(CHAINS, (i) => `var x${i} = X[${i}] + f32(id);`)}
  for (var i = 0u; i < ${loops}u; i++) { ${repeat(CHAINS, (i) => `x${i} = fma(x${i}, a, b);`)} }
  Y[id] = ${Array.from({ length: CHAINS }, (_, i) => `x${i}`).join(' + ')};
}`;
  return { code, values: [tensor(16 * CHAINS), tensor(16 * THREADS)], workgroups };
}

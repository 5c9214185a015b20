// Kernels on rows of numbers: layer norm, a matrix times a vector, tensors side by side. All are limited by memory.

import { weightsOf } from './operations.js';
import { grid, lines, reading, repeat, storage, storing, sumOver } from './launch.js';

/** @typedef {import('./operations.js').LayerNorm} LayerNorm */
/** @typedef {import('./operations.js').Vector} Vector */
/** @typedef {import('./operations.js').Concat} Concat */
/** @typedef {import('./launch.js').Launch} Launch */

/**
 * The norm of each row of x, or of x + skip, whose sum is kept. A workgroup takes a row, which stays in registers:
 * y = (x - mean) / sqrt(E[(x - mean)^2] + epsilon) scale + bias, in two passes over them.
 *
 * @param {LayerNorm} norm
 * @returns {Launch[]}
 */
export function launchLayerNorm({ x, skip, scale, bias, y, sum, count, C, skipped, epsilon }) {
  const vectors = C / 4;
  const size = [128, 64, 32, 16].find((threads) => vectors >= 2 * threads) ?? 16;
  const per = Math.ceil(vectors / size);
  const each = (/** @type {(i: number) => string} */ make) =>
    repeat(per, (i) => `{ let j = t + ${i * size}u; if (j < ${vectors}u) { ${make(i)} } }`);
  const added = skip ? ` + Skip[(row % ${skipped}u) * ${vectors}u + j]; Sum[base + j] = v${'$'}` : '';
  const code = `${storage({ X: 'vec4f', ...(skip && { Skip: 'vec4f' }), S: 'vec4f', B: 'vec4f', '!Y': 'vec4f', ...(skip && { '!Sum': 'vec4f' }) })}
var<workgroup> s: array<f32, ${size}>;
@compute @workgroup_size(${size}) fn main(@builtin(workgroup_id) w: vec3u, @builtin(num_workgroups) all: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = w.x + w.y * all.x; if (row >= ${count}u) { return; }
  let base = row * ${vectors}u; var total = vec4f(0); ${repeat(per, (i) => `var v${i} = vec4f(0);`)}
  ${each((i) => `v${i} = X[base + j]${added.replace('$', String(i))}; total += v${i};`)}
  s[t] = dot(total, vec4f(1));
  ${sumOver(size)}
  let mean = s[0] / ${C}.0; var squares = 0.0;
  workgroupBarrier();
  ${each((i) => `let d = v${i} - vec4f(mean); squares += dot(d, d);`)}
  s[t] = squares;
  ${sumOver(size)}
  let f = inverseSqrt(s[0] / ${C}.0 + ${epsilon});
  ${each((i) => `Y[base + j] = fma((v${i} - vec4f(mean)) * f, S[j], B[j]);`)}
}`;
  const across = Math.min(count, 32768);
  const values = [x, ...(skip ? [skip] : []), scale, bias, y, ...(sum ? [sum] : [])];
  return [{ code, values, workgroups: [across, Math.ceil(count / across), 1] }];
}

/**
 * y = W x + bias, then SiLU: a workgroup takes a row of W, of which all numbers are read once.
 *
 * @param {Vector} product
 * @returns {Launch[]}
 */
export function launchVector(product) {
  const { N, K, x, narrow, y, silu } = product;
  const rows = reading('W', 'four', narrow);
  const code = `${storage({ X: 'vec4f', ...rows.types, B: 'f32', '!Y': 'f32' })}
${rows.code}
var<workgroup> s: array<f32, 64>;
@compute @workgroup_size(64) fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  var sum = vec4f(0);
  for (var i = t; i < ${K / 4}u; i += 64u) { sum = fma(X[i], fourOfW(w.x * ${K / 4}u + i), sum); }
  s[t] = dot(sum, vec4f(1));
  ${sumOver(64)}
  if (t == 0u) { let v = s[0] + B[w.x]; Y[w.x] = ${silu ? 'v / (1.0 + exp(-v))' : 'v'}; }
}`;
  return [{ code, values: [x, ...weightsOf(product), y], workgroups: [N, 1, 1] }];
}

/**
 * Tensors side by side, four numbers at a time.
 *
 * @param {Concat} concat whose sizes are multiples of 4
 * @returns {Launch[]}
 */
export function launchConcat({ parts, y, half, outer, sizes }) {
  const { type } = storing(half);
  const vectors = sizes.map((size) => size / 4);
  const ends = vectors.map((_, i) => vectors.slice(0, i + 1).reduce((sum, count) => sum + count));
  const row = ends[ends.length - 1];
  const { workgroups, id } = grid(outer * row, 256);
  const copies = vectors.map(
    (count, i) => `if (at < ${ends[i]}u) { Y[id] = X${i}[o * ${count}u + at - ${ends[i] - count}u]; return; }`,
  );
  const types = Object.fromEntries(parts.map((_, i) => [`X${i}`, type]));
  const code = `${storage({ ...types, '!Y': type })}
@compute @workgroup_size(256) fn main(@builtin(global_invocation_id) global: vec3u) {
  ${id}
  let o = id / ${row}u; let at = id % ${row}u;
  ${lines(copies)}
}`;
  return [{ code, values: [...parts, y], workgroups }];
}

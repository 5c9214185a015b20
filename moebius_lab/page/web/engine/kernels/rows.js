// Kernels on rows of numbers: layer norm, softmax, a matrix times a vector, tensors side by side. All are limited by memory.

import { HALVES, boundOf, weightsOf } from './operations.js';
import { grid, lines, numbered, reading, repeat, storage, storing, sumOver } from './launch.js';

/** @import { Concat, LayerNorm, Vector } from './operations.js' */
/** @import { Launch } from './launch.js' */

/**
 * The norm of each row of x, or of x + skip, whose sum is kept. A workgroup takes a row, which stays in registers:
 * y = (x - mean) / sqrt(E[(x - mean)^2] + epsilon) scale + bias, in two passes over them.
 *
 * @param {LayerNorm} norm
 * @returns {Launch[]}
 */
export function launchLayerNorm({ x, skip, scale, bias, y, sum, count, C, skipped, epsilon, halves }) {
  const isHalf = (/** @type {import('./operations.js').Value} */ value) => halves.includes(value);
  const input = reading('X', 'four', isHalf(x) ? HALVES : null);
  const other = skip && reading('Skip', 'four', isHalf(skip) ? HALVES : null);
  const made = storing(isHalf(y));
  const kept = sum && storing(isHalf(sum));
  const vectors = C / 4;
  const size = [128, 64, 32, 16].find((threads) => vectors >= 2 * threads) ?? 16;
  const per = Math.ceil(vectors / size);
  const each = (/** @type {(i: number) => string} */ make) =>
    repeat(per, (i) => `{ let j = t + ${i * size}u; if (j < ${vectors}u) { ${make(i)} } }`);
  const added = (/** @type {number} */ i) =>
    kept ? ` + fourOfSkip((row % u.skipped) * ${vectors}u + j); Sum[base + j] = ${kept.of(`v${i}`)}` : '';
  const types = { ...input.types, ...other?.types, S: 'vec4f', B: 'vec4f', '!Y': made.type, ...(kept && { '!Sum': kept.type }) };
  const { declared, numbers } = numbered(types, { count, skipped });
  const code = `${storage(types)}
${declared}
${lines([...new Set([input.code, other?.code ?? '', made.code, kept?.code ?? ''])])}
var<workgroup> s: array<f32, ${size}>;
@compute @workgroup_size(${size}) fn main(@builtin(workgroup_id) w: vec3u, @builtin(num_workgroups) all: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = w.x + w.y * all.x; if (row >= u.count) { return; }
  let base = row * ${vectors}u; var total = vec4f(0); ${repeat(per, (i) => `var v${i} = vec4f(0);`)}
  ${each((i) => `v${i} = fourOfX(base + j)${added(i)}; total += v${i};`)}
  s[t] = dot(total, vec4f(1));
  ${sumOver(size)}
  let mean = s[0] / ${C}.0; var squares = 0.0;
  workgroupBarrier();
  ${each((i) => `let d = v${i} - vec4f(mean); squares += dot(d, d);`)}
  s[t] = squares;
  ${sumOver(size)}
  let f = inverseSqrt(s[0] / ${C}.0 + ${epsilon});
  ${each((i) => `Y[base + j] = ${made.of(`fma((v${i} - vec4f(mean)) * f, S[j], B[j])`)};`)}
}`;
  const across = Math.min(count, 32768);
  const values = [x, ...(skip ? [skip] : []), scale, bias, y, ...(sum ? [sum] : [])];
  return [{ code, values, numbers, workgroups: [across, Math.ceil(count / across), 1] }];
}

/**
 * WGSL: four columns of a matrix, of which each thread keeps four rows a round, in `v0`, `v1`, ...; these become exp(x - most of the column),
 * and `share` one over their sums.
 *
 * @param {number} rounds
 * @param {number} size threads of the workgroup, whose memory `s` has a vector for each
 * @param {string} fours of rows
 * @param {(row: string) => string} at the vector of a row
 */
function exponentials(rounds, size, fours, at) {
  const all = (/** @type {(v: string) => string} */ make) => repeat(4 * rounds, (i) => make(`v${i}`));
  return `${all((v) => `var ${v} = vec4f(-3.4e38);`)}
  ${repeat(rounds, (i) => `let f${i} = t + ${i * size}u; if (f${i} < ${fours}) { ${repeat(4, (r) => `v${4 * i + r} = ${at(`4u * f${i} + ${r}u`)};`)} }`)}
  var most = vec4f(-3.4e38); ${all((v) => `most = max(most, ${v});`)}
  s[t] = most;
  ${sumOver(size, (one, other) => `max(${one}, ${other})`)}
  most = s[0]; var total = vec4f(0);
  ${all((v) => `${v} = exp(${v} - most); total += ${v};`)}
  workgroupBarrier();
  s[t] = total;
  ${sumOver(size)}
  let share = 1.0 / s[0];`;
}

/**
 * The softmax of each column of a matrix (T, C), for each of B: of T tokens by channel. What it gives is stored by channel, `per` tokens
 * next to each other: (B, T / per, C, per). A workgroup takes four columns, which stay in registers; a thread takes four rows at a time.
 *
 * @param {import('./passes.js').SoftmaxDown} softmax whose T is 4096 at most
 * @returns {Launch[]}
 */
export function launchSoftmaxDown({ x, y, half, B, T, C, per }) {
  const fours = T / 4;
  const size = fours >= 256 ? 256 : 64;
  const each = Math.ceil(fours / size);
  const [input, kept] = [reading('X', 'four', half ? HALVES : null), storing(half)];
  const code = `${storage({ ...input.types, '!Y': kept.type })}
${input.code}
${kept.code}
var<workgroup> s: array<vec4f, ${size}>;
@compute @workgroup_size(${size}) fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  let base = w.y * ${T}u;
  ${exponentials(each, size, `${fours}u`, (row) => `fourOfX((base + ${row}) * ${C / 4}u + w.x)`)}
  ${repeat(
    each,
    (i) => `if (f${i} < ${fours}u) { let part = (4u * f${i}) / ${per}u; let at = f${i} % ${per / 4}u;
  ${repeat(4, (c) => `Y[((w.y * ${T / per}u + part) * ${C}u + 4u * w.x + ${c}u) * ${per / 4}u + at] = ${kept.of(`vec4f(${[0, 1, 2, 3].map((r) => `v${4 * i + r}[${c}]`).join(', ')}) * share[${c}]`)};`)} }`,
  )}
}`;
  return [{ code, values: [x, y], workgroups: [C / 4, B, 1] }];
}

/**
 * Content lambdas behind the values that they are made of. A workgroup takes four channels of the keys, which stay in registers until their
 * softmax is known but for its denominator; then, a thousand tokens at a time, it shares them in workgroup memory, and each thread sums four
 * numbers of four rows over every so many tokens. Of what stands before, each workgroup copies a share.
 *
 * @param {import('./passes.js').ContentLambda} content whose T is 4096 at most, and N as many as a workgroup has threads
 * @returns {Launch[]}
 */
export function launchContentLambda({ keys, values, between, y, half, B, T, C, N, size }) {
  const stored = half ? HALVES : null;
  const [input, other, kept] = [reading('K', 'four', stored), reading('V', 'four', stored), storing(half)];
  const rounds = Math.ceil(T / (4 * SUMMING));
  const [N4, groups] = [N / 4, Math.floor((4 * SUMMING) / N)];
  const types = { ...input.types, ...other.types, M: kept.type, '!Y': kept.type };
  const { declared, numbers } = numbered(types, { tokens: T, between: size / 4, copying: (C / 4) * SUMMING });
  const multiplied = (/** @type {number} */ round) => `workgroupBarrier();
  if (f${round} < fours) { ${repeat(4, (r) => `s[4u * t + ${r}u] = v${4 * round + r};`)} }
  workgroupBarrier();
  if (t < ${groups * N4}u) {
    let first = ${4 * SUMMING * round}u; let count = min(u.tokens - first, ${4 * SUMMING}u);
    for (var j = t / ${N4}u; j < count; j += ${UNROLLED * groups}u) {
      ${repeat(UNROLLED, (i) => `var x${i} = vec4f(0); var p${i} = vec4f(0); let j${i} = j + ${i * groups}u; if (j${i} < count) { x${i} = fourOfV((base + first + j${i}) * ${N4}u + n); p${i} = s[j${i}]; }`)}
      ${repeat(UNROLLED, (i) => repeat(4, (c) => `sum${c} = fma(vec4f(p${i}[${c}]), x${i}, sum${c});`))}
    }
  }`;
  const code = `${storage(types)}
${declared}
${lines([...new Set([input.code, other.code, kept.code])])}
var<workgroup> s: array<vec4f, ${4 * SUMMING}>;
@compute @workgroup_size(${SUMMING}) fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  let base = w.y * u.tokens; let fours = u.tokens / 4u; let n = t % ${N4}u;
  let all = u.tokens * ${N4}u; let to = w.y * (all + u.between + ${C * N4}u);
  for (var i = w.x * ${SUMMING}u + t; i < all; i += u.copying) { Y[to + i] = V[w.y * all + i]; }
  for (var i = w.x * ${SUMMING}u + t; i < u.between; i += u.copying) { Y[to + all + i] = M[w.y * u.between + i]; }
  ${exponentials(rounds, SUMMING, 'fours', (row) => `fourOfK((base + ${row}) * ${C / 4}u + w.x)`)}
  ${repeat(4, (c) => `var sum${c} = vec4f(0);`)}
  ${repeat(rounds, multiplied)}
  workgroupBarrier();
  ${repeat(4, (c) => `s[${c * SUMMING}u + t] = sum${c} * share[${c}];`)}
  workgroupBarrier();
  if (t < ${N}u) {
    let row = t / ${N4}u; var sum = vec4f(0);
    for (var g = 0u; g < ${groups}u; g++) { sum += s[row * ${SUMMING}u + g * ${N4}u + n]; }
    Y[to + all + u.between + (4u * w.x + row) * ${N4}u + n] = ${kept.of('sum')};
  }
}`;
  return [{ code, values: [keys, values, between, y], numbers, workgroups: [C / 4, B, 1] }];
}

export const SUMMING = 256; // threads of a workgroup
const UNROLLED = 8; // tokens that a thread reads at a time

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
 * Attention to the vectors of a condition: a workgroup takes a token. Its keys, E + k, and its queries lie in workgroup memory; each thread
 * sums a part of four scores along D, then each computes numbers of the result.
 *
 * @param {import('./passes.js').ConditionAttention} attention whose D and J are multiples of 4
 * @returns {Launch[]}
 */
export function launchConditionAttention({ q, a, E, narrow, k, v, indices, words, sums, y, half, B, T, H, D, J }) {
  const stored = half ? HALVES : null;
  const names = ['Q', 'E', 'K', 'V', ...sums.map((_, i) => `R${i}`)];
  const inputs = names.map((name) => reading(name, 'four', name === 'E' ? narrow : stored));
  const kept = storing(half);
  const scores = (H * J) / 4; // vectors of four
  const parts = Math.floor(ATTENDING / scores);
  const [keys, queries] = [(D * J) / 4, (H * D) / 4];
  const types = Object.assign({}, ...inputs.map((input) => input.types), { I: 'u32', '!Y': kept.type });
  const { declared, numbers } = numbered(types, { T, outer: a.outer, inner: a.inner });
  const code = `${storage(types)}
${declared}
${lines([...inputs.map((input) => input.code), kept.code])}
var<workgroup> qs: array<f32, ${4 * queries}>;
var<workgroup> ks: array<vec4f, ${keys}>;
var<workgroup> s: array<vec4f, ${scores * parts}>;
@compute @workgroup_size(${ATTENDING}) fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = I[${words}u * w.y];
  for (var i = t; i < ${queries}u; i += ${ATTENDING}u) {
    let four = fourOfQ(w.y * u.outer + w.x * u.inner + i);
    ${repeat(4, (x) => `qs[4u * i + ${x}u] = four[${x}];`)}
  }
  for (var i = t; i < ${keys}u; i += ${ATTENDING}u) { ks[i] = fourOfE(w.x * ${keys}u + i) + fourOfK(row * ${keys}u + i); }
  workgroupBarrier();
  if (t < ${scores * parts}u) {
    let score = t % ${scores}u; let head = score / ${J / 4}u; var sum = vec4f(0);
    for (var d = t / ${scores}u; d < ${D}u; d += ${parts}u) { sum = fma(vec4f(qs[head * ${D}u + d]), ks[d * ${J / 4}u + score % ${J / 4}u], sum); }
    s[t] = sum;
  }
  workgroupBarrier();
  if (t < ${scores}u) { var sum = s[t]; ${repeat(parts - 1, (i) => `sum += s[t + ${(i + 1) * scores}u];`)} s[t] = sum; }
  workgroupBarrier();
  for (var i = t; i < ${queries}u; i += ${ATTENDING}u) {
    let at = i % ${D / 4}u; let first = (i / ${D / 4}u) * ${J / 4}u; var sum = vec4f(0);
    ${repeat(J / 4, (j) => `{ let four = s[first + ${j}u]; ${repeat(4, (x) => `sum = fma(vec4f(four[${x}]), fourOfV((row * ${J}u + ${4 * j + x}u) * ${D / 4}u + at), sum);`)} }`)}
    let o = (w.y * u.T + w.x) * ${queries}u + i;
    ${lines(sums.map((_, i) => `sum += fourOfR${i}(o);`))}
    Y[o] = ${kept.of('sum')};
  }
}`;
  const values = [q, ...boundOf(E, narrow), k, v, ...sums, indices, y];
  return [{ code, values, numbers, workgroups: [T, B, 1] }];
}

export const ATTENDING = 128; // threads of a workgroup

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
  const threads = outer * ends[ends.length - 1];
  const { workgroups, id } = grid(threads, 256, 'u.threads');
  const last = parts.length - 1;
  const copies = parts.map((_, i) => {
    const from = i ? `u.end${i - 1}` : '0u';
    return `if (at < u.end${i}) { Y[id] = X${i}[o * (u.end${i} - ${from}) + at - ${from}]; return; }`;
  });
  const types = { ...Object.fromEntries(parts.map((_, i) => [`X${i}`, type])), '!Y': type };
  const { declared, numbers } = numbered(types, { threads, ...Object.fromEntries(ends.map((end, i) => [`end${i}`, end])) });
  const code = `${storage(types)}
${declared}
@compute @workgroup_size(256) fn main(@builtin(global_invocation_id) global: vec3u) {
  ${id}
  let o = id / u.end${last}; let at = id % u.end${last};
  ${lines(copies)}
}`;
  return [{ code, values: [...parts, y], numbers, workgroups }];
}

// Kernels on pictures whose channels come first: norms, depthwise convolutions, the middle of a MixFFN, pictures as tokens.
//
// All of them are limited by memory: each reads its picture once and writes what the next product reads. A vector is four pixels of a row.

import { Placeholder } from '../capture.js';
import { HALVES, weightsOf } from './operations.js';
import { grid, lines, numbered, reading, repeat, storage, storing, sumOver } from './launch.js';

/** @import { Affine, Depthwise, Moments, Value } from './operations.js' */
/** @import { Launch } from './launch.js' */
/** @typedef {{moments: Moments, affine: Affine|null, half: boolean}} Norm of a picture, by group, then by channel; `half`: picture and channels have 16 bits */

const PARTS = 8; // workgroups that share a large group's sums
const LARGE = 65536; // numbers of a group whose sums take one workgroup longer than another launch
const AHEAD = 4; // vectors that a thread reads at a time
const SIZE = 128; // threads of a workgroup

// -- norms ------------------------------------------------------------------------------------------------------------

/**
 * The factor and the summand with which a norm takes each channel, in one launch, or in two where groups are large.
 *
 * With d = x - x0, x0 the first number of a group, mean = x0 + E[d] and variance = E[d^2] - E[d]^2, which keeps its digits where
 * the mean is large. All of the norm is y = x factor + summand, and where a second, fixed scale follows, that too:
 * ((x s + t) - m) k + b = x (s k) + ((t - m) k + b).
 *
 * @param {Norm} norm
 * @param {number} channels of the picture
 * @returns {{launches: Launch[], factors: Placeholder}} `factors` has two numbers for each image and channel
 */
function channelFactors({ moments, affine, half }, channels) {
  const { x, scale, bias, batch, groups, size, epsilon, y } = moments;
  const count = batch * groups;
  const per = channels / groups;
  const factors = new Placeholder({ size: Math.ceil((8 * batch * channels) / 16) * 16, usage: y.usage });
  const stored = half ? HALVES : null;
  const picture = reading('X', 'four', stored);
  const second = affine ? ['S2', 'B2', 'M2', 'V2'].map((name) => reading(name, 'one', stored)) : [];
  const bound = { S: 'f32', B: 'f32', ...Object.assign({}, ...second.map(({ types }) => types)), '!F': 'vec2f' };
  const values = [scale, bias, ...(affine ? [affine.scale, affine.bias, affine.mean, affine.variance] : []), factors];
  const parts = size > LARGE ? PARTS : 1;
  const step = 256 * parts;
  const sizes = { size, vectors: size / 4, groups, per, threads: batch * channels };
  const summed = `var<workgroup> s: array<vec2f, 256>;
@compute @workgroup_size(256) fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  let base = w.y * u.vectors; let x0 = fourOfX(base).x;
  var sum = vec4f(0); var squares = vec4f(0);
  for (var i = w.x * 256u + t; i < u.vectors; i += ${AHEAD * step}u) {
    ${repeat(AHEAD, (j) => `var d${j} = vec4f(0); if (i + ${j * step}u < u.vectors) { d${j} = fourOfX(base + i + ${j * step}u) - vec4f(x0); }`)}
    ${repeat(AHEAD, (j) => `sum += d${j}; squares = fma(d${j}, d${j}, squares);`)}
  }
  s[t] = vec2f(dot(sum, vec4f(1)), dot(squares, vec4f(1)));
  ${sumOver(256)}`;
  const factor = (/** @type {string} */ sums, /** @type {string} */ x0) => `let d = ${sums} / f32(u.size);
    let s0 = inverseSqrt(max(d.y - d.x * d.x, 0.0) + ${epsilon}) * S[g]; let f = vec2f(s0, B[g] - (${x0} + d.x) * s0);
    ${affine ? `let k = inverseSqrt(oneOfV2(c) + ${affine.epsilon}) * oneOfS2(c); F[id] = vec2f(f.x * k, fma(f.y - oneOfM2(c), k, oneOfB2(c)));` : 'F[id] = f;'}`;
  const codes = lines(second.map(({ code }) => code));
  if (parts === 1) {
    const types = { ...picture.types, ...bound };
    const { declared, numbers } = numbered(types, sizes);
    const code = `${storage(types)}
${declared}
${picture.code}
${codes}
${summed}
  let g = w.y % u.groups;
  for (var i = t; i < u.per; i += 256u) { let c = g * u.per + i; let id = w.y * u.per + i; ${factor('s[0]', 'x0')} }
}`;
    return { launches: [{ code, values: [x, ...values], numbers, workgroups: [1, count, 1] }], factors };
  }
  const partial = new Placeholder({ size: 16 * count * PARTS, usage: y.usage });
  const parted = { ...picture.types, '!P': 'vec4f' };
  const first = numbered(parted, sizes);
  const sums = `${storage(parted)}
${first.declared}
${picture.code}
${summed}
  if (t == 0u) { P[w.y * ${PARTS}u + w.x] = vec4f(s[0], x0, 0); }
}`;
  const channel = grid(batch * channels, SIZE, 'u.threads');
  const joined = { P: 'vec4f', ...bound };
  const next = numbered(joined, sizes);
  const after = `${storage(joined)}
${next.declared}
${codes}
@compute @workgroup_size(${SIZE}) fn main(@builtin(global_invocation_id) global: vec3u) {
  ${channel.id}
  let c = id % (u.groups * u.per); let g = c / u.per; let group = id / u.per;
  var all = vec2f(0); for (var i = 0u; i < ${PARTS}u; i++) { all += P[group * ${PARTS}u + i].xy; }
  ${factor('all', `P[group * ${PARTS}u].z`)}
}`;
  return {
    launches: [
      { code: sums, values: [x, partial], numbers: first.numbers, workgroups: [PARTS, count, 1] },
      { code: after, values: [partial, ...values], numbers: next.numbers, workgroups: channel.workgroups },
    ],
    factors,
  };
}

// -- depthwise convolutions -------------------------------------------------------------------------------------------

/** Rows that a thread makes, so that it reads few of them twice. @param {number} H */
function rowsFor(H) {
  return [8, 4, 2].find((rows) => H % rows === 0 && H / rows >= 4) ?? (H % 4 ? 1 : 4);
}

/**
 * WGSL of a 3 x 3 convolution of one plane, padded by 1: a thread makes `rows` vectors below one another, in variables NAME0, ...
 *
 * Row j of its input counts for rows j - 1, j, j + 1 of the output. l, v, r are the row shifted right, as it is, and shifted left.
 * `taken` says what becomes of each vector that is read, and the buffer `kept` gets these vectors, as `stored` says.
 *
 * @param {{name: string, from: string, base: string, K: string, bias: string, channel: string, rows: number,
 *   taken?: (x: string) => string, kept?: string, stored?: (x: string) => string}} options names in WGSL; `u` has H and W4
 */
function convolve({ name, from, base, K, bias, channel, rows, taken = (x) => x, kept = '', stored = (x) => x }) {
  const input = repeat(rows + 2, (j) => {
    const inside = j > 0 && j <= rows;
    const exists = inside ? 'true' : `y0 + ${j}u >= 1u && y0 + ${j}u <= u.H`;
    const at = `(${base} + (y0 + ${j}u - 1u) * u.W4)`;
    const used = [0, 1, 2].map((d) => ({ i: j - 2 + d, k: 3 * (2 - d) })).filter(({ i }) => i >= 0 && i < rows);
    return `if (${exists}) {
    let at = ${at}; let v = ${taken(`fourOf${from}(at)`)}; var before = 0.0; var after = 0.0;
    if (x > 0u) { before = ${taken(`fourOf${from}(at - 1u)`)}.w; } if (x + 1u < u.W4) { after = ${taken(`fourOf${from}(at + 1u)`)}.x; }
    let l = vec4f(before, v.xyz); let r = vec4f(v.yzw, after); ${inside && kept ? `${kept}[at] = ${stored('v')};` : ''}
    ${lines(used.map(({ i, k }) => `${name}${i} = fma(l, vec4f(${name}k${k}), fma(v, vec4f(${name}k${k + 1}), fma(r, vec4f(${name}k${k + 2}), ${name}${i})));`))} }`;
  });
  return `${repeat(9, (i) => `let ${name}k${i} = oneOf${K}(9u * ${channel} + ${i}u);`)}
  ${repeat(rows, (i) => `var ${name}${i} = vec4f(oneOf${bias}(${channel}));`)}
  ${input}`;
}

/**
 * How a depthwise convolution reads its input, its kernels and its bias, by the names of their bindings.
 *
 * @param {string[]} names
 * @param {boolean} half input and bias have 16 bits
 * @param {import('./operations.js').Narrow|null} narrow how the kernels are stored
 */
function readings([input, kernels, bias], half, narrow) {
  const stored = half ? HALVES : null;
  return [reading(input, 'four', stored), reading(kernels, 'one', narrow), reading(bias, 'one', stored)];
}

/** Where a thread is: column `x` of vectors, first row `y0`, plane `p`. @param {number} rows */
function place(rows) {
  return `let each = u.W4 * u.H / ${rows}u; let p = id / each; let x = id % each % u.W4; let y0 = (id % each / u.W4) * ${rows}u;`;
}

/**
 * A depthwise convolution; after a norm and SiLU if there is one, whose result others may read too.
 *
 * @param {Depthwise} operation
 * @param {Norm|null} norm
 * @param {Value|null} kept gets what the convolution reads
 * @returns {Launch[]}
 */
export function launchDepthwise(operation, norm, kept) {
  const { x, narrow, y, half, B, C, H, W4, relu } = operation;
  const [input, kernels, biases] = readings(['X', 'K', 'Bias'], half, narrow);
  const stored = storing(half);
  const rows = rowsFor(H);
  const threads = (B * C * W4 * H) / rows;
  const { workgroups, id } = grid(threads, SIZE, 'u.threads');
  const before = norm && channelFactors(norm, C);
  const source = norm ? norm.moments.x : x;
  const written = { '!Y': stored.type, ...(kept && { '!Z': stored.type }) };
  const types = { ...input.types, ...(norm && { F: 'vec2f' }), ...kernels.types, ...biases.types, ...written };
  const { declared, numbers } = numbered(types, { threads, C, H, W4 });
  const code = `${storage(types)}
${declared}
${lines([input.code, kernels.code, biases.code, stored.code])}
fn normal(x: vec4f, f: vec2f) -> vec4f { let y = fma(x, vec4f(f.x), vec4f(f.y)); return y / (1.0 + exp(-y)); }
@compute @workgroup_size(${SIZE}) fn main(@builtin(global_invocation_id) global: vec3u) {
  ${id}
  ${place(rows)}
  let c = p % u.C; let base = p * u.H * u.W4 + x; ${norm ? 'let f = F[p];' : ''}
  ${convolve({ name: 'a', from: 'X', base: 'base', K: 'K', bias: 'Bias', channel: 'c', rows, taken: norm ? (v) => `normal(${v}, f)` : undefined, kept: kept ? 'Z' : '', stored: stored.of })}
  ${repeat(rows, (i) => `Y[base + (y0 + ${i}u) * u.W4] = ${stored.of(relu ? `max(a${i}, vec4f(0))` : `a${i}`)};`)}
}`;
  const values = [source, ...(before ? [before.factors] : []), ...weightsOf(operation), y, ...(kept ? [kept] : [])];
  return [...(before?.launches ?? []), { code, values, numbers, workgroups }];
}

/**
 * The middle of a MixFFN: y = value SiLU(gate), each a depthwise convolution; of one picture's two halves, or of two pictures.
 *
 * @param {object} middle
 * @param {Depthwise} middle.value
 * @param {Depthwise} middle.gate the same operation where the two are halves
 * @param {number} middle.first channel of the value, and
 * @param {number} middle.second of the gate
 * @param {number} middle.D channels of y
 * @param {Value} middle.y
 * @returns {Launch[]}
 */
export function launchMiddle({ value, gate, first, second, D, y }) {
  const { B, H, W4 } = value;
  const rows = Math.min(rowsFor(H), 4); // two sums a thread: half the rows
  const threads = (B * D * W4 * H) / rows;
  const { workgroups, id } = grid(threads, SIZE, 'u.threads');
  const one = value === gate;
  const [X2, K2, Bias2] = one ? ['X', 'K', 'Bias'] : ['X2', 'K2', 'Bias2'];
  const read = [
    ...readings(['X', 'K', 'Bias'], value.half, value.narrow),
    ...(one ? [] : readings(['X2', 'K2', 'Bias2'], gate.half, gate.narrow)),
  ];
  const kept = storing(value.half);
  const types = Object.assign({}, ...read.map(({ types }) => types), { '!Y': kept.type });
  const { declared, numbers } = numbered(types, { threads, D, H, W4, first, second, C: value.C, C2: gate.C });
  const code = `${storage(types)}
${declared}
${lines([...read.map(({ code }) => code), kept.code])}
@compute @workgroup_size(${SIZE}) fn main(@builtin(global_invocation_id) global: vec3u) {
  ${id}
  ${place(rows)}
  let c = p % u.D; let plane = u.H * u.W4;
  let base = ((p / u.D) * u.C + u.first + c) * plane + x; let base2 = ((p / u.D) * u.C2 + u.second + c) * plane + x;
  ${convolve({ name: 'a', from: 'X', base: 'base', K: 'K', bias: 'Bias', channel: '(c + u.first)', rows })}
  ${convolve({ name: 'g', from: X2, base: 'base2', K: K2, bias: Bias2, channel: '(c + u.second)', rows })}
  ${repeat(rows, (i) => `Y[p * plane + (y0 + ${i}u) * u.W4 + x] = ${kept.of(`a${i} * g${i} / (1.0 + exp(-g${i}))`)};`)}
}`;
  const gated = one ? [] : [gate.x, ...weightsOf(gate)];
  return [{ code, values: [value.x, ...weightsOf(value), ...gated, y], numbers, workgroups }];
}

// -- norms of pictures whose channels come last ------------------------------------------------------------------------

const RANGES = 128; // of a picture's pixels, each for a workgroup

/**
 * A norm by groups of channels, which come last, and SiLU: three launches, of which the first and the last read the picture.
 *
 * Each range of pixels has the sums of d = x - x0 and d^2 of every group, x0 the group's first number; then as `channelFactors`.
 *
 * @param {import('./passes.js').NormLast} norm
 * @returns {Launch[]}
 */
export function launchNormLast({ x, y, scale, bias, channels, groups, pixels, epsilon }) {
  const columns = channels / 4;
  const lanes = Math.max(1, Math.floor(256 / columns)); // threads of a workgroup that share a column of vectors
  const size = columns * lanes;
  const wide = channels / groups / 4; // columns of a group
  const per = Math.ceil(pixels / RANGES);
  const count = pixels * (channels / groups);
  const partial = new Placeholder({ size: Math.ceil((8 * RANGES * groups) / 16) * 16, usage: y.usage });
  const factors = new Placeholder({ size: 8 * channels, usage: y.usage });
  const sizes = { pixels, per, count, threads: pixels * columns };
  /** @type {Record<string, string>[]} */
  const bound = [
    { X: 'vec4f', '!P': 'vec2f' },
    { X: 'vec4f', P: 'vec2f', S: 'f32', B: 'f32', '!F': 'f32' },
    { X: 'vec4f', F: 'vec4f', '!Y': 'vec4f' },
  ];
  const [one, two, three] = bound.map((types) => numbered(types, sizes));
  const sums = `${storage(bound[0])}
${one.declared}
var<workgroup> s: array<vec2f, ${size}>;
@compute @workgroup_size(${size}) fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  let column = t % ${columns}u; let x0 = X[(column / ${wide}u) * ${wide}u].x;
  var sum = vec4f(0); var squares = vec4f(0);
  let end = min((w.x + 1u) * u.per, u.pixels);
  for (var p = w.x * u.per + t / ${columns}u; p < end; p += ${lanes}u) {
    let d = X[p * ${columns}u + column] - vec4f(x0); sum += d; squares = fma(d, d, squares);
  }
  s[t] = vec2f(dot(sum, vec4f(1)), dot(squares, vec4f(1)));
  workgroupBarrier();
  for (var g = t; g < ${groups}u; g += ${size}u) {
    var all = vec2f(0);
    for (var l = 0u; l < ${lanes}u; l++) { for (var c = 0u; c < ${wide}u; c++) { all += s[l * ${columns}u + g * ${wide}u + c]; } }
    P[w.x * ${groups}u + g] = all;
  }
}`;
  const factor = `${storage(bound[1])}
${two.declared}
var<workgroup> s: array<vec2f, 64>;
@compute @workgroup_size(64) fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  var all = vec2f(0);
  for (var i = t; i < ${RANGES}u; i += 64u) { all += P[i * ${groups}u + w.x]; }
  s[t] = all;
  ${sumOver(64)}
  let d = s[0] / f32(u.count); let f = inverseSqrt(max(d.y - d.x * d.x, 0.0) + ${epsilon}); let mean = X[w.x * ${wide}u].x + d.x;
  for (var i = t; i < ${4 * wide}u; i += 64u) {
    let c = w.x * ${4 * wide}u + i; let a = f * S[c]; F[c] = a; F[${channels}u + c] = B[c] - mean * a;
  }
}`;
  const { workgroups, id } = grid(pixels * columns, 256, 'u.threads');
  const apply = `${storage(bound[2])}
${three.declared}
@compute @workgroup_size(256) fn main(@builtin(global_invocation_id) global: vec3u) {
  ${id}
  let c = id % ${columns}u; let v = fma(X[id], F[c], F[${columns}u + c]); Y[id] = v / (1.0 + exp(-v));
}`;
  return [
    { code: sums, values: [x, partial], numbers: one.numbers, workgroups: [RANGES, 1, 1] },
    { code: factor, values: [x, partial, scale, bias, factors], numbers: two.numbers, workgroups: [groups, 1, 1] },
    { code: apply, values: [x, factors, y], numbers: three.numbers, workgroups },
  ];
}

// -- pictures and tokens ----------------------------------------------------------------------------------------------

const CHANNELS = 32; // of the block that a workgroup turns

/** WGSL: the token of a pixel; `u` has gy, py, gx and px. */
const TOKEN = `fn token(pixel: u32) -> u32 {
  let across = u.gx * u.px; let y = pixel / across; let x = pixel % across;
  return (((y % u.py) * u.px + x % u.px) * u.gy + y / u.py) * u.gx + x / u.px;
}`;

/**
 * A picture (B, C, gy, py, gx, px) as tokens (B, py, px, gy, gx, C), or back: pixel (y, x) is one of a patch of py x px, and all
 * pixels with one place in their patches come one after another. A workgroup turns a block of pixels and channels in its memory.
 *
 * @param {object} tokens
 * @param {Value} tokens.x
 * @param {Value} tokens.y
 * @param {boolean} tokens.half both have 16 bits
 * @param {number[]} tokens.shape B, C, gy, py, gx, px
 * @param {boolean} tokens.back from tokens to a picture
 * @param {Norm|null} tokens.norm of the picture, without a second scale
 * @returns {Launch[]}
 */
export function launchTokens({ x, y, half, shape, back, norm }) {
  const [B, C, gy, py, gx, px] = shape;
  const [input, kept] = [reading('X', 'four', half ? HALVES : null), storing(half)];
  const pixels = gy * py * gx * px;
  const PIXELS = [64, 32, 16, 8, 4].find((count) => pixels % count === 0) ?? 1;
  const before = norm && channelFactors(norm, C);
  const [PQ, CQ] = [PIXELS / 4, CHANNELS / 4];
  const picture = `let c = i / ${PQ}u; let q = i % ${PQ}u; let at = (b * u.C + c0 + c) * u.pixels / 4u + p0 / 4u + q; let here = c0 + c < u.C;`;
  const token = `let q = i % ${CQ}u; let p = i / ${CQ}u; let at = (b * u.pixels + token(p0 + p)) * u.C / 4u + c0 / 4u + q; let here = c0 + 4u * q < u.C;`;
  const inSlab = (/** @type {(x: number) => string} */ slot) => `vec4f(${[0, 1, 2, 3].map(slot).join(', ')})`;
  const byPixel = (/** @type {number} */ k) => `s[c][4u * q + ${k}u]`;
  const byChannel = (/** @type {number} */ k) => `s[4u * q + ${k}u][p]`;
  const read = (/** @type {(x: number) => string} */ slot, /** @type {string} */ taken) =>
    `if (here) { ${taken} ${repeat(4, (k) => `${slot(k)} = v[${k}];`)} }`;
  const normal = norm ? 'let f = F[b * u.C + c0 + c]; let v = fma(fourOfX(at), vec4f(f.x), vec4f(f.y));' : 'let v = fourOfX(at);';
  const types = { ...input.types, ...(norm && { F: 'vec2f' }), '!Y': kept.type };
  const { declared, numbers } = numbered(types, { C, pixels, gy, py, gx, px });
  const code = `${storage(types)}
${declared}
${input.code}
${kept.code}
var<workgroup> s: array<array<f32, ${PIXELS + 1}>, ${CHANNELS}>;
${TOKEN}
@compute @workgroup_size(${SIZE}) fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  let p0 = w.x * ${PIXELS}u; let c0 = w.y * ${CHANNELS}u; let b = w.z;
  for (var i = t; i < ${CHANNELS * PQ}u; i += ${SIZE}u) { ${back ? `${token} ${read(byChannel, 'let v = fourOfX(at);')}` : `${picture} ${read(byPixel, normal)}`} }
  workgroupBarrier();
  for (var i = t; i < ${CHANNELS * PQ}u; i += ${SIZE}u) { ${back ? picture : token} if (here) { Y[at] = ${kept.of(inSlab(back ? byPixel : byChannel))}; } }
}`;
  const values = [norm ? norm.moments.x : x, ...(before ? [before.factors] : []), y];
  return [...(before?.launches ?? []), { code, values, numbers, workgroups: [pixels / PIXELS, Math.ceil(C / CHANNELS), B] }];
}

const BUSY = 256; // workgroups that keep a large card busy

/**
 * A layer norm of tokens that gives a picture, and maybe their sum as one, as `launchTokens` would: a workgroup takes neighbouring pixels,
 * whose tokens stay in registers, and turns some channels at a time in its memory.
 *
 * @param {import('./operations.js').LayerNorm} norm with a picture, of a multiple of 4 pixels
 * @returns {Launch[]}
 */
export function launchLayerNormToPicture({ x, skip, scale, bias, y, sum, count, C, skipped, epsilon, halves, picture }) {
  const { shape, turned } = /** @type {import('./operations.js').Picture} */ (picture);
  const isHalf = (/** @type {Value} */ value) => halves.includes(value);
  const input = reading('X', 'four', isHalf(x) ? HALVES : null);
  const other = skip && reading('Skip', 'four', isHalf(skip) ? HALVES : null);
  const [made, kept] = [storing(isHalf(y)), sum && storing(isHalf(sum))];
  const [B, , gy, py, gx, px] = shape;
  const pixels = count / B;
  const P = pixels % 8 === 0 && count / 8 >= BUSY ? 8 : 4; // pixels of a workgroup
  const [lanes, quads, vectors] = [SIZE / P, P / 4, C / 4]; // threads of a token
  const per = Math.ceil(vectors / lanes);
  const each = (/** @type {(r: number) => string} */ make) =>
    repeat(per, (r) => `{ let i = lane + ${r * lanes}u; if (i < ${vectors}u) { ${make(r)} } }`);
  const summed = sumOver(lanes, undefined, 'lane');
  const added = (/** @type {number} */ r) =>
    kept
      ? `+ fourOfSkip((row % u.skipped) * ${vectors}u + i); ${turned ? '' : `Sum[row * ${vectors}u + i] = ${kept.of(`v${r}`)};`}`
      : ';';
  const turn = (
    /** @type {number} */ r,
    /** @type {string} */ value,
    /** @type {string} */ to,
    /** @type {(v: string) => string} */ stored,
  ) =>
    `{ let i = lane + ${r * lanes}u; if (i < ${vectors}u) { let v = ${value}; ${repeat(4, (k) => `turned[4u * lane + ${k}u][mine] = v[${k}];`)} }
  workgroupBarrier();
  let c = ${4 * r * lanes}u + t / ${quads}u; let q = t % ${quads}u; let channel = t / ${quads}u;
  if (c < ${C}u) { ${to}[(w.y * ${C}u + c) * u.pixels / 4u + p0 / 4u + q] = ${stored(`vec4f(${[0, 1, 2, 3].map((k) => `turned[channel][4u * q + ${k}u]`).join(', ')})`)}; }
  workgroupBarrier(); }`;
  const types = { ...input.types, ...other?.types, S: 'vec4f', B: 'vec4f', '!Y': made.type, ...(kept && { '!Sum': kept.type }) };
  const { declared, numbers } = numbered(types, { pixels, skipped, gy, py, gx, px });
  const code = `${storage(types)}
${declared}
${lines([...new Set([input.code, other?.code ?? '', made.code, kept?.code ?? ''])])}
${TOKEN}
var<workgroup> s: array<f32, ${SIZE}>;
var<workgroup> turned: array<array<f32, ${P + 1}>, ${4 * lanes}>;
@compute @workgroup_size(${SIZE}) fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  let p0 = w.x * ${P}u; let mine = t / ${lanes}u; let lane = t % ${lanes}u;
  let row = w.y * u.pixels + token(p0 + mine);
  var total = vec4f(0); ${repeat(per, (r) => `var v${r} = vec4f(0);`)}
  ${each((r) => `v${r} = fourOfX(row * ${vectors}u + i) ${added(r)} total += v${r};`)}
  s[t] = dot(total, vec4f(1));
  ${summed}
  let mean = s[mine * ${lanes}u] / ${C}.0; var squares = 0.0;
  workgroupBarrier();
  ${each((r) => `let d = v${r} - vec4f(mean); squares += dot(d, d);`)}
  s[t] = squares;
  ${summed}
  let f = inverseSqrt(s[mine * ${lanes}u] / ${C}.0 + ${epsilon});
  ${repeat(per, (r) => `${turn(r, `fma((v${r} - vec4f(mean)) * f, S[i], B[i])`, 'Y', made.of)} ${kept && turned ? turn(r, `v${r}`, 'Sum', kept.of) : ''}`)}
}`;
  const values = [x, ...(skip ? [skip] : []), scale, bias, y, ...(sum ? [sum] : [])];
  return [{ code, values, numbers, workgroups: [pixels / P, B, 1] }];
}

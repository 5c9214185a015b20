// What the commands of ONNX Runtime Web mean: from a program and the numbers that go with a dispatch to an operation and its shapes.
//
// The runtime names its programs, and the uniforms of each hold the shapes; what neither says stands in the program's text.

import { Placeholder, programOf } from '../capture.js';

/** @import { Dispatch, Program } from '../types.js' */
/** @typedef {GPUBuffer|Placeholder} Value a tensor: a placeholder is computed, a buffer is a weight or an input */
/** @typedef {Record<string, number[]>} Numbers of a dispatch, by the names of its uniforms */
/** @typedef {{outer: number, inner: number}} Strides of the two dimensions of a batch, in groups of four numbers */

/** The version of ONNX Runtime Web whose programs are understood. */
export const RUNTIME = '1.30.0';

/**
 * C[z] = A[z] B[z], then bias, SiLU and sums, in this order; all matrices are stored by rows. Strides count groups of four numbers.
 *
 * @typedef {object} Product
 * @property {'product'} kind
 * @property {number} M rows of A and C
 * @property {number} N columns of B and C, a multiple of 4
 * @property {number} K columns of A and rows of B, a multiple of 4
 * @property {number} outer matrices: z = z0 inner + z1
 * @property {number} inner
 * @property {Value} A
 * @property {Value} B
 * @property {Value} C
 * @property {Strides} a
 * @property {Strides} b
 * @property {Strides} c
 * @property {number} from where C begins
 * @property {{per: number, a: number, c: number, step: number}} rows row m of A begins at floor(m / per) a + (m mod per) K/4, of C at
 *   floor(m / per) c + (m mod per) step
 * @property {'row'|'column'|''} biased what the bias has one number for
 * @property {Value|null} bias
 * @property {boolean} silu
 * @property {Value[]} sums tensors of C's layout that are added at the end, two at most
 * @property {Split|null} split what is stored instead of C
 * @property {Gathered|null} gathered
 * @property {Window|null} window
 * @property {{A: Narrow|null, B: Narrow|null}} narrow how A and B are stored; null: as float32
 * @property {boolean} half all tensors hold numbers of 16 bits; sums are float32
 * @property {boolean} turned B[z] is stored by columns: of a window, those of one channel in all its pixels next to each other
 */
/** @typedef {{scale: Value|null, group: number}} Narrow numbers of 16 bits, or of 8 with a scale, in float32, for each `group` of them */
/** @typedef {{indices: Value, words: 1|2}} Gathered row k of B[z] is row indices[z1 K + k] of what `b` points to; words of an index */
/**
 * Row m of A is what a convolution's kernel sees of pixel m in a picture whose channels come last; K counts its rows, columns, channels.
 *
 * @typedef {object} Window
 * @property {number} height of the picture that is read
 * @property {number} width
 * @property {number} channels
 * @property {number} columns of the kernel
 * @property {number} top rows of zeros before the picture
 * @property {number} left columns of zeros before the picture
 * @property {number} stride
 * @property {number} across pixels in a row of the picture that is made
 */
/** @typedef {{kind: 'vector', N: number, K: number, x: Value, W: Value, narrow: Narrow|null, bias: Value, y: Value, silu: boolean}} Vector y = W x + bias */
/** @typedef {{kind: 'widen', x: Value, narrow: Narrow, y: Value}} Widen to float32 */
/** @typedef {{kind: 'narrow', x: Value, y: Value}} Rounded float32 to 16 bits */
/** @typedef {{kind: 'silu', x: Value, y: Value}} Silu */
/** @typedef {{kind: 'add', x: Value, other: Value, y: Value}} Add of tensors of one shape */
/** @typedef {{kind: 'multiply', x: Value, other: Value, y: Value}} Multiply likewise */
/** @typedef {{kind: 'add row', x: Value, row: Value, width: number, y: Value}} AddRow `row` has one number for each of the last dimension */
/** @typedef {{kind: 'outer add', x: Value, narrow: Narrow|null, other: Value, y: Value, B: number, T: number, size: number}} OuterAdd y[b, t] = x[t] + other[b], each
 *   of `size` numbers */
/** @typedef {{kind: 'subtract row', x: Value, row: Value, width: number, y: Value}} SubtractRow likewise */
/** @typedef {{kind: 'average', x: Value, y: Value, channels: number, pixels: number}} Average of windows that tile a picture whose channels
 *   come last; `pixels` are left */
/** @typedef {{kind: 'sum parts', x: Value, y: Value, half: boolean, outer: number, parts: number, size: number}} SumParts y[outer] = sum of x[outer, part],
 *   each of `size` numbers */
/** @typedef {{kind: 'transpose', x: Value, y: Value, half: boolean, shape: number[], order: number[]}} Transpose axis i of y is axis order[i] of x */
/** @typedef {{kind: 'gather', data: Value, indices: Value, words: 1|2, y: Value, axis: number, shape: number[], count: number}} Gather */
/** @typedef {{kind: 'moments', x: Value, scale: Value, bias: Value, y: Value, batch: number, groups: number, size: number, epsilon: number}} Moments
 *   of each group: y has the factor and the summand that normalise it; `size` numbers in a group */
/** @typedef {{kind: 'normalise', x: Value, moments: Value, y: Value}} Normalise */
/** @typedef {{kind: 'affine', x: Value, scale: Value, bias: Value, mean: Value, variance: Value, epsilon: number, channels: number, last: boolean, half: boolean, y: Value}} Affine
 *   by channel, which come first or last */
/** @typedef {{kind: 'depthwise', x: Value, W: Value, narrow: Narrow|null, bias: Value, y: Value, half: boolean, B: number, C: number, H: number, W4: number, relu: boolean}} Depthwise
 *   3 x 3, padded by 1; W4: a quarter of the width */
/** @typedef {{kind: 'layer norm', x: Value, skip: Value|null, scale: Value, bias: Value, y: Value, sum: Value|null, count: number, C: number, skipped: number, epsilon: number, halves: Value[], picture: Picture|null}} LayerNorm
 *   of x, or of x + skip, which is kept in `sum`; `skip` has `skipped` rows, again and again; `halves`: those of x, skip, y and sum that have 16 bits */
/** @typedef {{shape: number[], turned: boolean}} Picture that a norm of tokens gives: B, C, gy, py, gx, px as `Tokens` has them; `turned`: so does its sum */
/** @typedef {{kind: 'softmax', x: Value, y: Value, rows: number, size: number}} Softmax of each row */
/** @typedef {{kind: 'concat', parts: Value[], y: Value, half: boolean, outer: number, sizes: number[]}} Concat sizes: numbers that each part gives for each of `outer` */
/** @typedef {{kind: 'split', x: Value, parts: Value[], outer: number, sizes: number[]}} Split numbers that each part takes of each of `outer` */
/** @typedef {Product|Vector|Widen|Rounded|Silu|Add|Multiply|AddRow|OuterAdd|SubtractRow|Average|SumParts|Transpose|Gather|Moments|Normalise|Affine|Depthwise|LayerNorm|Softmax|Concat|Split} Operation */
/** @typedef {{program: Program, numbers: Numbers, values: Value[], workgroups: number[]}} Read a dispatch: `values` are its storage buffers by binding */

// -- reading a dispatch -----------------------------------------------------------------------------------------------

const UNIFORMS = /struct Uniforms \{([\s\S]*?)\};/;
const MEMBER = /(\w+)\s*:\s*(?:array<vec4<\w+>,\s*(\d+)>|vec(\d)<\w+>|\w+)\s*(?:,|$)/g;

/**
 * The numbers of a dispatch by their names, laid out as WGSL lays out a struct of numbers, vectors and arrays of vectors of four.
 *
 * @param {string} code of the program
 * @param {Uint8Array} bytes of its uniforms
 * @returns {Numbers} as unsigned integers
 */
export function numbersOf(code, bytes) {
  const words = new Uint32Array(bytes.slice().buffer);
  const known = members.get(code) ?? membersOf(code);
  members.set(code, known);
  return Object.fromEntries(known.map(([name, at, count]) => [name, [...words.subarray(at, at + count)]]));
}

/** @type {Map<string, [string, number, number][]>} of the uniforms of programs by their text: name, first word, words */
const members = new Map();

/** @param {string} code @returns {[string, number, number][]} */
function membersOf(code) {
  let end = 0; // words
  return [...(UNIFORMS.exec(code)?.[1] ?? '').trim().matchAll(MEMBER)].map(([, name, vectors, width]) => {
    const count = vectors ? 4 * Number(vectors) : Number(width ?? 1);
    const apart = count === 1 ? 1 : count === 2 ? 2 : 4;
    const at = Math.ceil(end / apart) * apart;
    end = at + count;
    return [name, at, count];
  });
}

/**
 * A dispatch with what its program and its numbers say; null where it has parts of buffers, or more than one group.
 *
 * @param {Dispatch} command
 * @returns {Read|null}
 */
export function readDispatch({ pipeline, groups, workgroups }) {
  const program = programOf(pipeline);
  if (!program || groups.length !== 1) return null;
  /** @type {Numbers} */
  let numbers = {};
  /** @type {Value[]} */
  const values = [];
  const entries = /** @type {any[]} */ ([...groups[0].entries]).sort((a, b) => a.binding - b.binding);
  for (const { resource } of entries) {
    const { buffer, offset, size } = resource;
    if (offset || (size && size < buffer.size)) return null;
    if (buffer instanceof Placeholder && buffer.uniform) numbers = numbersOf(program.code, buffer.written ?? new Uint8Array());
    else values.push(buffer);
  }
  return { program, numbers, values, workgroups };
}

/**
 * What a dispatch of the runtime computes; null where that is not understood.
 *
 * @param {Read} read
 * @returns {Operation|null}
 */
export function operationOf(read) {
  return PROGRAMS[read.program.label]?.(read) ?? null;
}

/** @type {Record<string, (read: Read) => Operation|null>} by the runtime's names of its programs */
const PROGRAMS = {
  MatMul: product,
  MatMulNaive: smallProduct,
  Gemm: gemm,
  Conv2dMM: convolution,
  Cast: halves,
  DequantizeLinear: scaled,
  QuickGelu: silu,
  Add: add,
  Sub: subtract,
  Mul: multiply,
  Pool: average,
  ReduceSum: sumParts,
  Transpose: transpose,
  DepthToSpace: transpose,
  Gather: gather,
  ComputeChannelScaleShift: moments,
  InstanceNorm: normalise,
  BatchNormalization: affine,
  GroupedConv: depthwise,
  LayerNorm: layerNorm,
  SkipLayerNorm: skipLayerNorm,
  Softmax: softmax,
  Concat: concat,
  Split: split,
};

// -- what several programs share --------------------------------------------------------------------------------------

/** @type {Narrow} numbers of 16 bits */
export const HALVES = { scale: null, group: 1 };

/**
 * Whether all these storage buffers of a program hold such numbers, four at a time.
 *
 * @param {Program} program
 * @param {string[]} names
 * @param {'f32'|'f16'} type
 */
function byFour({ code }, names, type = 'f32') {
  return names.every((name) => new RegExp(`\\b${name}\\s*: array<vec4<${type}>>`).test(code));
}

/** Whether they hold numbers of 16 bits; null: neither these nor float32. @param {Program} program @param {string[]} names */
function isHalf(program, names) {
  return byFour(program, names) ? false : byFour(program, names, 'f16') || null;
}

/** @param {number} word */
function float(word) {
  return new Float32Array(Uint32Array.of(word).buffer)[0];
}

/** A shape without the zeros that fill it up to four or eight dimensions. @param {number[]} numbers */
function shape(numbers) {
  const end = numbers.findLastIndex((side) => side !== 0) + 1;
  return numbers.slice(0, end);
}

/**
 * What is bound of numbers as they are stored: themselves, and their scales if they have some.
 *
 * @param {Value} stored
 * @param {Narrow|null} narrow
 * @returns {Value[]}
 */
export function boundOf(stored, narrow) {
  return narrow?.scale ? [stored, narrow.scale] : [stored];
}

/**
 * What is bound of weights, in this order: the numbers, their scales if they have some, and what is added to what comes of them.
 *
 * @param {{W: Value, narrow: Narrow|null, bias: Value}} operation
 * @returns {Value[]}
 */
export function weightsOf({ W, narrow, bias }) {
  return [...boundOf(W, narrow), bias];
}

/** @param {number[]} sides */
export function volume(sides) {
  return sides.reduce((product, side) => product * side, 1);
}

/** @param {number[]} a @param {number[]} b */
export function same(a, b) {
  return a.length === b.length && a.every((side, i) => side === b[i]);
}

/**
 * A plain product, whose matrices lie one after another.
 *
 * @param {Pick<Product, 'M'|'N'|'K'|'A'|'B'|'C'> & Partial<Product>} parts
 * @returns {Product}
 */
export function plainProduct(parts) {
  const { M, N, K } = parts;
  const rows = { per: M, a: 0, c: 0, step: N / 4 };
  const [a, b, c] = [M * K, K * N, M * N].map((size) => ({ outer: size / 4, inner: 0 }));
  const stored = parts.half ? HALVES : null;
  const forms = { half: false, narrow: { A: stored, B: stored }, turned: false };
  const rest = { bias: null, silu: false, sums: [], split: null, gathered: null, window: null, ...forms };
  return { kind: 'product', outer: 1, inner: 1, a, b, c, from: 0, rows, biased: '', ...rest, ...parts };
}

// -- the programs -----------------------------------------------------------------------------------------------------

/**
 * What `mm_write` adds to a value before it stores it: one number for each row or column, or nothing.
 *
 * @param {string} code
 * @returns {'row'|'column'|''|null} null where it does anything else
 */
function storedAs(code) {
  const body = /fn mm_write\([\s\S]*?\n\}/.exec(code)?.[0] ?? '';
  const steps = [...body.matchAll(/\bvalue = ([^;]*);/g)].map(([, step]) => step).filter((step) => step !== 'valueIn');
  if (!steps.length) return '';
  const index = /bias\[(\w+)\]/.exec(steps[0])?.[1];
  if (steps.length > 1 || !index) return null;
  return index === 'row' ? 'row' : index.startsWith('col') ? 'column' : null;
}

/** @param {Read} read @returns {Operation|null} */
function product({ program, numbers, values }) {
  const [[M], [N], [K]] = [numbers.dim_a_outer, numbers.dim_b_outer, numbers.dim_inner];
  const biased = storedAs(program.code);
  const half = isHalf(program, ['a', 'b', 'output']);
  if (biased === null || half === null || numbers.splits_per_batch?.[0] !== 1) return null;
  if (values.length !== (biased ? 4 : 3)) return null;
  const [A, B] = values;
  const parts = { M, N, K, A, B, C: values[values.length - 1], half, biased, bias: biased ? values[2] : null };
  const batch = matrices(numbers, M * (K / 4), K * (N / 4));
  if (!batch) return null;
  const size = M * (N / 4);
  const [first, second, third] = batch;
  if (!first) return plainProduct(parts);
  if (!second) return plainProduct({ ...parts, outer: first.count, a: one(first.a), b: one(first.b) });
  if (!third) {
    const c = { outer: second.count * size, inner: size };
    const strides = { a: { outer: first.a, inner: second.a }, b: { outer: first.b, inner: second.b }, c };
    return plainProduct({ ...parts, outer: first.count, inner: second.count, ...strides });
  }
  // three dimensions: where all along the middle one share a matrix B, their rows are rows of one product
  if (batch.length > 3 || second.b || biased) return null;
  const rows = { per: M, a: second.a, c: third.count * size, step: N / 4 };
  const c = { outer: second.count * third.count * size, inner: size };
  const strides = { a: { outer: first.a, inner: third.a }, b: { outer: first.b, inner: third.b }, c };
  return plainProduct({ ...parts, M: M * second.count, outer: first.count, inner: third.count, rows, ...strides });
}

/** @param {Read} read @returns {Operation|null} */
function smallProduct({ program, numbers, values }) {
  const [[M], [N], [K]] = [numbers.M, numbers.N, numbers.K];
  const half = isHalf(program, ['a', 'b', 'output']);
  if (half === null || values.length !== 3) return null;
  const [A, B, C] = values;
  return plainProduct({ M, N, K, A, B, C, half });
}

/** @param {number} outer @returns {Strides} */
function one(outer) {
  return { outer, inner: 0 };
}

/**
 * The dimensions of a batch and how far A and B move along each; neighbours along which both move on evenly are one.
 *
 * @param {Numbers} numbers
 * @param {number} sizeA groups of four numbers in a matrix
 * @param {number} sizeB
 * @returns {{count: number, a: number, b: number}[]|null}
 */
function matrices(numbers, sizeA, sizeB) {
  const counts = shape(numbers.batch_dims_shape ?? []);
  const strides = [numbers.a_shape, numbers.b_shape].map((sides, i) => {
    const own = shape(sides).slice(0, -2);
    if (own.length > counts.length) return null;
    let size = i ? sizeB : sizeA;
    return [...Array(counts.length - own.length).fill(1), ...own]
      .reverse()
      .map((count) => {
        const stride = count === 1 ? 0 : size;
        size *= count;
        return stride;
      })
      .reverse();
  });
  const [a, b] = strides;
  if (!a || !b) return null;
  /** @type {{count: number, a: number, b: number}[]} */
  const found = [];
  counts.forEach((count, i) => {
    const last = found.at(-1);
    if (count === 1) return;
    if (last && last.a === count * a[i] && last.b === count * b[i])
      found[found.length - 1] = { count: last.count * count, a: a[i], b: b[i] };
    else found.push({ count, a: a[i], b: b[i] });
  });
  return found;
}

/** @param {Read} read @returns {Operation|null} */
function gemm({ program, numbers, values }) {
  const [[M], [N], [K]] = [numbers.dim_a_outer, numbers.dim_b_outer, numbers.dim_inner];
  const half = isHalf(program, ['a', 'b', 'c', 'output']);
  if (half === null || values.length !== 4) return null;
  if (float(numbers.alpha[0]) !== 1 || float(numbers.beta[0]) !== 1 || volume(numbers.c_shape) * 4 !== N) return null;
  if (!/mm_readA\(batch, globalRow/.test(program.code)) return null; // A is transposed
  const [A, B, bias, C] = values;
  const transposed = /mm_readB\(batch, globalColStart/.test(program.code);
  if (M === 1 && transposed && !half) return { kind: 'vector', N, K, x: A, W: B, narrow: null, bias, y: C, silu: false };
  return plainProduct({ M, N, K, A, B, C, half, biased: 'column', bias, turned: transposed });
}

/** @param {Read} read @returns {Operation|null} */
function convolution({ program, numbers, values }) {
  const [[M], [N], [K]] = [numbers.dim_a_outer, numbers.dim_b_outer, numbers.dim_inner];
  const [batch, height, width] = numbers.x_shape;
  const [, across] = numbers.result_shape.slice(1);
  const [rows, columns, channels] = numbers.w_shape;
  const [top, left] = numbers.pads;
  const [stride, other] = numbers.strides;
  const bound = values.length === 4 ? ['x', 'w', 'bias', 'result'] : ['x', 'w', 'result'];
  if (!byFour(program, bound) || values.length !== bound.length || batch !== 1 || stride !== other) return null;
  if (numbers.dilations.some((step) => step !== 1) || K !== rows * columns * channels) return null;
  const [A, B] = values;
  const bias = bound.length === 4 ? values[2] : null;
  const C = values[bound.length - 1];
  const window = { height, width, channels, columns, top, left, stride, across };
  return plainProduct({ M, N, K, A, B, C, biased: bias ? 'column' : '', bias, window });
}

/** @param {Read} read @returns {Operation|null} */
function halves({ program: { code }, values: [x, y] }) {
  const [, from, to] = /\bx: array<vec4<(f\d+)>>[^]*\by: array<vec4<(f\d+)>>/.exec(code) ?? [];
  if (from === 'f16' && to === 'f32') return { kind: 'widen', x, narrow: HALVES, y };
  return from === 'f32' && to === 'f16' ? { kind: 'narrow', x, y } : null;
}

/** @param {Read} read @returns {Operation|null} */
function scaled({ program: { code }, numbers, values: [x, scale, y, ...more] }) {
  const [group] = numbers.output_stride;
  const bytes = /unpack4xI8\(x\)/.test(code) && /let zero_point_value = input_element_t\(0\);/.test(code) && !more.length;
  const rows = numbers.output_shape.length === 2 && numbers.axis[0] === 0 && numbers.output_shape[1] === group;
  return bytes && rows && group % 4 === 0 ? { kind: 'widen', x, narrow: { scale, group }, y } : null;
}

/** @param {Read} read @returns {Operation|null} */
function silu({ program, numbers, values: [x, y] }) {
  return isHalf(program, ['x', 'y']) !== null && float(numbers.attr[0]) === 1 ? { kind: 'silu', x, y } : null;
}

/** @param {Read} read @returns {Operation|null} */
function add({ program, numbers, values: [x, other, y] }) {
  const half = isHalf(program, ['input_a', 'input_b', 'output']);
  if (half === null) return null;
  if (!numbers.bcast_indices_shape) return x.size === y.size && other.size === y.size ? { kind: 'add', x, other, y } : null;
  const [all, a, b] = [numbers.bcast_indices_shape, numbers.a_indices_shape, numbers.b_indices_shape].map(shape);
  const [B, T, ...row] = all;
  if (same(a, [T, ...row]) && same(b, [B, 1, ...row]))
    return { kind: 'outer add', x, narrow: half ? HALVES : null, other, y, B, T, size: volume(row) };
  const width = all.at(-1) ?? 0;
  if (b.length !== 1 || b[0] !== width || !same(a, all)) return null;
  return { kind: 'add row', x, row: other, width, y };
}

/** @param {Read} read @returns {Operation|null} */
function subtract({ program, numbers, values: [x, row, y] }) {
  if (!byFour(program, ['input_a', 'input_b', 'output']) || !numbers.bcast_indices_shape) return null;
  const [all, a, b] = [numbers.bcast_indices_shape, numbers.a_indices_shape, numbers.b_indices_shape].map(shape);
  const width = all.at(-1) ?? 0;
  return same(a, all) && b.at(-1) === width && volume(b) === width ? { kind: 'subtract row', x, row, width, y } : null;
}

/** @param {Read} read @returns {Operation|null} */
function average({ program, numbers, values: [x, y] }) {
  const [[batch, height, width, channels], to] = [numbers.input_shape, numbers.output_shape];
  const pixels = to[1] * to[2];
  const tiles = numbers.kernel_size[0] * pixels === height * width && numbers.pads.every((pad) => pad === 0);
  const averages = /\bvalue \/= f32\(count\);/.test(program.code) && to[3] === channels;
  return tiles && averages && batch === 1 ? { kind: 'average', x, y, channels, pixels } : null;
}

/** @param {Read} read @returns {Operation|null} */
function sumParts({ program, numbers, values: [x, y] }) {
  const [outer, parts, ...sides] = shape(numbers.input_shape);
  const type = /\binput: array<(f32|f16)>/.exec(program.code)?.[1];
  const summed = [...program.code.matchAll(/for \(var i(\d) : u32 = 0;/g)].map(([, axis]) => axis);
  if (!type || summed.join() !== '1' || numbers.reduce_size[0] !== parts) return null;
  return { kind: 'sum parts', x, y, half: type === 'f16', outer, parts, size: volume(sides) };
}

/** @param {Read} read @returns {Operation|null} */
function multiply({ program, numbers, values: [x, other, y] }) {
  const plain = !numbers.bcast_indices_shape && x.size === y.size && other.size === y.size;
  return plain && isHalf(program, ['input_a', 'input_b', 'output']) !== null ? { kind: 'multiply', x, other, y } : null;
}

/** @param {Read} read @returns {Operation|null} */
function transpose({ program, numbers, values: [x, y] }) {
  const sides = shape(numbers.a_shape ?? numbers.input_shape);
  const type = /\b(?:a|input): array<(f32|f16)>/.exec(program.code)?.[1];
  const pairs = [...program.code.matchAll(/\ba\[(\d)\] ?= ?i\[(\d)\];/g)].map(([, from, to]) => [Number(from), Number(to)]);
  const tiled = /\btile\[local_id\.x\]\[local_id\.y\]/.test(program.code); // a matrix, block by block in workgroup memory
  const order = tiled ? [1, 0] : pairs.sort((p, q) => p[1] - q[1]).map(([from]) => from);
  return type && order.length === sides.length ? { kind: 'transpose', x, y, half: type === 'f16', shape: sides, order } : null;
}

/** @param {Read} read @returns {Operation|null} */
function gather({ program, numbers, values: [data, indices, y] }) {
  const axis = Number(/indices_indices=output_indices\[(\d)\];/.exec(program.code)?.[1] ?? -1);
  const words = /input_indices: array<vec2<u32>>/.test(program.code) ? 2 : 1;
  if (!/\bdata: array<(?:f32|f16)>/.test(program.code) || numbers.input_indices_shape.length !== 1 || axis < 0) return null;
  const [count] = numbers.input_indices_shape;
  return { kind: 'gather', data, indices, words, y, axis, shape: shape(numbers.data_indices_shape), count };
}

/** @param {Read} read @returns {Operation|null} */
function moments({ program, numbers, values: [x, scale, bias, y] }) {
  const epsilon = Number(/\+ f32\(([\d.e-]+)\)\);/.exec(program.code)?.[1]);
  const [batch, groups, size] = numbers.x_shape;
  if (!byFour(program, ['x']) || !(epsilon > 0)) return null;
  return { kind: 'moments', x, scale, bias, y, batch, groups, size: 4 * size, epsilon };
}

/** @param {Read} read @returns {Operation|null} */
function normalise({ program, values: [x, scaleShift, y] }) {
  return byFour(program, ['input', 'output']) ? { kind: 'normalise', x, moments: scaleShift, y } : null;
}

/** @param {Read} read @returns {Operation|null} */
function affine({ program, numbers, values: [x, scale, bias, mean, variance, y] }) {
  const epsilon = Number(/inverseSqrt\(input_var \+ ([\d.e-]+)\)/.exec(program.code)?.[1]);
  const axis = Number(/cOffset = outputIndices\[(\d)\]/.exec(program.code)?.[1]);
  const last = axis === 3;
  const half = isHalf(program, ['input_tensor', 'output']);
  if (half === null || !(epsilon > 0) || !(axis === 1 || last)) return null;
  const channels = last ? 4 * numbers.output_shape[3] : numbers.output_shape[1];
  return { kind: 'affine', x, scale, bias, mean, variance, epsilon, channels, last, half, y };
}

/** @param {Read} read @returns {Operation|null} */
function depthwise({ program, numbers, values }) {
  const [B, C, H, width] = numbers.output_shape;
  const { x_shape: from, w_shape: kernel, dilations, strides, pads, components } = numbers;
  const ones = [...dilations, ...strides, ...pads, ...components, ...numbers.output_channels_per_group];
  const type = /\bx: array<(f32|f16)>/.exec(program.code)?.[1];
  if (!type || values.length !== 4 || width % 4 || !same(from, numbers.output_shape)) return null;
  if (!same(kernel, [C, 1, 3, 3]) || ones.some((number) => number !== 1)) return null;
  const [x, W, bias, y] = values;
  const steps = [...program.code.matchAll(/\n *value = ([^;]*);/g)].map(([, step]) => step);
  const relu = steps.length === 1 && /^max\(value, output_value_t\(output_element_t\(0\)\)\)$/.test(steps[0]);
  const half = type === 'f16';
  const narrow = half ? HALVES : null;
  return steps.length && !relu ? null : { kind: 'depthwise', x, W, narrow, bias, y, half, B, C, H, W4: width / 4, relu };
}

/** @param {Read} read @returns {Operation|null} */
function layerNorm({ program, numbers, values }) {
  if (!byFour(program, ['x', 'scale', 'bias', 'y']) || values.length !== 4) return null;
  const [x, scale, bias, y] = values;
  const [[count], [C], [epsilon]] = [numbers.norm_count, numbers.norm_size, numbers.epsilon];
  const alone = { skip: null, sum: null, skipped: 0, halves: [], picture: null };
  return { kind: 'layer norm', x, scale, bias, y, count, C, epsilon: float(epsilon), ...alone };
}

/** @param {Read} read @returns {Operation|null} */
function skipLayerNorm({ program, numbers, values, workgroups }) {
  if (!byFour(program, ['x', 'skip', 'gamma', 'beta', 'output', 'input_skip_bias_sum']) || values.length !== 6) return null;
  const [x, skip, scale, bias, y, sum] = values;
  const [[C], [size], [epsilon]] = [numbers.hidden_size, numbers.skip_size, numbers.epsilon];
  const count = volume(workgroups); // one of the runtime's workgroups a token
  const sizes = { count, C, skipped: size / C };
  return { kind: 'layer norm', x, skip, scale, bias, y, sum, ...sizes, epsilon: float(epsilon), halves: [], picture: null };
}

/** @param {Read} read @returns {Operation|null} */
function softmax({ program, numbers, values: [x, y], workgroups }) {
  const rows = volume(workgroups); // one of the runtime's workgroups a row
  const size = 4 * numbers.packedCols?.[0];
  return byFour(program, ['x', 'result']) && x.size === 4 * rows * size ? { kind: 'softmax', x, y, rows, size } : null;
}

/** @param {Read} read @returns {Operation|null} */
function concat({ program, numbers, values }) {
  const parts = values.slice(0, -1);
  const y = values[values.length - 1];
  const type = /input_0: array<(f32|f16)>/.exec(program.code)?.[1];
  if (!type) return null;
  const shapes = parts.map((_, i) => shape(numbers[`input_${i}_shape`] ?? []));
  const all = shape(numbers.output_shape);
  if (shapes.some((sides) => sides.length !== all.length)) return null;
  const axis = all.findIndex((side, i) => shapes.some((sides) => sides[i] !== side));
  if (axis < 0) return null;
  const sizes = shapes.map((sides) => volume(sides.slice(axis)));
  return { kind: 'concat', parts, y, half: type === 'f16', outer: volume(all.slice(0, axis)), sizes };
}

/** @param {Read} read @returns {Operation|null} */
function split({ program, numbers, values: [x, ...parts] }) {
  if (isHalf(program, ['input']) === null) return null;
  const sizes = shape(numbers.segment_sizes).map((size) => 4 * size);
  const [total] = numbers.total_segment_elements;
  return sizes.length === parts.length ? { kind: 'split', x, parts, outer: numbers.input_size[0] / total, sizes } : null;
}

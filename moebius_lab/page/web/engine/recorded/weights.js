// The weights of a recording: each by a formula from the numbers that stand in the bundle's files.
//
// The runtime widens weights of 16 bits when it loads a graph. Our kernels read them as they are stored, so they can be put on a device like
// that; what else reads them is known when kernels are chosen.

import { Widened } from '../capture.js';
import { nextTask } from '../turns.js';

/** @import { Recording } from './recording.js' */
/**
 * @typedef {object} Stored
 * @property {string} file by its SHA-256; empty: the recording itself
 * @property {number} from byte
 * @property {number} length bytes
 * @property {number[]} dims
 * @property {string} kind of its numbers
 */
/**
 * @typedef {object} Formula one operation of ONNX's on what other formulas give: numbers of 32 bits, but for casts
 * @property {Stored} [stored]
 * @property {'float32'|'int64'} [cast] from what is stored in 16 bits; from integers of 32 bits, which none below zero is
 * @property {[number, number, number]} [slice] axis, first, past the last
 * @property {number[]} [reshape]
 * @property {number[]} [transpose] axis i of the result is axis transpose[i]
 * @property {'float32'} [add] of two
 * @property {number} [concat] axis
 * @property {0} [gather] axis of the first along which the second has indices
 * @property {Formula[]} [of]
 */
/** @typedef {{dims: number[], words: Uint32Array}} Numbers in words of 32 bits; the last is filled up with zeros */
/** @typedef {(sha256: string) => Promise<Uint8Array>} Bytes of a file */

const { GPUBufferUsage } = /** @type {any} */ (globalThis); // flags that TypeScript's library lacks
export const USAGE = GPUBufferUsage?.STORAGE | GPUBufferUsage?.COPY_SRC | GPUBufferUsage?.COPY_DST;
const APART = 16; // bytes, of which the runtime's buffers are multiples
const LINES = 32; // read together: they fit the fastest cache
const AHEAD = 4; // files read and checked at a time
const PIECE = 2 ** 20; // bytes given to a device at once: browsers copy what is larger once more

// -- formulas ---------------------------------------------------------------------------------------------------------

/**
 * @param {Formula} formula
 * @param {Bytes} bytesOf
 * @param {Map<string, Numbers>} [known] what parts give: many stand in it several times
 * @returns {Promise<Numbers>}
 */
export async function derive(formula, bytesOf, known = new Map()) {
  const key = JSON.stringify(formula);
  const found = known.get(key) ?? (await computed(formula, bytesOf, known));
  known.set(key, found);
  return found;
}

/** @param {Formula} formula @param {Bytes} bytesOf @param {Map<string, Numbers>} known @returns {Promise<Numbers>} */
async function computed(formula, bytesOf, known) {
  if (formula.stored) return read(formula.stored, bytesOf);
  const given = [];
  for (const other of formula.of ?? []) given.push(await derive(other, bytesOf, known));
  const [first, second] = given;
  const { dims, words } = first ?? {};
  if (formula.cast === 'float32') return { dims, words: widened(new Uint16Array(words.buffer, words.byteOffset, product(dims))) };
  if (formula.cast) return { dims: [...dims, 2], words: words.reduce(lengthen, new Uint32Array(2 * words.length)) };
  if (formula.slice) return cut(first, ...formula.slice);
  if (formula.reshape) return { dims: formula.reshape, words };
  if (formula.transpose) return turned(first, formula.transpose);
  if (formula.add) return sum(first, second);
  if (formula.concat !== undefined) return joined(given, formula.concat);
  if (formula.gather !== undefined) return gathered(first, second);
  throw new Error('a weight is made in a way that this page does not know');
}

/** @param {Stored} stored @param {Bytes} bytesOf @returns {Promise<Numbers>} */
async function read({ file, from, length, dims }, bytesOf) {
  const bytes = await bytesOf(file);
  const at = bytes.byteOffset + from;
  if (at % 4 === 0 && length % 4 === 0) return { dims, words: new Uint32Array(bytes.buffer, at, length / 4) };
  const words = new Uint32Array(Math.ceil(length / 4));
  new Uint8Array(words.buffer).set(bytes.subarray(from, from + length));
  return { dims, words };
}

/** @type {Uint32Array|undefined} the 32 bits of each number of 16 */
let widths;

/** @param {Uint16Array} halves */
function widened(halves) {
  widths ??= new Uint32Array(Float32Array.from({ length: 65536 }, (_, half) => valueOf(half)).buffer);
  const [known, words] = [widths, new Uint32Array(halves.length)];
  for (let i = 0; i < words.length; i++) words[i] = known[halves[i]];
  return words;
}

/** @param {number} half the bits of a number of 16 bits */
function valueOf(half) {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

/** @param {Uint32Array} long @param {number} word @param {number} i */
function lengthen(long, word, i) {
  long[2 * i] = word;
  return long;
}

/** @param {number[]} sides */
const product = (sides) => sides.reduce((all, side) => all * side, 1);

/** @param {Numbers} numbers @param {number} axis @param {number} from @param {number} to @returns {Numbers} */
function cut({ dims, words }, axis, from, to) {
  const inner = product(dims.slice(axis + 1));
  const sides = dims.with(axis, to - from);
  const target = new Uint32Array(product(sides));
  copyRows(words, from * inner, dims[axis] * inner, target, 0, (to - from) * inner, (to - from) * inner);
  return { dims: sides, words: target };
}

/** @param {Numbers[]} parts @param {number} axis @returns {Numbers} */
function joined(parts, axis) {
  const sizes = parts.map(({ dims }) => product(dims.slice(axis)));
  const row = sizes.reduce((sum, size) => sum + size);
  const side = parts.reduce((sum, { dims }) => sum + dims[axis], 0);
  const dims = parts[0].dims.with(axis, side);
  const target = new Uint32Array(product(dims));
  let at = 0;
  parts.forEach(({ words }, i) => {
    copyRows(words, 0, sizes[i], target, at, row, sizes[i]);
    at += sizes[i];
  });
  return { dims, words: target };
}

/**
 * Copy rows of `count` numbers: each from and to so far behind the last.
 *
 * @param {Uint32Array} source
 * @param {number} from
 * @param {number} apart
 * @param {Uint32Array} target
 * @param {number} to
 * @param {number} targetApart
 * @param {number} count
 */
function copyRows(source, from, apart, target, to, targetApart, count) {
  if (count > LINES)
    for (; to < target.length; from += apart, to += targetApart) target.set(source.subarray(from, from + count), to);
  else
    for (let n = 0; n < count; n++)
      // along the rows, which are many
      for (let i = from + n, j = to + n; j < target.length; i += apart, j += targetApart) target[j] = source[i];
}

/** @param {Numbers} table @param {Numbers} indices @returns {Numbers} */
function gathered({ dims, words }, indices) {
  const inner = product(dims.slice(1));
  const target = new Uint32Array(indices.words.length * inner);
  indices.words.forEach((row, i) => target.set(words.subarray(row * inner, (row + 1) * inner), i * inner));
  return { dims: [...indices.dims, ...dims.slice(1)], words: target };
}

/** @param {Numbers} numbers @param {number[]} order @returns {Numbers} */
function turned({ dims, words }, order) {
  const target = new Uint32Array(words.length);
  const sides = order.map((axis) => dims[axis]);
  const from = order.map((axis) => product(dims.slice(axis + 1)));
  const to = sides.map((_, i) => product(sides.slice(i + 1)));
  const last = order.length - 1;
  const near = order.indexOf(last); // its numbers lie next to each other in what is read, as the last axis' do in what is written
  const others = order.map((_, i) => i).filter((i) => i !== near && i !== last);
  const [a, b] = [from[last], to[near]];
  const copy = (/** @type {number} */ which, /** @type {number} */ at, /** @type {number} */ into, /** @type {number} */ j) => {
    const i = others[which];
    if (i !== undefined) for (let n = 0; n < sides[i]; n++) copy(which + 1, at + n * from[i], into + n * to[i], j);
    else if (near === last) target.set(words.subarray(at, at + sides[last]), into);
    else
      for (let y = 0, end = Math.min(j + LINES, sides[last]); y < sides[near]; y++)
        for (let x = j; x < end; x++) target[into + y * b + x] = words[at + y + x * a];
  };
  for (let j = 0; j < (near === last ? 1 : sides[last]); j += LINES) copy(0, 0, 0, j);
  return { dims: sides, words: target };
}

/** @param {Numbers} a @param {Numbers} b of the same shape @returns {Numbers} */
function sum({ dims, words }, b) {
  const [one, other] = [words, b.words].map(({ buffer, byteOffset, length }) => new Float32Array(buffer, byteOffset, length));
  const sums = new Float32Array(one.length);
  for (let i = 0; i < sums.length; i++) sums[i] = one[i] + other[i];
  return { dims, words: new Uint32Array(sums.buffer) };
}

// -- on the device ----------------------------------------------------------------------------------------------------

/**
 * Room for the weights on a device, which `fillWeights` fills: captures can be made of it before that.
 *
 * @param {GPUDevice} device
 * @param {Recording} recording
 * @param {boolean} narrow those of 16 bits as they are stored, with placeholders for what they are in 32
 * @returns {(GPUBuffer|Widened)[]} by their indices
 */
export function placeWeights(device, { weights }, narrow) {
  return weights.map(({ formula }) => {
    const stored = narrow && storedNarrow(formula)?.stored;
    if (!stored) return room(device, bytesOf(formula));
    const axes = formula.transpose ? { shape: stored.dims, order: formula.transpose } : null;
    return new Widened(padded(4 * product(stored.dims)), room(device, stored.length), axes);
  });
}

/**
 * Write the weights' numbers to their places, file by file.
 *
 * @param {GPUDevice} device
 * @param {Recording} recording
 * @param {(GPUBuffer|Widened)[]} places
 * @param {Uint8Array} own
 * @param {(sha256: string) => Promise<ArrayBuffer>} bytes
 */
export async function fillWeights(device, { weights }, places, own, bytes) {
  /** @type {Map<GPUBuffer, Formula>} */
  const formulas = new Map();
  weights.forEach(({ formula }, i) => {
    const place = places[i];
    if (place instanceof Widened) formulas.set(place.stored, /** @type {Formula} */ (storedNarrow(formula)));
    else formulas.set(place, formula);
  });
  for await (const [buffer, { words }] of numbersOf(formulas, own, bytes)) {
    for (let at = 0; at < words.byteLength; at += PIECE) {
      const size = Math.min(PIECE, words.byteLength - at);
      device.queue.writeBuffer(buffer, at, /** @type {ArrayBuffer} */ (words.buffer), words.byteOffset + at, size);
    }
  }
}

/** How many bytes a formula gives. @param {Formula} formula */
function bytesOf(formula) {
  return formula.stored ? formula.stored.length : 4 * product(sidesOf(formula));
}

/** The shape of what a formula gives. @param {Formula} formula @returns {number[]} */
function sidesOf({ stored, cast, slice, reshape, transpose, concat, gather, of = [] }) {
  const [first, ...others] = of.map(sidesOf);
  if (stored) return stored.dims;
  if (cast === 'int64') return [...first, 2];
  if (slice) return first.with(slice[0], slice[2] - slice[1]);
  if (reshape) return reshape;
  if (transpose) return transpose.map((axis) => first[axis]);
  if (gather !== undefined) return [...others[0], ...first.slice(1)];
  return concat === undefined
    ? first
    : first.with(
        concat,
        others.reduce((sum, sides) => sum + sides[concat], first[concat]),
      );
}

/**
 * What a formula reads, where all that it does is to widen numbers of 16 bits and to put their axes in another order.
 *
 * @param {Formula} formula
 * @returns {Formula|undefined}
 */
export function storedNarrow(formula) {
  const cast = formula.transpose ? formula.of?.[0] : formula;
  return cast?.cast === 'float32' ? cast.of?.[0] : undefined;
}

/**
 * What formulas give, file by file, while the next files are read and checked.
 *
 * @template K
 * @param {Map<K, Formula>} formulas
 * @param {Uint8Array} own
 * @param {(sha256: string) => Promise<ArrayBuffer>} bytes
 * @returns {AsyncGenerator<[K, Numbers]>}
 */
async function* numbersOf(formulas, own, bytes) {
  /** @type {Map<string, Promise<Uint8Array>>} */
  const coming = new Map([['', Promise.resolve(own)]]);
  const read = (/** @type {string} */ sha256) => {
    const known = coming.get(sha256) ?? bytes(sha256).then((content) => new Uint8Array(content));
    coming.set(sha256, known);
    known.catch(() => {}); // it is awaited when its turn comes
    return known;
  };
  const groups = [...Map.groupBy(formulas, ([, formula]) => fileOf(formula))].reverse(); // the decoder's, which are computed, come first
  for (const [i, [sha256, some]] of groups.entries()) {
    for (const [next] of groups.slice(i, i + AHEAD)) void read(next);
    /** @type {Map<string, Numbers>} */
    const known = new Map(); // weights are made of the same
    for (const [key, formula] of some) {
      yield [key, await derive(formula, read, known)];
      if (!formula.stored) await nextTask(); // which lets the next files be read and checked
    }
    if (sha256) coming.delete(sha256);
  }
}

/** The first file that a formula reads. @param {Formula} formula @returns {string} */
function fileOf({ stored, of }) {
  return stored ? stored.file : fileOf(/** @type {Formula[]} */ (of)[0]);
}

/** @param {GPUDevice} device @param {number} bytes */
export const room = (device, bytes) => device.createBuffer({ size: padded(bytes), usage: USAGE });

/** @param {number} bytes */
const padded = (bytes) => Math.ceil(bytes / APART) * APART;

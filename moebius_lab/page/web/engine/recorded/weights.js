// The weights of a recording: each by a formula from the numbers that stand in the bundle's files.
//
// The runtime widens weights of 16 bits when it loads a graph. Our kernels read them as they are stored, so they can be put on a device like
// that; what else reads them is known when kernels are chosen.

import { Widened } from '../capture.js';

/** @import { Files } from '../types.js' */
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
/** @typedef {(sha256: string) => Uint8Array} ContentOf a file */

const { GPUBufferUsage } = /** @type {any} */ (globalThis); // flags that TypeScript's library lacks
export const USAGE = GPUBufferUsage?.STORAGE | GPUBufferUsage?.COPY_SRC | GPUBufferUsage?.COPY_DST;
const APART = 16; // bytes, of which the runtime's buffers are multiples
const LINES = 32; // read together: they fit the fastest cache
const AHEAD = 4; // files read and checked at a time
const PIECE = 2 ** 20; // bytes given to a device at once: browsers copy what is larger once more

// -- formulas ---------------------------------------------------------------------------------------------------------

/**
 * @param {Formula} formula
 * @param {ContentOf} contentOf
 * @param {Map<string, Numbers>} [known] what parts give: many stand in it several times
 * @returns {Numbers}
 */
export function derive(formula, contentOf, known = new Map()) {
  const key = JSON.stringify(formula);
  const found = known.get(key) ?? made(formula, contentOf, known);
  known.set(key, found);
  return found;
}

/** @param {Formula} formula @param {ContentOf} contentOf @param {Map<string, Numbers>} known @returns {Numbers} */
function made(formula, contentOf, known) {
  if (formula.stored) return read(formula.stored, contentOf(formula.stored.file));
  const given = formula.of?.map((other) => derive(other, contentOf, known)) ?? [];
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

/** @param {Stored} stored @param {Uint8Array} bytes of its file @returns {Numbers} */
function read({ from, length, dims }, bytes) {
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
  return weights.map(({ formula, bytes }) => {
    const stored = narrow && storedNarrow(formula)?.stored;
    if (!stored) return room(device, bytes);
    const axes = formula.transpose ? { shape: stored.dims, order: formula.transpose } : null;
    return new Widened(bytes, room(device, stored.length), axes);
  });
}

/**
 * Write the weights' numbers to their places, file by file.
 *
 * @param {GPUDevice} device
 * @param {Recording} recording
 * @param {(GPUBuffer|Widened)[]} places
 * @param {Uint8Array} own
 * @param {Files['file']} file
 */
export async function fillWeights(device, { weights }, places, own, file) {
  /** @type {Map<GPUBuffer, Formula>} */
  const formulas = new Map();
  weights.forEach(({ formula }, i) => {
    const place = places[i];
    if (place instanceof Widened) formulas.set(place.stored, /** @type {Formula} */ (storedNarrow(formula)));
    else formulas.set(place, formula);
  });
  for await (const [buffer, { words }] of numbersOf(formulas, own, file)) {
    for (let at = 0; at < words.byteLength; at += PIECE) {
      const size = Math.min(PIECE, words.byteLength - at);
      device.queue.writeBuffer(buffer, at, /** @type {ArrayBuffer} */ (words.buffer), words.byteOffset + at, size);
    }
  }
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
 * @param {Files['file']} file
 * @returns {AsyncGenerator<[K, Numbers]>}
 */
async function* numbersOf(formulas, own, file) {
  const groups = Map.groupBy(formulas, ([, formula]) => filesOf(formula)[0]);
  /** @param {string} sha256 */
  const begin = async (sha256) => {
    const some = (groups.get(sha256) ?? []).map(([, formula]) => formula);
    const alone = some.filter((formula) => !formula.stored && !storedNarrow(formula) && new Set(filesOf(formula)).size === 1);
    const { bytes, numbers } = await file(sha256, alone);
    return { content: new Uint8Array(bytes), numbers };
  };
  const coming = new Map([['', Promise.resolve({ content: own, numbers: new Map() })]]);
  const read = (/** @type {string} */ sha256) => {
    const known = coming.get(sha256) ?? begin(sha256);
    coming.set(sha256, known);
    known.catch(() => {}); // it is awaited when its turn comes
    return known;
  };
  const order = [...groups].reverse(); // the decoder's, which are computed, come first
  const needed = order.map(([, some]) => new Set(some.flatMap(([, formula]) => filesOf(formula))));
  for (const [i, [sha256, some]] of order.entries()) {
    for (const [next] of order.slice(i, i + AHEAD)) void read(next);
    const there = new Map();
    for (const name of needed[i]) there.set(name, await read(name));
    const { numbers } = there.get(sha256);
    for (const [key, formula] of some) yield [key, derive(formula, (name) => there.get(name).content, numbers)];
    for (const name of coming.keys()) if (!needed.some((names, j) => j > i && names.has(name))) coming.delete(name);
  }
}

/**
 * @param {ArrayBuffer} bytes of a file
 * @param {Formula[]} formulas that read no other
 * @returns {Map<string, Numbers>} known to `derive`
 */
export function derivedOf(bytes, formulas) {
  const [content, known] = [new Uint8Array(bytes), new Map()];
  return new Map(formulas.map((formula) => [JSON.stringify(formula), derive(formula, () => content, known)]));
}

/** @param {Formula} formula @returns {string[]} a file as often as it is read */
function filesOf({ stored, of = [] }) {
  return stored ? [stored.file] : of.flatMap(filesOf);
}

/** @param {GPUDevice} device @param {number} bytes */
export const room = (device, bytes) => device.createBuffer({ size: Math.ceil(bytes / APART) * APART, usage: USAGE });

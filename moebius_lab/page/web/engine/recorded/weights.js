// The weights of a recording: each by a formula from the numbers that stand in the bundle's files.
//
// On the device with which recordings are made the runtime widens weights of 16 bits when it loads a graph. Our kernels read them as they are
// stored, so that is how they can be put on a device; what else reads them is known when kernels are chosen.

import { Capture, Widened, renameIn, usesOf } from '../capture.js';

/** @typedef {import('../captured_graph.js').GraphCapture} GraphCapture */
/** @typedef {import('./recording.js').Recording} Recording */
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
const APART = 16; // bytes: the runtime's buffers are multiples of it

// -- formulas ---------------------------------------------------------------------------------------------------------

/**
 * @param {Formula} formula
 * @param {Bytes} bytesOf
 * @param {Map<string, Numbers>} [known] what parts of it give: many stand in it several times
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
  if (formula.cast === 'float32') return { dims, words: widen(new Uint16Array(words.buffer, 0, product(dims))) };
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
  const words = new Uint32Array(Math.ceil(length / 4));
  new Uint8Array(words.buffer).set((await bytesOf(file)).subarray(from, from + length));
  return { dims, words };
}

/** @type {Uint32Array|undefined} the 32 bits of each number of 16 */
let widths;

/** @param {Uint16Array} halves */
function widen(halves) {
  widths ??= new Uint32Array(Float32Array.from({ length: 65536 }, (_, half) => valueOf(half)).buffer);
  return new Uint32Array(halves.length).map((_, i) => /** @type {Uint32Array} */ (widths)[halves[i]]);
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
 * Copy rows of `count` numbers, which are often one: each from and to so far behind the last.
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
  for (; to < target.length; from += apart, to += targetApart) for (let n = 0; n < count; n++) target[to + n] = source[from + n];
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
  const strides = dims.map((_, axis) => product(dims.slice(axis + 1)));
  let to = 0;
  const copy = (/** @type {number} */ i, /** @type {number} */ at) => {
    const [count, stride] = [dims[order[i]], strides[order[i]]];
    if (i === order.length - 1) for (let n = 0; n < count; n++) target[to++] = words[at + n * stride];
    else for (let n = 0; n < count; n++) copy(i + 1, at + n * stride);
  };
  copy(0, 0);
  return { dims: order.map((axis) => dims[axis]), words: target };
}

/** @param {Numbers} a @param {Numbers} b of the same shape @returns {Numbers} */
function sum({ dims, words }, b) {
  const [one, other] = [new Float32Array(words.buffer, words.byteOffset, words.length), new Float32Array(b.words.buffer)];
  return { dims, words: new Uint32Array(one.map((number, i) => number + other[i]).buffer) };
}

// -- on the device ----------------------------------------------------------------------------------------------------

/**
 * Put the weights on a device.
 *
 * @param {GPUDevice} device
 * @param {Recording} recording
 * @param {Uint8Array} own
 * @param {(sha256: string) => Promise<ArrayBuffer>} file
 * @param {boolean} narrow those of 16 bits as they are stored, with placeholders for what they are in 32
 * @returns {Promise<(GPUBuffer|Widened)[]>} by their indices
 */
export async function makeWeights(device, { weights }, own, file, narrow) {
  const read = new Map(weights.map(({ formula }, i) => [i, (narrow && storedNarrow(formula)) || formula]));
  /** @type {(GPUBuffer|Widened)[]} */
  const places = [];
  for await (const [i, { dims, words }] of numbersOf(read, own, file)) {
    const buffer = bufferOf(device, words);
    const { formula } = weights[i];
    const axes = formula.transpose ? { shape: dims, order: formula.transpose } : null;
    places[i] = read.get(i) === formula ? buffer : new Widened(padded(4 * product(dims)), buffer, axes);
  }
  return places;
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
 * What formulas give, those that read one file after those that read another.
 *
 * @template K
 * @param {Map<K, Formula>} formulas
 * @param {Uint8Array} own
 * @param {(sha256: string) => Promise<ArrayBuffer>} file
 * @returns {AsyncGenerator<[K, Numbers]>}
 */
async function* numbersOf(formulas, own, file) {
  let last = '';
  let bytes = own;
  const bytesOf = async (/** @type {string} */ sha256) => {
    if (sha256 !== last) bytes = sha256 ? new Uint8Array(await file(sha256)) : own;
    last = sha256;
    return bytes;
  };
  for (const some of Map.groupBy(formulas, ([, formula]) => fileOf(formula)).values())
    for (const [key, formula] of some) yield [key, await derive(formula, bytesOf)];
}

/** The first file that a formula reads. @param {Formula} formula @returns {string|undefined} */
function fileOf({ stored, of }) {
  return stored ? stored.file : of && fileOf(of[0]);
}

/** @param {number} bytes */
const padded = (bytes) => Math.ceil(bytes / APART) * APART;

/** @param {GPUDevice} device @param {Uint32Array} words */
function bufferOf(device, words) {
  const buffer = device.createBuffer({ size: padded(words.byteLength), usage: USAGE, mappedAtCreation: true });
  new Uint32Array(buffer.getMappedRange()).set(words);
  buffer.unmap();
  return buffer;
}

/**
 * Make the weights that captures read in 32 bits, and give back all that they do not read.
 *
 * @param {GPUDevice} device
 * @param {Map<string, GraphCapture>} captures
 * @param {(GPUBuffer|Widened)[]} places of the weights
 * @param {Recording} recording
 * @param {Uint8Array} own
 * @param {(sha256: string) => Promise<ArrayBuffer>} file
 * @returns {Promise<Map<string, GraphCapture>>}
 */
export async function widenWhatIsRead(device, captures, places, { weights }, own, file) {
  const commands = [...captures.values()].flatMap(({ capture }) => capture.commands);
  const read = new Set(commands.flatMap(usesOf).map(({ place }) => place));
  /** @type {Map<Widened, Formula>} */
  const formulas = new Map();
  places.forEach((place, i) => {
    if (place instanceof Widened && read.has(place)) formulas.set(place, weights[i].formula);
    const buffer = place instanceof Widened ? place.stored : place;
    if (!read.has(buffer)) buffer.destroy();
  });
  /** @type {Map<unknown, GPUBuffer>} */
  const made = new Map();
  for await (const [place, { words }] of numbersOf(formulas, own, file)) made.set(place, bufferOf(device, words));
  return new Map(
    [...captures].map(([name, captured]) => {
      const capture = new Capture();
      capture.commands = captured.capture.commands.map((command) => renameIn(command, made));
      const lifetimes = capture.lifetimes([...captured.outputs.values()].map(({ buffer }) => buffer));
      return [name, { ...captured, capture, lifetimes }];
    }),
  );
}

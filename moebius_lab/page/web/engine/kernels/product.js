// Products of matrices, tiled in registers: C[z] = A[z] B[z], with what follows them.
//
// A workgroup computes a block of M x N numbers of C, each of its threads m x n of them in registers, in slabs along K: all threads
// bring a slab of A (M x K) and of B (K x N) into workgroup memory, then each multiplies m numbers of A with n of B for each k, while
// the next slab is on its way. docs/kernels.md says why a tile is what it is.
//
// A thread fetches a vector of each of four rows of A and stores four down the rows, so that all is read as vectors. (A single number
// of a vector must not be stored by an index: in Direct3D's shaders threads that write to one vector would race.) Where numbers of 16 bits
// are multiplied as such, two neighbours along K of one row or column lie in a word, and are multiplied and summed side by side.

import { Placeholder } from '../capture.js';
import { HALVES, boundOf } from './operations.js';
import { lines, reading, repeat, storage, storing, uniforms } from './launch.js';

/** @import { Product } from './operations.js' */
/** @import { Launch } from './launch.js' */

/**
 * @typedef {object} Tile
 * @property {number} M rows of a workgroup's block, a multiple of 32
 * @property {number} N its columns
 * @property {number} K depth of a slab
 * @property {number} m rows of a thread's part, a multiple of 4
 * @property {number} n its columns, a multiple of 4
 * @property {number} [parts] that K is cut into, each for a workgroup of its own, where a product has few blocks
 * @property {boolean} [half] numbers that are stored in 16 bits are multiplied and summed in 16 for a while, and these sums added in 32
 * @property {import('./units.js').Units} [units] what multiplies, where not the threads themselves: m and n are then a subgroup's
 * @property {number} [off] how far from the runtime's it may be: see `Option`
 * @property {(tile: Tile, end: End) => Core} [core] what a workgroup does with its slabs; its own by default: see `inRegisters`
 */
/**
 * @typedef {object} Core WGSL: what a workgroup does with the slabs that its threads fetch
 * @property {string} enabled what stands before all
 * @property {string} memory of the workgroup
 * @property {string} begin where a thread stands, and its sums
 * @property {(round: number) => string} keepA vectors along K of four rows, `faROUND_0` to `_3`, from 4 `saROUND` on, at vector `kaROUND`
 * @property {(round: number) => string} keepB `fbROUND`, at row `kbROUND` and vector `sbROUND`; where B is blocked as `keepA`, of columns
 * @property {string} multiply a slab
 * @property {string} store
 */
/**
 * @typedef {object} End of a product
 * @property {boolean} turned B is stored by columns, and a thread fetches a number of each of an element's
 * @property {boolean} blocked B is stored by columns, and a thread fetches four numbers along K of each of four
 * @property {{A: number, B: number}} near see `nearOf`
 * @property {string} row where row `m` begins, as an expression
 * @property {string} before it, of the row
 * @property {(n: string) => string} column what is added to a vector at `n` of each row, as an expression
 * @property {(sum: string, column: string) => string} put a vector of sums and its column's at `o + n`
 */

/** @type {Record<string, Tile>} within 256 threads and 16 KiB, which every device has */
export const TILES = {
  large: { M: 128, N: 128, K: 16, m: 16, n: 8 },
  wide: { M: 64, N: 128, K: 16, m: 16, n: 8 },
  tall: { M: 128, N: 64, K: 8, m: 16, n: 8 },
  square: { M: 64, N: 64, K: 16, m: 8, n: 8 },
  medium: { M: 64, N: 64, K: 16, m: 4, n: 8 },
  narrow: { M: 128, N: 40, K: 16, m: 8, n: 4 },
  low: { M: 32, N: 80, K: 16, m: 8, n: 4 },
  small: { M: 32, N: 32, K: 16, m: 4, n: 4 },
};
const FOUR_HALVES = 'vec4<f16>';
/** What each reaches on one H100 in large products, in TFLOP/s. @type {Map<Tile, number>} */
const RATES = new Map([
  [TILES.large, 41],
  [TILES.wide, 38.5],
  [TILES.tall, 38.5],
  [TILES.square, 36],
  [TILES.medium, 32],
  [TILES.narrow, 24],
  [TILES.low, 24],
  [TILES.small, 20],
]);
/** The same for products of 16-bit numbers that are summed in 16 bits along a slab. @type {Map<Tile, number>} */
const HALF_RATES = new Map([
  [{ M: 64, N: 64, K: 32, m: 8, n: 4, half: true }, 44],
  [{ M: 32, N: 64, K: 32, m: 8, n: 4, half: true }, 42],
  [{ M: 128, N: 128, K: 32, m: 8, n: 8, half: true }, 48],
]);

/** What a device is taken for: sums that a thread has registers for, and cores. @typedef {{sums: number, cores: number}} Traits */
/** @type {Traits} */
const CARD = { sums: 128, cores: 132 }; // an H100
const SLIM = { sums: 32, cores: 16 };
/** @type {Record<string, Traits>} */
const TRAITS = { apple: SLIM, arm: SLIM, 'img-tec': SLIM, qualcomm: SLIM, samsung: SLIM, intel: { sums: 64, cores: 32 } };
/** What a device's tiles depend on. @typedef {{maxComputeInvocationsPerWorkgroup: number, maxComputeWorkgroupStorageSize: number, maxStorageBufferBindingSize?: number}} Limits */

const NUMBERS = /** @type {const} */ ([
  ...['M', 'N4', 'K4', 'count', 'inner', 'a0', 'a1', 'b0', 'b1', 'c0', 'c1', 'start', 'per', 'ra', 'rc', 'step'],
  ...['biased', 'silu', 'sums', 'first', 'second', 'words', 'part', 'parts'],
  ...['height', 'width', 'channels4', 'columns', 'taps', 'top', 'left', 'stride', 'across'],
]);
const BIASED = { '': 0, row: 1, column: 2 };

/** @param {Tile} tile */
export function threadsOf({ M, N, m, n, units }) {
  return (M / m) * (N / n) * (units?.lanes ?? 1);
}

/**
 * An element of a slab, which a thread reads at once, is a vector for four rows of A or four columns of B: of numbers, or in 16 bits of `deep`
 * that are neighbours along K. `along` elements along K are a group: see `inRegisters`.
 *
 * @param {Tile} tile
 */
function elementsOf({ K, m, n, half }) {
  const deep = half ? 2 : 1;
  return { deep, along: Math.min(K / deep, m * n > FEW_SUMS ? WRITTEN : MOST), type: half ? 'vec4u' : 'vec4f' };
}

/**
 * How many neighbours fetch vectors of the same row of A, or column of B, which lie next to each other in it.
 *
 * @param {Tile} tile
 * @param {import('./operations.js').Narrow|null} narrow how it is stored
 */
function nearOf({ K }, narrow) {
  const bytes = narrow ? (narrow.scale ? 4 : 8) : 16;
  return Math.min(K / 4, FETCHED / bytes);
}

/** @param {Tile} tile @returns {number} bytes of workgroup memory */
export function memoryOf({ M, N, K, half }) {
  return (half ? 2 : 4) * (M + N) * K;
}

/** @param {Tile} tile */
export function nameOf({ M, N, K, m, n, parts, half, units }) {
  const by = units ? ` on matrix units${units.exact ? ', exact' : ''}` : '';
  return `${M}x${N}x${K} ${m}x${n}${parts ? ` in ${parts}` : ''}${half ? ', 16 bits' : ''}${by}`;
}

/**
 * What is known of a device by its vendor. Apple's chips and phones have few registers for a thread: Mesa's compiler for Apple's M1 keeps 64
 * sums, with what they are made from, only in part; 32 all.
 *
 * @param {{vendor?: string}} [info] of the adapter
 * @returns {Traits}
 */
export function traitsOf(info) {
  return TRAITS[info?.vendor ?? ''] ?? CARD;
}

/**
 * The tiles that are worth a try for a product on a device, the most promising first.
 *
 * @param {Product} product
 * @param {Limits} limits
 * @param {Traits} [traits] of the device
 * @returns {Tile[]}
 */
export function tilesFor(product, limits, traits = CARD) {
  return promising(RATES, product, limits, traits, memoryOf).slice(0, TRIED);
}

/**
 * Tiles for a product in the order of what is expected of each, with K in as many parts as suit it best.
 *
 * @param {Map<Tile, number>} rates of all that there are in large products, TFLOP/s
 * @param {Product} product
 * @param {Limits} limits
 * @param {Traits} traits
 * @param {(tile: Tile) => number} memoryOf bytes of workgroup memory
 * @returns {Tile[]}
 */
export function promising(rates, product, limits, traits, memoryOf) {
  const { M, N, K, outer, inner } = product;
  const most = (limits.maxStorageBufferBindingSize ?? Infinity) / (4 * M * N * outer * inner);
  const tiles = [...rates.keys()].filter(({ m, n, units }) => units || m * n <= traits.sums);
  const all = filling(tiles, product, limits, memoryOf).map((tile) => {
    const rate = rates.get(tile) ?? 0;
    const counts = PARTS.filter((parts) => parts === 1 || (parts <= most && K >= LEAST * parts));
    const ways = counts.map((parts) => {
      const way = parts > 1 ? { ...tile, parts } : tile;
      return { tile: way, expected: expected(way, rate, product, traits) };
    });
    return ways.reduce((best, way) => (way.expected > best.expected ? way : best));
  });
  return all.sort((p, q) => q.expected - p.expected).map(({ tile }) => tile);
}

/**
 * The TFLOP/s to be expected of a tile: less than its rate where blocks reach over a product's edges, where some cores are idle in the last
 * round or have few threads, and where parts are to be added. On one H100, over 16 products, it is 3.3 % from what 111 ways reach, none of
 * 495 others being much faster than they are.
 *
 * @param {Tile} tile
 * @param {number} rate
 * @param {Product} product
 * @param {Traits} traits
 */
function expected(tile, rate, product, { cores }) {
  const { K } = product;
  const { parts = 1 } = tile;
  const blocks = (blocksOf(tile, product) * parts) / cores;
  const rounds = Math.ceil(blocks);
  const threads = rounds * threadsOf(tile);
  const busy = rounds > 1 ? (blocks / rounds) ** TAIL : blocks;
  const deep = Math.ceil(K / parts / tile.K) * tile.K * parts;
  const adding = parts > 1 ? (ADDING * rate * (parts + 1)) / K : 0;
  return (rate * busy * threads * K) / ((threads + WAITING) * deep * wastedBy(tile, product) * (1 + adding));
}

/** @param {Tile} tile @param {Product} product */
function blocksOf(tile, { M, N, outer, inner }) {
  return Math.ceil(M / tile.M) * Math.ceil(N / tile.N) * outer * inner;
}

/** How many times a product's arithmetic the blocks of a tile do. @param {Tile} tile @param {Product} product */
function wastedBy(tile, product) {
  const { M, N, outer, inner } = product;
  return (blocksOf(tile, product) * tile.M * tile.N) / (M * N * outer * inner);
}

/**
 * The tiles that a device has room for and a product fills, in their order.
 *
 * @param {Tile[]} tiles
 * @param {Product} product
 * @param {Limits} limits
 * @param {(tile: Tile) => number} memoryOf bytes of workgroup memory
 * @returns {Tile[]}
 */
function filling(tiles, product, limits, memoryOf) {
  const { window } = product;
  const possible = tiles.filter(
    (tile) =>
      threadsOf(tile) <= limits.maxComputeInvocationsPerWorkgroup &&
      memoryOf(tile) <= limits.maxComputeWorkgroupStorageSize &&
      (!window || window.channels % tile.K === 0),
  );
  const least = Math.min(...possible.map((tile) => wastedBy(tile, product)));
  return possible.filter((tile) => wastedBy(tile, product) <= FILLED * least);
}

/**
 * Those of them that a device with numbers of 16 bits may be faster with where a product's numbers have 16.
 *
 * @param {Product} product
 * @param {Limits} limits
 * @param {Traits} [traits] of the device
 * @returns {Tile[]}
 */
export function halfTilesFor(product, limits, traits = CARD) {
  if (!product.half) return [];
  return promising(HALF_RATES, product, limits, traits, memoryOf).slice(0, TRIED);
}

/**
 * Whether a device can multiply in 16 bits as such tiles do: its compiler must read a slab's bits as numbers, which Firefox's refuses.
 *
 * @param {GPUDevice} device
 */
export async function hasHalves(device) {
  if (!device.features.has('shader-f16')) return false;
  device.pushErrorScope('validation');
  device.createShaderModule({ code: 'enable f16; fn read(v: vec2u) -> vec4<f16> { return bitcast<vec4<f16>>(v); }' });
  return !(await device.popErrorScope());
}

/**
 * Whether a product is too small to be better off with a tile of ours, as far as is known before it is tried.
 *
 * @param {Product} product
 */
export function isTiny({ M, N, K, outer, inner }) {
  const blocks = Math.ceil(M / 32) * Math.ceil(N / 32) * outer * inner; // of the runtime's, each of which goes along all of K
  return M < 16 || (2 * M * N * K * outer * inner < TINY && (blocks >= IDLE || K < LONG));
}

const PARTS = [1, 2, 3, 4, 5, 6, 7, 8];
const LEAST = 96; // numbers of K in a part
const TAIL = 0.75; // as cores that have less to do run faster
const WAITING = 14; // threads' worth of a core's time that is lost, however many there are
const ADDING = 0.78; // what adding a part takes, as a share of a product with K = 1 at 1 TFLOP/s
const FILLED = 1.5; // at most so many times the arithmetic of the tile that fits best
const TRIED = 3;
const FEW_SUMS = 64; // of a thread: so few that a whole slab's code stands one after another
const MOST = 32; // numbers along K for which it stands so
const WRITTEN = 8; // numbers along K for which it does where there are more
const SUMMED_HALVES = 64; // numbers along K after which sums of 16 bits are added in 32: each has one of two
const FETCHED = 32; // bytes of a row that neighbours fetch
const TINY = 3e7; // operations
const IDLE = 64; // blocks that leave a large card idle, which matters
const LONG = 256; // where they take long

/**
 * What is launched for a product.
 *
 * @param {Product} product
 * @param {Tile} tile
 * @returns {Launch[]}
 */
export function launchProduct(product, tile) {
  const { M, N, K, outer, inner, A, B, C, bias, sums, split, gathered, narrow } = product;
  const parts = tile.parts ?? 1;
  const numbers = numbersFor(product, parts, Math.ceil(K / parts / tile.K) * tile.K);
  /** @type {[number, number, number]} */
  const workgroups = [Math.ceil(N / tile.N), Math.ceil(M / tile.M), outer * inner * parts];
  const code = written(tile, product);
  const operands = [...boundOf(A, narrow.A), ...boundOf(B, narrow.B), ...(gathered ? [gathered.indices] : [])];
  const made = split ? split.parts : [sums[0] ?? A, sums[1] ?? A, C]; // what is not there is not read
  const rest = [bias ?? A, ...made];
  if (parts === 1) return [{ code, values: [...operands, ...rest], numbers, workgroups }];
  const count = (M * N * outer * inner) / 4;
  const partial = new Placeholder({ size: 16 * count * parts, usage: C.usage });
  return [
    { code, values: [...operands, partial], numbers, workgroups },
    { code: summing(product), values: [partial, ...rest], numbers, workgroups: [Math.ceil(count / SUMMED), 1, 1] },
  ];
}

/**
 * @param {Product} product
 * @param {number} parts
 * @param {number} part numbers of K for each
 */
function numbersFor({ M, N, K, inner, outer, a, b, c, from, rows, biased, silu, sums, split, gathered, window }, parts, part) {
  const { height = 0, width = 0, channels = 0, columns = 0, top = 0, left = 0, stride = 0, across = 0 } = window ?? {};
  const [first, second] = split ? split.sizes.map((size) => size / 4) : [0, 0];
  /** @type {Record<typeof NUMBERS[number], number>} */
  const numbers = {
    ...{ M, N4: N / 4, K4: K / 4, count: outer * inner, inner },
    ...{ a0: a.outer, a1: a.inner, b0: b.outer, b1: b.inner, c0: c.outer, c1: c.inner, start: from },
    ...{ per: rows.per, ra: rows.a, rc: rows.c, step: rows.step },
    ...{ biased: BIASED[biased], silu: Number(silu), sums: sums.length, first, second, words: gathered?.words ?? 0, part, parts },
    ...{ height, width, channels4: channels / 4, columns, taps: channels && K / channels, top, left, stride, across },
  };
  return Uint32Array.from(NUMBERS, (name) => numbers[name]);
}

/** Where row m of A and of C begins: without a division where all rows lie one after another. */
const ROWS = `fn rowA(m: u32) -> u32 { if (u.per >= u.M) { return m * u.K4; } return (m / u.per) * u.ra + (m % u.per) * u.K4; }
fn rowC(z: u32, m: u32) -> u32 {
  let o = u.start + (z / u.inner) * u.c0 + (z % u.inner) * u.c1;
  if (u.per >= u.M) { return o + m * u.step; } return o + (m / u.per) * u.rc + (m % u.per) * u.step;
}`;

/**
 * The end of a product: bias, SiLU, sums. Where columns are split over three tensors, nothing is added and rows lie one after another.
 *
 * @param {Product} product of which it matters how its tensors are stored
 */
function finishing({ half, split }) {
  const stored = half ? HALVES : null;
  const kept = storing(half);
  const bias = reading('bias', 'one', stored);
  const sums = split ? [] : [reading('R0', 'four', stored), reading('R1', 'four', stored)];
  const made = split ? ['!C0', '!C1', '!C2'] : ['!C'];
  const numbers = [0, 1, 2, 3].map((i) => `oneOfbias(4u * n + ${i}u)`).join(', ');
  const store = split
    ? `let row = o / u.N4; let n = o % u.N4; let third = u.N4 - u.first - u.second;
  if (n < u.first) { C0[row * u.first + n] = ${kept.of('v')}; }
  else if (n < u.first + u.second) { C1[row * u.second + n - u.first] = ${kept.of('v')}; }
  else { C2[row * third + n - u.first - u.second] = ${kept.of('v')}; }`
    : `if (u.sums > 0u) { v += fourOfR0(o); }
  if (u.sums > 1u) { v += fourOfR1(o); }
  C[o] = ${kept.of('v')};`;
  const types = Object.assign({}, bias.types, ...sums.map((one) => one.types));
  return {
    types: { ...types, ...Object.fromEntries(made.map((name) => [name, kept.type])) },
    code: `${lines([bias.code, ...sums.map((one) => one.code), kept.code])}
fn biasRow(m: u32) -> vec4f { if (u.biased == 1u) { return vec4f(oneOfbias(m)); } return vec4f(0); }
fn biasColumn(n: u32) -> vec4f { if (u.biased == 2u && n < u.N4) { return vec4f(${numbers}); } return vec4f(0); }
fn finish(sum: vec4f, o: u32) {
  var v = sum;
  if (u.silu == 1u) { v = v / (1.0 + exp(-v)); }
  ${store}
}`,
  };
}

/**
 * How rows of A are found, in vectors: where each begins, what is counted from slab to slab, and its vector at `kq` along K; and how
 * far down a column of B that is stored by columns the number for `kk` is.
 *
 * A window keeps where its pixel begins and counts through channels, columns and rows of the kernel: a slab lies within the channels
 * of one of its pixels.
 */
const OPERAND = {
  matrix: {
    row: (/** @type {string} */ m, /** @type {string} */ x) => `let row${x} = a0 + rowA(${m});`,
    begin: '',
    slab: '',
    vector: (/** @type {string} */ x) => `fourOfA(row${x} + kq)`,
    down: 'k0',
    apart: '1u', // from a number of a column to the next
    next: () => '',
  },
  window: {
    row: (/** @type {string} */ m, /** @type {string} */ x) =>
      `let y${x} = i32((${m} / u.across) * u.stride) - i32(u.top); let x${x} = i32((${m} % u.across) * u.stride) - i32(u.left);
  let row${x} = (y${x} * i32(u.width) + x${x}) * i32(u.channels4);`,
    begin: `var channel = first % (4u * u.channels4); let tap = first / (4u * u.channels4);
  var down = i32(tap / u.columns); var right = i32(tap % u.columns);`,
    slab: 'let shift = (down * i32(u.width) + right) * i32(u.channels4) + i32(channel / 4u);',
    vector: (/** @type {string} */ x, /** @type {number} */ r) =>
      `pixel(u32(y${x} + down) < u.height && u32(x${x} + right) < u.width, row${x} + shift + i32(ka${r}))`,
    down: '(channel + kb) * u.taps + u32(down) * u.columns + u32(right)',
    apart: 'u.taps',
    next: (/** @type {number} */ K) => `channel += ${K}u;
    if (channel >= 4u * u.channels4) { channel = 0u; right++; if (right == i32(u.columns)) { right = 0; down++; } }`,
  },
};

/** @param {string} vector the type of what `fourOfA` gives */
function pixel(vector) {
  return `fn pixel(inside: bool, at: i32) -> ${vector} { return select(${vector}(0), fourOfA(u32(select(0, at, inside))), inside); }`;
}

/**
 * Functions as those of `reading`, for numbers that are stored in 16 bits: they give the bits, in pairs.
 *
 * @param {string} name of the binding
 * @param {'one'|'four'} width of what is read
 */
function bits(name, width) {
  const one = width === 'one';
  const [type, value] = one ? ['u32', `(${name}[at / 2u] >> (16u * (at % 2u))) & 0xffffu`] : ['vec2u', `${name}[at]`];
  return { types: { [name]: type }, code: `fn ${width}Of${name}(at: u32) -> ${type} { return ${value}; }` };
}

/** @type {Map<string, string>} programs by what they depend on: hundreds of products have the same */
const texts = new Map();

/** @param {Tile} tile @param {Product} product @returns {string} WGSL */
function written(tile, product) {
  const { K, window, gathered, narrow, turned, half, split } = product;
  const { parts = 1 } = tile;
  const stored = [narrow.A, narrow.B].map((operand) => operand && [Boolean(operand.scale), operand.group]);
  const key = JSON.stringify([
    { ...tile, parts: parts > 1 },
    K % tile.K === 0,
    Boolean(window),
    Boolean(gathered),
    stored,
    turned,
    half,
    Boolean(split),
  ]);
  const text = texts.get(key) ?? program(tile, product);
  texts.set(key, text);
  return text;
}

/**
 * The program of a tile.
 *
 * @param {Tile} tile
 * @param {Product} product of which it matters how A and B are found and stored
 * @returns {string} WGSL
 */
function program(tile, product) {
  const { window, gathered, narrow, turned } = product;
  const finish = finishing(product);
  const { M, N, K, parts = 1, half } = tile;
  const whole = product.K % K === 0;
  const { deep } = elementsOf(tile);
  const vector = half ? 'vec2u' : 'vec4f'; // four numbers
  const near = { A: nearOf(tile, narrow.A), B: nearOf(tile, narrow.B) };
  const [MQ, NQ] = [M / 4, N / 4]; // elements along a block's sides
  const T = threadsOf(tile);
  const operand = OPERAND[window ? 'window' : 'matrix'];
  const even = !narrow.B?.scale || narrow.B.group % 4 === 0;
  const blocked = turned && !window && !tile.core && even;
  const byOne = turned && !blocked;
  const width = byOne ? 'one' : 'four';
  const [readA, readB] = half
    ? [bits('A', 'four'), bits('B', width)]
    : [reading('A', 'four', narrow.A), reading('B', width, narrow.B)];
  const core = (tile.core ?? inRegisters)(tile, endOf(parts, byOne, blocked, near));

  // what a thread fetches of each slab: a vector of each row of an element of A a round, or what makes an element of B
  const rounds = (/** @type {number} */ vectors, /** @type {(r: number) => string} */ make) =>
    repeat(Math.ceil(vectors / T), (r) =>
      (r + 1) * T <= vectors ? `{ ${make(r)} }` : `if (tid + ${r * T}u < ${vectors}u) { ${make(r)} }`,
    );
  const blocks = (MQ * K) / 4;
  const ofA = (/** @type {(r: number) => string} */ make) => rounds(blocks, make);
  const elements = (NQ * K) / (blocked ? 4 : deep);
  const ofB = (/** @type {(r: number) => string} */ make) => rounds(elements, make);
  const [down, along, side] = turned ? ['sb', 'kb', K / deep] : ['kb', 'sb', NQ]; // neighbours fetch what lies next to each other
  const placed = (/** @type {'a'|'b'} */ x, /** @type {number} */ r, /** @type {number} */ count) => {
    const by = x === 'a' ? near.A : near.B;
    return `let i${x}${r} = tid + ${r * T}u; let k${x}${r} = i${x}${r} % ${by}u + ${by}u * (i${x}${r} / ${by * count}u); let s${x}${r} = (i${x}${r} / ${by}u) % ${count}u;`;
  };
  const fb = (/** @type {number} */ r, /** @type {number} */ x) => (half ? `fb${r}_${x}` : `fb${r}`);
  const places = `${repeat(
    Math.ceil(blocks / T),
    (r) => `${placed('a', r, MQ)}
  ${repeat(
    4,
    (x) => `let m${r}_${x} = min(m0 + 4u * sa${r} + ${x}u, u.M - 1u); ${operand.row(`m${r}_${x}`, `${r}_${x}`)}
  var fa${r}_${x} = ${vector}(0);`,
  )}`,
  )}
  ${repeat(Math.ceil(elements / T), (r) =>
    blocked
      ? `${placed('b', r, NQ)} let column${r} = b0 + 4u * u.K4 * min(n0 + sb${r}, u.N4 - 1u);
  ${repeat(4, (x) => `var fb${r}_${x} = ${vector}(0);`)}`
      : `let ${down}${r} = (tid + ${r * T}u) / ${side}u; let ${along}${r} = (tid + ${r * T}u) % ${side}u;
  ${repeat(deep, (x) => `var ${fb(r, x)} = ${byOne && half ? 'vec4u' : vector}(0);`)}
  let q${r} = min(n0 + sb${r}, u.N4 - 1u); let column${r} = ${turned ? `4u * (b0 + 4u * u.K4 * q${r})` : `b0 + q${r}`};`,
  )}`;
  const rowOfB = gathered ? 'I[u.words * ((z % u.inner) * u.K4 * 4u + kk)]' : 'kk';
  const four = [0, 1, 2, 3].map((x) => `oneOfB(at + ${4 * x}u * u.K4)`).join(', ');
  const rowsOf = (/** @type {number} */ r) =>
    repeat(deep, (x) =>
      byOne
        ? `{ let at = column${r} + ${operand.down}${x ? ` + ${operand.apart}` : ''}; ${fb(r, x)} = ${half ? 'vec4u' : 'vec4f'}(${four}); }`
        : `{ let kk = k0${x ? ' + 1u' : ''}; ${fb(r, x)} = fourOfB(column${r} + ${rowOfB} * u.N4); }`,
    );
  const fetch = (/** @type {string} */ slab) => `${operand.slab}
    ${ofA((r) => {
      const at = `first / 4u + ${slab} * ${K / 4}u + ka${r}`;
      const found = repeat(4, (x) => {
        const value = operand.vector(`${r}_${x}`, r);
        return `fa${r}_${x} = ${whole ? value : `select(${vector}(0), ${value}, 4u * k < last)`};`;
      });
      return whole ? `let kq = ${at}; ${found}` : `let k = ${at}; let kq = min(k, u.K4 - 1u); ${found}`;
    })}
    ${ofB((r) => {
      if (blocked) {
        const at = `first / 4u + ${slab} * ${K / 4}u + kb${r}`;
        return `let kq = column${r} + ${whole ? at : `min(${at}, u.K4 - 1u)`}; ${repeat(4, (x) => `fb${r}_${x} = fourOfB(kq + ${x}u * u.K4);`)}`;
      }
      const at = `first + ${slab} * ${K}u + kb`;
      return `let kb = ${half ? '2u * ' : ''}kb${r}; let k0 = ${whole ? at : `min(${at}, u.K4 * 4u - ${deep}u)`}; ${rowsOf(r)}`;
    })}
    ${operand.next(K)}`;
  const keep = `${ofA(core.keepA)}
    ${ofB(core.keepB)}`;
  const operands = { ...readA.types, ...readB.types, ...(gathered && { I: 'u32' }) };
  const bindings = { ...operands, ...(parts > 1 ? { '!P': 'vec4f' } : finish.types) };

  return `${core.enabled}${storage(bindings)}
${uniforms(bindings, NUMBERS)}
${core.memory}
${ROWS}
${readA.code}
${readB.code}
${window ? pixel(vector) : ''}
${parts > 1 ? '' : finish.code}
@compute @workgroup_size(${T})
fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) tid: u32) {
  let m0 = w.y * ${M}u; let n0 = w.x * ${N / 4}u; let z = w.z / u.parts;
  let a0 = (z / u.inner) * u.a0 + (z % u.inner) * u.a1; let b0 = (z / u.inner) * u.b0 + (z % u.inner) * u.b1;
  let first = (w.z % u.parts) * u.part; let last = min(first + u.part, u.K4 * 4u); let slabs = (last - first + ${K - 1}u) / ${K}u;
  ${core.begin}
  ${places}
  ${operand.begin}
  { ${fetch('0u')} }
  for (var t = 0u; t < slabs; t++) {
    if (t > 0u) { workgroupBarrier(); }
    ${keep}
    workgroupBarrier();
    if (t + 1u < slabs) {
    ${fetch('(t + 1u)')}
    }
    ${core.multiply}
  }
  ${core.store}
}`;
}

/** @param {number} parts @param {boolean} turned @param {boolean} blocked @param {End['near']} near @returns {End} */
function endOf(parts, turned, blocked, near) {
  if (parts > 1)
    return {
      ...{ turned, blocked, near },
      row: '(w.z * u.M + m) * u.N4',
      before: '',
      column: () => 'vec4f(0)',
      put: (sum) => `P[o + n] = ${sum};`,
    };
  return {
    ...{ turned, blocked, near, row: 'rowC(z, m)', before: 'let bm = biasRow(m);', column: (n) => `biasColumn(${n})` },
    put: (sum, column) => `finish(${sum} + bm + ${column}, o + n);`,
  };
}

/**
 * Each thread multiplies m numbers of A with n of B for each k, in registers: rows in fours, which lie as many fours apart as there are
 * threads down, columns likewise.
 *
 * Browsers keep each index within its array. So a slab is an array of groups of rows, in which what changes from one product to the next is a
 * constant, what does not is a variable that they check once, and only the group is counted: a read then needs no arithmetic of its own.
 *
 * @param {Tile} tile
 * @param {End} end
 * @returns {Core}
 */
function inRegisters(tile, { turned, blocked, near, row, before, column, put }) {
  const { M, N, K, m, n, half } = tile;
  const { along, deep, type } = elementsOf(tile);
  const [MQ, NQ] = [M / 4, N / 4];
  const [NX, NY] = [N / n, M / m]; // threads across and down
  const groups = K / deep / along;
  // neighbours store one below another: what they shift their vectors by keeps them out of each other's banks
  const period = { A: Math.min(near.A, (along * deep) / 4), B: Math.min(near.B, (along * deep) / 4) }; // the same in all groups
  const apart = { A: MQ % 8 ? 0 : 8 / period.A, B: NQ % 8 ? 0 : 8 / period.B };
  const mask = !turned || NQ % 2 ? 0 : NQ % 8 ? 1 : 7;
  const shiftOf = (/** @type {'A'|'B'} */ side, /** @type {number} */ k) =>
    side === 'A' || blocked ? apart[side] * (((k * deep) >> 2) % period[side]) : k & mask;
  const sums = (/** @type {number} */ width) =>
    Array.from({ length: (m * n) / width }, (_, i) => ({ i: Math.floor(i / (n / width)), j: i % (n / width) }));
  const [own, halves] = [sums(4), half ? sums(2) : []];
  const columns = Array.from({ length: n / 4 }, (_, j) => `n0 + ${j * NX}u + tx`);
  const threads =
    NX % 8 === 0 && NY % 4 === 0 // 8 x 4 threads together read the fewest vectors of both slabs
      ? `let tx = ((tid / 32u) % ${NX / 8}u) * 8u + tid % 8u; let ty = ((tid / 32u) / ${NX / 8}u) * 4u + (tid % 32u) / 8u;`
      : `let tx = tid % ${NX}u; let ty = tid / ${NX}u;`;
  const placesOf = (/** @type {'A'|'B'} */ side, /** @type {number} */ count) => {
    const all = new Set(Array.from({ length: along }, (_, k) => shiftOf(side, k)));
    const place = `t${side.toLowerCase()}`;
    return repeat(count, (i) => lines([...all].map((by) => `let ${place}${i}_${by} = ${place}${i} ^ ${by}u;`)));
  };
  const read = (/** @type {number} */ k) => `${repeat(m / 4, (i) => `let a${i} = As[g][${k}][ta${i}_${shiftOf('A', k)}];`)}
    ${repeat(n / 4, (j) => `let b${j} = Bs[g][${k}][tb${j}_${shiftOf('B', k)}];`)}`;
  const add = half
    ? `${repeat(m, (i) => `let p${i} = bitcast<${FOUR_HALVES}>(a${i >> 2}.${'xyzw'[i % 4].repeat(2)});`)}
    ${repeat(n / 2, (j) => `let q${j} = bitcast<${FOUR_HALVES}>(b${j >> 1}.${j % 2 ? 'zw' : 'xy'});`)}
    ${lines(halves.map(({ i, j }) => `h${i}_${j} = fma(p${i}, q${j}, h${i}_${j});`))}`
    : lines(own.map(({ i, j }) => `c${i}_${j} = fma(vec4f(a${i >> 2}[${i % 4}]), b${j}, c${i}_${j});`));
  const group = repeat(along, (k) => `{ ${read(k)}\n    ${add} }`);
  const last = `t % ${SUMMED_HALVES / K}u == ${SUMMED_HALVES / K - 1}u || t + 1u == slabs`;
  const pairs = (/** @type {number} */ i, /** @type {number} */ j) => `vec2f(h${i}_${j}.xz) + vec2f(h${i}_${j}.yw)`;
  const added = lines([
    ...own.map(({ i, j }) => `c${i}_${j} += vec4f(${pairs(i, 2 * j)}, ${pairs(i, 2 * j + 1)});`),
    ...halves.map(({ i, j }) => `h${i}_${j} = ${FOUR_HALVES}();`),
  ]);
  /** @param {'A'|'B'} side @param {number} r @param {string} k @param {string} by @param {string} value */
  const kept = (side, r, k, by, value) =>
    `${side}s[${k} / ${along}u][${k} % ${along}u][s${side.toLowerCase()}${r} ^ ${by}] = ${value};`;
  // what vectors along K have of four rows or columns
  const across = (/** @type {'A'|'B'} */ side, /** @type {number} */ r) => {
    const x = side.toLowerCase();
    const by = `(${apart[side]}u * (k${x}${r} % ${period[side]}u))`;
    return repeat(4 / deep, (i) => {
      const value = [0, 1, 2, 3].map((y) => `f${x}${r}_${y}[${i}]`).join(', ');
      return kept(side, r, `(${4 / deep}u * k${x}${r} + ${i}u)`, by, `${type}(${value})`);
    });
  };
  // of two rows of B, a word for each column
  const woven = (/** @type {number} */ r) => {
    const [low, high] = [`fb${r}_0`, `fb${r}_1`];
    if (turned) return `${low} | (${high} << vec4u(16))`;
    const [first, second] = [
      `(${low} & vec2u(0xffff)) | (${high} << vec2u(16))`,
      `(${low} >> vec2u(16)) | (${high} & vec2u(0xffff0000))`,
    ];
    return `vec4u(${first}, ${second}).xzyw`;
  };
  return {
    enabled: half ? 'enable f16;\n' : '',
    memory: lines([
      `var<workgroup> As: array<array<array<${type}, ${MQ}>, ${along}>, ${groups}>;`,
      `var<workgroup> Bs: array<array<array<${type}, ${NQ}>, ${along}>, ${groups}>;`,
    ]),
    begin: `${threads}
  ${repeat(m / 4, (i) => `let ta${i} = ${i * NY}u + ty;`)}
  ${placesOf('A', m / 4)}
  ${repeat(n / 4, (j) => `let tb${j} = ${j * NX}u + tx;`)}
  ${placesOf('B', n / 4)}
  ${lines(own.map(({ i, j }) => `var c${i}_${j} = vec4f(0);`))}
  ${lines(halves.map(({ i, j }) => `var h${i}_${j} = ${FOUR_HALVES}();`))}`,
    keepA: (r) => across('A', r),
    keepB: (r) => (blocked ? across('B', r) : kept('B', r, `kb${r}`, `(kb${r} & ${mask}u)`, half ? woven(r) : `fb${r}`)),
    multiply: `${groups > 1 ? `for (var g = 0u; g < ${groups}u; g++) { ${group} }` : `{ let g = 0u; ${group} }`}
    ${half ? `if (${last}) { ${added} }` : ''}`,
    store: `${lines(columns.map((at, j) => `let bn${j} = ${column(at)};`))}
  ${repeat(m, (i) => {
    const each = lines(columns.map((at, j) => `{ let n = ${at}; if (n < u.N4) { ${put(`c${i}_${j}`, `bn${j}`)} } }`));
    return `{ let m = m0 + 4u * (${Math.floor(i / 4) * NY}u + ty) + ${i % 4}u;
    if (m < u.M) { let o = ${row}; ${before} ${each} } }`;
  })}`,
  };
}

const SUMMED = 128; // threads of a workgroup

/**
 * The program that adds the parts of a product.
 *
 * @param {Product} product
 * @returns {string} WGSL
 */
function summing(product) {
  const finish = finishing(product);
  const bindings = { P: 'vec4f', ...finish.types };
  return `${storage(bindings)}
${uniforms(bindings, NUMBERS)}
${ROWS}
${finish.code}
@compute @workgroup_size(${SUMMED})
fn main(@builtin(global_invocation_id) global: vec3u) {
  let n = global.x % u.N4; let m = (global.x / u.N4) % u.M; let z = global.x / (u.N4 * u.M);
  if (z >= u.count) { return; }
  var sum = vec4f(0);
  for (var p = 0u; p < u.parts; p++) { sum += P[((z * u.parts + p) * u.M + m) * u.N4 + n]; }
  finish(sum + biasRow(m) + biasColumn(n), rowC(z, m) + n);
}`;
}

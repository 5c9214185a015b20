// Products on matrix units: an experiment, behind a flag of the browser's and a wish of the page's (docs/kernels.md).
//
// A subgroup's threads hold matrices together, and one instruction multiplies two of them. Operands have 16 bits, sums 32. What is
// fetched is what product.js fetches; here it is rounded on its way to workgroup memory. Exact products keep what the rounding left, too:
// x = h + l, and x y is h h + h l + l h but for l l, 2^-22 of it.
//
// The instructions are of Chromium's experimental extension `chromium_experimental_subgroup_matrix`; a later version may read them otherwise.

import { MATRIX_UNITS, infos } from '../device.js';
import { lines, repeat } from './launch.js';
import { promising, traitsOf } from './product.js';

/** @import { Core, End, Tile } from './product.js' */
/** @import { Product } from './operations.js' */
/**
 * @typedef {object} Units what multiplies M x K by K x N numbers of 16 bits to sums of 32
 * @property {number} M
 * @property {number} N
 * @property {number} K
 * @property {number} lanes threads of a subgroup, always as many
 * @property {boolean} exact three products for each
 */

const PAD = 8; // numbers after a row of a slab, which keep rows out of each other's banks
const LARGE = 256; // numbers of a matrix: of several forms the nearest is taken

/**
 * The tiles for products on a device's matrix units.
 *
 * @param {GPUDevice} device
 * @param {boolean} exact
 * @returns {import('./options.js').Tiles|undefined} undefined where it has no units for this
 */
export function tilesOn(device, exact) {
  const units = unitsOf(device, exact);
  return units ? (product) => unitTiles(product, units, device.limits, traitsOf(device.adapterInfo)) : undefined;
}

/**
 * A device's matrix units.
 *
 * @param {GPUDevice} device
 * @param {boolean} exact
 * @returns {Units|null} null where it has none for this, or subgroups of several sizes
 */
function unitsOf(device, exact) {
  const {
    subgroupMinSize: lanes,
    subgroupMaxSize,
    subgroupMatrixConfigs: all = [],
  } = /** @type {any} */ (infos.get(device) ?? {});
  const fits = [...all].filter(
    ({ componentType, resultComponentType, M, N, K }) =>
      componentType === 'f16' && resultComponentType === 'f32' && [M, N, K].every((side) => side % 4 === 0),
  );
  const far = (/** @type {any} */ { M, N, K }) => Math.abs(Math.log2((M * N) / LARGE)) + Math.abs(Math.log2((N * K) / LARGE));
  const [config] = fits.sort((a, b) => far(a) - far(b));
  if (!config || lanes !== subgroupMaxSize || !device.features.has(MATRIX_UNITS)) return null;
  const { M, N, K } = config;
  return { M, N, K, lanes, exact };
}

/**
 * The tiles that are worth a try for a product, the most promising first.
 *
 * @param {Product} product
 * @param {Units} units
 * @param {import('./product.js').Limits} limits
 * @param {import('./product.js').Traits} [traits] of the device
 * @returns {Tile[]}
 */
function unitTiles(product, units, limits, traits = traitsOf()) {
  const blocks = units.exact ? EXACT_BLOCKS : BLOCKS;
  const possible = blocks.filter(([{ m, n, K }]) => m % units.M === 0 && n % units.N === 0 && K % units.K === 0);
  const own = { units, core: inUnits, off: units.exact ? OFF_EXACT : OFF };
  const rates = new Map(possible.map(([block, rate]) => [{ ...block, ...own }, rate]));
  return promising(rates, product, limits, traits, memoryOf).slice(0, TRIED);
}

const SQUARE = { M: 64, N: 64, K: 16, m: 32, n: 64 };
const SMALL = { M: 32, N: 64, K: 32, m: 16, n: 64 };
/** Blocks of a workgroup, and of a subgroup, with TFLOP/s of one H100 in large products. @type {[Tile, number][]} */
const BLOCKS = [
  [{ M: 128, N: 128, K: 32, m: 64, n: 64 }, 110],
  [{ M: 64, N: 128, K: 16, m: 64, n: 64 }, 100],
  [{ M: 64, N: 128, K: 32, m: 32, n: 32 }, 85],
  [SQUARE, 80],
  [SMALL, 60],
];
/** @type {[Tile, number][]} */
const EXACT_BLOCKS = [
  [{ M: 64, N: 128, K: 16, m: 32, n: 32 }, 45],
  [{ M: 128, N: 64, K: 16, m: 64, n: 32 }, 45],
  [SQUARE, 40],
  [SMALL, 30],
];
const TRIED = 4;
const OFF = 4e-3; // of the largest magnitude: two numbers are rounded to 2^-11 each before they are multiplied
const OFF_EXACT = 1e-4; // small numbers have fewer bits in 16, and so has what their rounding leaves

/** What 16 bits hold exactly. By its bits: a compiler may leave out a conversion to 16 bits and back. */
const HIGH = 'fn high(v: vec4f) -> vec4f { return bitcast<vec4f>(bitcast<vec4u>(v) & vec4u(0xffffe000u)); }';

/** @param {Tile} tile @returns {number} bytes of workgroup memory */
function memoryOf({ M, N, K, m, n, units }) {
  const { M: mu, N: nu, exact } = /** @type {Units} */ (units);
  const slabs = 2 * (M * (K + PAD) + K * (N + PAD)) * (exact ? 2 : 1);
  return slabs + 4 * mu * nu * (M / m) * (N / n);
}

/**
 * A subgroup multiplies m x n numbers of C, as matrices of the units' size. What it has summed goes through workgroup memory, matrix by
 * matrix, to threads that finish it.
 *
 * @param {Tile} tile
 * @param {End} end
 * @returns {Core}
 */
export function inUnits({ M, N, K, m, n, units }, { row, before, column, put }) {
  const { M: mu, N: nu, K: ku, lanes, exact } = /** @type {Units} */ (units);
  const [across, down] = [N / n, M / m]; // subgroups
  const [rowA, rowB] = [(K + PAD) / 4, (N + PAD) / 4]; // vectors
  const [slabA, slabB, sums] = [M * rowA, K * rowB, (mu * nu) / 4];
  const halves = exact ? ['', 'l'] : [''];
  const left = `subgroup_matrix_left<f16, ${ku}, ${mu}>`;
  const right = `subgroup_matrix_right<f16, ${nu}, ${ku}>`;
  const result = `subgroup_matrix_result<f32, ${nu}, ${mu}>`;
  const load = (/** @type {string} */ type, /** @type {string} */ from, /** @type {string} */ at, /** @type {number} */ stride) =>
    `subgroupMatrixLoad<${type}, row_major>(&${from}, ${at}, ${stride}u)`;
  const rounded = (/** @type {string} */ to, /** @type {string} */ at, /** @type {string} */ from) =>
    exact
      ? `{ let at = ${at}; let h = high(${from}); ${to}[at] = vec4<f16>(h); ${to}l[at] = vec4<f16>(${from} - h); }`
      : `${to}[${at}] = vec4<f16>(${from});`;
  const own = Array.from({ length: (m / mu) * (n / nu) }, (_, i) => ({ i: Math.floor(i / (n / nu)), j: i % (n / nu) }));
  const add = (/** @type {number} */ i, /** @type {number} */ j, /** @type {string} */ a, /** @type {string} */ b) =>
    `c${i}_${j} = subgroupMatrixMultiplyAccumulate(a${a}, b${j}${b}, c${i}_${j});`;
  return {
    enabled: `enable f16; enable chromium_experimental_subgroup_matrix;
diagnostic(off, chromium.subgroup_matrix_uniformity);
`,
    memory: `${lines(
      halves.map(
        (low) => `var<workgroup> As${low}: array<vec4<f16>, ${slabA}>;
var<workgroup> Bs${low}: array<vec4<f16>, ${slabB}>;`,
      ),
    )}
var<workgroup> Cs: array<vec4f, ${sums * across * down}>;
${exact ? HIGH : ''}`,
    begin: `let subgroup = tid / ${lanes}u; let lane = tid % ${lanes}u; let sx = subgroup % ${across}u; let sy = subgroup / ${across}u;
  ${lines(own.map(({ i, j }) => `var c${i}_${j}: ${result};`))}`,
    keepA: (r) => repeat(4, (x) => rounded('As', `(4u * sa${r} + ${x}u) * ${rowA}u + ka${r}`, `fa${r}_${x}`)),
    keepB: (r) => rounded('Bs', `kb${r} * ${rowB}u + sb${r}`, `fb${r}`),
    multiply: repeat(K / ku, (k) => {
      const b = repeat(n / nu, (j) => {
        const at = `${k * ku * rowB}u + sx * ${n / 4}u + ${(j * nu) / 4}u`;
        return lines(halves.map((low) => `let b${j}${low} = ${load(right, `Bs${low}`, at, rowB)};`));
      });
      const rows = repeat(m / mu, (i) => {
        const at = `(sy * ${m}u + ${i * mu}u) * ${rowA}u + ${(k * ku) / 4}u`;
        const a = lines(halves.map((low) => `let a${low} = ${load(left, `As${low}`, at, rowA)};`));
        const each = repeat(n / nu, (j) => (exact ? `${add(i, j, 'l', '')} ${add(i, j, '', 'l')} ` : '') + add(i, j, '', ''));
        return `{ ${a}\n${each} }`;
      });
      return `{ ${b}\n${rows} }`;
    }),
    store: lines(
      own.map(
        ({ i, j }) => `{ workgroupBarrier();
    subgroupMatrixStore<row_major>(&Cs, subgroup * ${sums}u, c${i}_${j}, ${nu / 4}u);
    workgroupBarrier();
    for (var e = lane; e < ${sums}u; e += ${lanes}u) {
      let m = m0 + sy * ${m}u + ${i * mu}u + e / ${nu / 4}u; let n = n0 + sx * ${n / 4}u + ${(j * nu) / 4}u + e % ${nu / 4}u;
      if (m < u.M && n < u.N4) { let o = ${row}; ${before} ${put(`Cs[subgroup * ${sums}u + e]`, column('n'))} }
    } }`,
      ),
    ),
  };
}

// What of ours can take the place of a node: each kind of operation and its kernels.

import { launchDepthwise, launchLayerNormToPicture, launchMiddle, launchNormLast, launchTokens } from './pictures.js';
import { launchProduct, nameOf, tilesFor } from './product.js';
import {
  ATTENDING,
  SUMMING,
  launchConcat,
  launchConditionAttention,
  launchContentLambda,
  launchLayerNorm,
  launchSoftmaxDown,
  launchVector,
} from './rows.js';

/** @import { Node } from './graph.js' */
/** @import { Launch } from './launch.js' */
/** @import { Tile } from './product.js' */
/** @typedef {(product: import('./operations.js').Product) => Tile[]} Tiles */
/**
 * @typedef {object} Option one way of ours to compute a node
 * @property {string} name
 * @property {Launch[]} launches
 * @property {number} [off] how far from the runtime's it may be, as a share of the largest magnitude, where that is more than others may
 */
/** @typedef {GPUSupportedLimits} Limits */

/** @type {{[kind: string]: (operation: any, tiles: Tiles) => Option[]}} */
const KERNELS = {
  product: (product, tiles) => productOptions([product], tiles),
  products: ({ products }, tiles) => productOptions(products, tiles),
  vector: (vector) => (vector.K % 4 ? [] : [{ name: '', launches: launchVector(vector) }]),
  'norm depthwise': ({ depthwise, norm, kept }) => [{ name: '', launches: launchDepthwise(depthwise, norm, kept) }],
  depthwise: (depthwise) => [{ name: '', launches: launchDepthwise(depthwise, null, null) }],
  middle: (middle) => [{ name: '', launches: launchMiddle(middle) }],
  tokens: (tokens) =>
    tokens.shape[1] % 4 || (tokens.shape[4] * tokens.shape[5]) % 4 ? [] : [{ name: '', launches: launchTokens(tokens) }],
  'norm last': (norm) => (norm.channels > 1024 ? [] : [{ name: '', launches: launchNormLast(norm) }]),
  'layer norm': (norm) => {
    if (!norm.picture) return [{ name: '', launches: launchLayerNorm(norm) }];
    const [B] = norm.picture.shape;
    return norm.C % 4 || (norm.count / B) % 4 ? [] : [{ name: '', launches: launchLayerNormToPicture(norm) }];
  },
  'softmax down': (softmax) => {
    const { T, C, per } = softmax;
    return C % 4 || per % 4 || T > LONGEST ? [] : [{ name: '', launches: launchSoftmaxDown(softmax) }];
  },
  'content lambda': (content) => {
    const { T, C, N, size } = content;
    const even = [T, C, N, size].every((count) => count % 4 === 0);
    return !even || T > LONGEST || N > SUMMING ? [] : [{ name: '', launches: launchContentLambda(content) }];
  },
  'condition attention': (attention) => {
    const { H, D, J } = attention;
    const small = H * J <= 4 * ATTENDING && 4 * (D * J + H * D) + 16 * ATTENDING <= KEPT;
    return D % 4 || J % 4 || !small ? [] : [{ name: '', launches: launchConditionAttention(attention) }];
  },
  concat: (concat) =>
    concat.sizes.some((/** @type {number} */ size) => size % 4) ? [] : [{ name: '', launches: launchConcat(concat) }],
};

export const OURS = 'ours: '; // before the kind of node, in the names of our programs
const KEPT = 16384; // bytes of workgroup memory, which every device has
const LONGEST = 4096; // rows that a workgroup keeps in registers
const LAST = 65535; // workgroups along a side of a grid

/**
 * Our ways to compute a node on a device with these limits; none where its operation is not understood or has no kernel.
 *
 * @param {Node} node
 * @param {Limits} limits
 * @param {Tiles} [tiles] of products that are worth a try
 * @returns {Option[]}
 */
export function optionsFor({ operation }, limits, tiles = (product) => tilesFor(product, limits)) {
  const options = operation ? (KERNELS[operation.kind]?.(operation, tiles) ?? []) : [];
  const label = `${OURS}${operation?.kind}`;
  const named = options.map((option) => ({ ...option, launches: option.launches.map((launch) => ({ ...launch, label })) }));
  return named.filter(({ launches }) =>
    launches.every(
      ({ values, workgroups }) =>
        values.length <= limits.maxStorageBuffersPerShaderStage &&
        workgroups.every((count) => count <= LAST) &&
        values.every(({ size }) => size <= limits.maxStorageBufferBindingSize),
    ),
  );
}

/**
 * @param {import('./operations.js').Product[]} products
 * @param {Tiles} tiles
 * @returns {Option[]}
 */
function productOptions(products, tiles) {
  const [first] = products;
  if (first.M < 8) return [];
  return tiles(first).map((tile) => ({
    name: nameOf(tile),
    off: tile.off,
    launches: products.flatMap((product) => launchProduct(product, tile)),
  }));
}

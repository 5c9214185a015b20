// Passes over a graph of commands: what follows a product moves into it, and chains that one kernel can do become one node.
//
// A pass looks for a pattern and merges its nodes. Nothing is merged whose values others need, unless the kernel writes them too.

import { Widened } from '../capture.js';
import { HALVES, boundOf, same, volume, weightsOf } from './operations.js';

/** @import { Graph, Node } from './graph.js' */
/** @import { Depthwise, Narrow, Product, Value } from './operations.js' */
/** @import { Norm } from './pictures.js' */
/** @typedef {{kind: 'norm depthwise', depthwise: Depthwise, norm: Norm, kept: Value|null}} NormDepthwise a norm, SiLU, a depthwise convolution */
/** @typedef {{kind: 'middle', value: Depthwise, gate: Depthwise, first: number, second: number, D: number, y: Value}} Middle */
/** @typedef {{kind: 'tokens', x: Value, y: Value, half: boolean, shape: number[], back: boolean, norm: Norm|null}} Tokens */
/** @typedef {{kind: 'products', products: Product[]}} Products that write to one tensor */
/**
 * A norm by groups of channels, which come last, and SiLU.
 *
 * @typedef {{kind: 'norm last', x: Value, y: Value, scale: Value, bias: Value, channels: number, groups: number, pixels: number, epsilon: number}} NormLast
 */
/**
 * Softmax of each column of x, (B, T, C); y is (B, T / per, C, per).
 *
 * @typedef {{kind: 'softmax down', x: Value, y: Value, half: boolean, B: number, T: number, C: number, per: number}} SoftmaxDown
 */
/**
 * Attention of tokens to the J vectors of a condition, without softmax (port/denoiser.py): y[b, t, h] = (q[b, t, h] (E[t] + k[r])) v[r], then
 * sums, where r is the row that indices[b] names. q has a row of D for each of H heads, E and k are D x J, v is J x D.
 *
 * @typedef {object} ConditionAttention
 * @property {'condition attention'} kind
 * @property {Value} q
 * @property {import('./operations.js').Strides} a of q: from condition to condition, and from token to token
 * @property {Value} E
 * @property {Narrow|null} narrow how E is stored
 * @property {Value} k
 * @property {Value} v
 * @property {Value} indices
 * @property {1|2} words of an index
 * @property {Value[]} sums
 * @property {Value} y
 * @property {boolean} half all but the indices and E have 16 bits
 * @property {number} B conditions
 * @property {number} T tokens
 * @property {number} H
 * @property {number} D
 * @property {number} J
 */
/**
 * The content lambda (model/lambda_layer.py) behind the values that it is made of and numbers that stand between:
 * y[b] = values[b], between[b], lambda[b], where lambda[b, c, n] is the sum over tokens t of softmax(keys[b, t, c] along t) values[b, t, n].
 *
 * @typedef {object} ContentLambda
 * @property {'content lambda'} kind
 * @property {Value} keys (B, T, C)
 * @property {Value} values (B, T, N)
 * @property {Value} between
 * @property {Value} y
 * @property {boolean} half
 * @property {number} B
 * @property {number} T
 * @property {number} C
 * @property {number} N
 * @property {number} size of what is between, for each of B
 */
/** @typedef {NormDepthwise|Middle|Tokens|Products|NormLast|SoftmaxDown|ConditionAttention|ContentLambda} Merged */

/** Every pass by its name, in the order in which they are made. @type {Record<string, (graph: Graph) => void>} */
export const PASSES = {
  'stores transposed': storesTransposed,
  'gather in products': gatherInProducts,
  'narrow weights': narrowWeights,
  'upsampling in stores': upsamplingInStores,
  'bias in products': biasInProducts,
  'SiLU in products': siluInProducts,
  'sums in products': sumsInProducts,
  'attention to conditions': conditionAttention,
  'layer norms of 16 bits': layerNormsOf16Bits,
  'norms and depthwise convolutions': normsAndDepthwise,
  'middles of MixFFN': middles,
  'pictures and tokens': tokens,
  'layer norms that give pictures': layerNormsToPictures,
  'norms with channels last': normsLast,
  'softmax of columns': softmaxDown,
  'content lambdas': contentLambdas,
  'splits in stores': splitsInStores, // the last: no other pass is to take such a product for one of C
};

/**
 * The operation of a node, if it is of this kind.
 *
 * @template {string} K
 * @param {Node|null|undefined} node
 * @param {K} kind
 * @returns {Extract<import('./operations.js').Operation|Merged, {kind: K}>|null}
 */
function as(node, kind) {
  return node?.operation?.kind === kind ? /** @type {any} */ (node.operation) : null;
}

/** What a product reads. @param {Product} product @returns {Value[]} */
function readBy({ A, B, bias, sums, gathered, narrow }) {
  const others = [gathered?.indices, bias, narrow.A?.scale, narrow.B?.scale];
  return [A, B, ...others.flatMap((value) => (value ? [value] : [])), ...sums];
}

/** @param {Graph} graph @param {Node[]} nodes @param {Product} product */
function mergeProduct(graph, nodes, product) {
  graph.merge(nodes, product, readBy(product), [product.C]);
}

/** Whether rows of A and C lie one after another, and nothing is added that has C's layout. @param {Product} product */
function isPlain({ M, N, outer, inner, c, rows, sums, from }) {
  const size = M * (N / 4);
  const even = (inner === 1 || c.inner === size) && (outer === 1 || c.outer === inner * size);
  return rows.per === M && even && !sums.length && !from;
}

// -- where a product stores its result --------------------------------------------------------------------------------

/**
 * A transposition without neighbours that stay neighbours.
 *
 * @param {{shape: number[], order: number[]}} transposition
 * @returns {{shape: number[], order: number[]}}
 */
export function simplified({ shape, order }) {
  /** @type {number[][]} axes of x that stay together, in the order of y */
  const groups = [];
  for (const axis of order.filter((axis) => shape[axis] > 1)) {
    const last = groups.at(-1);
    if (last && shape.slice(last[last.length - 1] + 1, axis).every((side) => side === 1) && axis > last[last.length - 1])
      last.push(axis);
    else groups.push([axis]);
  }
  const from = [...groups].sort((a, b) => a[0] - b[0]);
  return { shape: from.map((axes) => volume(axes.map((axis) => shape[axis]))), order: groups.map((axes) => from.indexOf(axes)) };
}

/**
 * (b, x, y, row) becomes (b, y, x, row) as the product stores it, where a row is one or several of the product's.
 *
 * @param {Graph} graph
 */
function storesTransposed(graph) {
  for (const node of [...graph.nodes]) {
    const transposition = as(node, 'transpose');
    const before = transposition && graph.writer(transposition.x);
    const product = as(before, 'product');
    if (!product || !before || graph.onlyReader(transposition.x) !== node) continue;
    const { shape, order } = simplified(transposition);
    if (shape.length === 3 && order.join() === '1,0,2') shape.unshift(1);
    else if (order.join() !== '0,2,1,3') continue;
    const stored = storedTransposed(product, shape);
    if (stored) mergeProduct(graph, [before, node], { ...stored, C: transposition.y });
  }
}

/**
 * @param {Product} product
 * @param {number[]} shape (b, x, y, row) of its result
 * @returns {Product|null}
 */
function storedTransposed(product, [b, x, y, row]) {
  const { M, N, K, outer, inner, a } = product;
  const whole = row / N;
  const N4 = N / 4;
  if (!isPlain(product) || !Number.isInteger(whole) || product.window) return null;
  if (outer * inner === b * x && M === y * whole) {
    const batch = rebatched(product, x); // z = (b, x), m = (y, rows of a row)
    if (!batch) return null;
    const rows = { per: whole, a: (whole * K) / 4, c: x * whole * N4, step: N4 };
    return { ...batch, c: { outer: x * y * whole * N4, inner: whole * N4 }, rows };
  }
  if (outer * inner === 1 && M === b * x * y && whole === 1) {
    // z = b, m = (x, y)
    const rows = { per: y, a: (y * K) / 4, c: N4, step: x * N4 };
    const batch = { outer: b, inner: 1, a: { outer: (x * y * K) / 4, inner: 0 }, b: { outer: 0, inner: 0 } };
    return { ...product, M: x * y, ...batch, c: { outer: x * y * N4, inner: 0 }, rows };
  }
  if (outer === b && inner === 1 && M === x * y && whole === 1) {
    return { ...product, a, c: { outer: x * y * N4, inner: 0 }, rows: { per: y, a: (y * K) / 4, c: N4, step: x * N4 } };
  }
  return null;
}

/**
 * A product whose inner dimension has `inner` matrices; null where its matrices do not lie so.
 *
 * @param {Product} product
 * @param {number} inner
 * @returns {Product|null}
 */
function rebatched(product, inner) {
  if (product.inner === inner) return product;
  const { outer, a, b, c } = product;
  if (product.inner !== 1 || outer % inner) return null;
  const spread = (/** @type {import('./operations.js').Strides} */ { outer: step }) => ({ outer: step * inner, inner: step });
  return { ...product, outer: outer / inner, inner, a: spread(a), b: spread(b), c: spread(c) };
}

/**
 * Four convolutions whose results are concatenated by channel and then spread over pixels of twice the resolution: each stores
 * where its pixels go. Concat and DepthToSpace, which move all numbers twice, are left out.
 *
 * @param {Graph} graph
 */
function upsamplingInStores(graph) {
  for (const node of [...graph.nodes]) {
    const spread = as(node, 'transpose');
    const joined = spread && graph.writer(spread.x);
    const concat = as(joined, 'concat');
    if (!concat || !joined || graph.onlyReader(spread.x) !== node) continue;
    const { shape, order } = simplified(spread); // (height, width, rows, columns x channels) -> (height, rows, width, columns x channels)
    if (shape.length !== 4 || order.join() !== '0,2,1,3') continue;
    const [height, width, down, row] = shape;
    const phases = concat.parts.map((part) => ({ before: graph.writer(part), part }));
    const products = phases.map(({ before }) => as(before, 'product'));
    const N = products[0]?.N ?? 0;
    const right = row / N;
    const fits = products.every(
      (product) =>
        product && isPlain(product) && product.M === height * width && product.N === N && product.outer * product.inner === 1,
    );
    const alone = phases.every(({ part }) => graph.onlyReader(part) === joined);
    if (!fits || !alone || products.length !== down * right || new Set(concat.parts).size !== products.length) continue;
    const N4 = N / 4;
    const rows = { per: width, a: (width * (products[0]?.K ?? 0)) / 4, c: width * right * down * N4, step: right * N4 };
    const stored = products.map((product, i) => ({
      .../** @type {Product} */ (product),
      C: spread.y,
      rows,
      from: Math.floor(i / right) * width * right * N4 + (i % right) * N4,
    }));
    const nodes = [...phases.map(({ before }) => /** @type {Node} */ (before)), joined, node];
    graph.merge(nodes, { kind: 'products', products: stored }, stored.flatMap(readBy), [spread.y]);
  }
}

const SPLIT = 3; // queries, keys and values

/**
 * Columns of a product that are split over three tensors are stored there.
 *
 * @param {Graph} graph
 */
function splitsInStores(graph) {
  for (const node of [...graph.nodes]) {
    const split = as(node, 'split');
    const before = split && graph.writer(split.x);
    const product = as(before, 'product');
    if (!product || !before || graph.onlyReader(split.x) !== node || !isPlain(product)) continue;
    const { M, N, outer, inner } = product;
    const fits = outer * inner === 1 && split.outer === M && split.sizes.reduce((sum, size) => sum + size, 0) === N;
    if (!fits || split.parts.length !== SPLIT || split.sizes.some((size) => size % 4)) continue;
    graph.merge([before, node], { ...product, split }, readBy(product), split.parts);
  }
}

// -- what a product reads ---------------------------------------------------------------------------------------------

/**
 * Rows that are gathered to be a product's B are read where they are.
 *
 * @param {Graph} graph
 */
function gatherInProducts(graph) {
  for (const node of [...graph.nodes]) {
    const gather = as(node, 'gather');
    const after = gather && graph.onlyReader(gather.y);
    const product = as(after, 'product');
    if (
      !product ||
      !after ||
      gather.axis !== 1 ||
      gather.shape.length !== 3 ||
      product.B !== gather.y ||
      product.gathered ||
      product.turned
    )
      continue;
    const [b, rows, N] = gather.shape;
    const inner = gather.count / product.K; // matrices of gathered rows for each of b
    if (N !== product.N || !Number.isInteger(inner) || product.outer * product.inner !== b * inner || product.A === gather.y)
      continue;
    const batch = rebatched(product, inner);
    const size = (product.K * N) / 4;
    if (!batch || batch.b.inner !== size || (b > 1 && batch.b.outer !== inner * size)) continue;
    const gathered = { indices: gather.indices, words: gather.words };
    mergeProduct(graph, [node, after], { ...batch, B: gather.data, b: { outer: (rows * N) / 4, inner: 0 }, gathered });
  }
}

/**
 * Weights of 16 or 8 bits, which the runtime widens to float32 in each run or when it loads a graph, are read as they are by what alone
 * reads them, as are those that it also transposes.
 *
 * @param {Graph} graph
 */
function narrowWeights(graph) {
  for (const node of [...graph.nodes]) {
    const widen = as(node, 'widen');
    const next = widen && graph.onlyReader(widen.y);
    if (!widen || !next) continue;
    const transposition = as(next, 'transpose');
    const last = transposition ? graph.onlyReader(transposition.y) : next;
    const nodes = [node, ...(transposition ? [next] : [])];
    if (last) readNarrow(graph, last, transposition?.y ?? widen.y, widen.x, widen.narrow, transposition, nodes);
  }
  for (const node of [...graph.nodes]) {
    const place = node.reads.find((value) => value instanceof Widened);
    if (place) readNarrow(graph, node, place, place.stored, HALVES, place.axes, []);
  }
}

/**
 * Have a node read a weight as it is stored, if its kernel can.
 *
 * @param {Graph} graph
 * @param {Node} node
 * @param {Value} value the weight in float32
 * @param {Value} stored
 * @param {Narrow} narrow how it is stored
 * @param {{shape: number[], order: number[]}|null} transposition of what is stored to `value`
 * @param {Node[]} before what makes `value`
 */
function readNarrow(graph, node, value, stored, narrow, transposition, before) {
  const nodes = [...before, node];
  const matrix = as(node, 'vector') ?? as(node, 'depthwise');
  if (matrix?.W === value && !transposition) {
    const narrowed = { ...matrix, W: stored, narrow };
    graph.merge(nodes, narrowed, [matrix.x, ...weightsOf(narrowed)], [matrix.y]);
  }
  const adds = as(node, 'outer add');
  if (adds?.x === value && !transposition)
    graph.merge(nodes, { ...adds, x: stored, narrow }, [...boundOf(stored, narrow), adds.other], [adds.y]);
  const product = as(node, 'product');
  if (!product || product.narrow.A || product.narrow.B || product.A === product.B) return;
  if (product.A === value && !transposition)
    mergeProduct(graph, nodes, { ...product, A: stored, narrow: { A: narrow, B: null } });
  if (product.B === value && (!transposition || (!product.turned && isTurned(product, transposition)))) {
    const turned = product.turned || Boolean(transposition);
    mergeProduct(graph, nodes, { ...product, B: stored, narrow: { A: null, B: narrow }, turned });
  }
}

/**
 * Whether a transposition makes a product's B of what is stored by columns: (N, K), or kernels (N, channels, rows, columns).
 *
 * @param {Product} product
 * @param {{shape: number[], order: number[]}} transposition
 */
function isTurned({ N, K, outer, inner, gathered, window }, transposition) {
  const { shape, order } = simplified(transposition);
  const channels = window?.channels ?? K;
  const sides = K === channels ? [N, K] : [N, channels, K / channels];
  return outer * inner === 1 && !gathered && same(shape, sides) && order.join() === (sides.length === 2 ? '1,0' : '2,1,0');
}

// -- what follows a product -------------------------------------------------------------------------------------------

/** @param {Graph} graph */
function biasInProducts(graph) {
  for (const node of [...graph.nodes]) {
    const add = as(node, 'add row');
    const before = add && graph.writer(add.x);
    const product = as(before, 'product');
    if (!product || !before || graph.onlyReader(add.x) !== node) continue;
    if (product.biased || product.silu || product.sums.length || add.width !== product.N) continue;
    mergeProduct(graph, [before, node], { ...product, biased: 'column', bias: add.row, C: add.y });
  }
}

/** @param {Graph} graph */
function siluInProducts(graph) {
  for (const node of [...graph.nodes]) {
    const silu = as(node, 'silu');
    const before = silu && graph.writer(silu.x);
    if (!before || graph.onlyReader(silu.x) !== node) continue;
    const product = as(before, 'product');
    const vector = as(before, 'vector');
    if (product && !product.silu && !product.sums.length)
      mergeProduct(graph, [before, node], { ...product, silu: true, C: silu.y });
    if (vector && !vector.silu) graph.merge([before, node], { ...vector, silu: true, y: silu.y }, before.reads, [silu.y]);
  }
}

const SUMS = 2; // tensors that a product's program can add

/** @param {Graph} graph */
function sumsInProducts(graph) {
  for (const node of [...graph.nodes]) {
    const add = as(node, 'add');
    if (!add || add.x === add.other) continue;
    // into the later of two products: the other's result is there by then
    const choices = [
      { mine: add.x, other: add.other },
      { mine: add.other, other: add.x },
    ].map((choice) => ({ ...choice, before: graph.writer(choice.mine) }));
    const possible = choices.filter(({ mine, before }) => {
      const product = as(before, 'product');
      return product && graph.onlyReader(mine) === node && product.sums.length < SUMS && product.rows.per === product.M;
    });
    const [chosen] = possible.sort((p, q) => (q.before?.at ?? 0) - (p.before?.at ?? 0));
    const product = as(chosen?.before, 'product');
    if (!product || !chosen.before) continue;
    mergeProduct(graph, [chosen.before, node], { ...product, sums: [...product.sums, chosen.other], C: add.y });
  }
}

// -- chains that one kernel does --------------------------------------------------------------------------------------

/** Whether a product is of matrices B that lie one after another, and nothing but sums is done to it. @param {Product} product */
function isBare(product) {
  const { N, K, outer, inner, b, biased, silu, gathered, window, turned } = product;
  const size = (K * N) / 4;
  const even = (inner === 1 || b.inner === size) && (outer === 1 || b.outer === inner * size);
  return even && !biased && !silu && !gathered && !window && !turned && isPlain({ ...product, sums: [] });
}

/** @param {Graph} graph */
function conditionAttention(graph) {
  for (const node of [...graph.nodes]) {
    const second = as(node, 'product');
    const before = second && graph.writer(second.A);
    const first = as(before, 'product');
    const adds = first && graph.writer(first.B);
    const keys = as(adds, 'outer add');
    const [names, values] = [keys && graph.writer(keys.other), second && graph.writer(second.B)];
    const [k, v] = [as(names, 'gather'), as(values, 'gather')];
    if (!second || !first || !before || !adds || !keys || !names || !values || !k || !v) continue;
    const between = [second.A, first.B, keys.other, second.B].map((value) => graph.onlyReader(value));
    const alone = [node, before, adds, node].every((reader, i) => between[i] === reader);
    const { B, T, size } = keys;
    const { M: H, K: D, N: J, half } = first;
    const spread = rebatched(first, T);
    const gathers =
      k.indices === v.indices &&
      [k, v].every(({ axis, count, shape }) => !axis && count === B && volume(shape.slice(1)) === size);
    const begins = isBare(first) && !first.sums.length && first.rows.per === H && size === D * J && spread?.outer === B;
    const ends = isBare(second) && second.K === J && second.N === D && second.outer * second.inner === B && second.M === T * H;
    if (!alone || !gathers || !begins || !ends || !spread || second.half !== half) continue;
    const { A: q, a } = spread;
    const { sums, C: y } = second;
    const { words, indices } = k;
    const { x: E, narrow } = keys;
    const of = { q, a, E, narrow, k: k.data, v: v.data, indices, words, sums, y, half, B, T, H, D, J };
    const reads = [q, ...boundOf(E, narrow), of.k, of.v, indices, ...sums];
    graph.merge([names, values, adds, before, node], { kind: 'condition attention', ...of }, reads, [y]);
  }
}

/**
 * What a value of 16 bits was before the runtime widened it, and the node that did; null where it did not.
 *
 * @param {Graph} graph
 * @param {Value} value
 */
function widened(graph, value) {
  const node = graph.writer(value);
  const widen = as(node, 'widen');
  return node && widen?.narrow === HALVES ? { node, stored: widen.x } : null;
}

/**
 * The runtime's layer norms compute in 32 bits: ours read numbers of 16 and write them, without a Cast before and after.
 *
 * @param {Graph} graph
 */
function layerNormsOf16Bits(graph) {
  for (const node of [...graph.nodes]) {
    const norm = as(node, 'layer norm');
    if (!norm) continue;
    const nodes = [node];
    /** @type {Value[]} */
    const halves = [];
    /** @type {Value[]} read by the runtime's commands alone */
    const runtimes = [];
    const read = (/** @type {Value} */ value) => {
      const before = widened(graph, value);
      if (!before) return value;
      if (graph.onlyReader(value) === node) nodes.push(before.node);
      else runtimes.push(value);
      halves.push(before.stored);
      return before.stored;
    };
    const written = (/** @type {Value} */ value) => {
      const after = graph.onlyReader(value);
      const rounded = as(after, 'narrow');
      if (!after || !rounded) return value;
      nodes.push(after);
      halves.push(rounded.y);
      return rounded.y;
    };
    const { scale, bias } = norm;
    const [x, y] = [read(norm.x), written(norm.y)];
    const [skip, sum] = [norm.skip && read(norm.skip), norm.sum && written(norm.sum)];
    if (!halves.length) continue;
    const reads = [x, ...(skip ? [skip] : []), scale, bias, ...runtimes];
    graph.merge(nodes, { ...norm, x, skip, y, sum, halves }, reads, sum ? [y, sum] : [y]);
  }
}

/**
 * The norm that a node ends, with its nodes and what they read: of groups, then of channels. That of groups is computed in 32 bits, with
 * Casts around it where the picture has 16.
 *
 * @param {Graph} graph
 * @param {Value} value what the norm gives
 * @returns {{norm: Norm, nodes: Node[], reads: Value[]}|null}
 */
function normBefore(graph, value) {
  const last = graph.writer(value);
  const affine = as(last, 'affine');
  const given = affine ? graph.writer(affine.x) : last;
  const rounded = as(given, 'narrow');
  const middle = rounded ? graph.writer(rounded.x) : given;
  const normalise = as(middle, 'normalise');
  const first = normalise && graph.writer(normalise.moments);
  const moments = as(first, 'moments');
  if (!moments || !last || !given || !middle || !first || moments.x !== normalise.x) return null;
  if (graph.onlyReader(normalise.moments) !== middle || (affine && graph.onlyReader(affine.x) !== last)) return null;
  if (rounded && graph.onlyReader(rounded.x) !== given) return null;
  const before = widened(graph, moments.x);
  const half = Boolean(rounded);
  if (half !== Boolean(before) || (affine && affine.half !== half)) return null;
  const nodes = [...new Set([first, middle, given, last])];
  const { x, scale, bias } = before ? { ...moments, x: before.stored } : moments;
  const reads = [x, scale, bias, ...(affine ? [affine.scale, affine.bias, affine.mean, affine.variance] : [])];
  if (before && graph.readers(moments.x).every((node) => nodes.includes(node))) nodes.push(before.node);
  else if (before) reads.push(moments.x); // by the runtime's commands alone
  return { norm: { moments: { ...moments, x }, affine, half }, nodes, reads };
}

/** @param {Graph} graph */
function normsAndDepthwise(graph) {
  for (const node of [...graph.nodes]) {
    const depthwise = as(node, 'depthwise');
    const before = depthwise && graph.writer(depthwise.x);
    const silu = as(before, 'silu');
    const found = silu && normBefore(graph, silu.x);
    if (!found || !before || graph.onlyReader(silu.x) !== before || found.norm.half !== depthwise.half) continue;
    const kept = graph.onlyReader(depthwise.x) === node ? null : depthwise.x;
    const reads = [...found.reads, ...weightsOf(depthwise)];
    const operation = /** @type {const} */ ({ kind: 'norm depthwise', depthwise, norm: found.norm, kept });
    graph.merge([...found.nodes, before, node], operation, reads, kept ? [depthwise.y, kept] : [depthwise.y]);
  }
}

/**
 * What averages a picture over all pixels and then over groups of channels: windows of windows, and a product with a constant.
 *
 * @param {Graph} graph
 * @param {Value} value by channel
 * @param {Value} until the picture
 * @returns {{nodes: Node[], product: Product}|null}
 */
function averaged(graph, value, until) {
  const node = graph.writer(value);
  const product = as(node, 'product');
  if (!node || !product || product.outer * product.inner !== 1 || product.N !== product.K || product.biased) return null;
  const nodes = [node];
  let from = product.A;
  while (from !== until) {
    const before = graph.writer(from);
    const average = as(before, 'average');
    if (!before || !average || graph.onlyReader(from) !== nodes[nodes.length - 1]) return null;
    if (nodes.length === 1 && average.pixels !== 1) return null;
    nodes.push(before);
    from = average.x;
  }
  return { nodes, product };
}

/**
 * mean = averages of x, variance = averages of (x - mean)^2, then scale, bias and SiLU.
 *
 * @param {Graph} graph
 */
function normsLast(graph) {
  for (const node of [...graph.nodes]) {
    const silu = as(node, 'silu');
    const before = silu && graph.writer(silu.x);
    const affine = as(before, 'affine');
    if (!silu || !affine?.last || affine.half || !before || graph.onlyReader(silu.x) !== node) continue;
    const { x, scale, bias, mean, variance, epsilon, channels } = affine;
    const first = averaged(graph, mean, x);
    const differs = graph.readers(mean).find((other) => as(other, 'subtract row'));
    const difference = as(differs, 'subtract row');
    const squares = difference && graph.onlyReader(difference.y);
    const square = as(squares, 'multiply');
    if (!first || !differs || !difference || !squares || !square || difference.x !== x || square.x !== square.other) continue;
    const second = averaged(graph, variance, square.y);
    const readers = graph.readers(mean).every((other) => other === differs || other === before);
    const { M: groups, N: per } = first.product;
    if (!second || !readers || graph.onlyReader(variance) !== before || groups * per !== channels || per % 4) continue;
    if (second.product.M !== groups || graph.onlyReader(square.y) !== second.nodes[second.nodes.length - 1]) continue;
    const pixels = x.size / (4 * channels);
    const operation = /** @type {const} */ ({ kind: 'norm last', x, y: silu.y, scale, bias, channels, groups, pixels, epsilon });
    const nodes = [...first.nodes, differs, squares, ...second.nodes, before, node];
    graph.merge(nodes, operation, [x, scale, bias], [silu.y]);
  }
}

/** @param {Graph} graph */
function middles(graph) {
  for (const node of [...graph.nodes]) {
    const multiply = as(node, 'multiply');
    if (!multiply) continue;
    const halves = [multiply.x, multiply.other];
    for (const [value, gated] of [halves, [...halves].reverse()]) {
      const after = graph.writer(gated);
      const silu = as(after, 'silu');
      if (!silu || !after || graph.onlyReader(gated) !== node || graph.onlyReader(value) !== node) continue;
      if (middleOf(graph, node, after, value, silu.x, multiply.y)) break;
    }
  }
}

/**
 * @param {Graph} graph
 * @param {Node} node that multiplies
 * @param {Node} after that takes the gate's SiLU
 * @param {Value} value
 * @param {Value} gate
 * @param {Value} y
 */
function middleOf(graph, node, after, value, gate, y) {
  const [first, second] = [graph.writer(value), graph.writer(gate)];
  if (!first || !second || graph.onlyReader(gate) !== after) return false;
  const [one, two] = [as(first, 'depthwise'), as(second, 'depthwise')];
  if (
    one &&
    two &&
    first !== second &&
    one.C === two.C &&
    one.H === two.H &&
    one.W4 === two.W4 &&
    one.B === two.B &&
    !one.relu &&
    !two.relu
  ) {
    const operation = /** @type {const} */ ({ kind: 'middle', value: one, gate: two, first: 0, second: 0, D: one.C, y });
    graph.merge([first, second, after, node], operation, [one.x, ...weightsOf(one), two.x, ...weightsOf(two)], [y]);
    return true;
  }
  const split = as(first, 'split');
  const before = split && graph.writer(split.x);
  const whole = as(before, 'depthwise');
  if (!whole || !before || first !== second || whole.relu || split.parts.length !== 2 || split.outer !== whole.B) return false;
  if (graph.onlyReader(split.x) !== first || split.sizes[0] !== split.sizes[1]) return false;
  const D = whole.C / 2;
  const [from, gateFrom] = split.parts.indexOf(value) ? [D, 0] : [0, D];
  const operation = /** @type {const} */ ({ kind: 'middle', value: whole, gate: whole, first: from, second: gateFrom, D, y });
  graph.merge([before, first, after, node], operation, [whole.x, ...weightsOf(whole)], [y]);
  return true;
}

const TOKENS = '0,3,5,2,4,1'; // (B, C, gy, py, gx, px) as (B, py, px, gy, gx, C)
const PICTURES = '0,5,3,1,4,2';

/** @param {Graph} graph */
function tokens(graph) {
  for (const node of [...graph.nodes]) {
    const transposition = as(node, 'transpose');
    if (!transposition || transposition.shape.length !== 6) continue;
    const { x, y, half, shape, order } = transposition;
    const back = order.join() === PICTURES;
    if (!back && order.join() !== TOKENS) continue;
    const [B, py, px, gy, gx, C] = shape;
    const sides = back ? [B, C, gy, py, gx, px] : shape;
    const found = back ? null : normBefore(graph, x);
    const fits = found && !found.norm.affine && found.norm.half === half && graph.onlyReader(x) === node;
    const { norm, nodes, reads } = fits ? found : { norm: null, nodes: [], reads: [x] };
    graph.merge([...nodes, node], { kind: 'tokens', x, y, half, shape: sides, back, norm }, reads, [y]);
  }
}

/**
 * A layer norm of tokens that are a picture again for all that reads it, and maybe their sum likewise.
 *
 * @param {Graph} graph
 */
function layerNormsToPictures(graph) {
  for (const node of [...graph.nodes]) {
    const norm = as(node, 'layer norm');
    if (!norm) continue;
    const turnedFrom = (/** @type {Value|null} */ value) => {
      const after = value && graph.onlyReader(value);
      const tokens = as(after, 'tokens');
      if (!value || !after || !tokens?.back || tokens.half !== norm.halves.includes(value)) return null;
      const [B, C, gy, py, gx, px] = tokens.shape;
      return C === norm.C && B * gy * py * gx * px === norm.count ? { after, tokens } : null;
    };
    const [made, kept] = [turnedFrom(norm.y), turnedFrom(norm.sum)];
    if (!made || (kept && !same(kept.tokens.shape, made.tokens.shape))) continue;
    const [y, sum] = [made.tokens.y, kept ? kept.tokens.y : norm.sum];
    const now = new Map([[norm.y, y], ...(norm.sum && sum ? /** @type {[Value, Value][]} */ ([[norm.sum, sum]]) : [])]);
    const halves = norm.halves.map((value) => now.get(value) ?? value);
    const picture = { shape: made.tokens.shape, turned: Boolean(kept) };
    const nodes = [node, made.after, ...(kept ? [kept.after] : [])];
    graph.merge(nodes, { ...norm, y, sum, halves, picture }, node.reads, sum ? [y, sum] : [y]);
  }
}

/**
 * Keys of tokens by channel: a transposition, softmax in 32 bits, and often a second transposition, for parts of the tokens.
 *
 * @param {Graph} graph
 */
function softmaxDown(graph) {
  for (const node of [...graph.nodes]) {
    const softmax = as(node, 'softmax');
    const before = softmax && widened(graph, softmax.x);
    const first = softmax && graph.writer(before ? before.stored : softmax.x);
    const transposition = as(first, 'transpose');
    if (!softmax || !first || !transposition || graph.onlyReader(transposition.y) !== (before?.node ?? node)) continue;
    const { shape, order } = simplified(transposition);
    const [B, T, C] = order.length === 2 ? [1, ...shape] : order.join() === '0,2,1' ? shape : [0, 0, 0];
    const rounds = graph.onlyReader(softmax.y);
    const rounded = as(rounds, 'narrow');
    const half = Boolean(before);
    if (softmax.size !== T || softmax.rows !== B * C || Boolean(rounded) !== half || transposition.half !== half) continue;
    if (before && graph.onlyReader(softmax.x) !== node) continue;
    const made = rounded ? rounded.y : softmax.y;
    const next = graph.onlyReader(made);
    const spread = as(next, 'transpose');
    const parts = spread ? inParts(spread, B, C) : 0;
    const between = [before?.node, rounded ? rounds : null, parts ? next : null];
    const nodes = [first, node, ...between.flatMap((one) => (one ? [one] : []))];
    const [y, per] = spread && parts ? [spread.y, T / parts] : [made, T];
    graph.merge(nodes, { kind: 'softmax down', x: transposition.x, y, half, B, T, C, per }, [transposition.x], [y]);
  }
}

/**
 * In how many parts a transposition cuts the rows of (B, C, T): to (B, parts, C, T / parts); 0 where it does anything else.
 *
 * @param {{shape: number[], order: number[]}} transposition
 * @param {number} B
 * @param {number} C
 */
function inParts(transposition, B, C) {
  const { shape, order } = simplified(transposition);
  const [batch, channels, parts] = order.join() === '1,0,2' ? [1, ...shape] : order.join() === '0,2,1,3' ? shape : [0, 0, 0];
  return batch === B && channels === C ? parts : 0;
}

/**
 * Keys of tokens by channel, softmax of each, multiplied with the tokens' values, maybe in parts that are summed, and put behind the values.
 *
 * @param {Graph} graph
 */
function contentLambdas(graph) {
  for (const node of [...graph.nodes]) {
    const concat = as(node, 'concat');
    if (!concat || concat.parts.length !== 3) continue;
    const [values, between, made] = concat.parts;
    const after = graph.writer(made);
    const sum = as(after, 'sum parts');
    const before = sum ? graph.writer(sum.x) : after;
    const product = as(before, 'product');
    const first = product && graph.writer(product.A);
    const softmax = as(first, 'softmax down');
    if (!after || !before || !product || !first || !softmax) continue;
    const { x: keys, half, B, T, C, per } = softmax;
    const { M, N, K } = product;
    const parts = T / per;
    const nodes = [first, before, ...(sum ? [after] : []), node];
    const alone = [product.A, ...(sum ? [sum.x] : []), made].every((value, i) => graph.onlyReader(value) === nodes[i + 1]);
    const whole = sum ? sum.outer === B && sum.parts === parts && sum.size === C * N && sum.half === half : parts === 1;
    const fits = isBare(product) && !product.sums.length && M === C && K === per && product.outer * product.inner === B * parts;
    const [size, second, third] = concat.sizes;
    const behind = concat.outer === B && size === T * N && third === C * N && product.B === values;
    if (!alone || !whole || !fits || !behind || product.half !== half || concat.half !== half) continue;
    const operation = {
      kind: /** @type {const} */ ('content lambda'),
      keys,
      values,
      between,
      y: concat.y,
      half,
      B,
      T,
      C,
      N,
      size: second,
    };
    graph.merge(nodes, operation, [keys, values, between], [concat.y]);
  }
}

// Selections away from the page's own thread: a picture comes once, and each request answers with the whole new mask.

import { reason } from '../engine/errors.js';
import { TILE, union } from './mask.js';
import { feather, fillHoles, grow, keepLargest, shrink, wand, wire } from './selection.js';

/**
 * What the page asks for.
 *
 * @typedef {object} Request
 * @property {number} id
 * @property {'picture'|'wand'|'wire'|'object'|'refine'} what
 * @property {{width: number, height: number, data: Uint8ClampedArray}} [picture] to be kept
 * @property {[number, number][]} [points] whole px: of the wand one, of a wire its two ends
 * @property {number} [tolerance] @property {boolean} [contiguous] @property {number} [room] of the wire
 * @property {string} [how] key of `REFINE` @property {number} [px] @property {Uint8Array} [selection] made elsewhere
 * @property {Uint8Array} [mask] as it is now @property {number} [level] the lowest value that is hole
 * @property {boolean} [takesAway]
 */

/** @typedef {{left: number, top: number, right: number, bottom: number}} Rect */
/**
 * The whole new mask, and what undoes it: what tiles held that differ, one after another in `old`, by their indices.
 *
 * @typedef {{id: number, mask?: Uint8Array, old?: Uint8Array, tiles?: number[], rect?: Rect, holes?: number, way?: [number, number][], error?: string}} Answer
 */

/** @type {{width: number, height: number, data: Uint8ClampedArray} | null} */
let kept = null;

/** @type {Record<string, (selection: Uint8Array, width: number, height: number, px: number) => Uint8Array>} */
const REFINE = { grow, shrink, feather, 'fill-holes': fillHoles, largest: keepLargest };

/** @param {Request} request @returns {Omit<Answer, 'id'>} */
function answer(request) {
  if (request.what === 'picture') {
    kept = request.picture ?? null;
    return {};
  }
  if (!kept) throw new Error('no picture was given');
  const { width, height } = kept;
  const [first, second] = request.points ?? [];
  if (request.what === 'wire') return { way: wire(kept, first, second, request.room ?? 0) };
  const { mask = new Uint8Array(width * height), level = 1, takesAway = false } = request;
  if (request.what === 'refine') {
    const { how = '', px = 0 } = request;
    const refined = REFINE[how](
      Uint8Array.from(mask, (value) => (value >= level ? 1 : 0)),
      width,
      height,
      px,
    );
    return changed(mask, how === 'feather' ? refined : refined.map((value) => 255 * value), width, height, level);
  }
  const { tolerance = 0, contiguous = true } = request;
  const selection = request.selection ?? wand(kept, ...first, tolerance, contiguous);
  const value = takesAway ? 0 : 255;
  return changed(
    mask,
    Uint8Array.from(mask, (old, i) => (selection[i] ? value : old)),
    width,
    height,
    level,
  );
}

/** A new mask with what undoes it. @param {Uint8Array} before @param {Uint8Array} after @param {number} width @param {number} height @param {number} level */
function changed(before, after, width, height, level) {
  const across = Math.ceil(width / TILE);
  const differs = new Uint8Array(across * Math.ceil(height / TILE));
  let holes = 0;
  for (let y = 0, i = 0; y < height; y++) {
    const row = Math.floor(y / TILE) * across;
    for (let x = 0; x < width; x++, i++) {
      if (after[i] >= level) holes++;
      if (before[i] !== after[i]) differs[row + Math.floor(x / TILE)] = 1;
    }
  }
  const tiles = [...differs.keys()].filter((index) => differs[index]);
  const rects = tiles.map((index) => {
    const [left, top] = [(index % across) * TILE, Math.floor(index / across) * TILE];
    return { left, top, right: Math.min(left + TILE, width), bottom: Math.min(top + TILE, height) };
  });
  const old = new Uint8Array(rects.reduce((sum, { left, top, right, bottom }) => sum + (right - left) * (bottom - top), 0));
  let to = 0;
  for (const { left, top, right, bottom } of rects) {
    for (let y = top; y < bottom; y++, to += right - left) old.set(before.subarray(y * width + left, y * width + right), to);
  }
  return { mask: after, old, tiles, rect: rects.reduce(union, { left: 0, top: 0, right: 0, bottom: 0 }), holes };
}

addEventListener('message', ({ data: request }) => {
  /** @type {Answer} */
  let reply;
  try {
    reply = { id: request.id, ...answer(request) };
  } catch (error) {
    reply = { id: request.id, error: reason(error) };
  }
  /** @type {any} */ (globalThis).postMessage(
    reply,
    [reply.mask, reply.old].flatMap((array) => (array ? [array.buffer] : [])),
  );
});

// Selections away from the page's own thread: a picture comes once, and each request answers with the whole new mask.

import { reason } from '../engine/errors.js';
import { Mask } from './mask.js';
import { feather, fillHoles, grow, keepLargest, shrink, wand, wire } from './selection.js';

/** @import { Picture, SelectionAnswer, SelectionRequest } from './types.js' */

/** @type {Picture | null} */
let kept = null;

/** @type {Record<string, (selection: Uint8Array, width: number, height: number, px: number) => Uint8Array>} */
const REFINE = { grow, shrink, feather, 'fill-holes': fillHoles, largest: keepLargest };

/** @param {SelectionRequest} request @returns {Omit<SelectionAnswer, 'id'>} */
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

/** A new mask with what undoes it. @param {Uint8Array} before changed @param {Uint8Array} after @param {number} width @param {number} height @param {number} level */
function changed(before, after, width, height, level) {
  const mask = new Mask(width, height, level);
  mask.adopt(before, new Map(), 0);
  mask.countFrom(level);
  const steps = mask.replace(after);
  let step = steps.next();
  while (!step.done) step = steps.next();
  return { mask: mask.data, tiles: step.value?.tiles, holes: mask.holes };
}

addEventListener('message', ({ data: request }) => {
  /** @type {SelectionAnswer} */
  let reply;
  try {
    reply = { id: request.id, ...answer(request) };
  } catch (error) {
    reply = { id: request.id, error: reason(error) };
  }
  /** @type {any} */ (globalThis).postMessage(reply, reply.mask ? [reply.mask.buffer] : []);
});

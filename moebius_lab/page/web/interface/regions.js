// Rectangular parts of a picture: what a result differs in, taken out and put back.

import { region } from '../engine/imaging.js';
import { nextTask } from '../engine/turns.js';

/** @import { Area } from '../engine/types.js' */
/** @import { Picture, Region } from './types.js' */

const AT_ONCE = 2e6; // px that are compared in one task

/**
 * The smallest part of `filled` outside which it is the picture; one pixel where nothing differs. The page's other tasks get their
 * turn in between.
 *
 * @param {Picture} picture @param {Picture} filled of the same size
 * @returns {Promise<Region>}
 */
export async function difference(picture, filled) {
  const { width, height } = picture;
  const a = new Uint32Array(picture.data.buffer, picture.data.byteOffset, width * height);
  const b = new Uint32Array(filled.data.buffer, filled.data.byteOffset, width * height);
  let [left, top, right, bottom] = [width, height, 0, 0];
  const rows = Math.ceil(AT_ONCE / width);
  for (let y = 0, i = 0; y < height; y++) {
    if (y % rows === rows - 1) await nextTask();
    for (let x = 0; x < width; x++, i++) {
      if (a[i] === b[i]) continue;
      if (x < left) left = x;
      if (x >= right) right = x + 1;
      if (y < top) top = y;
      bottom = y + 1;
    }
  }
  if (right <= left) [left, top, right, bottom] = [0, 0, 1, 1];
  const part = { left, top, width: right - left, height: bottom - top };
  return { ...part, data: cut(filled, part) };
}

/** @param {Picture} picture @param {Area} area of it */
export function cut(picture, area) {
  return region(picture.data, picture.width, area, 4);
}

/** @param {Picture} picture changed in place @param {Region} region */
export function put(picture, { left, top, width, height, data }) {
  for (let y = 0; y < height; y++) {
    picture.data.set(data.subarray(y * width * 4, (y + 1) * width * 4), ((top + y) * picture.width + left) * 4);
  }
}

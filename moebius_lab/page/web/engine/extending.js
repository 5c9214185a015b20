// New canvas around a picture: its windows, and pieces joined without a seam; pixel for pixel as extending.py does it.
//
// It is loaded when a picture is extended, not before.

import { boxSum } from './boxes.js';
import { feather, mirror, planWindows, region, visible } from './imaging.js';

/** @import { Constants, Coverage, Extension, Paste, Picture, Piece, Window } from './types.js' */

/**
 * The canvas of an extended picture: the old pixels where the extension says, the new area mirrors them and is opaque.
 *
 * @param {Picture} picture @param {Extension} extension @returns {Picture}
 */
export function extend({ width, height, data }, { left, top, right, bottom }) {
  const [w, h] = [left + width + right, top + height + bottom];
  const from = new Uint32Array(data.buffer, data.byteOffset, width * height);
  const to = new Uint32Array(w * h);
  const opaque = new Uint32Array(new Uint8Array([0, 0, 0, 255]).buffer)[0];
  const [columns, rows] = [mirror(-left, w, width), mirror(-top, h, height)];
  for (let y = 0, i = 0; y < h; y++) {
    const row = rows[y] * width;
    const inside = y >= top && y < top + height;
    for (let x = 0; x < w; x++, i++) {
      if (inside && x === left) {
        to.set(from.subarray(row, row + width), i);
        [x, i] = [x + width, i + width];
        if (x === w) break;
      }
      to[i] = from[row + columns[x]] | opaque;
    }
  }
  return { width: w, height: h, data: new Uint8ClampedArray(to.buffer) };
}

/**
 * What brings a picture to an aspect ratio and keeps it in the middle; nothing where it has it.
 *
 * @param {number} across @param {number} down @param {number} width px @param {number} height @returns {Extension}
 */
export function extensionTo(across, down, width, height) {
  const x = Math.max(0, Math.floor((height * across) / down + 0.5) - width);
  const y = Math.max(0, Math.floor((width * down) / across + 0.5) - height);
  return { left: x >> 1, top: y >> 1, right: x - (x >> 1), bottom: y - (y >> 1) };
}

/**
 * The windows that fill an extended picture, in order: those of holes in the old picture, then those of the new area.
 *
 * @param {Uint8Array} hole 0 or 1 @param {number} width px, of the canvas @param {number} height @param {Extension} extension
 * @param {Coverage} coverage for holes in the old picture @param {Constants} constants
 * @returns {Window[]}
 */
export function planFilling(hole, width, height, extension, coverage, constants) {
  const { image_size: size } = constants;
  const old = new Uint8Array(hole.length);
  for (let y = extension.top; y < height - extension.bottom; y++) {
    const [from, to] = [y * width + extension.left, (y + 1) * width - extension.right];
    old.set(hole.subarray(from, to), from);
  }
  const before = old.includes(1) ? planWindows(old, width, height, coverage, constants) : [];
  const owners = before[0]?.owners ?? new Uint32Array(hole.length);
  const windows = [...before];
  const { left, top, right, bottom } = extension;
  const newCanvas = [left > 0, top > 0, right > 0, bottom > 0];
  for (const piece of pieces(extension, width, height, constants)) {
    const number = windows.length + 1;
    let owned = false;
    for (let y = piece.top; y < piece.bottom; y++) {
      for (let i = y * width + piece.left; i < y * width + piece.right; i++) {
        if (!hole[i]) continue;
        owners[i] = number;
        owned = true;
      }
    }
    if (owned) windows.push({ left: piece.windowLeft, top: piece.windowTop, side: size, number, owners, newCanvas });
  }
  return windows;
}

/**
 * Rectangles of the new area in the order of filling, as `_pieces` in extending.py.
 *
 * @param {Extension} extension @param {number} width @param {number} height @param {Constants} constants
 * @returns {Generator<Piece>}
 */
function* pieces(extension, width, height, constants) {
  const { image_size: size, window_margin, extension_depth, extension_beyond } = constants;
  const deepest = Math.max(extension.left, extension.top, extension.right, extension.bottom);
  const rings = Math.ceil(deepest / Math.floor((size * extension_depth) / 16));
  const longest = Math.trunc(size * (1 - 2 * window_margin));

  const ring = (/** @type {number} */ i) => {
    const part = (/** @type {number} */ px) => Math.floor((px * (rings - i)) / rings);
    const { left, top, right, bottom } = extension;
    return { left: part(left), top: part(top), right: width - part(right), bottom: height - part(bottom) };
  };
  const beyond = (/** @type {number} */ depth) =>
    depth ? Math.max(Math.floor((size * extension_beyond) / 16), Math.floor(size / 4) - depth) : 0;
  const parts = (/** @type {number} */ start, /** @type {number} */ stop) => {
    const count = Math.ceil((stop - start) / longest);
    const edge = (/** @type {number} */ k) => start + Math.floor(((stop - start) * k) / count);
    return Array.from({ length: count }, (_, k) => [edge(k), edge(k + 1)]);
  };
  const along = (
    /** @type {number} */ start,
    /** @type {number} */ stop,
    /** @type {number} */ length,
    /** @type {number} */ before,
    /** @type {number} */ after,
  ) => {
    const [low, high] = [0 - beyond(before), length - size + beyond(after)];
    if (low > high) return Math.floor((length - size) / 2);
    return Math.min(Math.max(Math.floor((start + stop - size) / 2), low), high);
  };

  for (let i = 1; i <= rings; i++) {
    const [{ left, top, right, bottom }, inner] = [ring(i), ring(i - 1)];
    for (const [y0, y1] of parts(inner.top, inner.bottom)) {
      const at = along(y0, y1, height, extension.top, extension.bottom);
      const strip = { top: y0, bottom: y1, windowTop: at };
      if (inner.left > left) yield { ...strip, left, right: inner.left, windowLeft: left - beyond(inner.left - left) };
      if (right > inner.right)
        yield { ...strip, left: inner.right, right, windowLeft: right + beyond(right - inner.right) - size };
    }
    for (const [x0, x1] of parts(left, right)) {
      const at = along(x0, x1, width, extension.left, extension.right);
      const strip = { left: x0, right: x1, windowLeft: at };
      if (inner.top > top) yield { ...strip, top, bottom: inner.top, windowTop: top - beyond(inner.top - top) };
      if (bottom > inner.bottom)
        yield { ...strip, top: inner.bottom, bottom, windowTop: bottom + beyond(bottom - inner.bottom) - size };
    }
  }
}

/**
 * Beyond the edges of new canvas the model sees more hole, not a mirrored picture; in place.
 *
 * @param {{hole: Uint8Array}} seen of `crop` @param {Window} window @param {{width: number, height: number}} picture
 */
export function hideBeyond({ hole }, { left, top, side, newCanvas = [] }, { width, height }) {
  const [pastLeft, pastTop, pastRight, pastBottom] = newCanvas;
  for (let y = 0, i = 0; y < side; y++) {
    const row = (pastTop && top + y < 0) || (pastBottom && top + y >= height);
    for (let x = 0; x < side; x++, i++) {
      if (row || (pastLeft && left + x < 0) || (pastRight && left + x >= width)) hole[i] = 1;
    }
  }
}

/**
 * Where and how much of a window of new canvas is pasted: it fades into earlier pieces, and the old pixels stay.
 *
 * @param {Window} window @param {{width: number, height: number}} picture @param {Constants} constants
 * @returns {Paste}
 */
export function joining(window, picture, constants) {
  const area = visible(window, picture);
  const owners = region(window.owners, picture.width, area);
  const own = Uint8Array.from(owners, (owner) => (owner === window.number ? 1 : 0));
  const weights = feather(own, area.width, area.height, constants);
  for (let i = 0; i < weights.length; i++) if (!owners[i] || owners[i] > window.number) weights[i] = 0;
  return { ...area, weights, coverage: 'whole' };
}

/**
 * What the model made of a window, with the colours that it is joined to; the formula is that of `_join` in extending.py.
 *
 * @param {Uint8Array} rgb (size, size) @param {Picture} image as filled so far @param {Window} window @param {Constants} constants
 * @returns {Uint8Array} as `rgb`
 */
export function matched(rgb, image, window, { extension_reach: reach }) {
  const area = visible(window, image);
  const { left, top, width, height } = area;
  const owners = region(window.owners, image.width, area);
  const known = Float64Array.from(owners, (owner) => (owner < window.number ? 1 : 0));
  const count = boxSum(known, width, height, reach);
  const boxes = boxSum(new Float64Array(known.length).fill(1), width, height, reach);
  const result = rgb.slice();
  const made = (/** @type {number} */ x, /** @type {number} */ y) =>
    3 * ((top + y - window.top) * window.side + left + x - window.left);
  const lacking = new Float64Array(known.length);
  for (let c = 0; c < 3; c++) {
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const old = image.data[4 * ((top + y) * image.width + left + x) + c];
        lacking[i] = known[i] ? old - rgb[made(x, y) + c] : 0;
      }
    }
    const sums = boxSum(lacking, width, height, reach);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const half = Math.max(2 * count[i], boxes[i]);
        const value = rgb[made(x, y) + c] + Math.floor((4 * sums[i] + half) / (2 * half));
        result[made(x, y) + c] = Math.min(Math.max(value, 0), 255);
      }
    }
  }
  return result;
}

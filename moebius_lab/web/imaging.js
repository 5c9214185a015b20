// The square windows that the model sees and the pasting of its result, byte for byte as imaging.py and Pillow do it.
//
// A picture is {width, height, data} with RGBA bytes, a mask one byte a pixel, 255 for the hole; both row by row.

import { EngineError } from './errors.js';

/** @typedef {import('./manifest.js').Constants} Constants */
/** @typedef {{width: number, height: number, data: Uint8ClampedArray}} Picture */
/** @typedef {{left: number, top: number, side: number, hole: Uint8Array}} Window px; left and top may be negative; `hole` 0 or 1 */
/** @typedef {{left: number, top: number, right: number, bottom: number, labels: number[]}} Box right and bottom exclusive */
/** @typedef {{left: number, top: number, width: number, height: number}} Area of a picture, px */
/** @typedef {Area & {weights: Uint8Array}} Paste how much of the new picture there is in an area: 255 for all; none outside */

const round = Math.fround;

/**
 * @param {Picture} image
 * @param {Uint8Array} mask
 * @param {Constants} constants
 * @returns {Uint8Array} the hole, as of `isHole`
 * @throws {EngineError} code 'bad-input'
 */
export function holeToFill(image, mask, constants) {
  const { width, height, data } = image;
  const bad = (/** @type {string} */ message) => new EngineError('bad-input', message);
  if (data.length !== 4 * width * height) throw bad('The picture must have four bytes a pixel.');
  if (mask.length !== width * height) throw bad('The mask and the picture differ in size; make them the same.');
  const limit = constants.max_megapixels;
  if (width * height > limit * 1e6) throw bad(`${width} x ${height} px is too large; use at most ${limit} megapixels.`);
  const hole = isHole(mask, constants);
  if (!hole.includes(1)) throw bad('The mask is empty: paint over what should be replaced.');
  if (!hole.includes(0)) throw bad('The mask covers the whole picture: leave some of it for the model to continue.');
  return hole;
}

// -- conversions -------------------------------------------------------------------------------------------------------

/**
 * @param {Uint8Array} mask
 * @param {Constants} constants
 * @returns {Uint8Array} 1 where mask / 255 >= mask_threshold
 */
export function isHole(mask, { mask_threshold }) {
  const hole = new Uint8Array(mask.length);
  for (let i = 0; i < mask.length; i++) hole[i] = mask[i] / 255 >= mask_threshold ? 1 : 0;
  return hole;
}

const UNIT = Float32Array.from({ length: 256 }, (_, byte) => round(round(byte / 255) * 2) - 1);

/**
 * RGB bytes of a square, interleaved -> float32 planes (3, size, size) in [-1, 1].
 *
 * @param {Uint8Array} rgb
 * @returns {Float32Array}
 */
export function toUnitRange(rgb) {
  const planes = new Float32Array(rgb.length);
  for (let c = 0, i = 0; c < 3; c++) {
    for (let from = c; from < rgb.length; from += 3, i++) planes[i] = UNIT[rgb[from]];
  }
  return planes;
}

/**
 * Float32 planes (3, size, size) in about [-1, 1] -> RGB bytes, interleaved: clipped, then truncated as in the release.
 *
 * @param {Float32Array} planes
 * @returns {Uint8Array}
 */
export function toBytes(planes) {
  const rgb = new Uint8Array(planes.length);
  for (let c = 0, i = 0; c < 3; c++) {
    for (let to = c; to < rgb.length; to += 3, i++) {
      const unit = Math.min(Math.max(round(planes[i] / 2 + 0.5), 0), 1);
      rgb[to] = round(unit * 255);
    }
  }
  return rgb;
}

/**
 * 'nearest' to latent size: the upper left pixel of every block.
 *
 * @param {Uint8Array} hole (size, size) of 0 and 1
 * @param {Constants} constants
 * @returns {Float32Array} (s, s)
 */
export function maskToLatent(hole, { image_size: size, latent_size: s, vae_factor }) {
  const latent = new Float32Array(s * s);
  for (let y = 0, i = 0; y < s; y++) {
    for (let x = 0; x < s; x++, i++) latent[i] = hole[(y * size + x) * vae_factor];
  }
  return latent;
}

// -- windows -----------------------------------------------------------------------------------------------------------

/**
 * Place square windows so that every hole is filled by one; the rules are those of `plan_windows` in imaging.py.
 *
 * @param {Uint8Array} hole 0 or 1
 * @param {number} width
 * @param {number} height
 * @param {Constants} constants
 * @returns {Window[]}
 */
export function planWindows(hole, width, height, constants) {
  const { image_size: size, window_margin: margin } = constants;
  if (Math.max(height, width) <= size) { // all of the picture is in the window
    return [{ left: place(0, width, size, width), top: place(0, height, size, height), side: size, hole: hole.slice() }];
  }
  const { labels, boxes } = labelHoles(hole, width, height);
  const usable = Math.trunc(size * (1 - 2 * margin));
  const merged = merge(boxes, (a, b) => overlap(a, b) || sideOf(union(a, b)) <= usable);
  merged.sort((a, b) => a.top - b.top || a.left - b.left);
  return merged.map((box) => {
    const needed = sideOf(box) <= usable ? size : Math.ceil(sideOf(box) / (1 - 2 * margin));
    const side = Math.max(size, Math.min(needed, Math.max(height, width)));
    return {
      left: place(box.left, box.right, side, width),
      top: place(box.top, box.bottom, side, height),
      side,
      hole: labelled(labels, width, boxes.length, box),
    };
  });
}

/**
 * Number the 8-connected parts of a hole in reading order of their first pixels.
 *
 * @param {Uint8Array} hole
 * @param {number} width
 * @param {number} height
 * @returns {{labels: Uint32Array, boxes: Box[]}} label 0 is outside; box i belongs to label i + 1
 */
function labelHoles(hole, width, height) {
  const labels = new Uint32Array(hole.length);
  /** @type {Box[]} */
  const boxes = [];
  for (let start = hole.indexOf(1), end = 0; start !== -1; start = end === -1 ? -1 : hole.indexOf(1, end)) {
    end = hole.indexOf(0, start);
    if (labels[start]) continue;
    const label = boxes.length + 1;
    const box = { left: width, top: height, right: 0, bottom: 0, labels: [label] };
    const stack = [start];
    for (let i = stack.pop(); i !== undefined; i = stack.pop()) {
      if (labels[i]) continue;
      const y = Math.floor(i / width);
      const row = y * width;
      let [left, right] = [i, i + 1]; // of the run of hole around i
      while (left > row && hole[left - 1]) left--;
      while (right < row + width && hole[right]) right++;
      labels.fill(label, left, right);
      box.left = Math.min(box.left, left - row);
      box.top = Math.min(box.top, y);
      box.right = Math.max(box.right, right - row);
      box.bottom = Math.max(box.bottom, y + 1);
      for (let v = Math.max(y - 1, 0); v <= Math.min(y + 1, height - 1); v++) {
        const first = Math.max(left - row - 1, 0) + v * width;
        const end = Math.min(right - row + 1, width) + v * width;
        for (let j = first; j < end; j++) {
          const starts = j === first || !hole[j - 1]; // one pixel stands for its run
          if (starts && hole[j] && !labels[j]) stack.push(j);
        }
      }
    }
    boxes.push(box);
  }
  return { labels, boxes };
}

/**
 * @param {Uint32Array} labels 0..count
 * @param {number} width
 * @param {number} count
 * @param {Box} box
 * @returns {Uint8Array} 1 where the label is one of the box's
 */
function labelled(labels, width, count, box) {
  const chosen = new Uint8Array(count + 1);
  for (const label of box.labels) chosen[label] = 1;
  const hole = new Uint8Array(labels.length);
  for (let y = box.top; y < box.bottom; y++) {
    for (let i = y * width + box.left; i < y * width + box.right; i++) hole[i] = chosen[labels[i]];
  }
  return hole;
}

/** @param {Box} box */
function sideOf(box) {
  return Math.max(box.right - box.left, box.bottom - box.top);
}

/** @param {Box} a @param {Box} b @returns {Box} */
function union(a, b) {
  return {
    left: Math.min(a.left, b.left),
    top: Math.min(a.top, b.top),
    right: Math.max(a.right, b.right),
    bottom: Math.max(a.bottom, b.bottom),
    labels: [...a.labels, ...b.labels],
  };
}

/** @param {Box} a @param {Box} b */
function overlap(a, b) {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}

/**
 * Unite boxes as long as `together` holds for some pair, earlier boxes first.
 *
 * @param {Box[]} boxes
 * @param {(a: Box, b: Box) => boolean} together
 */
function merge(boxes, together) {
  /** @type {Box[]} */
  const merged = [];
  for (let box of boxes) {
    let i = 0;
    while (i < merged.length) {
      if (together(merged[i], box)) {
        box = union(merged.splice(i, 1)[0], box);
        i = 0;
      } else {
        i++;
      }
    }
    merged.push(box);
  }
  return merged;
}

/** @param {number} start @param {number} stop @param {number} side @param {number} length */
function place(start, stop, side, length) {
  if (side >= length) return Math.floor((length - side) / 2);
  return Math.min(Math.max(Math.floor((start + stop - side) / 2), 0), length - side);
}

/** Indices start..start+side into an axis, reflected at both ends with the edge pixel repeated. */
function mirror(/** @type {number} */ start, /** @type {number} */ side, /** @type {number} */ length) {
  const period = 2 * length;
  return Int32Array.from({ length: side }, (_, k) => {
    const i = (((start + k) % period) + period) % period;
    return i < length ? i : period - 1 - i;
  });
}

/**
 * What the model sees of a picture through a window.
 *
 * @param {Picture} image
 * @param {Uint8Array} hole 0 or 1 a pixel of the picture: everything that is not to be seen
 * @param {Window} window
 * @param {number} size px, side of the model's input
 * @returns {{rgb: Uint8Array, hole: Uint8Array}} of size x size pixels
 */
export function crop(image, hole, window, size) {
  const { side } = window;
  const rows = mirror(window.top, side, image.height);
  const cols = mirror(window.left, side, image.width);
  const rgb = new Uint8Array(side * side * 3);
  const seen = new Uint8Array(side * side);
  for (let y = 0, i = 0; y < side; y++) {
    const row = rows[y] * image.width;
    for (let x = 0; x < side; x++, i++) {
      const j = row + cols[x];
      rgb[3 * i] = image.data[4 * j];
      rgb[3 * i + 1] = image.data[4 * j + 1];
      rgb[3 * i + 2] = image.data[4 * j + 2];
      seen[i] = hole[j];
    }
  }
  if (side === size) return { rgb, hole: seen };
  return { rgb: resize(rgb, side, size, LANCZOS), hole: shrinkHole(seen, side, size) };
}

/**
 * The part of a window that lies in the picture.
 *
 * @param {Window} window
 * @param {{width: number, height: number}} picture
 * @returns {Area}
 */
export function visible(window, { width, height }) {
  const left = Math.max(window.left, 0);
  const top = Math.max(window.top, 0);
  return { left, top, width: Math.min(window.left + window.side, width) - left, height: Math.min(window.top + window.side, height) - top };
}

/**
 * Where and how much of a window is pasted: its part of the painted mask, feathered.
 *
 * @param {Uint8Array} mask the painted mask; only its part near `window.hole` is used
 * @param {number} width
 * @param {number} height
 * @param {Window} window
 * @param {Constants} constants
 * @returns {Paste}
 */
export function pasting(mask, width, height, window, constants) {
  const area = painted(mask, width, visible(window, { width, height }), blurReach(constants));
  const cut = (/** @type {Uint8Array} */ all) => region(all, width, area.left, area.top, area.width, area.height);
  const own = ownMask(cut(mask), cut(window.hole), area.width, area.height, constants);
  return { ...area, weights: feather(own, area.width, area.height, constants) };
}

/**
 * The part of an area in which the mask is not 0, with a border of up to `reach` px.
 *
 * @param {Uint8Array} mask
 * @param {number} stride px, width of the picture
 * @param {Area} area
 * @param {number} reach
 * @returns {Area}
 */
function painted(mask, stride, { left, top, width, height }, reach) {
  const [right, bottom] = [left + width, top + height];
  let [x0, y0, x1, y1] = [right, bottom, left, top];
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      if (mask[y * stride + x] === 0) continue;
      if (x < x0) x0 = x;
      if (x >= x1) x1 = x + 1;
      if (y < y0) y0 = y;
      y1 = y + 1;
    }
  }
  x0 = Math.max(x0 - reach, left);
  y0 = Math.max(y0 - reach, top);
  return { left: x0, top: y0, width: Math.min(x1 + reach, right) - x0, height: Math.min(y1 + reach, bottom) - y0 };
}

/**
 * Paste what the model made of a window back, in place.
 *
 * @param {Uint8Array} rgb (size, size), the model's output for `crop`
 * @param {Picture} image changed where the weights are above 0; its alpha stays
 * @param {Window} window
 * @param {Paste} paste of this window
 * @param {Constants} constants
 */
export function uncrop(rgb, image, window, { left, top, width, height, weights }, { image_size: size }) {
  const { side } = window;
  const scaled = side === size ? rgb : resize(rgb, size, side, BICUBIC);
  for (let y = top, i = 0; y < top + height; y++) {
    for (let x = left; x < left + width; x++, i++) {
      if (weights[i] === 0) continue;
      const a = weights[i] / 255;
      const from = 3 * ((y - window.top) * side + x - window.left);
      const to = 4 * (y * image.width + x);
      for (let c = 0; c < 3; c++) {
        image.data[to + c] = Math.trunc(((scaled[from + c] / 255) * a + (image.data[to + c] / 255) * (1 - a)) * 255);
      }
    }
  }
}

/**
 * @template {Uint8Array|Uint8ClampedArray} T
 * @param {T} all
 * @param {number} stride numbers a row
 * @param {number} left
 * @param {number} top
 * @param {number} width
 * @param {number} height
 * @returns {T}
 */
export function region(all, stride, left, top, width, height) {
  const part = /** @type {T} */ (new /** @type {any} */ (all.constructor)(width * height));
  for (let y = 0; y < height; y++) {
    const start = (top + y) * stride + left;
    part.set(all.subarray(start, start + width), y * width);
  }
  return part;
}

/**
 * The mask of this window's holes: soft edges stay with the nearest hole, those of other holes are left to their windows.
 *
 * @param {Uint8Array} mask
 * @param {Uint8Array} own
 * @param {number} width
 * @param {number} height
 * @param {Constants} constants
 */
function ownMask(mask, own, width, height, constants) {
  const others = isHole(mask, constants);
  for (let i = 0; i < others.length; i++) others[i] &= ~own[i];
  if (!others.includes(1)) return mask;
  const toOwn = squaredDistance(own, width, height);
  const toOthers = squaredDistance(others, width, height);
  return mask.map((value, i) => (toOwn[i] <= toOthers[i] ? value : 0));
}

/**
 * For every pixel, the squared distance to the nearest 1 (Felzenszwalb and Huttenlocher 2012: along columns, then rows
 * as the lower envelope of parabolas).
 *
 * @param {Uint8Array} ones
 * @param {number} width
 * @param {number} height
 * @returns {Float64Array}
 */
export function squaredDistance(ones, width, height) {
  const far = (width + height) ** 2;
  const d = Float64Array.from(ones, (one) => (one ? 0 : far));
  const line = new Float64Array(Math.max(width, height));
  const centre = new Int32Array(line.length);
  const border = new Float64Array(line.length + 1);
  const pass = (/** @type {number} */ start, /** @type {number} */ stride, /** @type {number} */ length) => {
    for (let i = 0; i < length; i++) line[i] = d[start + i * stride];
    const meet = (/** @type {number} */ p, /** @type {number} */ q) => (line[q] + q * q - line[p] - p * p) / (2 * (q - p));
    let k = 0;
    centre[0] = 0;
    border[0] = -Infinity;
    for (let q = 1; q < length; q++) {
      let at = meet(centre[k], q);
      while (at <= border[k]) at = meet(centre[--k], q);
      centre[++k] = q;
      border[k] = at;
    }
    border[k + 1] = Infinity;
    for (let i = 0, j = 0; i < length; i++) {
      while (border[j + 1] < i) j++;
      d[start + i * stride] = (i - centre[j]) ** 2 + line[centre[j]];
    }
  };
  for (let x = 0; x < width; x++) pass(x, width, height);
  for (let y = 0; y < height; y++) pass(y * width, 1, width);
  return d;
}

// -- Pillow's Gaussian blur --------------------------------------------------------------------------------------------

const BLUR_PASSES = 3;
const BLUR_ONE = 2 ** 24; // fixed point

/** How far, px, a mask spreads when it is feathered. */
function blurReach(/** @type {Constants} */ { mask_blur_radius }) {
  return BLUR_PASSES * (Math.trunc(boxRadius(mask_blur_radius)) + 1);
}

/**
 * Weights of the new picture, 255 for all of it: the mask through Pillow's Gaussian blur, which is three extended box
 * blurs (Gwosdek et al. 2011) a direction, each rounded to bytes.
 *
 * @param {Uint8Array} mask
 * @param {number} width
 * @param {number} height
 * @param {Constants} constants
 * @returns {Uint8Array}
 */
export function feather(mask, width, height, { mask_blur_radius }) {
  const radius = boxRadius(mask_blur_radius);
  const bytes = new Uint8Array(mask);
  const line = new Uint8Array(Math.max(width, height) + 2 * (Math.trunc(radius) + 1));
  for (let y = 0; y < height; y++) blurLine(bytes, y * width, 1, width, radius, line);
  for (let x = 0; x < width; x++) blurLine(bytes, x, width, height, radius, line);
  return bytes;
}

/** Radius of the box, with a fraction, whose third power has the variance of a Gaussian of `sigma`. */
function boxRadius(/** @type {number} */ sigma) {
  const variance = round((sigma * sigma) / BLUR_PASSES);
  const whole = Math.floor((round(Math.sqrt(12 * variance + 1)) - 1) / 2);
  const fraction = round((2 * whole + 1) * (whole * (whole + 1) - 3 * variance));
  return round(whole + round(fraction / round(6 * (variance - (whole + 1) * (whole + 1)))));
}

/**
 * @param {Uint8Array} bytes blurred in place along one line
 * @param {number} start
 * @param {number} stride
 * @param {number} length
 * @param {number} radius
 * @param {Uint8Array} line for the line and, at both ends, its outermost byte as often as the box reaches past it
 */
function blurLine(bytes, start, stride, length, radius, line) {
  const whole = Math.trunc(radius);
  const reach = whole + 1;
  const weight = Math.trunc(round(BLUR_ONE / round(radius * 2 + 1)));
  const edge = Math.trunc((BLUR_ONE - (whole * 2 + 1) * weight) / 2);
  let seen = 0;
  for (let i = 0; i < length; i++) seen |= bytes[start + i * stride];
  if (!seen) return; // most lines of most masks
  for (let pass = 0; pass < BLUR_PASSES; pass++) {
    line.fill(bytes[start], 0, reach);
    for (let i = 0; i < length; i++) line[reach + i] = bytes[start + i * stride];
    line.fill(bytes[start + (length - 1) * stride], reach + length);
    let sum = 0;
    for (let i = 1; i < 2 * reach; i++) sum += line[i];
    for (let i = 0; i < length; i++) {
      const total = sum * weight + (line[i] + line[i + 2 * reach]) * edge;
      bytes[start + i * stride] = Math.floor((total + BLUR_ONE / 2) / BLUR_ONE);
      sum += line[i + 2 * reach] - line[i + 1];
    }
  }
}

// -- Pillow's resampling -----------------------------------------------------------------------------------------------

/** @typedef {{support: number, weight: (x: number) => number}} Filter `support` in px of the coarser grid */

/** @type {Filter} */
const LANCZOS = { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) };

/** @type {Filter} */
const BICUBIC = {
  support: 2,
  weight: (x) => {
    const a = -0.5;
    const d = Math.abs(x);
    if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
    return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
  },
};

/** @type {Filter} */
const BOX = { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) };

function sinc(/** @type {number} */ x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

/**
 * For every pixel of the new grid, the first pixel of the old one that it reads and the weights of those from there on.
 *
 * @param {number} from px
 * @param {number} to px
 * @param {Filter} filter
 * @returns {{first: number, weights: number[]}[]}
 */
function taps(from, to, filter) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const reach = filter.support * stretch;
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach + 0.5), from);
    const weights = Array.from({ length: end - first }, (_, k) => filter.weight((k + first - centre + 0.5) * (1 / stretch)));
    const sum = weights.reduce((total, w) => total + w, 0);
    return { first, weights: sum === 0 ? weights : weights.map((w) => w * (1 / sum)) };
  });
}

const RESIZE_ONE = 2 ** 22; // fixed point

/**
 * Resize a square of RGB bytes: along rows, then along columns, each pass rounded to bytes.
 *
 * @param {Uint8Array} rgb
 * @param {number} from px
 * @param {number} to px
 * @param {Filter} filter
 * @returns {Uint8Array}
 */
export function resize(rgb, from, to, filter) {
  const fixed = taps(from, to, filter).map(({ first, weights }) => ({
    first,
    weights: Int32Array.from(weights, (w) => w * RESIZE_ONE + (w < 0 ? -0.5 : 0.5)), // truncates
  }));
  const narrow = resample(rgb, fixed, from, 3, 3 * from, 3 * to);
  return resample(narrow, fixed, to, 3 * to, 3, 3);
}

/**
 * One pass. `lines` lines of three channels are read and written; `step` leads from pixel to pixel along a line.
 *
 * @param {Uint8Array} source
 * @param {{first: number, weights: Int32Array}[]} fixed
 * @param {number} lines
 * @param {number} step
 * @param {number} sourceLine numbers from line to line
 * @param {number} targetLine
 * @returns {Uint8Array}
 */
function resample(source, fixed, lines, step, sourceLine, targetLine) {
  const target = new Uint8Array(lines * fixed.length * 3);
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < fixed.length; i++) {
      const { first, weights } = fixed[i];
      for (let c = 0; c < 3; c++) {
        let sum = RESIZE_ONE / 2;
        let at = line * sourceLine + first * step + c;
        for (let k = 0; k < weights.length; k++, at += step) sum += source[at] * weights[k];
        target[line * targetLine + i * step + c] = Math.min(Math.max(Math.floor(sum / RESIZE_ONE), 0), 255);
      }
    }
  }
  return target;
}

/**
 * Scale a mask so that every new pixel that the hole touches at all belongs to it.
 *
 * @param {Uint8Array} hole (from, from) of 0 and 1
 * @param {number} from px
 * @param {number} to px
 * @returns {Uint8Array} (to, to)
 */
function shrinkHole(hole, from, to) {
  const reads = taps(from, to, BOX).map(({ first, weights }) => weights.flatMap((w, k) => (w > 0 ? [first + k] : [])));
  const rows = new Uint8Array(from * to);
  for (let y = 0; y < from; y++) {
    for (let x = 0; x < to; x++) rows[y * to + x] = reads[x].some((i) => hole[y * from + i]) ? 1 : 0;
  }
  return Uint8Array.from({ length: to * to }, (_, i) => (reads[Math.floor(i / to)].some((y) => rows[y * to + (i % to)]) ? 1 : 0));
}

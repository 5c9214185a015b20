// The square windows that the model sees and the pasting of its result, byte for byte as imaging.py and Pillow do it.
//
// A picture is {width, height, data} with RGBA bytes, a mask one byte a pixel, 255 for the hole; both row by row.

import { EngineError } from './errors.js';

/** @typedef {import('./manifest.js').Constants} Constants */
/** @typedef {{width: number, height: number, data: Uint8ClampedArray}} Picture */
/** @typedef {{left: number, top: number, side: number, hole: Uint8Array}} Window px; left and top may be negative; `hole` 0 or 1 */
/** @typedef {{left: number, top: number, right: number, bottom: number, labels: number[]}} Box right and bottom exclusive */

const round = Math.fround;

/**
 * @param {Picture} image
 * @param {Uint8Array} mask
 * @param {Constants} constants
 * @throws {EngineError} code 'bad-input'
 */
export function checkPictureAndMask(image, mask, constants) {
  const { width, height, data } = image;
  const bad = (/** @type {string} */ message) => new EngineError('bad-input', message);
  if (data.length !== 4 * width * height) throw bad('The picture must have four bytes a pixel.');
  if (mask.length !== width * height) throw bad('The mask and the picture differ in size; make them the same.');
  const limit = constants.max_megapixels;
  if (width * height > limit * 1e6) throw bad(`${width} x ${height} px is too large; use at most ${limit} megapixels.`);
  const hole = isHole(mask, constants);
  if (!hole.includes(1)) throw bad('The mask is empty: paint over what should be replaced.');
  if (!hole.includes(0)) throw bad('The mask covers the whole picture: leave some of it for the model to continue.');
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

/**
 * RGB bytes of a square, interleaved -> float32 planes (3, size, size) in [-1, 1].
 *
 * @param {Uint8Array} rgb
 * @returns {Float32Array}
 */
export function toUnitRange(rgb) {
  const pixels = rgb.length / 3;
  const planes = new Float32Array(rgb.length);
  for (let i = 0; i < pixels; i++) {
    for (let c = 0; c < 3; c++) planes[c * pixels + i] = round(round(rgb[3 * i + c] / 255) * 2) - 1;
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
  const pixels = planes.length / 3;
  const rgb = new Uint8Array(planes.length);
  for (let i = 0; i < pixels; i++) {
    for (let c = 0; c < 3; c++) {
      const unit = Math.min(Math.max(round(planes[c * pixels + i] / 2 + 0.5), 0), 1);
      rgb[3 * i + c] = round(unit * 255);
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
  return Float32Array.from({ length: s * s }, (_, i) => hole[Math.floor(i / s) * vae_factor * size + (i % s) * vae_factor]);
}

// -- windows -----------------------------------------------------------------------------------------------------------

/**
 * Place square windows so that every hole is filled by one; the rules are those of `plan_windows` in imaging.py.
 *
 * @param {Uint8Array} mask
 * @param {number} width
 * @param {number} height
 * @param {Constants} constants
 * @returns {Window[]}
 */
export function planWindows(mask, width, height, constants) {
  const { image_size: size, window_margin: margin } = constants;
  const { labels, boxes } = labelHoles(isHole(mask, constants), width, height);
  const usable = Math.trunc(size * (1 - 2 * margin));
  const whole = Math.max(height, width) <= size;
  const merged = merge(boxes, (a, b) => whole || overlap(a, b) || sideOf(union(a, b)) <= usable);
  merged.sort((a, b) => a.top - b.top || a.left - b.left);
  return merged.map((box) => {
    const needed = whole || sideOf(box) <= usable ? size : Math.ceil(sideOf(box) / (1 - 2 * margin));
    const side = Math.max(size, Math.min(needed, Math.max(height, width)));
    return {
      left: place(box.left, box.right, side, width),
      top: place(box.top, box.bottom, side, height),
      side,
      hole: labelled(labels, boxes.length, box.labels),
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
  for (let start = 0; start < hole.length; start++) {
    if (!hole[start] || labels[start]) continue;
    const label = boxes.length + 1;
    const box = { left: width, top: height, right: 0, bottom: 0, labels: [label] };
    const stack = [start];
    labels[start] = label;
    for (let i = stack.pop(); i !== undefined; i = stack.pop()) {
      const x = i % width;
      const y = (i - x) / width;
      box.left = Math.min(box.left, x);
      box.top = Math.min(box.top, y);
      box.right = Math.max(box.right, x + 1);
      box.bottom = Math.max(box.bottom, y + 1);
      for (let v = Math.max(y - 1, 0); v <= Math.min(y + 1, height - 1); v++) {
        for (let u = Math.max(x - 1, 0); u <= Math.min(x + 1, width - 1); u++) {
          const j = v * width + u;
          if (!hole[j] || labels[j]) continue;
          labels[j] = label;
          stack.push(j);
        }
      }
    }
    boxes.push(box);
  }
  return { labels, boxes };
}

/**
 * @param {Uint32Array} labels 0..count
 * @param {number} count
 * @param {number[]} own
 * @returns {Uint8Array} 1 where the label is one of `own`
 */
function labelled(labels, count, own) {
  const chosen = new Uint8Array(count + 1);
  for (const label of own) chosen[label] = 1;
  const hole = new Uint8Array(labels.length);
  for (let i = 0; i < labels.length; i++) hole[i] = chosen[labels[i]];
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
    for (let x = 0; x < side; x++, i++) {
      const j = rows[y] * image.width + cols[x];
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
 * Paste what the model made of a window back, in place.
 *
 * @param {Uint8Array} rgb (size, size), the model's output for `crop`
 * @param {Picture} image changed where the feathered mask is above 0; its alpha stays
 * @param {Uint8Array} mask the painted mask; only its part near `window.hole` is used
 * @param {Window} window
 * @param {Constants} constants
 */
export function uncrop(rgb, image, mask, window, constants) {
  const { side } = window;
  const size = constants.image_size;
  const scaled = side === size ? rgb : resize(rgb, size, side, BICUBIC);
  const top = Math.max(window.top, 0);
  const left = Math.max(window.left, 0);
  const height = Math.min(window.top + side, image.height) - top;
  const width = Math.min(window.left + side, image.width) - left;
  const cut = (/** @type {Uint8Array} */ all) => region(all, image.width, left, top, width, height);
  const a = feather(ownMask(cut(mask), cut(window.hole), width, height, constants), width, height, constants);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (a[i] === 0) continue;
      const from = 3 * ((y + top - window.top) * side + x + left - window.left);
      const to = 4 * ((y + top) * image.width + x + left);
      for (let c = 0; c < 3; c++) {
        image.data[to + c] = Math.trunc(((scaled[from + c] / 255) * a[i] + (image.data[to + c] / 255) * (1 - a[i])) * 255);
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
  const others = isHole(mask, constants).map((value, i) => value && !own[i] ? 1 : 0);
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

/**
 * Weights of the new picture in [0, 1]: the mask through Pillow's Gaussian blur, which is three extended box blurs
 * (Gwosdek et al. 2011) a direction, each rounded to bytes.
 *
 * @param {Uint8Array} mask
 * @param {number} width
 * @param {number} height
 * @param {Constants} constants
 * @returns {Float64Array}
 */
export function feather(mask, width, height, { mask_blur_radius }) {
  const radius = boxRadius(mask_blur_radius);
  const bytes = new Uint8Array(mask);
  const line = new Uint8Array(Math.max(width, height));
  for (let y = 0; y < height; y++) blurLine(bytes, y * width, 1, width, radius, line);
  for (let x = 0; x < width; x++) blurLine(bytes, x, width, height, radius, line);
  const weights = new Float64Array(bytes.length);
  for (let i = 0; i < bytes.length; i++) weights[i] = bytes[i] / 255;
  return weights;
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
 * @param {Uint8Array} line at least `length` long
 */
function blurLine(bytes, start, stride, length, radius, line) {
  const whole = Math.trunc(radius);
  const weight = Math.trunc(round(BLUR_ONE / round(radius * 2 + 1)));
  const edge = Math.trunc((BLUR_ONE - (whole * 2 + 1) * weight) / 2);
  const last = length - 1;
  const at = (/** @type {number} */ i) => line[i < 0 ? 0 : i > last ? last : i];
  let seen = 0;
  for (let i = 0; i < length; i++) seen |= bytes[start + i * stride];
  if (!seen) return; // most lines of most masks
  for (let pass = 0; pass < BLUR_PASSES; pass++) {
    for (let i = 0; i < length; i++) line[i] = bytes[start + i * stride];
    let sum = 0;
    for (let i = -whole; i <= whole; i++) sum += at(i);
    for (let i = 0; i < length; i++) {
      const total = sum * weight + (at(i - whole - 1) + at(i + whole + 1)) * edge;
      bytes[start + i * stride] = Math.floor((total + BLUR_ONE / 2) / BLUR_ONE);
      sum += at(i + whole + 1) - at(i - whole);
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

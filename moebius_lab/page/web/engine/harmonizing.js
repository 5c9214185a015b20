// A fill brought nearer to its surroundings in colour and fine detail; pixel for pixel as harmonizing.py does it.
//
// It is loaded when a picture is filled so, not before.

import { boxSum } from './boxes.js';

/** @import { Constants } from './types.js' */

const FLAT = 8; // added to both energies, so that nothing is made of rounding

/** @param {number} value @param {number} least @param {number} most */
const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

/**
 * What the model made of a window, with no colours that are not there and with as much fine detail as around the hole.
 *
 * @param {Uint8Array} made (size, size, 3), left as it is
 * @param {{rgb: Uint8Array, hole: Uint8Array}} seen what the model saw, and 1 in the hole
 * @param {Constants} constants
 * @returns {Uint8Array} as `made`
 */
export function harmonized(made, { rgb, hole }, constants) {
  const size = constants.image_size;
  if (!hole.includes(0) || !hole.includes(1)) return made;
  const near = (/** @type {number} */ one, /** @type {number} */ reach) => {
    const ones = Float64Array.from(hole, (value) => (value === one ? 1 : 0));
    return boxSum(ones, size, size, reach);
  };
  const ring = near(1, constants.harmony_ring).map((count, i) => (count && !hole[i] ? 1 : 0));
  const fill = lumaAndDifferences(made);
  const known = lumaAndDifferences(rgb);
  const [redBlue, green] = [known.redBlue, known.green].map((values) =>
    usual(
      values.filter((_, i) => ring[i]),
      constants.rare_colours,
    ),
  );
  const seam = constants.detail_seam;
  const [core, clear] = [near(0, seam), near(1, seam)].map((counts) => counts.map((count) => (count ? 0 : 1)));
  const gain = detailGain(
    energy(fill.luma, size, core.includes(1) ? core : hole),
    energy(
      known.luma,
      size,
      ring.map((one, i) => one && clear[i]),
    ),
    constants.most_detail,
  );
  const detail = fineDetail(fill.luma, size);
  const result = new Uint8Array(made.length);
  for (let i = 0; i < hole.length; i++) {
    const luma = fill.luma[i];
    const across = 2 * clamp(fill.redBlue[i], redBlue.least, redBlue.most);
    const up = clamp(fill.green[i], green.least, green.most);
    const more = ((gain - 1) * detail[i]) / 64;
    for (const [c, value] of [luma - up + across, luma + up, luma - up - across].entries()) {
      result[3 * i + c] = clamp(Math.floor(((value + 2) >> 2) + more + 0.5), 0, 255);
    }
  }
  return result;
}

/** R + 2 G + B, R - B and 2 G - R - B of each pixel; both differences of a grey one are 0. @param {Uint8Array} rgb */
function lumaAndDifferences(rgb) {
  const pixels = rgb.length / 3;
  const [luma, redBlue, green] = [new Int32Array(pixels), new Int32Array(pixels), new Int32Array(pixels)];
  for (let i = 0; i < pixels; i++) {
    const [r, g, b] = [rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2]];
    luma[i] = r + 2 * g + b;
    redBlue[i] = r - b;
    green[i] = 2 * g - r - b;
  }
  return { luma, redBlue, green };
}

/** Least and largest of some numbers, without a share of them at either end. @param {Int32Array} values @param {number} share */
function usual(values, share) {
  values.sort();
  const rare = Math.floor(share * values.length);
  return { least: values[rare], most: values[values.length - 1 - rare] };
}

/**
 * What fine detail is multiplied by; 1 where there is nothing to compare.
 *
 * @param {number} made energy of what was made
 * @param {number} known that around the hole
 * @param {number} most
 */
function detailGain(made, known, most) {
  if (Number.isNaN(made) || Number.isNaN(known)) return 1;
  return clamp(Math.sqrt(Math.sqrt((known + FLAT) / (made + FLAT))), 1 / most, most);
}

/** Mean square of the Laplacian in a window's inner pixels; NaN where there are none.
 *
 * @param {Int32Array} luma @param {number} size @param {ArrayLike<number>} where not 0
 */
function energy(luma, size, where) {
  let sum = 0;
  let count = 0;
  for (let y = 1; y < size - 1; y++) {
    for (let i = y * size + 1; i < (y + 1) * size - 1; i++) {
      if (!where[i]) continue;
      sum += (luma[i - size] + luma[i + size] + luma[i - 1] + luma[i + 1] - 4 * luma[i]) ** 2;
      count++;
    }
  }
  return sum / count;
}

/** 16 times each value less the mean of its neighbours with weights 1 2 1; edges are repeated.
 *
 * @param {Int32Array} luma @param {number} size
 */
function fineDetail(luma, size) {
  const smooth = (/** @type {Int32Array} */ from, /** @type {number} */ step, /** @type {(i: number) => number} */ place) =>
    from.map((value, i) => {
      const at = place(i);
      return 2 * value + from[at > 0 ? i - step : i] + from[at < size - 1 ? i + step : i];
    });
  const down = smooth(luma, size, (i) => Math.floor(i / size));
  return smooth(down, 1, (i) => i % size).map((value, i) => 16 * luma[i] - value);
}

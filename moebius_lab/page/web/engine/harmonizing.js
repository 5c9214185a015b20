// A fill brought nearer to its surroundings in colour and fine detail; pixel for pixel as harmonizing.py does it.
//
// It is loaded when a picture is filled so, not before.

import { boxSum } from './boxes.js';
import { labelHoles, region } from './imaging.js';

/** @import { Constants, Seen } from './types.js' */

const MOST = 510; // largest difference of colours
const FLAT = 8; // added to both energies, so that nothing is made of rounding

/** @param {number} value @param {number} least @param {number} most */
const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

/**
 * What the model made of a window, each hole with no colours that are not around it and with as much fine detail.
 *
 * @param {Uint8Array} made (size, size, 3), left as it is
 * @param {Seen} seen
 * @param {Constants} constants
 * @returns {Uint8Array} as `made`
 */
export function harmonized(made, { rgb, hole }, constants) {
  const { image_size: size, feather_width, harmony_ring: reach } = constants;
  if (!hole.includes(0) || !hole.includes(1)) return made;
  const { labels, boxes } = labelHoles(near(hole, size, feather_width), size, size); // holes that fade into each other are one
  const result = made.slice();
  for (const { left, top, right, bottom, label } of boxes) {
    const [x, y] = [Math.max(left - reach, 0), Math.max(top - reach, 0)];
    const [width, height] = [Math.min(right + reach, size) - x, Math.min(bottom + reach, size) - y];
    const area = { left: x, top: y, width, height };
    const used = Uint8Array.from(region(labels, size, area), (value) => (value === label ? 1 : 0));
    const [of, saw] = [made, rgb].map((all) => region(all, size, area, 3));
    const part = oneHole(of, saw, region(hole, size, area), used, width, constants);
    for (let row = 0; row < height; row++) {
      for (let i = row * width, at = 3 * ((y + row) * size + x); i < (row + 1) * width; i++, at += 3) {
        if (used[i]) for (let c = 0; c < 3; c++) result[at + c] = part[3 * i + c];
      }
    }
  }
  return result;
}

/** Where there is a 1 within `reach` px along both axes. @param {Uint8Array} ones @param {number} width @param {number} reach */
function near(ones, width, reach) {
  const counts = boxSum(new Float64Array(ones), width, ones.length / width, reach);
  return ones.map((_, i) => (counts[i] ? 1 : 0));
}

/**
 * What is made of a part of a window, with `harmony_ring` px around a hole and more, as far as the window goes.
 *
 * @param {Uint8Array} made @param {Uint8Array} rgb @param {Uint8Array} hole
 * @param {Uint8Array} used 1 in this hole, and where it fades out
 * @param {number} width
 * @param {Constants} constants
 */
function oneHole(made, rgb, hole, used, width, { harmony_ring, detail_seam, rare_colours, most_detail }) {
  const own = hole.map((one, i) => one & used[i]);
  const ring = near(own, width, harmony_ring).map((one, i) => one & ~hole[i]);
  const fill = lumaAndDifferences(made);
  const known = lumaAndDifferences(rgb);
  const [redBlue, green] = [known.redBlue, known.green].map((values) => usual(values, ring, rare_colours));
  const [nearKnown, nearHole] = [hole.map((one) => 1 - one), hole].map((ones) => near(ones, width, detail_seam));
  const core = own.map((one, i) => one & ~nearKnown[i]);
  const clear = ring.map((one, i) => one & ~nearHole[i]);
  const inside = core.includes(1) ? core : own;
  const gain = detailGain(energy(fill.luma, width, inside), energy(known.luma, width, clear), most_detail);
  const detail = fineDetail(fill.luma, width);
  const result = new Uint8Array(made.length);
  for (let i = 0; i < hole.length; i++) {
    const luma = fill.luma[i];
    const across = 2 * clamp(fill.redBlue[i], redBlue.least, redBlue.most);
    const up = clamp(fill.green[i], green.least, green.most);
    const more = ((gain - 1) * detail[i]) / 64;
    result[3 * i] = level(luma - up + across, more);
    result[3 * i + 1] = level(luma + up, more);
    result[3 * i + 2] = level(luma - up - across, more);
  }
  return result;
}

/** @param {number} value four times a channel's @param {number} more */
function level(value, more) {
  return clamp(Math.floor(((value + 2) >> 2) + more + 0.5), 0, 255);
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

/**
 * Least and largest of some differences of colours, without a share of them at either end.
 *
 * @param {Int32Array} values
 * @param {ArrayLike<number>} where not 0
 * @param {number} share
 */
function usual(values, where, share) {
  const counts = new Uint32Array(2 * MOST + 1);
  let count = 0;
  for (let i = 0; i < values.length; i++) {
    if (!where[i]) continue;
    counts[values[i] + MOST]++;
    count++;
  }
  const rare = Math.floor(share * count);
  let [least, most] = [-MOST, MOST];
  for (let left = rare; left >= counts[least + MOST] && least < MOST; least++) left -= counts[least + MOST];
  for (let left = rare; left >= counts[most + MOST] && most > -MOST; most--) left -= counts[most + MOST];
  return { least, most };
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

/** Mean square of the Laplacian, without the outermost pixels; NaN where no others are left.
 *
 * @param {Int32Array} luma @param {number} width @param {ArrayLike<number>} where not 0
 */
function energy(luma, width, where) {
  let sum = 0;
  let count = 0;
  for (let start = width; start < luma.length - width; start += width) {
    for (let i = start + 1; i < start + width - 1; i++) {
      if (!where[i]) continue;
      sum += (luma[i - width] + luma[i + width] + luma[i - 1] + luma[i + 1] - 4 * luma[i]) ** 2;
      count++;
    }
  }
  return sum / count;
}

/** 16 times each value less the mean of its neighbours with weights 1 2 1; edges are repeated.
 *
 * @param {Int32Array} luma @param {number} width
 */
function fineDetail(luma, width) {
  const height = luma.length / width;
  const [down, detail] = [new Int32Array(luma.length), new Int32Array(luma.length)];
  for (let y = 0, i = 0; y < height; y++) {
    const [above, below] = [y > 0 ? width : 0, y < height - 1 ? width : 0];
    for (let x = 0; x < width; x++, i++) down[i] = 2 * luma[i] + luma[i - above] + luma[i + below];
  }
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      detail[i] = 16 * luma[i] - 2 * down[i] - down[x > 0 ? i - 1 : i] - down[x < width - 1 ? i + 1 : i];
    }
  }
  return detail;
}

// Where a picture is on the screen, and how its hole looks there: numbers alone, for editor.js to show.

/** @import { Point, Rect, Size, View } from './types.js' */

const LARGEST_FIT = 8; // CSS px a px: small pictures are not enlarged beyond
const [LEAST, MOST] = [0.02, 32]; // CSS px a px
const IN_SIGHT = 48; // CSS px of the picture that stay on the stage
const STRIPE = 5; // CSS px, of the tint over a hole and of the dashes around it
const TINT = { light: 0x70_50_2a_e6, dark: 0xa8_50_2a_e6 }; // ABGR
const EDGE = { light: 0xff_ff_ff_ff, dark: 0xff_18_10_10 };

/** The whole picture, in the middle. @param {Size} picture px @param {Size} stage CSS px @returns {View} */
export function fitted(picture, stage) {
  const margin = Math.min(24, stage.width * 0.03);
  const [across, down] = [(stage.width - 2 * margin) / picture.width, (stage.height - 2 * margin) / picture.height];
  const scale = Math.min(across, down, LARGEST_FIT);
  return { scale, x: (stage.width - picture.width * scale) / 2, y: (stage.height - picture.height * scale) / 2 };
}

/** Larger or smaller, around a point that stays. @param {View} view @param {number} factor @param {number} x CSS px @param {number} y @returns {View} */
export function zoomed(view, factor, x, y) {
  const scale = Math.min(Math.max(view.scale * factor, Math.min(LEAST, view.scale)), MOST);
  const k = scale / view.scale;
  return { scale, x: x - (x - view.x) * k, y: y - (y - view.y) * k };
}

/** The same view, moved back where the picture would leave the stage. @param {View} view @param {Size} picture @param {Size} stage @returns {View} */
export function inSight({ scale, x, y }, picture, stage) {
  const held = (/** @type {number} */ at, /** @type {number} */ length, /** @type {number} */ room) =>
    Math.min(Math.max(at, IN_SIGHT - length * scale), room - IN_SIGHT);
  return { scale, x: held(x, picture.width, stage.width), y: held(y, picture.height, stage.height) };
}

/** @param {View} view @param {Point} point CSS px @returns {[number, number]} px of the picture */
export function toPicture(view, { x, y }) {
  return [(x - view.x) / view.scale, (y - view.y) / view.scale];
}

/** What two fingers do: their middle stays under them, and so does how far apart they are. @param {View} view @param {Point[]} before @param {Point[]} after @returns {View} */
export function pinched(view, before, after) {
  const apart = (/** @type {Point[]} */ [a, b]) => Math.max(1, Math.hypot(a.x - b.x, a.y - b.y));
  const middle = (/** @type {Point[]} */ [a, b]) => ({ x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 });
  const [from, to] = [middle(before), middle(after)];
  const moved = { ...view, x: view.x + to.x - from.x, y: view.y + to.y - from.y };
  return zoomed(moved, apart(after) / apart(before), to.x, to.y);
}

/** @param {number[]} a @param {number[]} b opposite corners @returns {number[][]} all four, around */
export function rectangleCorners(a, b) {
  return [[a[0], a[1]], [b[0], a[1]], [b[0], b[1]], [a[0], b[1]]]; // prettier-ignore
}

/**
 * What lies over a part of the stage: stripes over the hole, a dashed line around it, as thick at every zoom. Every pixel of
 * the screen asks the mask.
 *
 * @param {{width: number, height: number, level: number, data: Uint8Array}} mask
 * @param {View} view
 * @param {Rect} part device px
 * @param {number} ratio device px a CSS px
 * @param {boolean} tinted whether the stripes are drawn
 * @returns {Uint32Array<ArrayBuffer>} ABGR, row by row
 */
export function overHole(mask, view, { left, top, right, bottom }, ratio, tinted) {
  const edge = Math.max(1, Math.round(ratio));
  const out = new Uint32Array((right - left) * (bottom - top));
  const place = (/** @type {number} */ s, /** @type {number} */ o, /** @type {number} */ length) => {
    const v = Math.floor(((s + 0.5) / ratio - o) / view.scale);
    return v < 0 || v >= length ? -1 : v;
  };
  const columns = Int32Array.from({ length: right - left + edge }, (_, i) => place(left - edge + i, view.x, mask.width));
  /** @type {Uint8Array[]} */
  let recent = [];
  for (let s = top - edge, to = 0; s < bottom; s++) {
    const y = place(s, view.y, mask.height);
    const row = new Uint8Array(columns.length);
    if (y >= 0) {
      const offset = y * mask.width;
      for (let i = 0; i < row.length; i++) if (columns[i] >= 0 && mask.data[offset + columns[i]] >= mask.level) row[i] = 1;
    }
    if (s >= top) {
      const above = recent[recent.length - edge];
      for (let i = edge; i < row.length; i++, to++) {
        const light = ((left + i + s) / ratio) % (2 * STRIPE) < STRIPE;
        if (row[i] !== row[i - edge] || row[i] !== above[i]) out[to] = light ? EDGE.light : EDGE.dark;
        else if (row[i] && tinted) out[to] = light ? TINT.light : TINT.dark;
      }
    }
    recent.push(row);
    if (recent.length > edge) recent = recent.slice(-edge);
  }
  return out;
}

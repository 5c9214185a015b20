// Selecting with a click: masks from colours and edges, and masks made larger, smaller, softer or whole.
//
// The functions are those of selection.py and give the same masks, pixel for pixel. A picture is RGBA, a selection one byte a
// pixel, 1 for what is selected. Positions are whole px. They take long on large pictures: the page calls them in a worker.

import { labelHoles } from '../engine/imaging.js';

/** @typedef {{width: number, height: number, data: Uint8ClampedArray | Uint8Array}} Picture RGBA, row by row */

const NEIGHBOURS = [[-1, -1], [-1, 0], [-1, 1], [0, -1], [0, 1], [1, -1], [1, 0], [1, 1]]; // prettier-ignore

/**
 * The pixels that have the colour of one, or nearly.
 *
 * @param {Picture} picture @param {number} x @param {number} y
 * @param {number} tolerance 0..255: by how much red, green and blue may each differ from it
 * @param {boolean} contiguous only pixels that such pixels connect with it, side by side
 */
export function wand({ width, height, data }, x, y, tolerance, contiguous) {
  const near = new Uint8Array(width * height);
  const at = 4 * (y * width + x);
  const [red, green, blue] = [data[at], data[at + 1], data[at + 2]];
  for (let i = 0, p = 0; i < near.length; i++, p += 4) {
    if (
      Math.abs(data[p] - red) <= tolerance &&
      Math.abs(data[p + 1] - green) <= tolerance &&
      Math.abs(data[p + 2] - blue) <= tolerance
    )
      near[i] = 1;
  }
  return contiguous ? flood(near, width, height, [y * width + x]) : near;
}

/**
 * What of `open` is joined side by side with the given pixels.
 *
 * @param {Uint8Array} open 0 or 1 @param {number} width @param {number} height @param {number[]} from indices
 */
function flood(open, width, height, from) {
  const found = new Uint8Array(open.length);
  const stack = [...from];
  for (let i = stack.pop(); i !== undefined; i = stack.pop()) {
    if (!open[i] || found[i]) continue;
    const row = i - (i % width);
    let [left, right] = [i, i + 1]; // the run around i
    while (left > row && open[left - 1]) left--;
    while (right < row + width && open[right]) right++;
    found.fill(1, left, right);
    for (const step of [-width, width]) {
      if (left + step < 0 || left + step >= open.length) continue;
      for (let j = left + step; j < right + step; j++) {
        if (open[j] && !found[j] && (j === left + step || !open[j - 1])) stack.push(j); // one pixel stands for its run
      }
    }
  }
  return found;
}

/**
 * The way from one pixel to another that follows edges: live-wire, or intelligent scissors (Mortensen and Barrett, 1995).
 *
 * A pixel costs 4 on the strongest edges and 258 where nothing is to be seen; a step to one of the eight neighbours costs the
 * mean of both pixels times its length. Of ways that cost the same, the last steps that come first in `NEIGHBOURS` are taken.
 *
 * @param {Picture} picture @param {[number, number]} start @param {[number, number]} end
 * @param {number} room px around its two ends that it may use, besides a quarter of their distance (the manifest's wire_margin)
 * @returns {[number, number][]} every pixel of the way, in order, both ends included
 */
export function wire(picture, [x0, y0], [x1, y1], room) {
  const margin = room + Math.floor(Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0)) / 4);
  const left = Math.max(Math.min(x0, x1) - margin, 0);
  const top = Math.max(Math.min(y0, y1) - margin, 0);
  const width = Math.min(Math.max(x0, x1) + margin + 1, picture.width) - left;
  const height = Math.min(Math.max(y0, y1) + margin + 1, picture.height) - top;
  const costs = edgeCosts(picture, { left, top, width, height });
  const goal = (y0 - top) * width + x0 - left;
  let at = (y1 - top) * width + x1 - left;
  const spent = spend(costs, width, height, goal, at);
  /** @type {[number, number][]} */
  const way = [[x1, y1]];
  while (at !== goal) {
    const [x, y] = [at % width, Math.floor(at / width)];
    for (const [dy, dx] of NEIGHBOURS) {
      const [u, v] = [x + dx, y + dy];
      if (u < 0 || u >= width || v < 0 || v >= height) continue;
      const before = v * width + u;
      if (spent[before] + stepCost(costs, before, at, dx !== 0 && dy !== 0) !== spent[at]) continue;
      at = before;
      way.push([u + left, v + top]);
      break;
    }
  }
  return way.reverse();
}

/** @param {Float64Array} costs @param {number} a @param {number} b @param {boolean} diagonal */
function stepCost(costs, a, b, diagonal) {
  return (diagonal ? Math.SQRT2 : 1) * 0.5 * (costs[a] + costs[b]);
}

/**
 * What a pixel costs: 4 + (255 - e)^2 / 256, with e half the Sobel gradient of the channel that changes most, at most 255.
 *
 * @param {Picture} picture @param {import('../engine/types.js').Area} part
 */
function edgeCosts({ width: stride, data }, { left, top, width, height }) {
  const costs = new Float64Array(width * height);
  for (let y = 0, i = 0; y < height; y++) {
    const [above, row, below] = [Math.max(y - 1, 0), y, Math.min(y + 1, height - 1)].map((v) => 4 * ((top + v) * stride + left));
    for (let x = 0; x < width; x++, i++) {
      let most = 0;
      for (let c = 0; c < 3; c++) {
        const [l, m, r] = [4 * Math.max(x - 1, 0) + c, 4 * x + c, 4 * Math.min(x + 1, width - 1) + c];
        const across =
          data[above + r] - data[above + l] + 2 * (data[row + r] - data[row + l]) + data[below + r] - data[below + l];
        const down =
          data[below + l] - data[above + l] + 2 * (data[below + m] - data[above + m]) + data[below + r] - data[above + r];
        most = Math.max(most, Math.abs(across) + Math.abs(down));
      }
      costs[i] = 4 + (((255 - Math.min(most >> 1, 255)) ** 2) >> 8);
    }
  }
  return costs;
}

/**
 * Dijkstra's algorithm: what the cheapest way that begins at `start` costs to each pixel, as far as those before `end` go.
 *
 * @param {Float64Array} costs @param {number} width @param {number} height @param {number} start @param {number} end
 */
function spend(costs, width, height, start, end) {
  const spent = new Float64Array(costs.length).fill(Infinity);
  const done = new Uint8Array(costs.length);
  const heap = new Heap();
  spent[start] = 0;
  heap.push(0, start);
  for (let at = heap.pop(); at !== -1 && at !== end; at = heap.pop()) {
    if (done[at]) continue;
    done[at] = 1;
    const [x, y] = [at % width, Math.floor(at / width)];
    for (const [dy, dx] of NEIGHBOURS) {
      const [u, v] = [x + dx, y + dy];
      if (u < 0 || u >= width || v < 0 || v >= height) continue;
      const next = v * width + u;
      const sum = spent[at] + stepCost(costs, at, next, dx !== 0 && dy !== 0);
      if (sum >= spent[next]) continue;
      spent[next] = sum;
      heap.push(sum, next);
    }
  }
  return spent;
}

/** The smallest key first. */
class Heap {
  /** @type {number[]} */
  #keys = [];
  /** @type {number[]} */
  #values = [];

  /** @param {number} key @param {number} value */
  push(key, value) {
    const [keys, values] = [this.#keys, this.#values];
    let i = keys.length;
    for (let up = (i - 1) >> 1; i > 0 && keys[up] > key; up = (i - 1) >> 1) {
      keys[i] = keys[up];
      values[i] = values[up];
      i = up;
    }
    keys[i] = key;
    values[i] = value;
  }

  /** @returns {number} -1 where nothing is left */
  pop() {
    const [keys, values] = [this.#keys, this.#values];
    if (!keys.length) return -1;
    const first = values[0];
    const key = /** @type {number} */ (keys.pop());
    const value = /** @type {number} */ (values.pop());
    const count = keys.length;
    if (!count) return first;
    let i = 0;
    for (let down = 1; down < count; down = 2 * i + 1) {
      if (down + 1 < count && keys[down + 1] < keys[down]) down++;
      if (keys[down] >= key) break;
      keys[i] = keys[down];
      values[i] = values[down];
      i = down;
    }
    keys[i] = key;
    values[i] = value;
    return first;
  }
}

// -- selections from selections ----------------------------------------------------------------------------------------

/** The pixels that are at most `px` from a selected one. @param {Uint8Array} selection @param {number} width @param {number} height @param {number} px */
export function grow(selection, width, height, px) {
  const near = squaredDistance(selection, width, height, px);
  return Uint8Array.from(near, (squared) => (squared <= px * px ? 1 : 0));
}

/** The pixels that are more than `px` from every one that is not selected; the picture's edge is none. @param {Uint8Array} selection @param {number} width @param {number} height @param {number} px */
export function shrink(selection, width, height, px) {
  return opposite(grow(opposite(selection), width, height, px));
}

/** @param {Uint8Array} selection */
function opposite(selection) {
  return selection.map((value) => 1 - value);
}

/**
 * 255 inside and 0 outside, with a straight ramp over `px` on both sides of the edge.
 *
 * @param {Uint8Array} selection @param {number} width @param {number} height @param {number} px
 */
export function feather(selection, width, height, px) {
  const inward = squaredDistance(opposite(selection), width, height, px + 1);
  const outward = squaredDistance(selection, width, height, px + 1);
  return selection.map((selected, i) => {
    const depth = selected ? Math.sqrt(inward[i]) - 0.5 : 0.5 - Math.sqrt(outward[i]); // px from the edge, between two pixels
    return Math.floor(Math.min(Math.max(127.5 + (127.5 * depth) / Math.max(px, 0.5), 0), 255) + 0.5);
  });
}

/**
 * px^2 from each pixel to the nearest selected one, at most (reach + 1)^2: first down each column, then along each row the
 * parabolas that are lowest somewhere (Felzenszwalb and Huttenlocher, 2012).
 *
 * @param {Uint8Array} selection @param {number} width @param {number} height @param {number} reach px
 */
function squaredDistance(selection, width, height, reach) {
  const far = (reach + 1) ** 2;
  const away = new Uint16Array(width * height).fill(reach + 1); // px, in the column alone
  for (let x = 0; x < width; x++) {
    for (let i = x, d = reach + 1; i < away.length; i += width) {
      d = selection[i] ? 0 : Math.min(d + 1, reach + 1);
      away[i] = d;
    }
    for (let i = away.length - width + x, d = reach + 1; i >= 0; i -= width) {
      d = Math.min(away[i], d + 1);
      away[i] = d;
    }
  }
  const out = new Uint32Array(width * height).fill(far);
  const places = new Int32Array(width);
  const from = new Float64Array(width + 1);
  for (let y = 0; y < height; y++) {
    const row = y * width;
    let count = 0;
    for (let x = 0; x < width; x++) {
      const d = away[row + x];
      if (d > reach) continue;
      const high = d * d + x * x;
      let start = -Infinity;
      while (count) {
        const p = places[count - 1];
        start = (high - away[row + p] ** 2 - p * p) / (2 * (x - p));
        if (start > from[count - 1]) break;
        count--;
        start = -Infinity;
      }
      places[count] = x;
      from[count++] = start;
    }
    if (!count) continue;
    from[count] = Infinity;
    for (let x = 0, k = 0; x < width; x++) {
      while (from[k + 1] < x) k++;
      const p = places[k];
      out[row + x] = Math.min((x - p) * (x - p) + away[row + p] ** 2, far);
    }
  }
  return out;
}

/** With everything that it encloses: what no way of side-by-side pixels joins with the picture's edge. @param {Uint8Array} selection @param {number} width @param {number} height */
export function fillHoles(selection, width, height) {
  const edge = [];
  for (let x = 0; x < width; x++) edge.push(x, (height - 1) * width + x);
  for (let y = 0; y < height; y++) edge.push(y * width, y * width + width - 1);
  return opposite(flood(opposite(selection), width, height, edge));
}

/**
 * Its largest part; pixels that touch at a corner are of one part. Of parts as large, the uppermost, then the one that begins
 * furthest left.
 *
 * @param {Uint8Array} selection @param {number} width @param {number} height
 */
export function keepLargest(selection, width, height) {
  const { labels, boxes } = labelHoles(selection, width, height);
  const counts = new Uint32Array(boxes.length + 1);
  for (const label of labels) if (label) counts[label]++;
  const most = counts.indexOf(counts.reduce((a, b) => Math.max(a, b)));
  return Uint8Array.from(labels, (label) => (label && label === most ? 1 : 0));
}

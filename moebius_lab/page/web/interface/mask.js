// The mask as data: drawing into it at the full size of the picture, and an undo history of bounded memory.
//
// One rule for every tool, here and in the notebook's mask_painter.py: a shape holds the pixels whose centres lie in it, its edge
// included. Brush and eraser draw lines with round ends, and a lasso holds what its outline winds around. Both compute the same
// numbers in the same order, so that they fill the same pixels. Positions are in px of the picture; (0, 0) is the outer corner of
// the upper left pixel, whose centre is (0.5, 0.5). The notebook counts from that centre, and so does everything below `Mask`.
// What a pointer does is smoothed first, on the page alone: `SmoothPath` makes the lines that are then drawn.

/** @import { Change, MaskPatch, Rect, Tile } from './types.js' */

const TILE = 64; // px, side of the squares in which changes are kept for undo
const TILES_AT_ONCE = 64; // that are changed without a chance to interrupt: about a millisecond
export const HOLE = 255;
export const KEEP = 0;

/** A mask of uint8 values, 255 for the hole, row by row, as big as its picture. */
export class Mask {
  /** @type {Map<number, Tile> | null} */
  #before = null;

  /**
   * @param {number} width px
   * @param {number} height px
   * @param {number} level the lowest value that counts as hole (`Math.ceil(255 * mask_threshold)` of the manifest)
   */
  constructor(width, height, level) {
    this.width = width;
    this.height = height;
    this.level = level;
    this.data = new Uint8Array(width * height);
    /** How many pixels are hole. */
    this.holes = 0;
    this.tilesAcross = Math.ceil(width / TILE);
  }

  /** Count the holes by another level. @param {number} level */
  countFrom(level) {
    this.level = level;
    this.holes = 0;
    for (let i = 0; i < this.data.length; i++) if (this.data[i] >= level) this.holes++;
  }

  /** Whether an edit is open: begun and neither committed nor cancelled. */
  get editing() {
    return this.#before !== null;
  }

  /** Open an edit; every drawing call belongs to one. */
  begin() {
    if (this.#before) throw new Error('an edit is already open');
    this.#before = new Map();
  }

  /** Close the edit. @returns {MaskPatch | null} what undoes it, or null where it changed nothing */
  commit() {
    const tiles = this.#close();
    for (const [index, tile] of tiles) {
      const now = this.#read(index);
      if (sameTile(tile, now)) tiles.delete(index);
    }
    return tiles.size ? { tiles, bytes: tileBytes(tiles) } : null;
  }

  /** Close the edit and put everything back. @returns {Rect} what to draw again */
  cancel() {
    const tiles = this.#close();
    for (const [index, tile] of tiles) this.#write(index, tile);
    return this.#boundsOf(tiles);
  }

  /**
   * Exchange a patch's tiles with the mask's: undoes an edit, and called again redoes it. Until it has returned, the mask is neither.
   * @param {MaskPatch} patch
   * @returns {Generator<void, Rect>} yields now and then; what to draw again
   */
  *swap(patch) {
    let done = 0;
    for (const [index, tile] of patch.tiles) {
      const now = this.#read(index);
      this.#write(index, tile);
      patch.tiles.set(index, now);
      if (++done % TILES_AT_ONCE === 0) yield;
    }
    patch.bytes = tileBytes(patch.tiles);
    return this.#boundsOf(patch.tiles);
  }

  /**
   * Draw a line with round ends: every pixel whose centre is at most `radius` from the segment (x0, y0)-(x1, y1).
   * @param {number} x0
   * @param {number} y0
   * @param {number} x1
   * @param {number} y1
   * @param {number} radius px
   * @param {number} value
   * @returns {Rect}
   */
  line(x0, y0, x1, y1, radius, value) {
    const [ax, ay, bx, by] = [x0 - 0.5, y0 - 0.5, x1 - 0.5, y1 - 0.5];
    const near = (/** @type {number} */ x, /** @type {number} */ y) => isNearLine(ax, ay, bx, by, radius, x, y);
    const rect = this.#clip({
      left: Math.floor(Math.min(ax, bx) - radius),
      top: Math.floor(Math.min(ay, by) - radius),
      right: Math.ceil(Math.max(ax, bx) + radius) + 1,
      bottom: Math.ceil(Math.max(ay, by) + radius) + 1,
    });
    for (let y = rect.top; y < rect.bottom; y++) {
      const [low, high] = lineSpan(ax, ay, bx, by, radius, y);
      let [from, to] = [Math.max(Math.floor(low), rect.left), Math.min(Math.ceil(high), rect.right - 1)]; // rounded: one too many
      while (from <= to && !near(from, y)) from++;
      while (from <= to && !near(to, y)) to--;
      this.#span(y, from, to + 1, value);
    }
    return rect;
  }

  /**
   * Fill the rectangle between two corners, in any order: every pixel whose centre lies in it, edges included.
   * @param {number} x0
   * @param {number} y0
   * @param {number} x1
   * @param {number} y1
   * @param {number} value
   * @returns {Rect}
   */
  rectangle(x0, y0, x1, y1, value) {
    const rect = this.#around([x0, x1], [y0, y1]);
    for (let y = rect.top; y < rect.bottom; y++) this.#span(y, rect.left, rect.right, value);
    return rect;
  }

  /**
   * Fill a closed outline: every pixel whose centre lies on it, or where it winds around it (nonzero).
   * @param {[number, number][]} points
   * @param {number} value
   * @returns {Rect}
   */
  polygon(points, value) {
    const rect = this.#around(
      points.map((p) => p[0]),
      points.map((p) => p[1]),
    );
    const centred = points.map(([x, y]) => [x - 0.5, y - 0.5]);
    for (let y = rect.top; y < rect.bottom; y++) {
      for (const [low, high] of polygonSpans(centred, y)) this.#span(y, Math.ceil(low), Math.floor(high) + 1, value);
    }
    return rect;
  }

  /** Give every pixel one value, as one edit. @param {number} value */
  fill(value) {
    return this.#remake(() => value);
  }

  /** As one edit. */
  invert() {
    return this.#remake((index) => {
      const tile = this.#read(index);
      return typeof tile === 'number' ? 255 - tile : tile.map((value) => 255 - value);
    });
  }

  /** Take over another mask's values, as one edit. @param {Uint8Array} data of this mask's size */
  replace(data) {
    if (data.length !== this.data.length) throw new RangeError('a mask of another size');
    return this.#remake((index) => this.#read(index, data));
  }

  /** @param {(index: number) => Tile} make @returns {Generator<void, MaskPatch | null>} yields now and then; as of `commit` */
  *#remake(make) {
    if (this.#before) throw new Error('an edit is open');
    /** @type {Map<number, Tile>} */
    const tiles = new Map();
    const count = this.tilesAcross * Math.ceil(this.height / TILE);
    for (let index = 0; index < count; index++) {
      const [before, after] = [this.#read(index), make(index)];
      if (!sameTile(before, after)) {
        tiles.set(index, before);
        this.#write(index, after);
      }
      if (index % TILES_AT_ONCE === TILES_AT_ONCE - 1) yield;
    }
    return tiles.size ? { tiles, bytes: tileBytes(tiles) } : null;
  }

  /**
   * Take over values that were computed elsewhere, as one edit.
   *
   * @param {Uint8Array} data of this mask's size
   * @param {Map<number, Tile>} tiles what this mask holds where `data` differs
   * @param {number} holes how many pixels of `data` are hole
   * @returns {MaskPatch | null} as of `commit`
   */
  adopt(data, tiles, holes) {
    if (this.#before) throw new Error('an edit is open');
    this.data = /** @type {Uint8Array<ArrayBuffer>} */ (data);
    this.holes = holes;
    return tiles.size ? { tiles, bytes: tileBytes(tiles) } : null;
  }

  /** @param {number} y @param {number} from first column @param {number} to column after the last @param {number} value */
  #span(y, from, to, value) {
    const start = Math.max(from, 0);
    const stop = Math.min(to, this.width);
    if (start >= stop || y < 0 || y >= this.height) return;
    const row = Math.floor(y / TILE) * this.tilesAcross;
    for (let column = Math.floor(start / TILE); column * TILE < stop; column++) this.#remember(row + column);
    const { data, level } = this;
    const offset = y * this.width;
    let had = 0;
    for (let i = offset + start; i < offset + stop; i++) if (data[i] >= level) had++;
    data.fill(value, offset + start, offset + stop);
    this.holes += (value >= level ? stop - start : 0) - had;
  }

  /** @param {number} index */
  #remember(index) {
    if (!this.#before) throw new Error('draw between begin() and commit()');
    if (!this.#before.has(index)) this.#before.set(index, this.#read(index));
  }

  #close() {
    if (!this.#before) throw new Error('no edit is open');
    const tiles = this.#before;
    this.#before = null;
    return tiles;
  }

  /** @param {number} index */
  #tile(index) {
    const left = (index % this.tilesAcross) * TILE;
    const top = Math.floor(index / this.tilesAcross) * TILE;
    return this.#clip({ left, top, right: left + TILE, bottom: top + TILE });
  }

  /** @param {number} index @param {Uint8Array} [data] of this size, in place of this mask's */
  #read(index, data = this.data) {
    const { left, top, right, bottom } = this.#tile(index);
    const first = data[top * this.width + left];
    const values = new Uint8Array((right - left) * (bottom - top));
    let uniform = true;
    for (let y = top, to = 0; y < bottom; y++) {
      for (let i = y * this.width + left; i < y * this.width + right; i++) {
        values[to++] = data[i];
        if (data[i] !== first) uniform = false;
      }
    }
    return uniform ? first : values;
  }

  /** @param {number} index @param {Tile} tile */
  #write(index, tile) {
    const { left, top, right, bottom } = this.#tile(index);
    for (let y = top, from = 0; y < bottom; y++) {
      for (let i = y * this.width + left; i < y * this.width + right; i++) {
        const value = typeof tile === 'number' ? tile : tile[from++];
        this.holes += Number(value >= this.level) - Number(this.data[i] >= this.level);
        this.data[i] = value;
      }
    }
  }

  /** The pixels whose centres lie between the least and the largest of these. @param {number[]} xs @param {number[]} ys */
  #around(xs, ys) {
    return this.#clip({
      left: Math.ceil(least(xs) - 0.5),
      top: Math.ceil(least(ys) - 0.5),
      right: Math.floor(-least(xs.map((x) => -x)) - 0.5) + 1,
      bottom: Math.floor(-least(ys.map((y) => -y)) - 0.5) + 1,
    });
  }

  /** @param {Rect} rect */
  #clip(rect) {
    const left = Math.min(Math.max(rect.left, 0), this.width);
    const top = Math.min(Math.max(rect.top, 0), this.height);
    const right = Math.max(left, Math.min(rect.right, this.width));
    return { left, top, right, bottom: Math.max(top, Math.min(rect.bottom, this.height)) };
  }

  /** @param {Map<number, Tile>} tiles */
  #boundsOf(tiles) {
    return [...tiles.keys()].map((index) => this.#tile(index)).reduce(union, { left: 0, top: 0, right: 0, bottom: 0 });
  }
}

/** The smallest rectangle around both; an empty one counts for nothing. @param {Rect} a @param {Rect} b @returns {Rect} */
export function union(a, b) {
  if (a.right <= a.left || a.bottom <= a.top) return b;
  if (b.right <= b.left || b.bottom <= b.top) return a;
  const [left, top] = [Math.min(a.left, b.left), Math.min(a.top, b.top)];
  return { left, top, right: Math.max(a.right, b.right), bottom: Math.max(a.bottom, b.bottom) };
}

/** Turns pointer positions into short pieces of a smooth curve: quadratic Beziers between the midpoints. */
export class SmoothPath {
  /** @param {number} x @param {number} y */
  constructor(x, y) {
    /** @type {[number, number]} the newest position */
    this.last = [x, y];
    /** @type {[number, number]} where the curve has got to */
    this.at = [x, y];
  }

  /**
   * @param {number} x
   * @param {number} y
   * @param {number} piece px, about how long a piece may be
   * @returns {[number, number, number, number][]} pieces from, to
   */
  add(x, y, piece) {
    const [cx, cy] = this.last;
    const [x0, y0] = this.at;
    const end = /** @type {[number, number]} */ ([(cx + x) / 2, (cy + y) / 2]);
    const length = Math.hypot(cx - x0, cy - y0) + Math.hypot(end[0] - cx, end[1] - cy);
    const count = Math.min(64, Math.max(1, Math.ceil(length / Math.max(piece, 1))));
    /** @type {[number, number, number, number][]} */
    const pieces = [];
    let [px, py] = this.at;
    for (let i = 1; i <= count; i++) {
      const t = i / count;
      const qx = (1 - t) * (1 - t) * x0 + 2 * t * (1 - t) * cx + t * t * end[0];
      const qy = (1 - t) * (1 - t) * y0 + 2 * t * (1 - t) * cy + t * t * end[1];
      pieces.push([px, py, qx, qy]);
      [px, py] = [qx, qy];
    }
    this.last = [x, y];
    this.at = end;
    return pieces;
  }

  /** @returns {[number, number, number, number]} the piece from where the curve is to the last position */
  end() {
    return [...this.at, ...this.last];
  }
}

/** Undo and redo; the oldest changes are dropped where the rest would exceed `limit` bytes. */
export class History {
  /** @type {Change[]} */
  #done = [];
  /** @type {Change[]} */
  #undone = [];

  /** @param {number} limit bytes */
  constructor(limit) {
    this.limit = limit;
  }

  get canUndo() {
    return this.#done.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /** Bytes held. */
  get bytes() {
    return [...this.#done, ...this.#undone].reduce((sum, change) => sum + change.bytes, 0);
  }

  /** @param {Change} change one that has just been made */
  push(change) {
    this.#undone = [];
    this.#done.push(change);
    let bytes = this.bytes;
    while (bytes > this.limit && this.#done.length > 1) bytes -= this.#done.shift()?.bytes ?? 0;
  }

  /** @returns {string | null} what was undone */
  undo() {
    return move(this.#done, this.#undone);
  }

  /** @returns {string | null} what was redone */
  redo() {
    return move(this.#undone, this.#done);
  }
}

/** @param {Change[]} from @param {Change[]} to */
function move(from, to) {
  const change = from.pop();
  if (!change) return null;
  change.swap();
  to.push(change);
  return change.label;
}

/** Diameter (px) that the brush has at first. @param {number} width px @param {number} height @param {number} share the manifest's brush_share */
export function firstBrush(width, height, share) {
  return Math.max(1, Math.floor(Math.min(width, height) * share));
}

/**
 * Whether a pixel's centre is within `radius` of a line: in a circle at an end, or in the strip between.
 * @param {number} ax
 * @param {number} ay
 * @param {number} bx
 * @param {number} by
 * @param {number} radius
 * @param {number} x
 * @param {number} y
 */
function isNearLine(ax, ay, bx, by, radius, x, y) {
  const r2 = radius * radius;
  const [dx, dy] = [bx - ax, by - ay];
  if ((x - ax) * (x - ax) + (y - ay) * (y - ay) <= r2 || (x - bx) * (x - bx) + (y - by) * (y - by) <= r2) return true;
  const length2 = dx * dx + dy * dy;
  const along = (x - ax) * dx + (y - ay) * dy;
  const aside = (x - ax) * dy - (y - ay) * dx;
  return length2 > 0 && along >= 0 && along <= length2 && aside * aside <= r2 * length2;
}

/**
 * Where the row at height `y` cuts a line with round ends: the hull of its two circles and the strip between them.
 * @param {number} x0
 * @param {number} y0
 * @param {number} x1
 * @param {number} y1
 * @param {number} radius
 * @param {number} y
 * @returns {[number, number]} from, to; from > to where it does not
 */
function lineSpan(x0, y0, x1, y1, radius, y) {
  let low = Infinity;
  let high = -Infinity;
  for (const [x, cy] of [
    [x0, y0],
    [x1, y1],
  ]) {
    const square = radius * radius - (y - cy) * (y - cy);
    if (square < 0) continue;
    low = Math.min(low, x - Math.sqrt(square));
    high = Math.max(high, x + Math.sqrt(square));
  }
  const [dx, dy] = [x1 - x0, y1 - y0];
  const length = Math.hypot(dx, dy);
  if (length === 0) return [low, high];
  // along = ((x - x0) dx + (y - y0) dy) / length in 0..length, aside = ((x - x0) dy - (y - y0) dx) / length in +-radius
  const along = between(dx / length, ((y - y0) * dy) / length, 0, length);
  const aside = between(dy / length, (-(y - y0) * dx) / length, -radius, radius);
  const from = Math.max(along[0], aside[0]) + x0;
  const to = Math.min(along[1], aside[1]) + x0;
  return from <= to ? [Math.min(low, from), Math.max(high, to)] : [low, high];
}

/**
 * The u for which low <= a u + b <= high.
 * @param {number} a
 * @param {number} b
 * @param {number} low
 * @param {number} high
 * @returns {[number, number]}
 */
function between(a, b, low, high) {
  if (Math.abs(a) < 1e-12) return b >= low && b <= high ? [-Infinity, Infinity] : [Infinity, -Infinity];
  const [p, q] = [(low - b) / a, (high - b) / a];
  return [Math.min(p, q), Math.max(p, q)];
}

/**
 * Where the line at height `y` lies in a polygon, as closed intervals that may overlap.
 * @param {number[][]} points
 * @param {number} y
 * @returns {[number, number][]}
 */
function polygonSpans(points, y) {
  /** @type {[number, number][]} */
  const spans = [];
  const crossings = [];
  for (let i = 0; i < points.length; i++) {
    const [x0, y0] = points[i];
    const [x1, y1] = points[(i + 1) % points.length];
    if (y < Math.min(y0, y1) || y > Math.max(y0, y1)) continue;
    if (y0 === y1) {
      spans.push([Math.min(x0, x1), Math.max(x0, x1)]);
      continue;
    }
    const x = x0 + ((y - y0) * (x1 - x0)) / (y1 - y0);
    spans.push([x, x]);
    if (y0 <= y !== y1 <= y) crossings.push({ x, turn: y1 > y0 ? 1 : -1 });
  }
  crossings.sort((a, b) => a.x - b.x);
  let winding = 0;
  for (let i = 0; i + 1 < crossings.length; i++) {
    winding += crossings[i].turn;
    if (winding) spans.push([crossings[i].x, crossings[i + 1].x]);
  }
  return spans;
}

/** @param {number[]} values */
function least(values) {
  return values.reduce((a, b) => Math.min(a, b), Infinity);
}

/** @param {Tile} a @param {Tile} b */
function sameTile(a, b) {
  if (typeof a === 'number' || typeof b === 'number') return a === b;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** @param {Map<number, Tile>} tiles */
function tileBytes(tiles) {
  let bytes = 0;
  for (const tile of tiles.values()) bytes += typeof tile === 'number' ? 16 : tile.length + 64;
  return bytes;
}

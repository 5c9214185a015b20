// The square windows that the model sees and the pasting of its result, byte for byte as imaging.py and Pillow do it.
//
// A picture is {width, height, data} with RGBA bytes, a mask one byte a pixel, both row by row: the hole is where the mask is
// 128 or more (`mask_threshold`). No array is larger than the picture, or a window's longer side by the model's.

import { EngineError } from './errors.js';

/** @import { Area, Blend, Box, Constants, Coverage, Filter, Paste, Picture, Seen, Taps, Window } from './types.js' */

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
 * A cell is hole where any pixel of its block is; as released, where the upper left one is ('nearest').
 *
 * @param {Uint8Array} hole (size, size) of 0 and 1
 * @param {Coverage} coverage
 * @param {Constants} constants
 * @returns {Float32Array} (s, s)
 */
export function maskToLatent(hole, coverage, { image_size: size, latent_size: s, vae_factor }) {
  const latent = new Float32Array(s * s);
  const looked = coverage === 'as-released' ? 1 : vae_factor; // px of a block, along each side
  for (let y = 0, i = 0; y < s; y++) {
    for (let x = 0; x < s; x++, i++) {
      for (let v = 0; v < looked; v++) {
        const start = (y * vae_factor + v) * size + x * vae_factor;
        for (let j = start; j < start + looked; j++) if (hole[j]) latent[i] = 1;
      }
    }
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
 * @param {Coverage} coverage
 * @param {Constants} constants
 * @returns {Window[]}
 */
export function planWindows(hole, width, height, coverage, constants) {
  const { image_size: size, window_margin: margin } = constants;
  const { labels, boxes: holes } = labelHoles(hole, width, height);
  const usable = Math.trunc(size * (1 - 2 * margin));
  const fits = Math.max(height, width) <= size;
  const boxes = coverage === 'as-released' || fits ? holes : cutThin(labels, width, holes, usable);
  const groups = fits ? [boxes] : cover(boxes, usable);
  const numbers = new Uint32Array(boxes.reduce((most, { label }) => Math.max(most, label), 0) + 1);
  groups.forEach((group, i) => group.forEach(({ label }) => (numbers[label] = i + 1)));
  for (let i = 0; i < labels.length; i++) labels[i] = numbers[labels[i]];
  return groups.map((group, i) => {
    const box = group.reduce(union);
    const needed = sideOf(box) <= usable ? size : Math.ceil(sideOf(box) / (1 - 2 * margin));
    const side = Math.max(size, Math.min(needed, Math.max(height, width)));
    const [left, top] = [place(box.left, box.right, side, width), place(box.top, box.bottom, side, height)];
    return { left, top, side, number: i + 1, owners: labels };
  });
}

/**
 * Cut the holes that are longer than `usable` px but thin, as `_cut_thin` in imaging.py.
 *
 * @param {Uint32Array} labels 0 outside; every piece gets a label of its own, in place
 * @param {number} width
 * @param {Box[]} boxes
 * @param {number} usable px
 * @returns {Box[]} those of the pieces, and of the holes that stay
 */
function cutThin(labels, width, boxes, usable) {
  /** @type {Box[]} */
  const all = [];
  let free = boxes.length + 1;
  for (const box of boxes) {
    if (sideOf(box) <= usable || isThick(labels, width, box, usable >> 1)) {
      all.push(box);
      continue;
    }
    /** @type {Map<number, Box>} by its place in the grid */
    const pieces = new Map();
    const across = box.right - box.left;
    for (let y = box.top; y < box.bottom; y++) {
      for (let x = box.left; x < box.right; x++) {
        if (labels[y * width + x] !== box.label) continue;
        const place = Math.floor((y - box.top) / usable) * across + Math.floor((x - box.left) / usable);
        const pixel = { left: x, top: y, right: x + 1, bottom: y + 1, label: free };
        const piece = pieces.get(place);
        if (!piece) free++;
        const grown = piece ? union(piece, pixel) : pixel;
        pieces.set(place, grown);
        labels[y * width + x] = grown.label;
      }
    }
    all.push(...pieces.values());
  }
  return all;
}

/**
 * @param {Uint32Array} labels
 * @param {number} width
 * @param {Box} box
 * @param {number} side px
 * @returns {boolean} whether the hole of this box holds a square of that side
 */
function isThick(labels, width, { left, top, right, bottom, label }, side) {
  const above = new Uint32Array(right - left); // rows, down to this one, in which the hole has been `side` px wide up to here
  for (let y = top; y < bottom; y++) {
    for (let x = left, run = 0; x < right; x++) {
      run = labels[y * width + x] === label ? run + 1 : 0;
      above[x - left] = run >= side ? above[x - left] + 1 : 0;
      if (above[x - left] >= side) return true;
    }
  }
  return false;
}

/**
 * Group boxes so that those of a group fit a square of `usable` px together: by shelves, as `_cover` in imaging.py.
 *
 * @param {Box[]} boxes
 * @param {number} usable px
 * @returns {Box[][]} the larger boxes alone by falling size, then the shelves from the top, each from the left
 */
function cover(boxes, usable) {
  const order = [...boxes].sort((a, b) => a.top - b.top || a.left - b.left || a.bottom - b.bottom || a.right - b.right);
  const large = order.filter((box) => sideOf(box) > usable).sort((a, b) => sideOf(b) - sideOf(a));
  const groups = large.map((box) => [box]);
  let rest = order.filter((box) => sideOf(box) <= usable);
  while (rest.length) {
    const shelf = rest[0].top;
    for (;;) {
      const left = leastOf(rest, (box) => (box.bottom <= shelf + usable ? box.left : Infinity));
      if (left === Infinity) break;
      const across = (/** @type {Box} */ box) => box.left >= left && box.right <= left + usable;
      const upper = leastOf(rest, (box) => (box.bottom <= shelf + usable && across(box) ? box.top : Infinity));
      const taken = (/** @type {Box} */ box) => across(box) && box.top >= upper && box.bottom <= upper + usable;
      groups.push(rest.filter(taken));
      rest = rest.filter((box) => !taken(box));
    }
  }
  return groups;
}

/** @param {Box[]} boxes @param {(box: Box) => number} value */
function leastOf(boxes, value) {
  return boxes.reduce((least, box) => Math.min(least, value(box)), Infinity);
}

/**
 * How many windows of which size, in words: what a run will cost.
 *
 * @param {Window[]} windows
 * @param {number} size px, side of the model's input
 */
export function describeWindows(windows, size) {
  const larger = windows.map(({ side }) => side).filter((side) => side > size);
  const own = windows.length - larger.length;
  const parts = [];
  if (own) parts.push(`${own} window${own > 1 ? 's' : ''} of ${size} px`);
  if (larger.length) {
    const what = `${larger.length} ${own ? 'larger ' : ''}window${larger.length > 1 ? 's' : ''}`;
    parts.push(`${what} of up to ${Math.max(...larger)} px, scaled to ${size} px`);
  }
  return parts.join(' and ');
}

/**
 * Number the 8-connected parts of a hole in reading order of their first pixels.
 *
 * @param {Uint8Array} hole
 * @param {number} width
 * @param {number} height
 * @returns {{labels: Uint32Array, boxes: Box[]}} label 0 is outside; box i has label i + 1
 */
export function labelHoles(hole, width, height) {
  const labels = new Uint32Array(hole.length);
  /** @type {Box[]} */
  const boxes = [];
  for (let start = hole.indexOf(1), end = 0; start !== -1; start = hole.indexOf(1, end)) {
    const rowEnd = (Math.floor(start / width) + 1) * width;
    const gap = hole.subarray(start, rowEnd).indexOf(0);
    end = gap === -1 ? rowEnd : start + gap; // where the next row begins, another run does
    if (labels[start]) continue;
    const label = boxes.length + 1;
    const box = { left: width, top: height, right: 0, bottom: 0, label };
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

/** @param {Box} box */
function sideOf(box) {
  return Math.max(box.right - box.left, box.bottom - box.top);
}

/** @param {Box} a @param {Box} b @returns {Box} with the label of `a` */
function union(a, b) {
  const [left, top] = [Math.min(a.left, b.left), Math.min(a.top, b.top)];
  return { ...a, left, top, right: Math.max(a.right, b.right), bottom: Math.max(a.bottom, b.bottom) };
}

/** @param {number} start @param {number} stop @param {number} side @param {number} length */
function place(start, stop, side, length) {
  if (side >= length) return Math.floor((length - side) / 2);
  return Math.min(Math.max(Math.floor((start + stop - side) / 2), 0), length - side);
}

/** Indices start..start+side into an axis, reflected at both ends with the edge pixel repeated. */
export function mirror(/** @type {number} */ start, /** @type {number} */ side, /** @type {number} */ length) {
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
 * @returns {Seen} of size x size pixels
 */
export function crop(image, hole, window, size) {
  const { side } = window;
  const rows = mirror(window.top, side, image.height);
  const cols = mirror(window.left, side, image.width);
  if (side !== size) return shrink(image, hole, rows, cols, size);
  const rgb = new Uint8Array(size * size * 3);
  const seen = new Uint8Array(size * size);
  for (let y = 0; y < size; y++)
    readLine(image, hole, rows[y] * image.width, 1, cols, rgb.subarray(3 * y * size), seen.subarray(y * size));
  return { rgb, hole: seen };
}

/**
 * @param {Picture} image
 * @param {Uint8Array} hole
 * @param {number} start where the line begins, in pixels
 * @param {number} step from pixel to pixel
 * @param {Int32Array} at
 * @param {Uint8Array} rgb gets the line's pixels at those places
 * @param {Uint8Array} seen gets what is hole of them
 */
function readLine(image, hole, start, step, at, rgb, seen) {
  for (let x = 0; x < at.length; x++) {
    const j = start + at[x] * step;
    rgb[3 * x] = image.data[4 * j];
    rgb[3 * x + 1] = image.data[4 * j + 1];
    rgb[3 * x + 2] = image.data[4 * j + 2];
    seen[x] = hole[j];
  }
}

/**
 * A picture and its hole at `rows` and `cols`, a square of any size, scaled down: along the picture's longer side, of which each
 * line is reflected and scaled on its own, then along the other. A new pixel that the hole touches at all belongs to it.
 *
 * @param {Picture} image
 * @param {Uint8Array} hole
 * @param {Int32Array} rows
 * @param {Int32Array} cols
 * @param {number} size px
 * @returns {Seen} of size x size pixels
 */
function shrink(image, hole, rows, cols, size) {
  const side = cols.length;
  const lanczos = fixedTaps(0, side, side, size, LANCZOS);
  const touched = taps(0, side, side, size, BOX).map(({ first, weights }) =>
    weights.flatMap((w, k) => (w > 0 ? [first + k] : [])),
  );
  const turned = image.height > image.width; // lines are columns then
  const [lines, places] = turned ? [cols, rows] : [rows, cols];
  const [lineStep, pixelStep] = turned ? [1, image.width] : [image.width, 1];
  const first = lines.reduce((a, b) => Math.min(a, b));
  const count = lines.reduce((a, b) => Math.max(a, b)) - first + 1;
  const line = new Uint8Array(3 * side);
  const lineHole = new Uint8Array(side);
  const narrow = new Uint8Array(count * size * 3);
  const narrowHole = new Uint8Array(count * size);
  for (let y = 0; y < count; y++) {
    readLine(image, hole, (first + y) * lineStep, pixelStep, places, line, lineHole);
    mixPixels(line, lanczos, narrow.subarray(3 * y * size));
    for (let x = 0; x < size; x++) narrowHole[y * size + x] = touched[x].some((i) => lineHole[i]) ? 1 : 0;
  }
  const at = lines.map((i) => i - first);
  const rgb = mixRows(narrow, 3 * size, lanczos, at);
  const seen = new Uint8Array(size * size);
  for (let y = 0, i = 0; y < size; y++) {
    for (let x = 0; x < size; x++, i++) seen[i] = touched[y].some((row) => narrowHole[at[row] * size + x]) ? 1 : 0;
  }
  return turned ? { rgb: transpose(rgb, size, 3), hole: transpose(seen, size, 1) } : { rgb, hole: seen };
}

/**
 * @param {Uint8Array} square
 * @param {number} size pixels a side
 * @param {number} bytes a pixel
 */
function transpose(square, size, bytes) {
  const turned = new Uint8Array(square.length);
  for (let y = 0, to = 0; y < size; y++) {
    for (let x = 0; x < size; x++) for (let c = 0; c < bytes; c++, to++) turned[to] = square[(x * size + y) * bytes + c];
  }
  return turned;
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
  return {
    left,
    top,
    width: Math.min(window.left + window.side, width) - left,
    height: Math.min(window.top + window.side, height) - top,
  };
}

/**
 * Which pixels a window fills.
 *
 * @param {Window} window
 * @param {number} width px, of the picture
 * @param {Area} area
 * @returns {Uint8Array} 1 for those, 0 for others
 */
function ownHole({ owners, number }, width, { left, top, width: across, height }) {
  const own = new Uint8Array(across * height);
  for (let y = 0, i = 0; y < height; y++) {
    for (let j = (top + y) * width + left, end = j + across; j < end; j++, i++) own[i] = owners[j] === number ? 1 : 0;
  }
  return own;
}

/**
 * Take what a window fills from what is left to fill.
 *
 * @param {Uint8Array} hole of the picture, 0 or 1; changed in place
 * @param {Window} window
 * @param {{width: number, height: number}} picture
 */
export function closeHole(hole, window, picture) {
  const { left, top, width, height } = visible(window, picture);
  for (let y = top; y < top + height; y++) {
    for (let i = y * picture.width + left, end = i + width; i < end; i++) if (window.owners[i] === window.number) hole[i] = 0;
  }
}

/**
 * Where and how much of a window is pasted: its part of the hole, feathered.
 *
 * @param {Uint8Array} mask the painted mask; as released, its values near the window's holes feather them
 * @param {number} width
 * @param {number} height
 * @param {Window} window
 * @param {Coverage} coverage
 * @param {Constants} constants
 * @returns {Paste}
 */
export function pasting(mask, width, height, window, coverage, constants) {
  const seen = visible(window, { width, height });
  if (coverage === 'as-released') {
    const area = painted(mask, width, seen, blurReach(constants));
    const values = region(mask, width, area);
    const own = ownValues(values, ownHole(window, width, area), area.width, area.height, constants);
    return { ...area, weights: blur(own, area.width, area.height, constants), coverage };
  }
  const area = painted(ownHole(window, width, seen), seen.width, { ...seen, left: 0, top: 0 }, constants.feather_width - 1);
  const moved = { ...area, left: area.left + seen.left, top: area.top + seen.top };
  return { ...moved, weights: feather(ownHole(window, width, moved), area.width, area.height, constants), coverage };
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
export function uncrop(rgb, image, window, paste, { image_size: size }) {
  const { left, top, width, height, weights } = paste;
  const whole = { left: window.left, top: window.top, width: size };
  const [pixels, place] = window.side === size ? [rgb, whole] : enlarge(rgb, size, window, visible(window, image));
  const blend = paste.coverage === 'as-released' ? blendAsReleased : blendRounded;
  for (let y = top, i = 0; y < top + height; y++) {
    for (let x = left; x < left + width; x++, i++) {
      if (weights[i] === 0) continue;
      const from = 3 * ((y - place.top) * place.width + x - place.left);
      const to = 4 * (y * image.width + x);
      for (let c = 0; c < 3; c++) image.data[to + c] = blend(pixels[from + c], image.data[to + c], weights[i]);
    }
  }
}

/** @type {Blend} */
function blendRounded(made, old, weight) {
  return Math.floor((made * weight + old * (255 - weight) + 127) / 255);
}

/** @type {Blend} */
function blendAsReleased(made, old, weight) {
  const a = weight / 255;
  return Math.trunc(((made / 255) * a + (old / 255) * (1 - a)) * 255);
}

/**
 * The part of a square of RGB bytes that lies in an area of the picture, scaled up to the window, without the rest.
 *
 * @param {Uint8Array} rgb
 * @param {number} size px
 * @param {Window} window
 * @param {Area} area
 * @returns {[Uint8Array, Area]}
 */
function enlarge(rgb, size, window, area) {
  const edge = (/** @type {number} */ px) => (px * size) / window.side;
  const [x, y] = [area.left - window.left, area.top - window.top];
  const across = fixedTaps(edge(x), edge(x + area.width), size, area.width, BICUBIC);
  const down = fixedTaps(edge(y), edge(y + area.height), size, area.height, BICUBIC);
  const wide = new Uint8Array(size * area.width * 3);
  for (let row = 0; row < size; row++) mixPixels(rgb.subarray(3 * row * size), across, wide.subarray(3 * row * area.width));
  return [mixRows(wide, 3 * area.width, down), area];
}

/**
 * @template {Uint8Array|Uint8ClampedArray|Uint32Array} T
 * @param {T} all
 * @param {number} stride px of a row
 * @param {Area} area
 * @param {number} [channels] numbers a pixel
 * @returns {T} a copy of that part
 */
export function region(all, stride, { left, top, width, height }, channels = 1) {
  const part = /** @type {T} */ (new /** @type {any} */ (all.constructor)(width * height * channels));
  for (let y = 0; y < height; y++) {
    const start = (top + y) * stride + left;
    part.set(all.subarray(start * channels, (start + width) * channels), y * width * channels);
  }
  return part;
}

/**
 * The mask where this window's holes are nearest: soft edges of other holes are left to their windows.
 *
 * @param {Uint8Array} mask
 * @param {Uint8Array} own
 * @param {number} width
 * @param {number} height
 * @param {Constants} constants
 */
function ownValues(mask, own, width, height, constants) {
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
function squaredDistance(ones, width, height) {
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

// -- weights of the new picture ----------------------------------------------------------------------------------------

/**
 * Weights of the new picture, 255 for all of it: that in the whole hole, less with the distance outside, none from
 * `feather_width` px on.
 *
 * @param {Uint8Array} hole 0 or 1
 * @param {number} width
 * @param {number} height
 * @param {Constants} constants
 * @returns {Uint8Array}
 */
export function feather(hole, width, height, { feather_width: reach }) {
  const fading = Uint8Array.from({ length: reach * reach + 1 }, (_, squared) => {
    const t = 1 - Math.sqrt(squared) / reach;
    return Math.floor(255 * (t * t * (3 - 2 * t)) + 0.5);
  });
  return nearness(hole, width, height, reach).map((squared) => fading[squared]);
}

/**
 * For every pixel, the squared distance to the nearest 1, at most `reach` squared; `reach` is at most 15 px.
 *
 * @param {Uint8Array} ones
 * @param {number} width
 * @param {number} height
 * @param {number} reach px
 * @returns {Uint8Array}
 */
function nearness(ones, width, height, reach) {
  const far = reach * reach;
  const along = new Uint8Array(ones.length).fill(far); // along the row alone
  const spread = (/** @type {number} */ start, /** @type {number} */ stride, /** @type {number} */ count) => {
    for (let x = 0, i = start, away = reach; x < count; x++, i += stride) {
      away = ones[i] ? 0 : Math.min(away + 1, reach);
      along[i] = Math.min(along[i], away * away);
    }
  };
  for (let y = 0; y < height; y++) {
    spread(y * width, 1, width);
    spread((y + 1) * width - 1, -1, width);
  }
  const near = along.slice();
  for (let k = 1; k < reach; k++) {
    const step = k * width;
    for (let i = step; i < near.length; i++) {
      if (along[i - step] + k * k < near[i]) near[i] = along[i - step] + k * k;
      if (along[i] + k * k < near[i - step]) near[i - step] = along[i] + k * k;
    }
  }
  return near;
}

// -- Pillow's Gaussian blur --------------------------------------------------------------------------------------------

const BLUR_PASSES = 3;
const BLUR_ONE = 2 ** 24; // fixed point

/** How far, px, a mask spreads when it is blurred. */
function blurReach(/** @type {Constants} */ { mask_blur_radius }) {
  return BLUR_PASSES * (Math.trunc(boxRadius(mask_blur_radius)) + 1);
}

/**
 * Weights of the new picture as released, 255 for all of it: the mask through Pillow's Gaussian blur, which is three
 * extended box blurs (Gwosdek et al. 2011) a direction, each rounded to bytes.
 *
 * @param {Uint8Array} mask
 * @param {number} width
 * @param {number} height
 * @param {Constants} constants
 * @returns {Uint8Array}
 */
export function blur(mask, width, height, { mask_blur_radius }) {
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
 * For every pixel of a new grid over a part of an old one, the first old pixel that it reads and the weights of those from
 * there on.
 *
 * @param {number} start px of the old grid, where the part begins; in float32, as Pillow has it
 * @param {number} stop px, where it ends
 * @param {number} from px, of the old grid
 * @param {number} to px, of the new one
 * @param {Filter} filter
 * @returns {{first: number, weights: number[]}[]}
 */
function taps(start, stop, from, to, filter) {
  const scale = round(round(stop) - round(start)) / to;
  const stretch = Math.max(scale, 1);
  const reach = filter.support * stretch;
  return Array.from({ length: to }, (_, i) => {
    const centre = round(start) + (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach + 0.5), from);
    const weights = Array.from({ length: end - first }, (_, k) => filter.weight((k + first - centre + 0.5) * (1 / stretch)));
    const sum = weights.reduce((total, w) => total + w, 0);
    return { first, weights: sum === 0 ? weights : weights.map((w) => w * (1 / sum)) };
  });
}

const RESIZE_ONE = 2 ** 22; // fixed point

/**
 * @param {number} start
 * @param {number} stop
 * @param {number} from
 * @param {number} to
 * @param {Filter} filter
 * @returns {Taps} see `taps`
 */
function fixedTaps(start, stop, from, to, filter) {
  return taps(start, stop, from, to, filter).map(({ first, weights }) => ({
    first,
    weights: Int32Array.from(weights, (w) => w * RESIZE_ONE + (w < 0 ? -0.5 : 0.5)), // truncates
  }));
}

/**
 * One line of RGB bytes through its taps, rounded to bytes.
 *
 * @param {Uint8Array} line
 * @param {Taps} across
 * @param {Uint8Array} target gets a pixel for each of them
 */
function mixPixels(line, across, target) {
  for (let i = 0; i < across.length; i++) {
    const { first, weights } = across[i];
    for (let c = 0; c < 3; c++) {
      let sum = RESIZE_ONE / 2;
      for (let k = 0, at = 3 * first + c; k < weights.length; k++, at += 3) sum += line[at] * weights[k];
      target[3 * i + c] = Math.min(Math.max(Math.floor(sum / RESIZE_ONE), 0), 255);
    }
  }
}

/**
 * Whole rows of bytes through their taps, rounded to bytes.
 *
 * @param {Uint8Array} rows
 * @param {number} stride bytes of a row
 * @param {Taps} down
 * @param {Int32Array} [at] which row to read for each that the taps name; the same where it is missing
 * @returns {Uint8Array} a row for each of the taps
 */
function mixRows(rows, stride, down, at) {
  const target = new Uint8Array(down.length * stride);
  const sums = new Float64Array(stride);
  for (let i = 0; i < down.length; i++) {
    const { first, weights } = down[i];
    sums.fill(RESIZE_ONE / 2);
    for (let k = 0; k < weights.length; k++) {
      const start = (at ? at[first + k] : first + k) * stride;
      for (let x = 0; x < stride; x++) sums[x] += rows[start + x] * weights[k];
    }
    for (let x = 0; x < stride; x++) target[i * stride + x] = Math.min(Math.max(Math.floor(sums[x] / RESIZE_ONE), 0), 255);
  }
  return target;
}

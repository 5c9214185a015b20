// The picture on the screen: zoom and pan, the tools with mouse, touch, pen and keys, and what lies over the picture.

import { HOLE, KEEP, SmoothPath, union } from './mask.js';
import { fitted, inSight, overHole, pinched, rectangleCorners, toPicture, zoomed } from './view.js';

/** @import { Area } from '../engine/types.js' */
/** @import { Mask } from './mask.js' */
/** @import { Layer, Picked, Picture, Point, Rect, Tool } from './types.js' */

/** @type {Partial<Record<Tool, string>>} */
const LABELS = { brush: 'brush stroke', eraser: 'erasing', rectangle: 'rectangle', lasso: 'lasso', hand: '' };
const LARGE = 6e6; // px; a larger picture also gets a reduced copy, which is what is drawn when zoomed out
const OVERLAY_LIMIT = 2.5e6; // px of the canvas that shows the mask
/** @type {Record<string, number[]>} the directions in which keys move, px */
export const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
/** @type {Tool[]} */
const PICKS = ['wand', 'wire', 'object']; // what they do with a point is not the editor's affair

/**
 * Events: `edit` ({label, patch}: the mask was changed), `view`, `size`, `split`, `say` (a text for the status line); of the tools
 * that select, `pick` (a `Picked`), `hover` (a point), `stop`.
 */
export class Editor extends EventTarget {
  /** @type {Picture | null} */
  picture = null;
  /** @type {Mask | null} */
  mask = null;
  /** @type {Tool} */
  tool = 'brush';
  /** Diameter of brush and eraser, px of the picture. */
  size = 40;
  /** Whether rectangle and lasso take away. */
  subtract = false;
  /** Whether the mask may not be changed now. */
  locked = false;
  view = { scale: 1, x: 0, y: 0 };
  #width = 0;
  #height = 0;
  /** @type {OffscreenCanvas | null} */
  #source = null;
  /** @type {{canvas: OffscreenCanvas, factor: number} | null} */
  #reduced = null;
  /** @type {CanvasPattern | null} */
  #checks = null;
  /** @type {Layer | null} */
  #layer = null;
  /** @type {Layer | null} what is shown left of the split, in place of the picture */
  #other = null;
  /** @type {number | null} */
  #split = null;
  /** @type {'mask'|'outline'|'none'} */
  #overlay = 'mask';
  #frame = 0;
  #imageDirty = true;
  /** @type {Rect | 'all' | null} px of the picture */
  #maskDirty = 'all';
  /** @type {Map<number, Point>} pointers on the canvas, CSS px */
  #pointers = new Map();
  /** @type {{kind: 'paint'|'pan'|'pinch'|'split'|'pick', id: number, picked?: Picked} | null} */
  #gesture = null;
  #value = HOLE; // what is being painted
  /** @type {SmoothPath | null} */
  #path = null;
  /** @type {[number, number][]} corners of the rectangle or lasso being drawn, px of the picture */
  #points = [];
  /** @type {Point | null} the keyboard's cursor, px of the picture */
  #cursor = null;
  /** @type {Point | null} where the mouse is, CSS px */
  #hover = null;
  #panHeld = false;

  /**
   * @param {HTMLElement} stage @param {HTMLCanvasElement} imageCanvas @param {HTMLCanvasElement} maskCanvas on top, focusable
   * @param {SVGSVGElement} marks above both: cursor, outlines, the split
   */
  constructor(stage, imageCanvas, maskCanvas, marks) {
    super();
    this.stage = stage;
    this.imageCanvas = imageCanvas;
    this.maskCanvas = maskCanvas;
    this.band = marks.appendChild(svg('path', 'band'));
    this.ring = marks.appendChild(svg('circle', 'ring'));
    this.cross = marks.appendChild(svg('path', 'cross'));
    this.handle = marks.appendChild(svg('path', 'split'));
    new ResizeObserver(() => this.#resize()).observe(stage);
    const on = (/** @type {string} */ type, /** @type {(event: any) => void} */ f) =>
      maskCanvas.addEventListener(type, f, { passive: false });
    on('pointerdown', (event) => this.#down(event));
    on('pointermove', (event) => this.#move(event));
    on('pointerup', (event) => this.#up(event));
    on('pointercancel', (event) => this.#up(event, true));
    on('pointerleave', () => this.#setHover(null));
    on('wheel', (event) => this.#wheel(event));
    on('contextmenu', (event) => event.preventDefault());
    on('keydown', (event) => this.#key(event));
    on('blur', () => this.#setCursor(null));
  }

  /** Whether the tool is one of a size. */
  get brushes() {
    return this.tool === 'brush' || this.tool === 'eraser';
  }

  /** Diameter that brush and eraser have at most, px of the picture. */
  get largestSize() {
    return this.picture ? Math.max(this.picture.width, this.picture.height) / 2 : 500;
  }

  /** Show a picture and its mask, fitted. @param {Picture} picture @param {Mask} mask */
  open(picture, mask) {
    this.stop();
    this.picture = picture;
    this.mask = mask;
    this.#layer = this.#other = null;
    this.#split = null;
    this.#source = new OffscreenCanvas(picture.width, picture.height);
    this.#checks = picture.translucent ? checkerboard() : null;
    this.redrawPicture({ left: 0, top: 0, ...picture });
    this.fit();
  }

  /** Draw a part of the picture where it is in the picture. @param {CanvasRenderingContext2D} c @param {Area} part px */
  drawPart(c, { left, top, width, height }) {
    if (this.#source) c.drawImage(this.#source, left, top, width, height, left, top, width, height);
  }

  /** The picture's values have changed. @param {Area} part of it, px */
  redrawPicture({ left, top, width, height }) {
    const { picture } = this;
    if (!picture || !this.#source) return;
    const data = /** @type {Uint8ClampedArray<ArrayBuffer>} */ (picture.data);
    context(this.#source).putImageData(new ImageData(data, picture.width), 0, 0, left, top, width, height);
    this.#reduced = null;
    this.#draw(true);
  }

  /**
   * @param {Layer | null} layer @param {number | null} [split] share of the width left of which the picture itself is shown
   * @param {Layer | null} [other] which is shown there in its place
   */
  show(layer, split = null, other = null) {
    this.#layer = layer;
    this.#other = other;
    this.#split = layer ? split : null;
    this.#draw(true);
  }

  /** @param {'mask'|'outline'|'none'} overlay how the mask is shown */
  set overlay(overlay) {
    this.#overlay = overlay;
    this.redrawMask('all');
  }

  /** @param {Rect | 'all'} rect of the mask, changed from outside */
  redrawMask(rect) {
    this.#maskDirty = rect === 'all' || this.#maskDirty === 'all' || !this.#maskDirty ? rect : union(this.#maskDirty, rect);
    this.#draw(false);
  }

  /** While true, dragging moves the picture. @param {boolean} held */
  set panHeld(held) {
    this.#panHeld = held;
    this.#marks();
  }

  /** Give up an edit that is under way. */
  stop() {
    if (this.mask?.editing) this.redrawMask(this.mask.cancel());
    if (PICKS.includes(this.tool)) this.#emit('stop');
    this.#gesture = null;
    this.#path = null;
    this.#points = [];
    this.#marks();
  }

  /** A line over the picture, for tools that select. @param {[number, number][]} points px of the picture */
  set outline(points) {
    this.#points = points;
    this.#marks();
  }

  /** @param {Tool} tool */
  choose(tool) {
    this.stop();
    this.tool = tool;
    this.#marks();
  }

  /** @param {number} size px of the picture */
  resizeBrush(size) {
    this.size = Math.min(Math.max(size, 1), this.largestSize);
    this.#marks();
    this.#emit('size');
  }

  // -- view ------------------------------------------------------------------------------------------------------------

  fit() {
    if (!this.picture) return;
    this.view = fitted(this.picture, this.#stageSize);
    this.#moved();
  }

  /** @param {number} factor @param {number} [x] CSS px, what stays in place @param {number} [y] */
  zoom(factor, x = this.#width / 2, y = this.#height / 2) {
    if (!this.picture) return;
    this.view = zoomed(this.view, factor, x, y);
    this.#moved();
  }

  /** @param {number} dx CSS px @param {number} dy */
  pan(dx, dy) {
    this.view = { ...this.view, x: this.view.x + dx, y: this.view.y + dy };
    this.#moved();
  }

  get #stageSize() {
    return { width: this.#width, height: this.#height };
  }

  #moved() {
    if (this.picture) this.view = inSight(this.view, this.picture, this.#stageSize);
    this.#maskDirty = 'all';
    this.#draw(true);
    this.#emit('view');
  }

  #resize() {
    const { clientWidth, clientHeight } = this.stage;
    if (clientWidth === this.#width && clientHeight === this.#height) return;
    const first = !this.#width;
    const [dx, dy] = [(clientWidth - this.#width) / 2, (clientHeight - this.#height) / 2];
    [this.#width, this.#height] = [clientWidth, clientHeight];
    if (first) this.fit();
    else this.pan(dx, dy);
  }

  /** @param {boolean} image */
  #draw(image) {
    this.#imageDirty ||= image;
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if (this.#imageDirty) this.#drawPicture();
      if (this.#maskDirty) this.#drawMask();
      this.#imageDirty = false;
      this.#maskDirty = null;
      this.#marks();
    });
  }

  /** @param {OffscreenCanvas} source */
  #reduce(source) {
    const { width, height } = source;
    if (width * height <= LARGE) return;
    const factor = Math.ceil(Math.sqrt((width * height) / (LARGE / 2)));
    const canvas = new OffscreenCanvas(Math.ceil(width / factor), Math.ceil(height / factor));
    const into = context(canvas);
    into.imageSmoothingQuality = 'high';
    into.drawImage(source, 0, 0, width / factor, height / factor);
    this.#reduced = { canvas, factor };
  }

  #drawPicture() {
    const ratio = devicePixelRatio;
    const canvas = this.imageCanvas;
    sizeCanvas(canvas, Math.round(this.#width * ratio), Math.round(this.#height * ratio));
    const c = context(canvas);
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.picture || !this.#source) return;
    const { width, height } = this.picture;
    const { scale, x, y } = this.view;
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.#checks) {
      c.fillStyle = this.#checks;
      c.fillRect(x, y, width * scale, height * scale);
    }
    c.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * x, ratio * y);
    c.imageSmoothingEnabled = scale * ratio < 3;
    c.imageSmoothingQuality = 'medium';
    if (!this.#reduced) this.#reduce(this.#source);
    const reduced = this.#reduced && scale * ratio * this.#reduced.factor <= 1.2 ? this.#reduced : null;
    if (reduced) {
      c.drawImage(reduced.canvas, 0, 0, width / reduced.factor, height / reduced.factor, 0, 0, width, height);
    } else {
      c.drawImage(this.#source, 0, 0);
    }
    const from = (this.#split ?? 0) * width;
    if (this.#layer) this.#drawLayer(c, this.#layer, from, width);
    if (this.#other) this.#drawLayer(c, this.#other, 0, from);
  }

  /** @param {CanvasRenderingContext2D} c @param {Layer} layer @param {number} from px of the picture, from where it shows @param {number} to */
  #drawLayer(c, { left, top, canvas }, from, to) {
    c.save();
    c.beginPath();
    c.rect(from, top, to - from, canvas.height);
    c.clip();
    if (this.#checks) c.clearRect(left, top, canvas.width, canvas.height);
    c.drawImage(canvas, left, top);
    c.restore();
  }

  #drawMask() {
    const { mask, view } = this;
    const ratio = Math.min(devicePixelRatio, Math.sqrt(OVERLAY_LIMIT / (this.#width * this.#height || 1)));
    const canvas = this.maskCanvas;
    const resized = sizeCanvas(canvas, Math.round(this.#width * ratio), Math.round(this.#height * ratio));
    const c = context(canvas);
    const dirty = resized ? 'all' : this.#maskDirty;
    const edge = Math.max(1, Math.round(ratio));
    let [left, top, right, bottom] = [0, 0, canvas.width, canvas.height];
    if (dirty && dirty !== 'all') {
      const at = (/** @type {number} */ v, /** @type {number} */ o) => (v * view.scale + o) * ratio;
      left = Math.max(0, Math.floor(at(dirty.left, view.x)) - 2 * edge);
      top = Math.max(0, Math.floor(at(dirty.top, view.y)) - 2 * edge);
      right = Math.min(right, Math.ceil(at(dirty.right, view.x)) + 2 * edge);
      bottom = Math.min(bottom, Math.ceil(at(dirty.bottom, view.y)) + 2 * edge);
    }
    if (right <= left || bottom <= top) return;
    if (!mask || this.#overlay === 'none') {
      c.clearRect(left, top, right - left, bottom - top);
      return;
    }
    const over = overHole(mask, view, { left, top, right, bottom }, ratio, this.#overlay === 'mask');
    const pixels = new ImageData(new Uint8ClampedArray(over.buffer), right - left, bottom - top);
    c.putImageData(pixels, left, top);
  }

  /** The cursor, the outline being drawn and the split. */
  #marks() {
    const { scale, x, y } = this.view;
    const panning = this.tool === 'hand' || this.#panHeld || this.#gesture?.kind === 'pan';
    const at = this.#cursor ? { x: this.#cursor.x * scale + x, y: this.#cursor.y * scale + y } : this.#hover;
    const free = this.picture && !this.locked && this.#split === null && !panning;
    const ring = free && this.brushes && at;
    this.ring.setAttribute('r', String(ring ? Math.max((this.size * scale) / 2, 1.5) : 0));
    if (ring) {
      this.ring.setAttribute('cx', String(ring.x));
      this.ring.setAttribute('cy', String(ring.y));
    }
    const cross = free && at && (this.#cursor || !this.brushes) ? `M${at.x - 9} ${at.y}h18M${at.x} ${at.y - 9}v18` : '';
    this.cross.setAttribute('d', cross);
    const points =
      this.#cursor && this.#points.length && this.tool !== 'wire'
        ? [...this.#points, [this.#cursor.x, this.#cursor.y]]
        : this.#points;
    const corners =
      points.length > 1 && this.tool === 'rectangle' ? rectangleCorners(points[0], points[points.length - 1]) : points;
    const outline = corners.map(([px, py]) => `${(px * scale + x).toFixed(1)} ${(py * scale + y).toFixed(1)}`).join('L');
    this.band.setAttribute('d', outline ? `M${outline}${this.tool === 'wire' ? '' : 'Z'}` : '');
    this.band.style.fill = this.tool === 'wire' ? 'none' : ''; // it is open still
    let handle = '';
    if (this.#split !== null && this.picture) {
      const sx = x + this.#split * this.picture.width * scale;
      const [from, to] = [Math.max(y, 0), Math.min(y + this.picture.height * scale, this.#height)];
      const middle = (from + to) / 2;
      handle = `M${sx} ${from}V${to}M${sx - 5} ${middle - 6}l-6 6 6 6M${sx + 5} ${middle - 6}l6 6-6 6`;
    }
    this.handle.setAttribute('d', handle);
    const cursor = !this.picture
      ? 'default'
      : panning
        ? 'grab'
        : this.#split !== null
          ? 'ew-resize'
          : this.locked
            ? 'default'
            : 'none';
    this.maskCanvas.style.cursor = cursor;
  }

  // -- pointers --------------------------------------------------------------------------------------------------------

  /** @param {PointerEvent} event @returns {Point} CSS px of the stage */
  #local(event) {
    const box = this.maskCanvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  /** @param {Point} point CSS px @returns {[number, number]} px of the picture */
  #toPicture(point) {
    return toPicture(this.view, point);
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (!this.picture) return;
    event.preventDefault();
    this.maskCanvas.focus({ preventScroll: true });
    this.#setCursor(null);
    this.maskCanvas.setPointerCapture(event.pointerId);
    const point = this.#local(event);
    this.#pointers.set(event.pointerId, point);
    if (this.#pointers.size === 2) {
      this.stop();
      this.#gesture = { kind: 'pinch', id: event.pointerId };
      return;
    }
    if (this.#gesture || this.#pointers.size > 2) return;
    const pan = event.button === 1 || this.tool === 'hand' || this.#panHeld;
    const erase = event.button === 2 || event.button === 5 || this.tool === 'eraser' || this.#takesAway(event.altKey);
    const kind = pan ? 'pan' : this.#split !== null ? 'split' : 'paint';
    if (kind === 'paint' && this.locked) {
      this.#emit('say', 'The mask cannot be changed while the model runs.');
      return;
    }
    if (kind === 'paint' && PICKS.includes(this.tool)) {
      const picked = { point: this.#toPicture(point), takesAway: erase };
      this.#gesture = { kind: 'pick', id: event.pointerId, picked }; // when it is let go of: a second finger may follow
      return;
    }
    this.#gesture = { kind, id: event.pointerId };
    if (kind === 'split') this.#moveSplit(point);
    if (kind === 'paint') this.#begin(this.#toPicture(point), erase);
    this.#marks();
  }

  /** @param {boolean} alt */
  #takesAway(alt) {
    return (this.tool === 'rectangle' || this.tool === 'lasso' || PICKS.includes(this.tool)) && this.subtract !== alt;
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const point = this.#local(event);
    if (event.pointerType !== 'touch') this.#setHover(point);
    if (this.tool === 'wire') this.#emit('hover', this.#toPicture(point));
    const before = this.#pointers.get(event.pointerId);
    if (!before) return;
    const gesture = this.#gesture;
    if (gesture?.kind === 'pinch') this.#pinch(event.pointerId, point);
    this.#pointers.set(event.pointerId, point);
    if (gesture?.id !== event.pointerId) return;
    if (gesture.kind === 'pan') this.pan(point.x - before.x, point.y - before.y);
    if (gesture.kind === 'split') this.#moveSplit(point);
    if (gesture.kind === 'paint') {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) this.#extend(this.#toPicture(this.#local(each)));
    }
  }

  /** @param {PointerEvent} event @param {boolean} [cancelled] */
  #up(event, cancelled = false) {
    this.#pointers.delete(event.pointerId);
    const gesture = this.#gesture;
    if (gesture?.kind === 'pinch') {
      if (this.#pointers.size === 0) this.#gesture = null;
      return;
    }
    if (gesture?.id !== event.pointerId) return;
    this.#gesture = null;
    if (gesture.picked && !cancelled) this.#emit('pick', gesture.picked);
    if (gesture.kind === 'paint') {
      if (cancelled) this.stop();
      else this.#finish();
    }
    this.#marks();
  }

  /** @param {number} id @param {Point} point */
  #pinch(id, point) {
    const [a, b] = [...this.#pointers.keys()];
    const before = [this.#pointers.get(a), this.#pointers.get(b)];
    const after = [id === a ? point : before[0], id === b ? point : before[1]];
    if (!before[0] || !before[1] || !after[0] || !after[1]) return;
    this.view = pinched(this.view, [before[0], before[1]], [after[0], after[1]]);
    this.#moved();
  }

  /** @param {Point | null} point */
  #setHover(point) {
    this.#hover = point;
    if (point && this.#cursor && !this.mask?.editing && !this.#points.length) this.#cursor = null;
    this.#marks();
  }

  /** @param {Point} point */
  #moveSplit(point) {
    if (this.picture) this.split = this.#toPicture(point)[0] / this.picture.width;
    this.#emit('split');
  }

  get split() {
    return this.#split ?? 0;
  }

  set split(share) {
    if (this.#split === null) return;
    this.#split = Math.min(Math.max(share, 0), 1);
    this.#draw(true);
  }

  /** @param {WheelEvent} event */
  #wheel(event) {
    if (!this.picture) return;
    event.preventDefault();
    const step = Math.min(Math.max(event.deltaY * (event.deltaMode ? 30 : 1), -80), 80);
    if (event.ctrlKey || event.metaKey || !this.brushes || this.#split !== null) {
      const box = this.maskCanvas.getBoundingClientRect();
      this.zoom(Math.exp(-step * (Math.abs(step) < 20 ? 0.01 : 0.0035)), event.clientX - box.left, event.clientY - box.top);
    } else if (event.shiftKey) {
      this.pan(-step, 0);
    } else {
      this.resizeBrush(this.size * Math.exp(-step * 0.0016));
    }
  }

  // -- drawing, by pointer and by keys ---------------------------------------------------------------------------------

  /** @param {[number, number]} point px of the picture @param {boolean} erase */
  #begin(point, erase) {
    this.#value = erase ? KEEP : HOLE;
    if (this.brushes) {
      this.mask?.begin();
      this.#path = new SmoothPath(...point);
      this.#line([...point, ...point]);
    } else {
      this.#points = [point];
    }
  }

  /** @param {[number, number]} point */
  #extend(point) {
    if (this.#path) for (const piece of this.#path.add(...point, this.size / 6)) this.#line(piece);
    else if (this.tool === 'rectangle') this.#points[1] = point;
    else if (this.tool === 'lasso') this.#points.push(point);
    this.#marks();
  }

  #finish() {
    const { mask, tool } = this;
    if (!mask) return;
    const value = this.#value;
    if (this.#path) {
      this.#line(this.#path.end());
    } else if (this.#points.length > 1) {
      mask.begin();
      const last = this.#points[this.#points.length - 1];
      this.redrawMask(
        tool === 'rectangle' ? mask.rectangle(...this.#points[0], ...last, value) : mask.polygon(this.#points, value),
      );
    }
    this.#path = null;
    this.#points = [];
    const patch = mask.editing ? mask.commit() : null;
    if (patch) this.#emit('edit', { label: value === KEEP ? 'erasing' : LABELS[tool], patch });
    this.#marks();
  }

  /** @param {[number, number, number, number]} piece */
  #line(piece) {
    if (this.mask) this.redrawMask(this.mask.line(...piece, this.size / 2, this.#value));
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const move = ARROWS[event.key];
    if (!this.picture || event.ctrlKey || event.metaKey || (!move && event.key !== 'Enter' && event.key !== 'Escape')) return;
    if (event.key === 'Escape' && !this.#points.length && !this.mask?.editing) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key === 'Escape') {
      this.stop();
      this.#emit('say', 'Drawing given up.');
    } else if (this.tool === 'hand') {
      if (move) this.pan(-move[0] * 40, -move[1] * 40);
    } else if (this.locked || this.#split !== null) {
      this.#emit('say', 'The mask cannot be changed now.');
    } else if (move) {
      this.#step(move, event.altKey ? 1 : Math.max(1, Math.round(this.size / 4)) * (event.shiftKey ? 4 : 1));
    } else {
      this.#press(event.altKey);
    }
  }

  /** @param {number[]} move direction @param {number} distance px of the picture */
  #step([dx, dy], distance) {
    if (!this.picture) return;
    const { width, height } = this.picture;
    const from = this.#cursor ?? this.#middle();
    const to = {
      x: Math.min(Math.max(from.x + dx * distance, 0), width),
      y: Math.min(Math.max(from.y + dy * distance, 0), height),
    };
    if (this.mask?.editing) this.#line([from.x, from.y, to.x, to.y]);
    this.#setCursor(to);
    if (this.tool === 'wire') this.#emit('hover', [to.x, to.y]);
    const [sx, sy] = [to.x * this.view.scale + this.view.x, to.y * this.view.scale + this.view.y];
    const out = (/** @type {number} */ v, /** @type {number} */ length) =>
      v < 16 ? 16 - v : v > length - 16 ? length - 16 - v : 0;
    const [px, py] = [out(sx, this.#width), out(sy, this.#height)];
    if (px || py) this.pan(px, py);
    this.#emit('say', `${this.mask?.editing ? 'Painting, at' : 'At'} ${Math.round(to.x)}, ${Math.round(to.y)}`);
  }

  /** Enter: brush down or up, a corner of the rectangle, a point of the lasso. @param {boolean} alt */
  #press(alt) {
    const cursor = this.#cursor ?? this.#middle();
    this.#setCursor(cursor);
    const point = /** @type {[number, number]} */ ([cursor.x, cursor.y]);
    if (PICKS.includes(this.tool)) {
      this.#emit('pick', { point, takesAway: this.#takesAway(alt) });
      return;
    }
    const where = `${Math.round(cursor.x)}, ${Math.round(cursor.y)}`;
    const count = this.#points.length;
    const last = this.#points[count - 1];
    if (this.mask?.editing || (this.tool === 'rectangle' && count)) {
      if (count) this.#points.push(point);
      this.#finish();
      this.#emit('say', 'Done.');
    } else if (this.tool === 'lasso' && count && last[0] === point[0] && last[1] === point[1]) {
      this.#finish();
      this.#emit('say', count > 2 ? 'Outline closed.' : 'An outline needs three points.');
    } else if (this.tool === 'lasso') {
      if (!count) this.#begin(point, this.#takesAway(alt));
      else this.#points.push(point);
      this.#emit('say', `Point ${count + 1} at ${where}. Enter twice at one place closes the outline.`);
    } else {
      this.#begin(point, this.tool === 'eraser' || this.#takesAway(alt));
      if (this.#path) this.#path = null; // keys draw straight lines
      this.#emit(
        'say',
        `${this.tool === 'rectangle' ? 'First corner' : 'Painting from'} ${where}. Arrows move, Enter ends, Escape gives up.`,
      );
    }
    this.#marks();
  }

  /** @returns {Point} the middle of what is in sight, px of the picture */
  #middle() {
    const { width, height } = /** @type {Picture} */ (this.picture);
    const [x, y] = this.#toPicture({ x: this.#width / 2, y: this.#height / 2 });
    return { x: Math.round(Math.min(Math.max(x, 0), width)), y: Math.round(Math.min(Math.max(y, 0), height)) };
  }

  /** @param {Point | null} cursor */
  #setCursor(cursor) {
    if (!cursor && this.#cursor && (this.mask?.editing || this.#points.length)) this.stop();
    this.#cursor = cursor;
    this.#marks();
  }

  /** @param {string} type @param {unknown} [detail] */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** @param {HTMLCanvasElement | OffscreenCanvas} canvas */
function context(canvas) {
  const c = canvas.getContext('2d');
  if (!c) throw new Error('this browser gives no canvas of that size');
  return /** @type {CanvasRenderingContext2D} */ (c);
}

/** @param {HTMLCanvasElement} canvas @param {number} width @param {number} height @returns {boolean} whether it was another size */
function sizeCanvas(canvas, width, height) {
  if (canvas.width === width && canvas.height === height) return false;
  canvas.width = width;
  canvas.height = height;
  return true;
}

/** @returns {CanvasPattern | null} what shows behind transparent pixels */
function checkerboard() {
  const canvas = new OffscreenCanvas(16, 16);
  const c = context(canvas);
  c.fillStyle = '#fff';
  c.fillRect(0, 0, 16, 16);
  c.fillStyle = '#d4d4d8';
  c.fillRect(0, 0, 8, 8);
  c.fillRect(8, 8, 8, 8);
  return c.createPattern(canvas, 'repeat');
}

/** @template {keyof SVGElementTagNameMap} K @param {K} name @param {string} className */
export function svg(name, className) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  node.setAttribute('class', className);
  return node;
}

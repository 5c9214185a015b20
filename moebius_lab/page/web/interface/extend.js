// Extending the picture: numbers, an aspect ratio, and handles at the edges of the canvas.

import { reason } from '../engine/errors.js';
import { deflated, inflated } from './autosave.js';
import { extend, extensionTo } from '../engine/extending.js';
import { ARROWS, svg } from './editor.js';
import { HOLE, Mask } from './mask.js';
import { add, addButton, addNumber, addSelect, element, notice, say } from './page.js';
import { SAFE_MEGAPIXELS, canvasHolds } from './picture_files.js';
import { cut } from './regions.js';
import { nextTask } from '../engine/turns.js';

/** @import { Desk } from './main.js' */
/** @import { Extension } from '../engine/types.js' */
/** @import { Grown } from './types.js' */
/** @typedef {keyof Extension} Side */
/** @typedef {NonNullable<Desk['work']>} Work */

const SIDES = /** @type {const} */ (['left', 'top', 'right', 'bottom']);
const RATIOS = ['1:1', '5:4', '4:3', '3:2', '16:10', '16:9', '2:1', '9:16', '3:4', '4:5'];
const STEP = 10; // px a key moves an edge; one with Alt, eight times as far with Shift
const MOST = 20_000; // px on one side
const ROOM = 24; // CSS px around what the canvas will be

/** @param {Desk} desk @param {HTMLElement} panel */
export function build(desk, panel) {
  const { editor } = desk;
  const fields = add(panel, 'div', { className: 'fields' });
  const ratio = addSelect(fields, 'To the ratio', 'extend-ratio', [
    ['', 'by pixels'],
    ...RATIOS.map((name) => /** @type {[string, string]} */ ([name, name])),
  ]);
  const inputs = /** @type {Record<Side, HTMLInputElement>} */ ({});
  const sides = add(panel, 'div', { className: 'fields sides' });
  for (const side of SIDES) {
    const label = `${side[0].toUpperCase()}${side.slice(1)}, px`;
    inputs[side] = addNumber(sides, label, { id: `extend-${side}`, value: 0, min: 0, max: MOST });
  }
  const size = add(panel, 'p', { className: 'fine', id: 'extend-size' });
  const buttons = add(panel, 'div', { className: 'pair' });
  const apply = addButton(buttons, 'Extend', () => void act(), 'extend-apply');
  addButton(buttons, 'Reset', () => set({ left: 0, top: 0, right: 0, bottom: 0 }), 'extend-reset');
  add(panel, 'p', {
    className: 'fine',
    textContent:
      'Drag the handles at the picture’s edges, or type. The new area is the hole; the old pixels stay exactly as they are.',
  });

  // -- handles on the stage ------------------------------------------------------------------------------------------

  const stage = element('stage', HTMLElement);
  const outline = element('marks', SVGSVGElement).appendChild(svg('path', 'band'));
  outline.setAttribute('fill-rule', 'evenodd'); // the new area alone
  const handles = /** @type {Record<Side, HTMLButtonElement>} */ ({});
  for (const side of SIDES) {
    const handle = add(stage, 'button', { type: 'button', className: `edge ${side}`, role: 'slider' });
    handle.ariaLabel = `Extend the ${side} edge`;
    handle.ariaOrientation = side === 'left' || side === 'right' ? 'horizontal' : 'vertical';
    handle.ariaValueMin = '0';
    handle.ariaValueMax = String(MOST);
    handles[side] = handle;
    /** @type {{x: number, y: number, px: number} | null} */
    let from = null;
    handle.addEventListener('pointerdown', (event) => {
      handle.setPointerCapture(event.pointerId);
      from = { x: event.clientX, y: event.clientY, px: value(side) };
    });
    handle.addEventListener('pointermove', (event) => {
      if (!from) return;
      const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
      const outward = { left: -dx, right: dx, top: -dy, bottom: dy }[side];
      move(side, from.px + Math.round(outward / editor.view.scale));
    });
    for (const end of ['pointerup', 'pointercancel'])
      handle.addEventListener(end, () => {
        from = null;
        bringInSight();
      });
    handle.addEventListener('keydown', (event) => {
      const more = ARROWS[event.key];
      if (!more && event.key !== 'Home') return;
      event.preventDefault();
      event.stopPropagation();
      const outward =
        { left: -1, right: 1, top: -1, bottom: 1 }[side] * (more?.[side === 'left' || side === 'right' ? 0 : 1] ?? 0);
      const distance = event.altKey ? 1 : STEP * (event.shiftKey ? 8 : 1);
      move(side, more ? value(side) + outward * distance : 0);
      bringInSight();
    });
  }

  /** @param {Side} side */
  function value(side) {
    return Math.min(Math.max(Math.round(inputs[side].valueAsNumber) || 0, 0), MOST);
  }

  /** @param {Side} side @param {number} px */
  function move(side, px) {
    inputs[side].value = String(Math.min(Math.max(px, 0), MOST));
    ratio.value = '';
    show();
  }

  /** @returns {Extension} */
  function extension() {
    return { left: value('left'), top: value('top'), right: value('right'), bottom: value('bottom') };
  }

  /** @param {Extension} px */
  function set(px) {
    for (const side of SIDES) inputs[side].value = String(px[side]);
    show();
    bringInSight();
  }

  /** Where the canvas will be. @returns {Extension} CSS px of the stage */
  function outlined() {
    const { scale, x, y } = editor.view;
    const px = extension();
    const { width = 0, height = 0 } = desk.work?.picture ?? {};
    const [right, bottom] = [x + (width + px.right) * scale, y + (height + px.bottom) * scale];
    return { left: x - px.left * scale, top: y - px.top * scale, right, bottom };
  }

  /** Zoom out where the canvas would not be seen whole. */
  function bringInSight() {
    const { clientWidth, clientHeight } = stage;
    const { left, top, right, bottom } = outlined();
    const [across, down] = [clientWidth - 2 * ROOM, clientHeight - 2 * ROOM];
    if (!desk.work || (left >= 0 && top >= 0 && right <= clientWidth && bottom <= clientHeight)) return;
    editor.zoom(Math.min(1, across / (right - left), down / (bottom - top)));
    const now = outlined();
    editor.pan((clientWidth - now.left - now.right) / 2, (clientHeight - now.top - now.bottom) / 2);
  }

  function show() {
    const { work } = desk;
    const shown = Boolean(panel.hasAttribute('open') && work && !desk.busy && !desk.compared);
    const px = extension();
    const { width = 0, height = 0 } = work?.picture ?? {};
    const [across, down] = [width + px.left + px.right, height + px.top + px.bottom];
    const most = (desk.model.engine?.manifest.constants.max_megapixels ?? Infinity) * 1e6;
    const some = Boolean(px.left || px.top || px.right || px.bottom);
    apply.disabled = !shown || !some || across * down > most;
    size.textContent = !work
      ? 'Open a picture first.'
      : `${width} × ${height} px becomes ${across} × ${down} px${across * down > most ? ', which is too large' : ''}.`;
    const { scale, x, y } = editor.view;
    const { left, top, right, bottom } = outlined();
    outline.setAttribute(
      'd',
      shown && some
        ? `M${left} ${top}H${right}V${bottom}H${left}ZM${x} ${y}h${width * scale}v${height * scale}h${-width * scale}Z`
        : '',
    );
    const { clientWidth, clientHeight } = stage;
    const inside = (/** @type {number} */ at, /** @type {number} */ length) => Math.min(Math.max(at, 16), length - 16);
    const [middle, centre] = [(left + right) / 2, (top + bottom) / 2];
    for (const [side, hx, hy] of /** @type {const} */ ([
      ['left', left, centre],
      ['right', right, centre],
      ['top', middle, top],
      ['bottom', middle, bottom],
    ])) {
      const handle = handles[side];
      handle.hidden = !shown;
      handle.style.left = `${inside(hx, clientWidth)}px`;
      handle.style.top = `${inside(hy, clientHeight)}px`;
      handle.ariaValueNow = String(px[side]);
      handle.ariaValueText = `${px[side]} pixels`;
    }
  }

  ratio.addEventListener('input', () => {
    if (!ratio.value || !desk.work) return;
    const [across, down] = ratio.value.split(':').map(Number);
    set(extensionTo(across, down, desk.work.picture.width, desk.work.picture.height));
  });
  for (const side of SIDES) {
    inputs[side].addEventListener('input', () => ((ratio.value = ''), show()));
    inputs[side].addEventListener('change', bringInSight);
  }
  panel.addEventListener('toggle', show);
  for (const event of ['view', 'update']) editor.addEventListener(event, show);
  show();

  async function act() {
    if (!desk.work || desk.busy) return;
    try {
      if (!(await extendWork(desk, extension()))) return;
    } catch (error) {
      notice('extend', `The picture was not extended: ${reason(error)}. Choose fewer pixels.`);
      return;
    }
    set({ left: 0, top: 0, right: 0, bottom: 0 });
    ratio.value = '';
    say('The picture is larger; the new area is the hole. Fill it, or undo.');
  }
}

/**
 * The picture on its larger canvas becomes what is worked on; undo brings back the old one.
 *
 * @param {Desk} desk @param {Extension} extension
 * @returns {Promise<boolean>} whether it did: another picture may have been opened meanwhile
 */
async function extendWork(desk, extension) {
  const before = /** @type {Work} */ (desk.work);
  const { left, top, right, bottom } = extension;
  if (!canvasHolds(before.picture.width + left + right, before.picture.height + top + bottom))
    throw new Error(`this browser shows at most ${SAFE_MEGAPIXELS} megapixels`);
  desk.look(null);
  desk.editor.stop();
  const [picture, under] = await desk.alone(async () => {
    const larger = { ...before.picture, ...extend(before.picture, extension) };
    await nextTask();
    const values = await deflated(before.mask.data);
    await nextTask();
    return [larger, values];
  });
  if (desk.work !== before) return false;
  const grown = { by: extension, mask: under, extension: before.extension, grown: before.extension && before.grown };
  const mask = new Mask(picture.width, picture.height, before.mask.level);
  const values = mask.data.fill(HOLE);
  for (let y = 0; y < before.picture.height; y++) {
    const row = before.mask.data.subarray(y * before.mask.width, (y + 1) * before.mask.width);
    values.set(row, (y + extension.top) * mask.width + extension.left);
  }
  mask.adopt(values, new Map(), values.length - before.mask.data.length + before.mask.holes);
  const old = before.extension ?? { left: 0, top: 0, right: 0, bottom: 0 };
  const sum = { ...extension };
  for (const side of SIDES) sum[side] += old[side];
  const place = { left: before.place.left + extension.left, top: before.place.top + extension.top };
  /** @type {Work} */
  const after = { ...before, id: desk.newId(), file: null, picture, mask, results: [], extension: sum, grown, place };
  desk.show(after);
  remember(
    desk,
    after,
    () => after,
    () => before,
  );
  desk.keepSafe(after);
  desk.update();
  return true;
}

/**
 * Make an extension a step of the history.
 *
 * @param {Desk} desk @param {Work} work either of the two @param {() => Work} after @param {() => Work} before
 */
function remember(desk, { history, picture, mask }, after, before) {
  let undone = false;
  history.push({
    label: 'extended',
    bytes: picture.data.length + mask.data.length,
    swap: () => {
      undone = !undone;
      desk.show(undone ? before() : after());
    },
  });
}

/**
 * Extensions of a picture that was brought back can be undone again: the old pixels are in it as they were, the old masks were kept.
 *
 * @param {Desk} desk @param {Work} work
 */
export async function recall(desk, work) {
  const works = [() => work];
  for (let { grown } = work; grown; grown = grown.grown) {
    const [step, values, after] = [grown, await inflated(grown.mask), works[0]];
    /** @type {Work | null} */
    let made = null;
    works.unshift(() => (made ??= ungrown(after(), step, values, desk.newId())));
  }
  for (let i = 1; i < works.length; i++) remember(desk, work, works[i], works[i - 1]);
}

/** What a canvas was before it grew. @param {Work} after @param {Grown} grown @param {Uint8Array} values of its mask @param {string} id */
function ungrown(after, { by, extension, grown }, values, id) {
  const { width: across, height: down } = after.picture;
  const [width, height] = [across - by.left - by.right, down - by.top - by.bottom];
  const data = cut(after.picture, { left: by.left, top: by.top, width, height });
  const mask = new Mask(width, height, after.mask.level);
  mask.adopt(
    values,
    new Map(),
    values.reduce((sum, value) => sum + Number(value >= mask.level), 0),
  );
  const place = { left: after.place.left - by.left, top: after.place.top - by.top };
  const picture = { ...after.picture, width, height, data };
  return { ...after, id, file: null, picture, mask, results: [], extension, grown, place };
}

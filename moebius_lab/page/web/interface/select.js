// Selecting with a click: the panel, its tools on the canvas, and the worker that computes.

import { reason } from '../engine/errors.js';
import { add, addButton, addNumber, notice, say } from './page.js';

/** @import { Desk } from './main.js' */
/** @import { Painting, Picked, Segmenter, SelectionAnswer, SelectionRequest } from './types.js' */
/** @typedef {[number, number]} Point */

const NAMES = { wand: 'magic wand', wire: 'edge lasso', object: 'object' };
const REFINE = /** @type {const} */ ([
  ['grow', 'Grow'],
  ['shrink', 'Shrink'],
  ['feather', 'Feather'],
  ['fill-holes', 'Fill holes'],
  ['largest', 'Keep largest'],
]);
const NEAR = 8; // CSS px within which a click on the first point closes a wire

/** Asks the worker; the picture is sent when it is another one. */
class Selector {
  #worker = new Worker(new URL('./selection_worker.js', import.meta.url), { type: 'module' });
  /** @type {Map<number, (answer: SelectionAnswer) => void>} */
  #waiting = new Map();
  #next = 1;
  #picture = '';

  constructor() {
    this.#worker.addEventListener('message', ({ data }) => {
      this.#waiting.get(data.id)?.(data);
      this.#waiting.delete(data.id);
    });
    this.#worker.addEventListener('error', (event) => {
      for (const [id, done] of this.#waiting) done({ id, error: event.message || 'the worker did not start' });
      this.#waiting.clear();
    });
  }

  /** @param {Painting} work @param {Omit<SelectionRequest, 'id'>} request */
  async ask(work, request) {
    if (this.#picture !== work.id) {
      const { width, height, data } = work.picture;
      const picture = { width, height, data: data.slice() };
      this.#picture = work.id;
      void this.#send({ what: 'picture', picture }, [picture.data.buffer]);
    }
    const handed = [request.mask, request.selection].flatMap((array) => (array ? [array.buffer] : []));
    const reply = await this.#send(request, handed);
    if (reply.error) throw new Error(reply.error);
    return reply;
  }

  /** @param {Omit<SelectionRequest, 'id'>} request @param {ArrayBufferLike[]} handed */
  #send(request, handed) {
    const id = this.#next++;
    this.#worker.postMessage({ ...request, id }, /** @type {Transferable[]} */ (handed));
    return new Promise((done) => this.#waiting.set(id, done));
  }
}

/** @param {Desk} desk @param {HTMLElement} panel */
export function build(desk, panel) {
  const { editor } = desk;
  const selector = new Selector();
  const constants = desk.model.engine?.manifest.constants;
  /** @type {Segmenter | null} */
  let segmenter = null;

  const tools = add(panel, 'div', { className: 'picks', role: 'radiogroup', ariaLabel: 'Tools that select' });
  for (const [tool, label, key] of /** @type {const} */ ([
    ['wand', 'Magic wand', 'W'],
    ['wire', 'Edge lasso', 'K'],
    ['object', 'Object', 'O'],
  ])) {
    const choice = add(tools, 'label', { title: `${label} (${key})` });
    const input = add(choice, 'input', { type: 'radio', name: 'tool', value: tool });
    choice.append(label);
    input.addEventListener('change', () => choose(tool));
    document.addEventListener('keydown', (event) => {
      const target = /** @type {HTMLElement} */ (event.target);
      const free = !event.ctrlKey && !event.metaKey && !event.altKey && !document.querySelector('dialog[open]');
      const letters = /** @type {HTMLInputElement} */ (document.getElementById('letters')).checked;
      if (!free || !letters || input.disabled || event.key.toUpperCase() !== key) return;
      if (!target.matches('input[type=number], select')) input.click();
    });
    if (tool === 'object') input.disabled = true;
  }

  const wandRow = add(panel, 'div', { className: 'fields' });
  add(wandRow, 'label', { textContent: 'Tolerance', htmlFor: 'tolerance' });
  const tolerance = add(wandRow, 'input', { type: 'range', id: 'tolerance', min: '0', max: '255', step: '1' });
  tolerance.value = String(constants?.tolerance ?? 0);
  const near = add(panel, 'label', { className: 'check' });
  const contiguous = add(near, 'input', { type: 'checkbox', id: 'contiguous', checked: true });
  near.append(' Only what touches the point');

  const fields = add(panel, 'div', { className: 'fields' });
  const px = addNumber(fields, 'By, px', { id: 'refine-px', value: 5, min: 0, max: constants?.most_growth ?? 500 });
  const refine = add(panel, 'div', { className: 'pair wrap' });
  for (const [how, label] of REFINE)
    addButton(refine, label, () => void change('refine', label.toLowerCase(), { how }), `refine-${how}`);

  add(panel, 'p', {
    className: 'fine',
    textContent:
      'An object is selected by a segmentation model of your own, EfficientSAM or SAM, as one ONNX file or as encoder and decoder; none is part of this page.',
  });
  const file = add(panel, 'input', { type: 'file', accept: '.onnx', multiple: true, hidden: true, id: 'segmenter-file' });
  file.ariaLabel = 'Segmentation model';
  addButton(panel, 'Open a segmenter…', () => file.click(), 'segmenter');
  file.addEventListener('change', async () => {
    const chosen = [...(file.files ?? [])];
    file.value = '';
    if (!chosen.length) return;
    const names = chosen.map(({ name }) => name).join(' and ');
    say(`Opening ${names}…`);
    try {
      const { openSegmenter } = await import('./segmenter.js');
      const opened = await openSegmenter(chosen, desk);
      segmenter?.close();
      segmenter = opened;
      const input = /** @type {HTMLInputElement} */ (tools.querySelector('[value=object]'));
      input.disabled = false;
      input.click();
      say(`${names} ${chosen.length > 1 ? 'are' : 'is'} ready: click on what should go.`);
    } catch (error) {
      notice('segmenter', `“${names}” cannot be used: ${reason(error).replace(/\.$/, '')}.`);
    }
  });

  /** Change the mask by what the worker makes of it. @param {'wand'|'object'|'refine'} what @param {string} label @param {Partial<SelectionRequest>} request */
  async function change(what, label, request) {
    const { work } = desk;
    if (!work || desk.busy) return;
    editor.stop();
    desk.look(null);
    say('Selecting…');
    try {
      const { mask } = work;
      const settings = { tolerance: tolerance.valueAsNumber, contiguous: contiguous.checked, px: px.valueAsNumber || 0 };
      const asked = { what, ...settings, mask: mask.data.slice(), level: mask.level, ...request };
      const reply = await desk.alone(() => selector.ask(work, asked));
      if (desk.work !== work) return;
      take(label, reply);
      say(`${label[0].toUpperCase()}${label.slice(1)}: ${mask.holes.toLocaleString('en')} pixels are selected.`);
    } catch (error) {
      notice('select', `That did not work: ${reason(error)}`);
    }
  }

  /** @param {string} label @param {SelectionAnswer} reply */
  function take(label, { mask: values, tiles = new Map(), holes = 0 }) {
    const { work } = desk;
    if (!work || !values) return;
    const patch = work.mask.adopt(values, tiles, holes);
    editor.redrawMask('all');
    if (patch) desk.record(label, patch);
  }

  // -- on the canvas -------------------------------------------------------------------------------------------------

  /** @type {Point[]} whole px */
  let anchors = [];
  /** @type {Point[]} the way through them */
  let way = [];
  let takesAway = false;
  let asked = 0;

  /** @param {'wand'|'wire'|'object'} tool */
  function choose(tool) {
    if (desk.compared) desk.look(null);
    editor.choose(tool);
    editor.dispatchEvent(new Event('tool'));
  }

  /** @param {Point} point @returns {Point | null} */
  function pixel([x, y]) {
    const { width, height } = /** @type {Painting} */ (desk.work).picture;
    const at = /** @type {Point} */ ([Math.floor(x), Math.floor(y)]);
    return at[0] >= 0 && at[1] >= 0 && at[0] < width && at[1] < height ? at : null;
  }

  /** @param {Point[]} points */
  const centred = (points) => points.map(([x, y]) => /** @type {Point} */ ([x + 0.5, y + 0.5]));

  editor.addEventListener('pick', (event) => {
    const { detail } = /** @type {CustomEvent<Picked>} */ (event);
    const { work } = desk;
    const at = work && pixel(detail.point);
    if (!work || !at || editor.locked) return;
    if (editor.tool === 'wand') void change('wand', NAMES.wand, { points: [at], takesAway: detail.takesAway });
    if (editor.tool === 'object') void selectObject(at, detail.takesAway);
    if (editor.tool === 'wire') void anchor(at, detail.takesAway);
  });

  editor.addEventListener('hover', async (event) => {
    const { work } = desk;
    const at = work && anchors.length ? pixel(/** @type {CustomEvent<Point>} */ (event).detail) : null;
    if (!work || !at) return;
    const turn = ++asked;
    if (turn - answered > 1) return; // the newest is asked for when the one under way has come
    await preview(at, turn);
  });
  let answered = 0;

  /** @param {Point} at @param {number} turn */
  async function preview(at, turn) {
    const { work } = desk;
    const from = anchors.at(-1);
    if (!work || !from) return;
    const more = await selector.ask(work, { what: 'wire', points: [from, at], room: constants?.wire_margin }).catch(() => null);
    answered = Math.max(answered, asked);
    if (turn && anchors.at(-1) === from && more?.way) editor.outline = centred([...way, ...more.way]);
  }

  /** @param {Point} at @param {boolean} takes */
  async function anchor(at, takes) {
    const { work } = desk;
    if (!work) return;
    const [first, last] = [anchors[0], anchors.at(-1)];
    const close = (/** @type {Point} */ a) => Math.hypot(a[0] - at[0], a[1] - at[1]) * editor.view.scale <= NEAR;
    if (!last) takesAway = takes;
    const ends = anchors.length > 1 && (close(first) || close(/** @type {Point} */ (last)));
    const to = ends ? first : at;
    if (last) {
      const { way: more = [] } = await selector.ask(work, { what: 'wire', points: [last, to], room: constants?.wire_margin });
      if (anchors.at(-1) !== last || desk.work !== work) return;
      way.push(...more.slice(1));
    } else {
      way = [at];
    }
    if (ends) {
      closeLine(work);
      return;
    }
    anchors.push(at);
    editor.outline = centred(way);
    say(`Point ${anchors.length} at ${at[0]}, ${at[1]}. A click on the first point, or twice at one place, closes the line.`);
  }

  /** @param {Painting} work */
  function closeLine(work) {
    const points = centred(way);
    const value = takesAway ? 0 : 255;
    editor.stop();
    desk.change(NAMES.wire, () => work.mask.polygon(points, value));
    say('Line closed.');
  }

  editor.addEventListener('stop', () => {
    anchors = [];
    way = [];
  });

  /** @param {Point} at @param {boolean} takes */
  async function selectObject(at, takes) {
    const { work } = desk;
    if (!work || !segmenter || desk.busy) return;
    say('Looking for the object…');
    const { select } = segmenter;
    try {
      const selection = await desk.alone(() => select(work.picture, work.id, at));
      if (desk.work === work) await change('object', NAMES.object, { selection, takesAway: takes });
    } catch (error) {
      notice('segmenter', `The segmenter failed: ${reason(error)}`);
    }
  }
}

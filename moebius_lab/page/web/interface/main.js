// The page: opening pictures, the mask's history, running the model, choosing among results, saving.

import { reason } from '../engine/errors.js';
import { Autosave } from './autosave.js';
import { checkSettings, decodingCost, presetOf, stepCosts, windowCost } from '../engine/settings.js';
import { Editor } from './editor.js';
import { HOLE, History, KEEP, Mask, firstBrush } from './mask.js';
import { ModelPanel } from './model_panel.js';
import {
  VERSION,
  add,
  button,
  dismiss,
  download,
  duration,
  element,
  field,
  isCancelled,
  notice,
  onClick,
  say,
  write,
} from './page.js';
import { FileError, canvasOf, maskToPng, readMask, readPicture, resizeMask } from './picture_files.js';
import { cut, difference, put } from './regions.js';
import { inTurns } from '../engine/turns.js';

/** @import { Pace, Settings, StepProgress } from '../engine/types.js' */
/** @import { Action, Grey, Made, MaskPatch, Picture, Rect, Result, Saving, Tool, Work } from './types.js' */

/** What was measured, by what the model ran on. @type {Map<string, Pace>} */
const paces = new Map();

const HISTORY_LIMIT = 192 * 2 ** 20; // bytes
const RESULTS_LIMIT = 24;
const ROUNDED =
  'This browser rounds the colours of translucent pixels: where the picture lets something through, its values change a little.';

export const editor = new Editor(
  element('stage', HTMLElement),
  element('image', HTMLCanvasElement),
  element('mask', HTMLCanvasElement),
  element('marks', SVGSVGElement),
);
export const model = new ModelPanel();
const runBar = element('run-bar', HTMLProgressElement);

/** @type {Work | null} */
let work = null;
/** @type {Result | null} the result on the screen; the picture with its mask where null */
let shown = null;
/** @type {[string, string] | null} what is compared on the screen, by name: left and right of the line */
let compared = null;
/** @type {AbortController | null} */
let running = null;
let opening = 0;
let outcome = ''; // how the last run ended, for as long as that says something of what is on the screen

// -- opening -----------------------------------------------------------------------------------------------------------

async function largest() {
  await Promise.race([model.opened, new Promise((done) => setTimeout(done, 3000))]); // a silent server keeps no one from painting
  return model.engine?.manifest.constants.max_megapixels ?? Infinity;
}

/** The lowest value that is hole; while the manifest, which says it, is not here, what is painted alone. */
function holeLevel() {
  const { manifest } = model.engine ?? {};
  return manifest ? Math.ceil(255 * manifest.constants.mask_threshold) : HOLE;
}

/**
 * Open a picture, with its mask where there is one. Of several that are asked for, the last is opened.
 *
 * @param {Blob | Promise<Blob>} from @param {string} name
 * @param {{mask?: Promise<Blob>, credit?: string, again?: Action}} [more]
 */
async function open(from, name, { mask, credit = '', again = { label: 'Choose another', run: choosePicture } } = {}) {
  const turn = ++opening;
  say('Opening…');
  try {
    const [file, drawn] = await Promise.all([from, mask]);
    const limit = await largest();
    const [picture, grey] = await Promise.all([readPicture(file, limit), drawn && readMask(drawn, limit)]);
    const session = (work?.mask.holes || work?.results.length) && (await import('./session.js'));
    if (turn !== opening) return;
    const before = work;
    begin({ id: newId(), name: name.replace(/\.[^.]*$/, '') || 'picture', credit, picture, file, source: file });
    dismiss('file');
    dismiss('colours');
    if (file.type === 'image/png') {
      const unread = () => say('Its settings could not be read.');
      import('./metadata.js').then(({ takeSettings }) => takeSettings(desk, file)).catch(unread);
    }
    if (session && before) session.retire(desk, before);
    if (!picture.exact) notice('colours', ROUNDED, { bad: false });
    if (grey) takeMask(grey);
    if (work) autosave.save(work);
    const next = work?.mask.holes ? '' : ' Paint over what should go.';
    say(`${name} is open: ${picture.width} by ${picture.height} pixels.${next}`);
  } catch (error) {
    if (turn === opening) report(error, again);
  }
}

/** @param {{id: string, name: string, credit: string, picture: Picture, file: Blob, source: Blob} & Partial<Work>} what */
function begin(what) {
  const { width, height } = what.picture;
  const mask = new Mask(width, height, holeLevel());
  const rest = { history: new History(HISTORY_LIMIT), results: [], extension: null, grown: null, place: { left: 0, top: 0 } };
  show({ ...rest, ...what, mask });
  const share = model.engine?.manifest.constants.brush_share; // without a manifest the brush stays as it is
  editor.resizeBrush(share ? firstBrush(width, height, share) : editor.size);
}

/** Put settings into the controls. @param {any} settings @returns {boolean} whether they can be used here */
function useSettings(settings) {
  const constants = model.engine?.manifest.constants;
  if (!constants || running) return false;
  const found = { harmonize: false, ...settings }; // a picture that was saved before there was this choice had none
  try {
    checkSettings({ ...chosen(), ...found }, constants);
  } catch {
    return false;
  }
  fillIn(found);
  changeSettings();
  return true;
}

/** @param {Work} next */
function show(next) {
  running?.abort();
  work = next;
  outcome = '';
  for (const subject of ['hole', 'compare']) dismiss(subject);
  element('start', HTMLElement).hidden = true;
  const { width, height } = next.picture;
  element('mask', HTMLCanvasElement).ariaLabel = `Mask of ${next.name}, ${width} by ${height} pixels`;
  editor.open(next.picture, next.mask);
  look(null);
  listResults();
  update();
}

/** Say what went wrong with a file. @param {unknown} error @param {Action} action */
function report(error, action) {
  const text = error instanceof FileError ? error.message : `That did not work: ${reason(error)}`;
  notice('file', text, { actions: [action] });
  say(text);
}

/** @param {Blob} file @param {string} [name] */
async function importMask(file, name = 'The mask') {
  const target = work;
  if (!target || refused()) return;
  const again = { label: 'Choose another', run: chooseMask };
  try {
    const grey = await readMask(file, await largest());
    const { width, height } = target.picture;
    if (work !== target || refused()) return;
    if (grey.width === width && grey.height === height) {
      takeMask(grey);
      return;
    }
    const sizes = `“${name}” is ${grey.width} × ${grey.height} pixels, the picture ${width} × ${height}.`;
    const stretch = {
      label: 'Stretch it',
      run: () => work === target && !refused() && takeMask(resizeMask(grey, width, height)),
    };
    notice('file', `${sizes} A mask must have the picture’s size.`, { actions: [stretch, again] });
  } catch (error) {
    report(error, again);
  }
}

/** Whether the mask cannot be changed now, which is said. */
function refused() {
  if (busy()) say('The mask cannot be changed now.');
  return busy();
}

/** Take a mask, also where the model still runs on the picture before. @param {Grey} grey */
function takeMask(grey) {
  const { mask } = /** @type {Work} */ (work);
  if (!grey.data.some((value) => value >= mask.level)) {
    notice('file', 'That mask has no white: white marks what should be filled. Nothing was changed.', {
      actions: [{ label: 'Choose another', run: chooseMask }],
    });
    return;
  }
  dismiss('file');
  rewrite('mask import', () => mask.replace(grey.data));
  say('The mask was imported.');
}

/** Take files that were dropped or pasted. @param {File[]} files */
async function takeFiles(files) {
  try {
    await (await import('./dropped.js')).take(desk, files);
  } catch (error) {
    report(error, { label: 'Try again', run: () => void takeFiles(files) });
  }
}

function fillSamples() {
  const list = element('samples', HTMLElement);
  if (list.childElementCount) return;
  for (const { name, credit, image, mask } of model.engine?.manifest.samples ?? []) {
    const item = add(add(list, 'li'), 'button', { type: 'button', title: credit });
    add(item, 'img', { alt: '', src: image });
    add(item, 'span', { textContent: name });
    const again = { label: 'Try again', run: () => item.click() };
    item.addEventListener('click', () => void open(handedOver(image), name, { mask: handedOver(mask), credit, again }));
  }
}

/** A file of this page's server. @param {string} url */
async function handedOver(url) {
  const response = await fetch(url);
  if (!response.ok) throw new FileError(`The server did not hand over ${url} (${response.status}). Try another picture.`);
  return response.blob();
}

// -- the mask ----------------------------------------------------------------------------------------------------------

/** Whether a large mask is being changed, which takes more than one task. */
let changing = false;

/** Whether the mask stays as it is for now. */
function busy() {
  return running !== null || changing;
}

/** @param {boolean} on */
function hold(on) {
  changing = on;
  editor.locked = busy();
}

/** Do what takes a while, and meanwhile change nothing. @template T @param {() => Promise<T>} act */
async function alone(act) {
  hold(true);
  try {
    return await act();
  } finally {
    hold(false);
  }
}

/** Change the whole mask, in several tasks if it is large. @template T @param {Generator<void, T>} steps @param {(made: T) => void} done */
function changeAll(steps, done) {
  hold(true);
  inTurns(steps, (made) => {
    hold(false);
    editor.redrawMask('all');
    done(made);
  });
}

/** Change the mask by drawing, as one step of the history. @param {string} label @param {(mask: Mask) => Rect} draw */
function change(label, draw) {
  if (!work || busy()) return;
  const { mask } = work;
  changeWhole(label, function* () {
    mask.begin();
    draw(mask);
    return mask.commit();
  });
}

/** Change the whole mask as one step of the history. @param {string} label @param {(mask: Mask) => Generator<void, MaskPatch | null>} make */
function changeWhole(label, make) {
  if (work && !busy()) rewrite(label, make);
}

/** @type {typeof changeWhole} */
function rewrite(label, make) {
  const current = /** @type {Work} */ (work);
  editor.stop();
  look(null);
  changeAll(make(current.mask), (patch) => patch && record(label, patch, current));
}

/** @param {string} label @param {MaskPatch} patch @param {Work} [painting] whose mask was changed */
function record(label, patch, painting = /** @type {Work} */ (work)) {
  const { mask, history } = painting;
  history.push({
    label,
    get bytes() {
      return patch.bytes;
    },
    swap: () => changeAll(mask.swap(patch), () => changed(painting)),
  });
  changed(painting);
}

/** @param {Work} painting whose mask has changed */
function changed(painting) {
  if (painting !== work) return;
  dismiss('hole');
  outcome = '';
  update();
  autosave.save(painting);
}

/** @param {'undo'|'redo'} way */
function travel(way) {
  if (!work || busy()) return;
  editor.stop();
  const onResult = compared;
  look(null);
  if (onResult && way === 'undo') {
    say('Back at the mask.');
    return;
  }
  const label = work.history[way]();
  if (label) say(`${way === 'undo' ? 'Undone' : 'Redone'}: ${label}.`);
  outcome = '';
  update();
  autosave.save(work);
}

// -- running -----------------------------------------------------------------------------------------------------------

const SAMPLING = ['solver', 'steps', 'strength', 'guidance', 'guided-from', 'guided-to', 'init', 'harmonize']; // what a preset decides
const OTHERS = ['coverage', 'noise-offset', 'seed', 'variants'];

/** @param {string} id @returns {HTMLInputElement|HTMLSelectElement} */
function control(id) {
  return /** @type {any} */ (document.getElementById(id));
}

/** The settings as they stand, usable or not. @returns {any} */
function chosen() {
  const values = [...SAMPLING, ...OTHERS].map((id) => {
    const from = control(id);
    return from instanceof HTMLSelectElement ? from.value : from.valueAsNumber;
  });
  const [solver, steps, strength, guidance, from, to, init, harmonized, coverage, noise_offset, seed] = values;
  const harmonize = harmonized === 'true';
  return { solver, steps, strength, guidance, guidance_interval: [from, to], init, harmonize, coverage, noise_offset, seed };
}

/** @param {any} settings some of them */
function fillIn({ guidance_interval: [from, to] = [], noise_offset, ...others }) {
  const values = { 'guided-from': from, 'guided-to': to, 'noise-offset': noise_offset, ...others };
  for (const [id, value] of Object.entries(values)) if (value !== undefined && control(id)) control(id).value = value;
}

/** @returns {{settings: Settings, variants: number} | null} null where a field holds no usable value, which is shown */
function readSettings() {
  const more = element('more', HTMLDetailsElement);
  for (const id of [...SAMPLING, ...OTHERS]) {
    const input = control(id);
    if (input.value === '' || !input.checkValidity()) {
      more.open ||= more.contains(input);
      if (input.value === '') input.setCustomValidity('Enter a number.');
      input.reportValidity();
      input.setCustomValidity('');
      return null;
    }
  }
  const settings = chosen();
  try {
    if (model.engine) checkSettings(settings, model.engine.manifest.constants);
  } catch (error) {
    more.open = true;
    notice('settings', /** @type {Error} */ (error).message);
    return null;
  }
  return { settings, variants: field('variants').valueAsNumber };
}

/** Offer what the manifest has, once it is known, with the settings of the last visit. */
function offerSettings() {
  const manifest = model.engine?.manifest;
  const preset = element('preset', HTMLSelectElement);
  if (!manifest || preset.options.length) return;
  for (const [name, { label }] of Object.entries(manifest.presets)) preset.add(new Option(label, name));
  preset.add(new Option('Custom', ''));
  for (const name of Object.keys(manifest.solvers)) element('solver', HTMLSelectElement).add(new Option(name));
  const kept = keptSettings();
  setDefaults();
  const found = { ...kept, ...manifest.presets[kept.preset] };
  try {
    checkSettings({ ...chosen(), ...found }, manifest.constants);
    fillIn(found);
  } catch {
    // kept by a version that offered something else: the defaults stay
  }
  changeSettings();
}

function setDefaults() {
  const manifest = model.engine?.manifest;
  if (!manifest) return;
  const { noise_offset, coverages } = manifest.constants;
  fillIn({ ...Object.values(manifest.presets)[0], noise_offset, coverage: coverages[0] });
  changeSettings();
}

function choosePreset() {
  const preset = model.engine?.manifest.presets[control('preset').value];
  if (preset) {
    fillIn(preset);
    changeSettings();
  } else {
    element('more', HTMLDetailsElement).open = true;
  }
}

/** Name the preset that has the settings as they stand, and keep them for the next visit. */
function changeSettings() {
  dismiss('settings');
  const { presets = {}, solvers = {} } = model.engine?.manifest ?? {};
  const settings = chosen();
  const preset = (control('preset').value = presetOf(settings, presets));
  write('preset-note', presets[preset]?.note ?? 'Settings of your own, below.');
  control('solver').title = solvers[settings.solver];
  const { seed, noise_offset, coverage, ...sampling } = settings;
  keepSettings({ noise_offset, coverage, ...(preset ? { preset } : sampling) });
  update();
}

/** What was measured of what is chosen to run on. @returns {Pace} */
function pace() {
  return paces.get(whereItRuns()) ?? { encode: 0, guided: 0, unguided: 0, decode: 0 };
}

function whereItRuns() {
  const { provider, precision, distilled } = model.choice ?? {};
  return `${provider} ${distilled?.like ?? precision}`;
}

/** Milliseconds that a window takes here; 0 while that is unknown or the settings cannot be used. @param {Settings} settings */
function costOf(settings) {
  try {
    return model.engine ? windowCost(settings, pace(), model.engine.manifest.constants) : 0;
  } catch {
    return 0;
  }
}

/** Say what each preset takes on this device. */
function showCosts() {
  const told = Object.values(model.engine?.manifest.presets ?? {}).flatMap((preset) => {
    const ms = costOf({ ...chosen(), ...preset });
    return ms ? [`${preset.label} about ${duration(ms / 1000)}`] : [];
  });
  const first = 'How long each preset takes on this device is shown here after a first step.';
  write('cost', told.length ? `On this device, for each window: ${told.join('; ')}.` : first);
}

async function run() {
  if (!work || busy()) return;
  const current = work;
  const { mask, picture } = current;
  const invert = { label: 'Invert the mask', run: () => button('invert').click() };
  if (!mask.holes) {
    notice('hole', 'Nothing is painted yet. Paint over what should go, then fill it.');
    return;
  }
  if (mask.holes === mask.data.length) {
    notice('hole', 'The mask covers the whole picture. Leave some of it: the model continues what is around the hole.', {
      actions: [invert],
    });
    return;
  }
  const input = readSettings();
  if (!input) return;
  for (const subject of ['hole', 'previous']) dismiss(subject);
  outcome = '';
  editor.stop();
  const abort = (running = new AbortController());
  /** @type {Result[]} */
  const made = [];
  write('run-text', 'Loading the model…');
  update();
  try {
    const engine = await model.prepare(abort.signal);
    if (!engine || abort.signal.aborted || work !== current) return;
    dismiss('model');
    look(null);
    editor.locked = true;
    editor.overlay = 'outline';
    for (let variant = 0; variant < input.variants; variant++) {
      const settings = { ...input.settings, seed: (input.settings.seed + variant) % 2 ** 32 };
      const onProgress = (/** @type {StepProgress} */ progress) => showProgress(progress, settings, variant, input.variants);
      write('run-text', 'Reading the picture…');
      const { image: filled, timings } = await engine.inpaint(
        { image: picture, mask: mask.data, settings, extension: current.extension },
        { onProgress, signal: abort.signal },
      );
      paces.set(whereItRuns(), timings);
      model.worked();
      const region = await difference(picture, filled);
      made.push({ seed: settings.seed, region, canvas: canvasOf(region), made: madeNow(settings) });
      current.results = [...current.results, made[variant]].slice(-RESULTS_LIMIT);
      listResults();
      const times = `${duration(timings.total / 1000)}: encoding ${Math.round(timings.encode)} ms, a step ${Math.round(timings.step)} ms, decoding ${Math.round(timings.decode)} ms`;
      outcome = `Done in ${times}.`;
      write('run-text', outcome);
    }
    finish(current === work ? made[0] : null);
    say(`Filled. ${input.variants > 1 ? `${input.variants} results to choose from.` : 'The result is shown.'}`);
  } catch (error) {
    const same = current === work;
    if (same) outcome = `${isCancelled(error) ? 'Cancelled.' : 'It did not work; see the message.'} The mask is as it was.`;
    finish(same ? (made[0] ?? null) : null);
    if (!isCancelled(error)) model.failed(error, () => void run());
    else if (same) say('Cancelled.');
  } finally {
    if (running === abort) finish(shown);
  }
}

/** Measure the model on this device. */
async function measure() {
  if (running) return;
  const abort = (running = new AbortController());
  write('run-text', 'Loading the model…');
  model.use(''); // the reference is of the network's own weights
  update();
  try {
    const engine = await model.prepare(abort.signal);
    if (!engine || !model.detected || abort.signal.aborted) return;
    const { measured, show } = await import('../measuring/measuring.js');
    const data = await measured(engine, model.detected, abort.signal, (words) => write('run-text', words));
    model.worked();
    show(data);
  } catch (error) {
    if (!abort.signal.aborted) model.failed(error, () => void measure());
  } finally {
    if (running === abort) finish(shown);
  }
}

/** What a result is saved with. @param {Settings} settings @returns {Made} */
function madeNow(settings) {
  const { network = '', weights = '' } = model.engine?.manifest ?? {};
  const { provider = '', precision = '', distilled } = model.choice ?? {};
  const used = { network, weights: distilled?.weights ?? weights, precision: distilled?.like ?? precision };
  return { format: 1, settings, model: { ...used, backend: provider }, code: VERSION };
}

/** @param {Result | null} result */
function finish(result) {
  running = null;
  editor.locked = false;
  runBar.value = 0;
  look(result);
  update();
  if (result) button('keep').scrollIntoView({ block: 'nearest' });
}

/** @param {StepProgress} progress @param {Settings} settings @param {number} variant @param {number} variants */
function showProgress(progress, settings, variant, variants) {
  const { window, windows, step, steps, msPerStep, plan, preview } = progress;
  const total = variants * windows * steps;
  const done = (variant * windows + window) * steps + step;
  const parts = [variants > 1 ? `Variant ${variant + 1} of ${variants}` : ''];
  if (step) {
    paces.set(whereItRuns(), progress.pace);
    showCosts();
    parts.push(windows > 1 ? `window ${window + 1} of ${windows}` : '', `step ${step} of ${steps}`);
    parts.push(`${Math.round(msPerStep)} ms a step`);
  } else {
    parts.push(plan, `${steps} step${steps > 1 ? 's' : ''}${windows > 1 ? ' each' : ''}`);
  }
  const later = (variants - variant) * windows - window - 1; // windows after this one
  const left = msLeft(settings, step, later);
  if (left) parts.push(`about ${duration(left / 1000)} left`);
  runBar.value = done / total;
  write('run-text', parts.filter(Boolean).join(' · '));
  if (preview && running) editor.show({ left: preview.left, top: preview.top, canvas: canvasOf(preview) });
}

/**
 * @param {Settings} settings
 * @param {number} step that is done in this window
 * @param {number} later windows after it
 * @returns {number} ms; 0 while it is unknown
 */
function msLeft(settings, step, later) {
  const whole = costOf(settings);
  if (!whole || !model.engine) return 0;
  const steps = stepCosts(settings, pace(), model.engine.manifest.constants);
  const rest = steps.slice(step).reduce((sum, ms) => sum + ms, 0) + decodingCost(pace());
  return later * whole + (step ? rest : whole);
}

// -- results -----------------------------------------------------------------------------------------------------------

/** Show a result, or the picture with its mask. @param {Result | null} result @param {[string, string] | null} [names] of what is compared */
function look(result, names = result && ['Before', 'After']) {
  shown = result;
  compared = names;
  if (result) editor.show({ left: result.region.left, top: result.region.top, canvas: result.canvas }, 0);
  else editor.show(null);
  editor.overlay = names ? 'none' : 'mask';
  field('split').value = '0';
  for (const input of document.querySelectorAll('#results input')) {
    const radio = /** @type {HTMLInputElement} */ (input);
    radio.checked = work?.results[Number(radio.value)] === result;
    if (radio.checked) radio.closest('label')?.scrollIntoView({ block: 'nearest', inline: 'nearest' });
  }
  showSplit();
  showTool();
  update();
}

function showSplit() {
  const split = editor.split;
  element('before', HTMLElement).hidden = !compared || split < 0.02;
  element('after', HTMLElement).hidden = !compared || split > 0.98;
  write('before', compared?.[0] ?? '');
  write('after', compared?.[1] ?? '');
  field('split').value = String(split);
}

function listResults() {
  const list = element('results', HTMLElement);
  const results = work?.results ?? [];
  list.replaceChildren();
  if (!results.length) add(list, 'p', { className: 'fine', textContent: 'What the model makes of the hole appears here.' });
  for (const [index, result] of results.entries()) {
    const item = add(list, 'label');
    const [value, checked, disabled] = [String(index), result === shown, running !== null];
    const ariaLabel = `Result with seed ${result.seed}`;
    const input = add(item, 'input', { type: 'radio', name: 'result', value, checked, disabled, ariaLabel });
    input.addEventListener('change', () => look(result));
    input.addEventListener('click', () => shown !== result && look(result));
    item.append(thumbnail(result));
    add(item, 'span', { textContent: `seed ${result.seed}` });
  }
}

/** What was filled, with some of its surroundings. @param {Result} result */
function thumbnail({ region, canvas }) {
  const { picture } = /** @type {Work} */ (work);
  const margin = Math.round(Math.max(region.width, region.height) * 0.25);
  const left = Math.max(region.left - margin, 0);
  const top = Math.max(region.top - margin, 0);
  const width = Math.min(region.left + region.width + margin, picture.width) - left;
  const height = Math.min(region.top + region.height + margin, picture.height) - top;
  const small = document.createElement('canvas');
  const scale = Math.min(1, 160 / Math.max(width, height));
  small.width = Math.max(1, Math.round(width * scale));
  small.height = Math.max(1, Math.round(height * scale));
  const c = /** @type {CanvasRenderingContext2D} */ (small.getContext('2d'));
  c.scale(small.width / width, small.height / height);
  c.imageSmoothingQuality = 'high';
  c.translate(-left, -top);
  editor.drawPart(c, { left, top, width, height });
  c.drawImage(canvas, region.left, region.top);
  return small;
}

/** The result becomes the picture. @param {{again?: boolean}} [options] whether the mask stays, to be filled again */
function keep({ again = false } = {}) {
  if (!work || !shown || busy()) return;
  const [current, result] = [work, shown];
  if (again) take(current, result, null);
  else changeAll(current.mask.fill(KEEP), (patch) => take(current, result, patch));
}

/** @param {Work} current @param {Result} result that becomes its picture @param {MaskPatch | null} patch which cleared the mask */
function take(current, result, patch) {
  const { mask, picture } = current;
  let other = result.region;
  /** @type {Work['extension']} */
  let otherExtension = null;
  /** @type {Result[]} */
  let otherResults = [];
  const exchange = () => {
    const now = { ...other, data: cut(picture, other) };
    put(picture, other);
    other = now;
    [current.results, otherResults] = [otherResults, current.results];
    [current.extension, otherExtension] = [otherExtension, current.extension];
  };
  exchange();
  const bytes =
    other.data.length + (patch?.bytes ?? 0) + otherResults.reduce((sum, result) => sum + 2 * result.region.data.length, 0);
  const redraw = () => {
    current.id = newId();
    current.file = null;
    outcome = '';
    editor.redrawPicture(other);
    editor.redrawMask('all');
    look(null);
    listResults();
    autosave.save(current);
  };
  const swap = () => {
    exchange();
    if (patch) changeAll(mask.swap(patch), redraw);
    else redraw();
  };
  current.history.push({ label: 'result kept', bytes, swap });
  redraw();
  update();
  say('The result is the picture now. Undo brings the old one back.');
}

/** Go on from the result: it becomes the picture, and the same hole is filled once more. */
function fillAgain() {
  if (!shown || running) return;
  keep({ again: true });
  field('seed').value = String((field('seed').valueAsNumber + 1) % 2 ** 32);
  void run();
}

async function save() {
  if (!work) return;
  const { name, picture, source, place } = work;
  const result = shown;
  say('Saving…');
  try {
    const whole = { ...picture, data: picture.data.slice() }; // as it is now: a kept result can be undone meanwhile
    if (result) put(whole, result.region);
    const { encode } = await import('./saving.js');
    const { blob, ending, colours } = await encode(whole, { source, made: result?.made ?? null, place });
    const file = `${name}${result ? '-filled' : ''}${ending}`;
    download(blob, file);
    say(`Saved as ${file}, ${colours}.`);
  } catch (error) {
    report(error, { label: 'Try again', run: () => void save() });
  }
}

async function exportMask() {
  if (!work) return;
  const { mask, name } = work;
  download(await maskToPng({ width: mask.width, height: mask.height, data: mask.data.slice() }), `${name}-mask.png`);
  say(`Saved as ${name}-mask.png.`);
}

// -- keeping the work --------------------------------------------------------------------------------------------------

const autosave = new Autosave();

/** What the page says of what it keeps. @type {Record<Saving, string>} */
const KEEPING = {
  nothing: '',
  saving: 'Picture and mask are being saved…',
  saved: 'Picture and mask are saved here as you paint; a reload brings them back.',
  refused:
    'This browser does not let the page save picture and mask between visits. Everything else works; save before you leave.',
  forgotten: 'Forgotten, with what closed tabs had left here. What is on the screen is saved no more, and stays until you leave.',
};

function showKeeping() {
  element('autosave-text', HTMLElement).dataset.state = autosave.state;
  write('autosave-text', KEEPING[autosave.state]);
}

/** What to tell a picture by that was not opened before. */
function newId() {
  return `${Date.now()}-${Math.random()}`;
}

async function forget() {
  try {
    await autosave.forget(work);
  } catch {
    notice('storage', 'The browser did not remove picture and mask. Clear this site’s data in its settings.');
  }
}

async function bringBack() {
  const limit = await largest();
  const saved = await autosave.restore().catch(() => null);
  if (!saved || work || opening) return;
  const { id, name, credit, blob, source = blob, place = { left: 0, top: 0 } } = saved.picture; // older pages kept the picture alone
  const picture = await readPicture(blob, limit).catch(() => null);
  if (!picture || work || opening) return;
  const { extension = null, grown = null } = saved;
  begin({ id, name, credit, picture, file: blob, source, place, extension, grown });
  const current = /** @type {Work} */ (/** @type {unknown} */ (work));
  const { mask } = current;
  if (saved.mask && saved.mask.width === picture.width && saved.mask.height === picture.height) {
    changeAll(mask.replace(saved.mask.data), update);
  }
  if (grown) await (await import('./extend.js')).recall(desk, current);
  autosave.restored();
  update();
  say('Your last picture and mask are back.');
}

// -- what can be pressed now -------------------------------------------------------------------------------------------

function update() {
  const busy = running !== null;
  const none = !work || busy;
  if (!busy) model.use(control('preset').value);
  for (const id of ['clear', 'invert', 'import-mask', 'export-mask', 'save']) button(id).disabled = none;
  button('undo').disabled = none || !(work?.history.canUndo || compared);
  button('redo').disabled = none || !work?.history.canRedo;
  button('run').disabled = none;
  button('measure').disabled = busy;
  button('cancel').hidden = !busy;
  button('keep').disabled = button('again').disabled = none || !shown;
  button('edit').disabled = field('split').disabled = none || !compared;
  for (const input of document.querySelectorAll('#results input')) /** @type {HTMLInputElement} */ (input).disabled = busy;
  editor.dispatchEvent(new Event('update'));
  if (work) {
    const { picture, mask, credit } = work;
    const share = (100 * mask.holes) / mask.data.length;
    const hole = mask.holes ? `${share < 0.1 ? 'under 0.1' : share.toFixed(1)} %` : 'none';
    write('facts', `${picture.width} × ${picture.height} px · hole ${hole}${credit ? ` · ${credit}` : ''}`);
  }
  showCosts();
  if (!busy) hint();
}

function hint() {
  const cost = costOf(chosen()) * field('variants').valueAsNumber;
  const time = cost ? `About ${duration(cost / 1000)} at the pace of the last run.` : 'The result appears in place.';
  if (!work) write('run-text', 'Open a picture first.');
  else if (outcome) write('run-text', outcome);
  else if (!work.mask.holes) write('run-text', 'Paint over what should go.');
  else write('run-text', model.ready || !model.missing ? time : 'The model is downloaded first; you are asked before.');
}

/** Panels that are built when they are first opened. @type {Record<string, () => Promise<{build: (desk: Desk, panel: HTMLElement) => void}>>} */
const panels = {
  select: () => import('./select.js'),
  extend: () => import('./extend.js'),
  compare: () => import('./compare.js'),
  saving: () => import('./saving.js'),
};

/** What those modules, and others that are loaded later, work with. */
export const desk = {
  editor,
  model,
  get work() {
    return work;
  },
  get shown() {
    return shown;
  },
  get compared() {
    return compared;
  },
  get busy() {
    return busy();
  },
  open,
  importMask,
  show,
  look,
  alone,
  change,
  record,
  update,
  newId,
  largest,
  readSettings,
  useSettings,
  madeNow,
  /** @param {Work} painting */
  keepSafe: (painting) => autosave.save(painting),
};
/** @typedef {typeof desk} Desk */

for (const [id, load] of Object.entries(panels)) {
  const panel = element(id, HTMLDetailsElement);
  panel.addEventListener('toggle', async () => {
    if (!panel.open || panel.dataset.built) return;
    panel.dataset.built = 'yes';
    try {
      (await load()).build(desk, panel);
    } catch (error) {
      delete panel.dataset.built;
      panel.open = false;
      report(error, { label: 'Try again', run: () => (panel.open = true) });
    }
  });
}

function showTool() {
  const shape = !editor.brushes && editor.tool !== 'hand';
  element('size-row', HTMLElement).hidden = !editor.brushes;
  element('shape-row', HTMLElement).hidden = !shape;
  const hints = {
    hand: 'Drag the picture; wheel to zoom.',
    rectangle: 'Drag over what should go.',
    lasso: 'Draw around what should go.',
    wand: 'Click on a colour.',
    wire: 'Click along an edge; click twice to close.',
    object: 'Click on a thing.',
  };
  write('option-hint', compared ? 'Drag to compare.' : (hints[/** @type {keyof typeof hints} */ (editor.tool)] ?? ''));
}

/** @param {Tool} tool */
function chooseTool(tool) {
  if (compared && tool !== 'hand') look(null);
  editor.choose(tool);
  /** @type {HTMLInputElement} */ (document.querySelector(`[name=tool][value=${tool}]`)).checked = true;
  showTool();
}

/** The slider is logarithmic: 0..100 are 1 px and half the picture. */
function showSize() {
  field('size').value = String((100 * Math.log(editor.size)) / Math.log(editor.largestSize));
  const text = `${Math.round(editor.size)} px`;
  write('size-text', text);
  field('size').ariaValueText = text;
}

// -- wiring ------------------------------------------------------------------------------------------------------------

const choosePicture = () => field('picture-file').click();
const chooseMask = () => field('mask-file').click();

/** @type {Record<string, () => void>} */
const clicks = {
  open: choosePicture,
  'start-open': choosePicture,
  save: () => void save(),
  'import-mask': chooseMask,
  'export-mask': () => void exportMask(),
  undo: () => travel('undo'),
  redo: () => travel('redo'),
  clear: () => changeWhole('clear', (mask) => mask.fill(KEEP)),
  invert: () => changeWhole('invert', (mask) => mask.invert()),
  run: () => void run(),
  cancel: () => running?.abort(),
  keep: () => keep(),
  again: fillAgain,
  edit: () => look(null),
  'zoom-in': () => editor.zoom(1.25),
  'zoom-out': () => editor.zoom(0.8),
  fit: () => editor.fit(),
  defaults: setDefaults,
  dice: () => (field('seed').value = String(crypto.getRandomValues(new Uint32Array(1))[0])),
  help: () => element('help-dialog', HTMLDialogElement).showModal(),
  forget: () => void forget(),
  measure: () => void measure(),
};
for (const [id, action] of Object.entries(clicks)) onClick(id, action);

for (const input of document.querySelectorAll('[name=tool]')) {
  input.addEventListener('change', () => chooseTool(/** @type {Tool} */ (/** @type {HTMLInputElement} */ (input).value)));
}
for (const input of document.querySelectorAll('[name=shape]')) {
  input.addEventListener('change', () => (editor.subtract = /** @type {HTMLInputElement} */ (input).value === 'remove'));
}
for (const [id, use] of /** @type {const} */ ([
  ['picture-file', open],
  ['mask-file', importMask],
])) {
  const input = field(id);
  input.addEventListener('change', () => {
    const file = input.files?.[0];
    if (file) void use(file, file.name);
    input.value = '';
  });
}
field('size').addEventListener('input', () => editor.resizeBrush(editor.largestSize ** (field('size').valueAsNumber / 100)));
field('split').addEventListener('input', () => {
  editor.split = field('split').valueAsNumber;
  showSplit();
});
for (const id of [...SAMPLING, 'coverage', 'noise-offset']) control(id).addEventListener('input', changeSettings);
control('preset').addEventListener('input', choosePreset);
field('variants').addEventListener('input', update);

editor.addEventListener('edit', (event) => {
  const { label, patch } = /** @type {CustomEvent} */ (event).detail;
  record(label, patch);
});
editor.addEventListener('say', (event) => say(/** @type {CustomEvent} */ (event).detail));
editor.addEventListener('size', showSize);
editor.addEventListener('tool', showTool);
editor.addEventListener('split', showSplit);
editor.addEventListener('view', () => write('zoom-text', `${Math.round(editor.view.scale * 100)} %`));
model.addEventListener('change', () => {
  if (work && work.mask.level !== holeLevel()) work.mask.countFrom(holeLevel());
  offerSettings();
  fillSamples();
  update();
});
autosave.addEventListener('state', showKeeping);

// -- keys, drop and paste ----------------------------------------------------------------------------------------------

/** @type {Record<string, () => void>} */
const letters = {
  b: () => chooseTool('brush'),
  e: () => chooseTool('eraser'),
  r: () => chooseTool('rectangle'),
  l: () => chooseTool('lasso'),
  h: () => chooseTool('hand'),
  i: () => button('invert').click(),
  '[': () => editor.resizeBrush(Math.min(editor.size - 1, editor.size / 1.2)),
  ']': () => editor.resizeBrush(Math.max(editor.size + 1, editor.size * 1.2)),
  '+': () => editor.zoom(1.25),
  '=': () => editor.zoom(1.25),
  '-': () => editor.zoom(0.8),
  0: () => editor.fit(),
  1: () => editor.zoom(1 / editor.view.scale),
  delete: () => button('clear').click(),
  backspace: () => button('clear').click(),
  '?': () => button('help').click(),
};

/** @type {Record<string, () => void>} */
const withControl = {
  z: () => travel('undo'),
  'shift+z': () => travel('redo'),
  y: () => travel('redo'),
  o: choosePicture,
  s: () => button('save').click(),
  enter: () => void run(),
};

document.addEventListener('keydown', (event) => {
  if (document.querySelector('dialog[open]')) return;
  const target = /** @type {HTMLElement} */ (event.target);
  const typing = target.matches('input[type=number], select');
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    const action = withControl[(event.shiftKey ? 'shift+' : '') + key];
    if (!action || (typing && 'zy'.includes(key))) return;
    event.preventDefault();
    action();
  } else if (key === 'escape') {
    if (running) running.abort();
    else if (compared) look(null);
  } else if (key === ' ' && !target.matches('button, summary, select, input:not([type=range])')) {
    event.preventDefault();
    editor.panHeld = true;
  } else if (!typing && !event.altKey && field('letters').checked && letters[key]) {
    event.preventDefault();
    letters[key]();
  }
});
document.addEventListener('keyup', (event) => {
  if (event.key === ' ') editor.panHeld = false;
});
addEventListener('beforeunload', (event) => {
  if (work?.mask.holes && (autosave.state === 'refused' || autosave.state === 'saving')) event.preventDefault();
});
addEventListener('blur', () => (editor.panHeld = false));
addEventListener('dragover', (event) => {
  event.preventDefault();
  document.body.classList.add('dropping');
});
addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) document.body.classList.remove('dropping');
});
addEventListener('drop', (event) => {
  event.preventDefault();
  document.body.classList.remove('dropping');
  const files = [...(event.dataTransfer?.files ?? [])];
  if (files.length) {
    void takeFiles(files);
  } else {
    notice('file', 'That is not a file. Save the picture first, then drop the file here.', {
      actions: [{ label: 'Choose a file', run: choosePicture }],
    });
  }
});
document.addEventListener('paste', (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) void takeFiles(files);
  else if (!(/** @type {HTMLElement} */ (event.target).matches('input'))) say('The clipboard holds no picture.');
});

/** The settings of the last visit: a preset by its name, or the person's own; none without storage. @returns {any} */
function keptSettings() {
  try {
    return JSON.parse(localStorage.getItem('settings') ?? '{}') ?? {};
  } catch {
    return {};
  }
}

/** @param {object} settings */
function keepSettings(settings) {
  try {
    localStorage.setItem('settings', JSON.stringify(settings));
  } catch {
    // the page says elsewhere that this browser keeps nothing
  }
}

/** Settings that are kept between visits; without storage they are not. */
function rememberLetters() {
  try {
    field('letters').checked = localStorage.getItem('letters') !== 'off';
    field('letters').addEventListener('change', () => localStorage.setItem('letters', field('letters').checked ? 'on' : 'off'));
  } catch {
    field('letters').checked = true;
  }
}

/** Without a service worker everything works, but not without a network. */
async function keepPage() {
  try {
    const { pathname } = new URL('.', document.baseURI);
    void navigator.locks.request(`moebius-page ${pathname} ${VERSION}`, { mode: 'shared' }, () => new Promise(() => {})); // see service_worker.js
    await navigator.serviceWorker.register('service_worker.js', { updateViaCache: 'none' });
    await navigator.serviceWorker.ready;
    write('offline-text', 'The page itself is stored too: with a stored model it works without a network.');
  } catch {
    write('offline-text', 'This browser does not let the page work without a network.');
  }
}

element('incomplete', HTMLElement).remove();
rememberLetters();
showTool();
showSize();
void import('./focus.js').then(({ watchFocus }) => watchFocus()); // in time for the first key
void bringBack();
await model.opened;
document.body.classList.remove('looking');
update();
void keepPage();

// Measure this browser: times of encoding, steps and decoding, differences from PyTorch, and what the device is, as a file that
// `python -m moebius_lab results add` takes. It is fetched when the button is pressed.

import { median } from '../engine/inpaint.js';
import { add, addButton, download } from '../interface/page.js';

/** @import { Engine } from '../engine/engine.js' */
/** @import { Detected, Values } from '../engine/types.js' */
/** @import { Input, Output, Reference, Row } from './types.js' */

const FORMAT = 1; // of a file of results
const BUDGET = 4000; // ms for one quantity, after a first run
const MOST = 9; // repetitions
const RUN_NAMES = { vae_encoder: 'encode', step: 'guided step', step_unguided: 'unguided step', vae_decoder: 'decode' };
const METHOD =
  'on a reader’s device, by the page: one run that does not count, then as many as fit into four seconds, at most nine; median and quartiles. A step ends when the device is done, and its state stays there; a captured one is asked for while the one before runs, as in a picture, and counts from that one’s end; encode and decode go from array to array. Differences are taken at 64 numbers of every output, from PyTorch in float32 on the same inputs.';

/** Known names of browsers, in the order in which a user agent tells them apart. */
const BROWSERS = /** @type {[string, RegExp][]} */ ([
  ['Edge', /\bEdg\w*\/([\d.]+)/],
  ['Opera', /\bOPR\/([\d.]+)/],
  ['Firefox', /\b(?:Firefox|FxiOS)\/([\d.]+)/],
  ['Chrome', /\b(?:Headless)?(?:Chrome|CriOS)\/([\d.]+)/],
  ['WebKitGTK', /\bLinux\b.*\bVersion\/([\d.]+).* Safari\//],
  ['Safari', /\bVersion\/([\d.]+).* Safari\//],
]);

/** @param {string} agent the browser's user agent @returns {{engine: string, version: string}} */
export function browserIn(agent) {
  for (const [engine, pattern] of BROWSERS) {
    const version = pattern.exec(agent)?.[1];
    if (version) return { engine, version };
  }
  return { engine: 'another browser', version: '' };
}

/**
 * White noise, uniform in [-1, 1): MurmurHash3's finalizer of each position plus the seed; as in page/reference.py.
 *
 * @param {number} count
 * @param {number} seed
 */
export function noise(count, seed) {
  return Float32Array.from({ length: count }, (_, i) => {
    let h = (i + seed) | 0;
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    return ((h ^ (h >>> 16)) >>> 0) / 2 ** 31 - 1;
  });
}

/** @param {Input} described @returns {Values} */
export function made({ dims, seed, scale = 1, hole = 0, data }) {
  const count = dims.reduce((product, side) => product * side, 1);
  if (data) return { dims, data: Float32Array.from(data) };
  if (seed !== undefined) return { dims, data: noise(count, seed).map((value) => Math.fround(scale) * value) };
  const [height, width] = dims.slice(-2);
  const inside = (/** @type {number} */ at, /** @type {number} */ side) => at >= hole && at < side - hole;
  return {
    dims,
    data: Float32Array.from({ length: count }, (_, i) =>
      Number(inside(i % width, width) && inside(Math.floor(i / width) % height, height)),
    ),
  };
}

/**
 * The largest difference of an output from the reference, and the signal-to-noise ratio in dB, at the numbers that are known.
 *
 * @param {Float32Array} data
 * @param {Output} expected
 */
export function compared(data, { size, every, values, range }) {
  if (data.length !== size) throw new Error(`an output has ${data.length} numbers instead of ${size}`);
  const differences = values.map((value, i) => Math.abs(data[i * every] - value));
  const square = differences.reduce((sum, d) => sum + d * d, 0) / differences.length;
  const largest = differences.reduce((most, d) => (d > most || Number.isNaN(d) ? d : most), 0);
  return { largest, decibel: 20 * Math.log10(range) - 10 * Math.log10(square) };
}

/** @param {number[]} values sorted @param {number} share */
function quantile(values, share) {
  const at = share * (values.length - 1);
  const [low, high] = [values[Math.floor(at)], values[Math.ceil(at)]];
  return low + (high - low) * (at % 1);
}

const LARGEST = 'largest difference, '; // before an output's name
const NOISE = 'signal to noise, ';

/** @param {string} what @param {string} unit @param {number[]} values @param {{backend: string, form: string}} of @returns {Row} */
function row(what, unit, values, { backend, form }) {
  const sorted = [...values].sort((a, b) => a - b);
  return {
    what,
    backend,
    form,
    unit,
    median: median(sorted),
    q1: quantile(sorted, 0.25),
    q3: quantile(sorted, 0.75),
    repeats: values.length,
    steps: 0,
  };
}

/**
 * Measure the model that is loaded.
 *
 * @param {Engine} engine
 * @param {Detected} detected
 * @param {AbortSignal} signal
 * @param {(words: string) => void} tell what is being done
 * @returns {Promise<object>} a file of results
 */
export async function measured(engine, detected, signal, tell) {
  const { loaded, manifest } = engine;
  if (!loaded) throw new Error('no model is loaded');
  const response = await fetch(new URL(manifest.reference, engine.url));
  if (!response.ok) throw new Error(`The server did not hand over ${manifest.reference} (${response.status}). Try again.`);
  const reference = /** @type {Reference} */ (await response.json());
  const { engine: name, version } = browserIn(navigator.userAgent);
  const way = loaded.provider === 'wasm' ? 'wasm, all threads' : `WebGPU${loaded.captured ? ', captured' : ''}`;
  const of = { backend: `${name}, ${way}`, form: loaded.precision };
  const rows = [];
  for (const [run, { inputs, outputs }] of Object.entries(reference)) {
    const what = RUN_NAMES[/** @type {keyof typeof RUN_NAMES} */ (run)];
    const feeds = Object.fromEntries(Object.entries(inputs).map(([input, described]) => [input, made(described)]));
    const { graph } = manifest.runs[run];
    const time = async (/** @type {number} */ times) =>
      graph === 'step' ? engine.timeSteps(feeds, times) : (await engine.run(graph, feeds, { times })).milliseconds;
    tell(`Measuring: ${what}…`);
    const first = await engine.run(graph, feeds);
    signal.throwIfAborted();
    for (const [output, expected] of Object.entries(outputs)) {
      const { largest, decibel } = compared(first.outputs[output].data, expected);
      rows.push(row(`${LARGEST}${run}.${output}`, '', [largest], of));
      if (Number.isFinite(decibel)) rows.push(row(`${NOISE}${run}.${output}`, 'dB', [decibel], of));
    }
    const times = Math.round(BUDGET / first.milliseconds[0]);
    rows.push(row(what, 'ms', await time(Math.min(Math.max(times, 1), MOST)), of));
    signal.throwIfAborted();
  }
  const { adapter, features } = loaded;
  const { deviceMemory } = /** @type {Navigator & {deviceMemory?: number}} */ (navigator);
  return {
    format: FORMAT,
    source: 'a reader’s page',
    date: new Date().toISOString().replace(/T(\d+:\d+).*/, ' $1 UTC'),
    network: manifest.network,
    weights: manifest.weights,
    image_size: manifest.constants.image_size,
    release_steps: 0,
    made_from: manifest.version,
    code: manifest.version,
    method: METHOD,
    machine: {
      system: /** @type {any} */ (navigator).userAgentData?.platform ?? navigator.platform,
      processor: 'not told by browsers',
      cores: navigator.hardwareConcurrency,
      memory_gib: deviceMemory ?? null,
      cards: adapter
        ? [
            {
              name: adapter.description || [adapter.vendor, adapter.architecture].filter(Boolean).join(' ') || 'not named',
              ...adapter,
            },
          ]
        : [],
      browser: { engine: name, version },
      runtime: manifest.runtime.version,
      threads: loaded.threads,
      features,
      limits: adapter ? detected.webgpu.limits : {},
      workspace: loaded.workspace,
    },
    rows,
    missing: [],
    evidence: [{ ...of, evidence: loaded.evidence }],
    profiles: [],
  };
}

/** Show what was measured, and offer it as a file. @param {any} data of `measured` */
export function show({ ...data }) {
  const dialog = add(document.body, 'dialog');
  const heading = { id: 'measured-title', textContent: 'This browser, measured', tabIndex: -1, autofocus: true };
  dialog.setAttribute('aria-labelledby', add(dialog, 'h2', heading).id);
  const { machine, evidence } = data;
  const rows = /** @type {Row[]} */ (data.rows);
  const { engine, version } = machine.browser;
  add(dialog, 'p', { className: 'fine', textContent: `${engine} ${version}; ${evidence[0].evidence}` });
  const table = add(dialog, 'table');
  const line = (/** @type {string} */ name, /** @type {string} */ value) => {
    const row = table.insertRow();
    add(row, 'th', { textContent: name });
    row.insertCell().textContent = value;
  };
  for (const { what, median: middle, q1, q3, repeats } of rows.filter((each) => each.unit === 'ms')) {
    const spread = repeats > 1 ? ` (${digits(q1)} to ${digits(q3)}, ${repeats} runs)` : '';
    line(what, `${digits(middle)} ms${spread}`);
  }
  for (const { what, median: largest } of rows.filter(({ what }) => what.startsWith(LARGEST))) {
    const output = what.slice(LARGEST.length);
    const { median: decibel } = rows.find((/** @type {Row} */ each) => each.what === NOISE + output) ?? {};
    line(`differs, ${output}`, `${digits(largest)} at most${decibel === undefined ? '' : `, ${digits(decibel)} dB`}`);
  }
  const note =
    'The file names browser, graphics device and their limits, and nothing of you or your pictures. It stays on this computer unless you send it to somebody.';
  add(dialog, 'p', { className: 'fine', textContent: note });
  const form = add(dialog, 'form', { className: 'pair', method: 'dialog' });
  const save = () => {
    const name = `${data.date.slice(0, 10)}-${engine}-${data.network}.json`.toLowerCase().replaceAll(' ', '-');
    download(new Blob([`${JSON.stringify(data, null, 1)}\n`], { type: 'application/json' }), name);
  };
  addButton(form, 'Save as a file', save).className = 'primary';
  add(form, 'button', { textContent: 'Close' });
  dialog.addEventListener('close', () => dialog.remove());
  dialog.showModal();
}

/** @param {number} value */
function digits(value) {
  return value && Math.abs(value) < 0.01 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

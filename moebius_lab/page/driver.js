// What browser.py has done in a page of its own: calls of the shipped engine, with arrays as base64, each within a time limit.
// Python hands this module to the page. It is no file of a bundle, and drives the engine of any version that was published.

/** @import { Engine } from './web/engine/engine.js' */
/** @import { Loaded, Result, Settings, Values } from './web/engine/types.js' */
/** @typedef {{dims: number[], data: string}} Packed a float32 tensor, its bytes in base64 */

const PIECE = 32768; // bytes that become text at once, each an argument of one call

/** @type {Engine|undefined} the one that `load` opened last */
let opened;

/** @returns {Engine} */
function engine() {
  if (!opened) throw new Error('No model is loaded.');
  return opened;
}

/**
 * Open the engine that a manifest names, and load the model. One that was loaded before is dropped.
 *
 * @param {{manifest: string, choice: Parameters<Engine['load']>[0]}} job the manifest's URL, and what `Engine.load` takes
 * @returns {Promise<Loaded & {milliseconds: number}>} what the engine says of itself, and how long loading took
 */
export async function load({ manifest, choice }) {
  /** @type {typeof import('./web/engine/engine.js')} */
  const { Engine } = await import(await engineOf(manifest));
  opened?.close();
  opened = await Engine.open(manifest);
  const began = performance.now();
  const loaded = await opened.load(choice);
  return { ...loaded, milliseconds: performance.now() - began };
}

/**
 * @param {Parameters<typeof load>[0]} job
 * @returns {Promise<number>} bytes of the weights that `load` would fetch; 0 where there is no such precision, which it tells
 */
export async function sizeOf({ manifest, choice: { precision } }) {
  const { precisions } = await (await fetch(manifest)).json();
  return precisions?.[precision]?.bytes ?? 0;
}

/**
 * The URL of the engine's module, which the page itself lists: it has a folder now, and lay among the page's files before.
 *
 * @param {string} manifest URL
 */
async function engineOf(manifest) {
  const { page } = await (await fetch(manifest)).json();
  const precache = await (await fetch(new URL('precache.js', manifest))).text();
  const { files } = JSON.parse(precache.slice(precache.indexOf('{'), precache.lastIndexOf('}') + 1));
  const name = files.find((/** @type {string} */ file) => file.startsWith(page) && file.endsWith('/engine.js'));
  if (!name) throw new Error('This page lists no engine of its version: publish it again, whole.');
  return new URL(name, manifest).href;
}

/**
 * @param {{graph: string, feeds: Record<string, Packed>, times: number}} job as `Engine.run`
 * @returns {Promise<{outputs: Record<string, Packed>, milliseconds: number[]}>}
 */
export async function run({ graph, feeds, times }) {
  const { outputs, milliseconds } = await engine().run(graph, values(feeds), { times });
  const packedOutputs = Object.entries(outputs).map(([name, { dims, data }]) => [name, { dims, data: packed(data) }]);
  return { outputs: Object.fromEntries(packedOutputs), milliseconds };
}

/**
 * @param {{feeds: Record<string, Packed>, times: number}} job as `Engine.timeSteps`
 * @returns {Promise<number[]>} milliseconds of each step
 */
export async function timeSteps({ feeds, times }) {
  return engine().timeSteps(values(feeds), times);
}

/**
 * @param {{graph: string, feeds: Record<string, Packed>, times: number}} job as `Engine.profile`
 * @returns {Promise<string>} ONNX Runtime's events
 */
export async function profile({ graph, feeds, times }) {
  return engine().profile(graph, values(feeds), times);
}

/**
 * @param {{run: string}} job as `Engine.commandTimes`
 * @returns {ReturnType<Engine['commandTimes']>}
 */
export async function commandTimes({ run }) {
  return engine().commandTimes(run);
}

/**
 * @param {{width: number, height: number, image: string, mask: string, settings: Settings}} job RGBA and a byte a pixel, in base64
 * @returns {Promise<{image: string, timings: Result['timings']}>}
 */
export async function inpaint({ width, height, image, mask, settings }) {
  const data = new Uint8ClampedArray(unpacked(image).buffer);
  const done = await engine().inpaint({ image: { width, height, data }, mask: unpacked(mask), settings });
  return { image: packed(done.image.data), timings: done.timings };
}

/**
 * What a piece of work gives, or an error after so many seconds. Only an error's message reaches Python: its cause is told in it.
 *
 * @template T
 * @param {Promise<T>} work
 * @param {number} seconds
 * @param {string} late what the error says
 * @returns {Promise<T>}
 */
export async function inTime(work, seconds, late) {
  let timer = 0;
  const over = new Promise((_, reject) => {
    timer = setTimeout(reject, 1000 * seconds, new Error(late));
  });
  try {
    return await Promise.race([work, /** @type {Promise<never>} */ (over)]);
  } catch (error) {
    const { message, cause } = /** @type {Error & {cause?: any}} */ (error);
    throw new Error(cause ? `${message} (${cause.message ?? cause})` : message);
  } finally {
    clearTimeout(timer);
  }
}

/** @param {Record<string, Packed>} feeds @returns {Record<string, Values>} */
function values(feeds) {
  const tensors = Object.entries(feeds).map(([name, { dims, data }]) => [
    name,
    { dims, data: new Float32Array(unpacked(data).buffer) },
  ]);
  return Object.fromEntries(tensors);
}

/** @param {ArrayBufferView} array @returns {string} its bytes in base64 */
function packed({ buffer, byteOffset, byteLength }) {
  const bytes = new Uint8Array(buffer, byteOffset, byteLength);
  let text = '';
  for (let i = 0; i < bytes.length; i += PIECE) text += String.fromCharCode(...bytes.subarray(i, i + PIECE));
  return btoa(text);
}

/** @param {string} text base64 */
function unpacked(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// Kernels of ours in a page's captures, chosen at its first visit on a device and kept in Cache Storage.

import { reason } from '../errors.js';
import { Programs } from './launch.js';
import { AT_ONCE, replaceKernels } from './replacement.js';

/** @import { GraphCapture } from '../types.js' */
/** @import { Kept, Replaced, Wanted } from './replacement.js' */
/** @typedef {{earlier: Kept|null, programs: Programs}} Begun what an earlier visit found, and its programs, which are being made */
/** @typedef {Pick<Wish, 'wanted'|'page'|'precision'|'recorded'|'version'|'runtime'>} Beforehand what is known before there are captures */
/**
 * @typedef {object} Wish
 * @property {Wanted} wanted
 * @property {URL} page the manifest's
 * @property {string} precision of the graphs
 * @property {boolean} recorded whether the captures come from a recording: those that are made in the page have other programs
 * @property {string} version of the page
 * @property {string} runtime version of ONNX Runtime Web
 * @property {number} [trying] seconds in which ways are tried
 * @property {Promise<Begun>} begun
 * @property {Promise<void>|null} filled when the weights are on the device; null: they are
 * @property {(share: number) => void} report how much of the choosing is done, from 0 to 1
 */

const HEADER = 'x-version';
const SCOPES = /** @type {const} */ (['validation', 'out-of-memory', 'internal']);

/**
 * Begin to make the programs that an earlier visit chose: that takes longest, and needs neither captures nor weights.
 *
 * @param {GPUDevice} device
 * @param {Beforehand} wish
 * @returns {Promise<Begun>}
 */
export async function begin(device, { wanted, page, precision, recorded, version }) {
  const programs = new Programs(device);
  const earlier = wanted === 'all' ? null : await recall(page, device, version, formOf(precision, recorded, wanted));
  for (const program of earlier?.programs ?? []) programs.pipeline(program).catch(() => {}); // who needs it hears of it
  return { earlier, programs };
}

/** @param {string} precision @param {boolean} recorded @param {Wanted} wanted */
function formOf(precision, recorded, wanted) {
  return `${precision}${recorded ? ' recorded' : ''}${wanted === 'fastest' ? '' : ` ${wanted}`}`;
}

/**
 * Put kernels of ours into captures, unless something keeps them out, which is said then.
 *
 * @param {GPUDevice} device
 * @param {Map<string, GraphCapture>} captures
 * @param {Wish} wish
 * @returns {Promise<Omit<Replaced, 'kept'>>}
 */
export async function withOurKernels(device, captures, wish) {
  const { wanted, page, precision, recorded, version, runtime, trying, begun, filled, report } = wish;
  const without = (/** @type {string} */ note) => ({
    captures,
    choices: {},
    replaced: 0,
    commands: 0,
    left: 0,
    note,
    took: AT_ONCE,
  });
  for (const scope of SCOPES) device.pushErrorScope(scope);
  let found = null;
  let failed = '';
  try {
    const { earlier, programs } = await begun;
    const options = { version: runtime, wanted, earlier, programs, trying, filled, report };
    const { kept, ...made } = await replaceKernels(device, captures, options);
    found = made;
    const isNew = JSON.stringify(kept) !== JSON.stringify(earlier);
    if (wanted !== 'all' && isNew) await remember(page, device, version, formOf(precision, recorded, wanted), kept);
  } catch (error) {
    failed = reason(error);
  }
  for (const _ of SCOPES) failed ||= (await device.popErrorScope())?.message ?? '';
  return found && !failed ? found : without(`kernels of our own cannot be used: ${failed.split('\n')[0]}`);
}

/**
 * @param {URL} page of which the choices are: its manifest
 * @returns {Promise<Cache|null>} null where the browser blocks storage
 */
async function open(page) {
  try {
    return await caches.open(`moebius-kernels ${new URL('.', page).pathname}`);
  } catch {
    return null;
  }
}

/**
 * The address of the choices for a device: a new driver or browser may change what is fastest.
 *
 * @param {URL} page
 * @param {GPUDevice} device
 * @param {string} form of the graphs
 */
function address(page, { adapterInfo: { vendor, architecture, device, description } }, form) {
  const parts = [form, vendor, architecture, device, description, navigator.userAgent];
  return new URL(`kernels/${parts.map(encodeURIComponent).join('/')}`, page).href;
}

/**
 * @param {URL} page
 * @param {GPUDevice} device
 * @param {string} version of the page and its graphs
 * @param {string} form of the graphs
 * @returns {Promise<Kept|null>} null where nothing was chosen yet, or for another version
 */
async function recall(page, device, version, form) {
  const found = await (await open(page))?.match(address(page, device, form));
  return found?.headers.get(HEADER) === version ? found.json().catch(() => null) : null;
}

/**
 * Keep what was found in a version in place of another's, or of less.
 *
 * @param {URL} page
 * @param {GPUDevice} device
 * @param {string} version
 * @param {string} form
 * @param {Kept} kept
 */
async function remember(page, device, version, form, kept) {
  const headers = { 'content-type': 'application/json', [HEADER]: version };
  const put = (await open(page))?.put(address(page, device, form), new Response(JSON.stringify(kept), { headers }));
  await put?.catch(() => {}); // without room they are chosen again the next time
}

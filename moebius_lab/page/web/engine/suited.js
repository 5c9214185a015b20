// Which ways of running the model suit this device: what each needs against what there is, and what was seen to work here before.

/** @import { Choice, Detected, Precision, Verdict, Way } from './types.js' */

const KEPT = 'seen'; // in localStorage
const MEMORY_SHARE = 0.5; // of a device's memory that one page may plan for; browsers give about that much
const MEGA = 1e6;

/**
 * What a device lacks for a precision on WebGPU, in words; nothing where it lacks nothing.
 *
 * @param {Precision} form
 * @param {Pick<Detected['webgpu'], 'features'|'limits'>} webgpu
 * @returns {string[]}
 */
export function lacking({ requires, needs }, { features, limits }) {
  const missing = requires.filter((feature) => !features.includes(feature));
  const small = Object.entries(needs.limits).filter(([name, least]) => (limits[name] ?? 0) < least);
  return [
    ...missing,
    ...small.map(([name, least]) => `${name} of ${amount(name, least)} (it has ${amount(name, limits[name] ?? 0)})`),
  ];
}

/** @param {string} limit @param {number} value */
function amount(limit, value) {
  return limit.endsWith('Size') && value >= MEGA ? `${Math.round(value / MEGA)} MB` : String(value);
}

/**
 * Bytes that the model is planned to take while it runs: weights, and what is alive at once. Weights of 16 bits stay so where a recording
 * is played with kernels of our own, which a software adapter does without, or where ONNX Runtime has options that keep them.
 *
 * @param {Precision} form
 * @param {'webgpu'|'wasm'} provider
 * @param {Pick<Detected['webgpu'], 'features'|'adapter'>} webgpu
 * @param {boolean} recorded whether it runs from a recording
 */
export function plannedMemory({ needs, options, options_require: required }, provider, { features, adapter }, recorded) {
  const has = (/** @type {string} */ feature) => provider === 'wasm' || features.includes(feature);
  const kept = recorded ? !adapter?.fallback : Object.keys(options).length > 0 && required.every(has);
  return (kept ? needs.weights : needs.widened) + needs.activations;
}

/** Whether this is more than the device can be expected to give; false where the browser does not tell its memory. @param {number} bytes */
export function isTooMuch(bytes) {
  const { deviceMemory } = /** @type {Navigator & {deviceMemory?: number}} */ (navigator); // GiB
  return deviceMemory !== undefined && bytes > MEMORY_SHARE * deviceMemory * 2 ** 30;
}

/**
 * The order in which ways are offered: what failed here comes last, the graphics device before the processor, then what was seen to work
 * here, then what fits into memory. Otherwise the order stays.
 *
 * @param {Choice[]} choices
 */
export function inOrder(choices) {
  const rank = (/** @type {Choice} */ { seen, provider, tight }) =>
    [seen === 'failed', provider === 'wasm', seen !== 'works', tight].reduce((sum, later) => 2 * sum + Number(later), 0);
  return [...choices].sort((a, b) => rank(a) - rank(b));
}

/**
 * What to run instead of a choice that failed, on the graphics device and on the processor: the first that did not fail too and needs no
 * download, else the first that did not fail.
 *
 * @param {Choice[]} choices in their order
 * @param {Choice} failed
 * @param {boolean} lighter on the same provider only what is planned to take less memory
 * @returns {Choice[]} at most one of each provider
 */
export function instead(choices, failed, lighter) {
  const best = (/** @type {Choice['provider']} */ provider) => {
    const heavy = (/** @type {Choice} */ choice) => lighter && provider === failed.provider && choice.memory >= failed.memory;
    const others = choices.filter(
      (choice) => choice.provider === provider && choice !== failed && choice.seen !== 'failed' && !heavy(choice),
    );
    return others.find(({ bytes, cachedBytes }) => bytes === cachedBytes) ?? others[0];
  };
  const found = [failed.provider === 'webgpu' ? best('webgpu') : undefined, best('wasm')];
  return found.filter((choice) => choice !== undefined);
}

/** What was seen of each way on this device, in this browser and with this version of the model, kept between visits where it can be. */
export class Seen {
  /**
   * @param {string} place browser and version of the model that verdicts hold for
   * @param {string} [device] what it says of itself; empty while none can be had, as after a crash: then what was seen on the last one counts
   */
  constructor(place, device = '') {
    this.place = place;
    this.device = device;
    /** @type {Record<string, Verdict>} */
    this.verdicts = {};
    try {
      const kept = JSON.parse(localStorage.getItem(KEPT) ?? '{}');
      if (kept.place === place && (kept.device === device || !device)) Object.assign(this, kept);
    } catch {
      // no storage: known for this visit only
    }
  }

  /** @param {Way} choice @returns {Verdict|''} */
  of({ provider, precision }) {
    return this.verdicts[`${provider} ${precision}`] ?? '';
  }

  /** @param {Way} choice @param {Verdict} verdict */
  note({ provider, precision }, verdict) {
    this.verdicts[`${provider} ${precision}`] = verdict;
    try {
      localStorage.setItem(KEPT, JSON.stringify(this));
    } catch {
      // as above
    }
  }
}

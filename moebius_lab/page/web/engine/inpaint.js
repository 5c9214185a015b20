// The one sampling loop of the page, for any backend, and what puts a picture of any size through it; as loop.py.

import { EngineError, cancelled } from './errors.js';
import {
  closeHole,
  crop,
  describeWindows,
  holeToFill,
  maskToLatent,
  pasting,
  planWindows,
  region,
  toBytes,
  toUnitRange,
  uncrop,
  visible,
} from './imaging.js';
import { Generator, randn } from './random.js';
import { firstState, stepFeeds } from './sampler.js';
import { checkSettings, guidances } from './settings.js';
import { OneAhead, nextTask } from './turns.js';

/** @import { Backend, Constants, Job, Known, Pace, Picture, Seen, Settings, Step, StepProgress } from './types.js' */

const SLOW_STEP = 200; // ms; faster steps need no sketches between the decoded previews, and one is asked for ahead
const BRIEF = 2000; // ms; a window that is finished sooner needs no preview

const round = Math.fround;

/** @param {number[]} values @returns {number} 0 of none */
export function median(values) {
  if (!values.length) return 0;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/**
 * Fill the hole of a picture of any size.
 *
 * Random numbers are drawn in the release's order: image posterior, masked posterior, noise, offset, all of
 * them whatever the start is. From noise, the picture itself is not encoded: nothing reads it.
 *
 * @param {Backend} backend
 * @param {Job} job with how
 * the picture was extended: the old part of it stays bit-identical, except around holes of its own
 * @param {Constants} constants
 * @param {number[][]} preview see `sketch`
 * @param {(progress: StepProgress) => void} onProgress called before the first and after every step of every window
 * @param {() => Promise<boolean>} stopped asked before every step
 */
export async function inpaint(backend, { image, mask, settings, extension = null }, constants, preview, onProgress, stopped) {
  const began = performance.now();
  const leftToFill = holeToFill(image, mask, constants);
  const steps = checkSettings(settings, constants);
  const result = { width: image.width, height: image.height, data: image.data.slice() };
  const { width, height } = image;
  const extending = extension && (await import('./extending.js'));
  const harmonizing = settings.harmonize && (await import('./harmonizing.js'));
  const windows = extending
    ? extending.planFilling(leftToFill, width, height, extension, settings.coverage, constants)
    : planWindows(leftToFill, width, height, settings.coverage, constants);
  const plan = describeWindows(windows, constants.image_size);
  const times = new Times();
  onProgress({ window: 0, windows: windows.length, step: 0, steps: steps.length, msPerStep: 0, pace: times.pace, plan });
  const stopIfAsked = async () => {
    if (await stopped()) throw cancelled();
  };
  const run = { backend, settings, constants, times, stopIfAsked };
  for (const [index, window] of windows.entries()) {
    const seen = crop(result, leftToFill, window, constants.image_size);
    const joins = window.newCanvas ? extending : null;
    joins?.hideBeyond(seen, window, image);
    const [known, paste] = await meanwhile(encodeSeen(run, seen), () =>
      joins ? joins.joining(window, image, constants) : pasting(mask, width, height, window, settings.coverage, constants),
    );
    const report = (/** @type {number} */ step, /** @type {Float32Array|null} */ planes) => {
      const { step: msPerStep, pace } = times;
      const progress = { window: index, windows: windows.length, step, steps: steps.length, msPerStep, pace, plan };
      onProgress(planes ? { ...progress, preview: previewOf(planes, result, window, paste, constants) } : progress);
    };
    const planes = await sample(run, known, steps, preview, report);
    const made = toBytes(planes);
    const rgb = harmonizing ? harmonizing.harmonized(made, seen, constants) : made;
    uncrop(joins ? joins.matched(rgb, result, window, constants) : rgb, result, window, paste, constants);
    closeHole(leftToFill, window, image);
  }
  const { step, pace } = times;
  return { image: result, timings: { ...pace, step, total: performance.now() - began }, provider: backend.provider };
}

/**
 * The visible part of a window with a prediction pasted in; the picture itself stays.
 *
 * @param {Float32Array} planes
 * @param {Picture} picture
 * @param {import('./types.js').Window} window
 * @param {import('./types.js').Paste} paste
 * @param {Constants} constants
 */
function previewOf(planes, picture, window, paste, constants) {
  const area = visible(window, picture);
  const { left, top, width, height } = area;
  const part = { width, height, data: region(picture.data, picture.width, area, 4) };
  const moved = (/** @type {{left: number, top: number}} */ place) => ({ left: place.left - left, top: place.top - top });
  uncrop(toBytes(planes), part, { ...window, ...moved(window) }, { ...paste, ...moved(paste) }, constants);
  return { left, top, ...part };
}

class Times {
  constructor() {
    /** @type {Record<keyof Pace, number[]>} */
    this.all = { encode: [], guided: [], unguided: [], decode: [] };
    /** @type {number|undefined} ms */
    this.lastStep = undefined;
    this.ended = 0; // when the last work was done
  }

  /**
   * How long work takes, from when the work before it is done.
   *
   * @template T
   * @param {keyof Pace} what
   * @param {Promise<T>} work
   */
  async of(what, work) {
    const began = performance.now();
    const value = await work;
    const ended = performance.now();
    const passed = ended - Math.max(began, this.ended);
    this.ended = ended;
    this.all[what].push(passed);
    if (what === 'guided' || what === 'unguided') this.lastStep = passed;
    return value;
  }

  /** Median ms of a step, of either kind. */
  get step() {
    return median([...this.all.guided, ...this.all.unguided]);
  }

  get pace() {
    const { encode, guided, unguided, decode } = this.all;
    return { encode: median(encode), guided: median(guided), unguided: median(unguided), decode: median(decode) };
  }
}

/**
 * Work for the processor while the device computes, which it begins once this thread has returned to the event loop.
 *
 * @template A, B
 * @param {Promise<A>} computing
 * @param {() => B} work
 */
function meanwhile(computing, work) {
  return Promise.all([computing, nextTask().then(work)]);
}

/** @typedef {{backend: Backend, settings: Settings, constants: Constants, times: Times, stopIfAsked: () => Promise<void>}} Run */

/**
 * Encode one model window, and draw all its random numbers.
 *
 * @param {Run} run
 * @param {Seen} seen
 * @returns {Promise<Known>}
 */
async function encodeSeen({ backend, settings, constants, times, stopIfAsked }, seen) {
  const { scaling_factor: factor, latent_channels: channels, latent_size: s } = constants;
  const cells = s * s;
  const draw = () => {
    const generator = new Generator(settings.seed);
    const [ofImage, ofMasked, noise] = [0, 1, 2].map(() => randn(channels * cells, generator));
    const offset = randn(channels, generator).map((n) => round(settings.noise_offset) * n);
    for (let i = 0; i < noise.length; i++) noise[i] += offset[Math.floor(i / cells)];
    return { ofImage, ofMasked, noise };
  };
  const encode = (/** @type {Float32Array} */ planes) => times.of('encode', backend.encode(planes));
  const scale = round(factor);
  const latent = (/** @type {{mean: Float32Array, std: Float32Array}} */ { mean, std }, /** @type {Float32Array} */ normal) =>
    normal.map((n, i) => scale * round(mean[i] + round(std[i] * n)));

  const planes = toUnitRange(seen.rgb);
  await stopIfAsked();
  let image = null;
  let posterior;
  let drawn;
  if (settings.init === 'image') {
    const both = await meanwhile(encode(planes), () => ({ hidden: masked(planes, seen.hole), ...draw() }));
    drawn = both[1];
    image = latent(both[0], drawn.ofImage);
    await stopIfAsked();
    posterior = await encode(both[1].hidden);
  } else {
    [posterior, drawn] = await meanwhile(encode(masked(planes, seen.hole)), draw);
  }
  return {
    mask: maskToLatent(seen.hole, settings.coverage, constants),
    image,
    masked: latent(posterior, drawn.ofMasked),
    noise: drawn.noise,
  };
}

/**
 * Denoise one model window.
 *
 * @param {Run} run
 * @param {Known} known
 * @param {Step[]} steps
 * @param {number[][]} preview
 * @param {(step: number, preview: Float32Array|null) => void} report
 * @returns {Promise<Float32Array>} the decoded window (1, 3, S, S)
 */
async function sample({ backend, settings, constants, times, stopIfAsked }, known, steps, preview, report) {
  const { image, noise } = known;
  const signal = round(steps[0].signal);
  const sigma = round(steps[0].sigma);
  const start = image ? noise.map((n, i) => round(signal * image[i]) + round(sigma * n)) : noise;

  const decode = (/** @type {Float32Array} */ latent) =>
    backend.decode(latent.map((value) => value / round(constants.scaling_factor)));
  const denoising = await backend.denoise(firstState(start), known.mask, known.masked);
  const previews = new PreviewBudget(times.pace.encode, steps.length, constants.preview_share);
  const guided = guidances(settings, steps.length);
  const finish = async (/** @type {number} */ i, /** @type {Promise<void>} */ work, /** @type {string} */ kind) => {
    await times.of(guided[i] === 1 ? 'unguided' : 'guided', work);
    let planes = null;
    if (kind !== 'none') {
      const clean = (await denoising.state()).subarray(start.length, 2 * start.length);
      planes = kind === 'decoded' ? await previews.spend(() => decode(clean)) : sketch(clean, preview, constants);
    }
    report(i + 1, planes);
  };
  const queue = new OneAhead();
  try {
    for (const [i, step] of steps.entries()) {
      await stopIfAsked();
      const kind = i + 1 < steps.length ? previews.next(times.lastStep) : 'none';
      const brief = (times.lastStep ?? Infinity) < SLOW_STEP; // so that cancelling one more step takes no time
      await queue.add(finish(i, denoising.step(stepFeeds(step, guided[i], constants)), kind));
      if (kind !== 'none' || !denoising.queues || !brief) await queue.end();
    }
    await queue.end();
    await stopIfAsked();
    const state = await denoising.state();
    if (!state.every(Number.isFinite)) {
      throw new EngineError(
        'shader',
        'The model returned numbers that are not finite. Under Runs on, choose another, or the processor.',
      );
    }
    return await times.of('decode', decode(state.subarray(0, start.length)));
  } finally {
    denoising.close();
  }
}

/**
 * @param {Float32Array} planes (3, S, S)
 * @param {Uint8Array} hole (S, S)
 * @returns {Float32Array} a copy, 0 (grey) in the hole
 */
function masked(planes, hole) {
  const shown = planes.slice();
  for (let i = 0; i < hole.length; i++) {
    if (hole[i]) shown[i] = shown[i + hole.length] = shown[i + 2 * hole.length] = 0;
  }
  return shown;
}

/**
 * A coarse picture of latents without the decoder: the colours that fit them best, linearly, smoothly enlarged.
 *
 * @param {Float32Array} latents (4, s, s), scaled
 * @param {number[][]} preview a row of red, green and blue for each channel, and one for the constant
 * @param {Constants} constants
 * @returns {Float32Array} (3, S, S) in about [-1, 1]
 */
export function sketch(latents, preview, { image_size: S, latent_size: s, latent_channels: channels }) {
  const planes = new Float32Array(3 * S * S);
  const small = new Float32Array(s * s);
  const cell = (/** @type {number} */ pixel) => Math.min(Math.max(((pixel + 0.5) * s) / S - 0.5, 0), s - 1);
  for (let colour = 0; colour < 3; colour++) {
    small.fill(preview[channels][colour]);
    for (let k = 0; k < channels; k++) {
      for (let i = 0; i < s * s; i++) small[i] += preview[k][colour] * latents[k * s * s + i];
    }
    for (let y = 0, i = colour * S * S; y < S; y++) {
      const v = cell(y);
      const top = Math.floor(v) * s;
      const bottom = Math.min(Math.ceil(v), s - 1) * s;
      for (let x = 0; x < S; x++, i++) {
        const u = cell(x);
        const [left, right, across, down] = [Math.floor(u), Math.ceil(u), u % 1, v % 1];
        const above = small[top + left] * (1 - across) + small[top + right] * across;
        const below = small[bottom + left] * (1 - across) + small[bottom + right] * across;
        planes[i] = above * (1 - down) + below * down;
      }
    }
  }
  return planes;
}

/**
 * Previews are decoded as often as their share of the time allows, and sketched at the other steps where those are slow.
 * Before a step was seen it is taken to be as long as an encoding, and a decoding twice as long.
 */
class PreviewBudget {
  /**
   * @param {number} encode ms
   * @param {number} steps of a window
   * @param {number} share of a run's time that may go into decoding previews
   */
  constructor(encode, steps, share) {
    this.began = performance.now();
    this.spent = 0;
    this.last = 2 * encode;
    this.encode = encode;
    this.steps = steps;
    this.share = share;
  }

  /**
   * @param {number} [step] ms that the last step took
   * @returns {'decoded'|'sketched'|'none'}
   */
  next(step = this.encode) {
    if (step * this.steps < BRIEF) return 'none';
    const passed = performance.now() - this.began;
    if (this.spent + this.last <= this.share * (passed + this.last)) return 'decoded';
    return step > SLOW_STEP ? 'sketched' : 'none';
  }

  /** @param {() => Promise<Float32Array>} work */
  async spend(work) {
    const began = performance.now();
    const planes = await work();
    this.last = performance.now() - began;
    this.spent += this.last;
    return planes;
  }
}

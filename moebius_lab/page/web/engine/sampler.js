// Solvers of the diffusion process as tables of numbers, as sampler.py reads them off diffusers; here from the papers' formulas.
//
// The sampling loop carries a state of three tensors of the latent's shape: the latent x, the picture m = (x - sigma e) / signal that
// the step before believed in, and `kept`, what the next latent will be apart from its own noise (0 where no step needs it). A step is
// a matrix: next state = stateWeights (3, 3) state + noiseWeights (3) e.
//
// Every solver here integrates the picture's share exactly and extrapolates m: a primed value being the one at the next timestep, l = log(signal
// / sigma), h = l' - l and h0 = l - l of the step before,
//
//     x' = (sigma'/sigma) x + P m + Q (m - m before),   P = signal' - sigma' signal / sigma,   Q = P h / (2 h0), or 0 at order 1
//
// Order 1 is DDIM (Song et al. 2021), order 2 is DPM-Solver++ 2M (Lu et al. 2022). UniPC (Zhao et al. 2023) predicts as that does and
// corrects x by `correction` once its m is known. The first step has no past, and the last one, which ends without noise, needs none.

import { EngineError } from './errors.js';

/** @typedef {import('./manifest.js').Constants} Constants */
/** @typedef {import('./engine.js').Values} Values */
/**
 * @typedef {object} Step
 * @property {number} timestep
 * @property {number} signal share of the picture in the latent at this timestep
 * @property {number} sigma share of the noise in it
 * @property {number[][]} stateWeights (3, 3): a row for each tensor of the next state
 * @property {number[]} noiseWeights (3)
 */
/** @typedef {{timestep: number, signal: number, sigma: number}} Level how noisy a latent is at a timestep */

/**
 * Every solver by its name: its order, which is the fewest steps it runs, where its timesteps lie, and whether it corrects.
 *
 * @type {Record<string, {order: number, spacing: 'leading'|'trailing', corrects: boolean}>}
 */
export const SOLVERS = {
  ddim: { order: 1, spacing: 'leading', corrects: false },
  'dpm++2m': { order: 2, spacing: 'trailing', corrects: false },
  unipc: { order: 2, spacing: 'trailing', corrects: true },
};

const ROWS = 3; // latent, prediction, kept
const round = Math.fround;

/**
 * Cumulative alphas of the schedule "scaled_linear", rounded to float32 where torch rounds.
 *
 * @param {Constants} constants
 * @returns {Float32Array}
 */
export function cumulativeAlphas({ train_timesteps: n, beta_start, beta_end }) {
  const start = round(Math.sqrt(beta_start));
  const end = round(Math.sqrt(beta_end));
  const stride = round((end - start) / (n - 1));
  const alphas = new Float32Array(n);
  let product = 1;
  for (let i = 0; i < n; i++) {
    const root = i < n / 2 ? round(start + stride * i) : round(end - stride * (n - 1 - i));
    product *= round(1 - round(root * root));
    alphas[i] = product;
  }
  return alphas;
}

/**
 * The steps that are run: the last floor(steps x strength) of a schedule of `steps`, at least one, high timesteps first.
 *
 * @param {string} solver a name in `SOLVERS`
 * @param {number} steps
 * @param {number} strength
 * @param {Constants} constants
 * @returns {Step[]}
 * @throws {EngineError} code 'bad-input'
 */
export function solverSteps(solver, steps, strength, constants) {
  const bad = (/** @type {string} */ message) => new EngineError('bad-input', message);
  const n = constants.train_timesteps;
  if (!Object.hasOwn(SOLVERS, solver)) {
    throw bad(`There is no solver '${solver}'; choose one of ${Object.keys(SOLVERS).join(', ')}.`);
  }
  if (!(steps >= 1 && steps <= n)) throw bad(`Steps must be between 1 and ${n}, not ${steps}.`);
  if (!Number.isInteger(steps)) throw bad(`Steps must be a whole number, not ${steps}.`);
  if (!(strength > 0 && strength <= 1)) throw bad(`Strength must be above 0 and at most 1, not ${strength}.`);
  const { order, spacing, corrects } = SOLVERS[solver];
  const run = Math.max(1, Math.trunc(steps * strength));
  if (run < order) {
    throw bad(`${solver} needs at least ${order} steps, and ${run} would run: raise steps or strength, or choose ddim.`);
  }
  const alphas = cumulativeAlphas(constants);
  const levels = timesteps(spacing, steps, n)
    .slice(-run)
    .map((timestep) => ({ timestep, signal: Math.sqrt(alphas[timestep]), sigma: Math.sqrt(1 - alphas[timestep]) }));
  return table(levels, order, corrects);
}

/**
 * @param {'leading'|'trailing'} spacing
 * @param {number} steps
 * @param {number} n length of the schedule that the network was trained on
 */
function timesteps(spacing, steps, n) {
  if (spacing === 'leading') return Array.from({ length: steps }, (_, i) => (steps - 1 - i) * Math.floor(n / steps));
  return Array.from({ length: steps }, (_, i) => roundToEven(n - i * (n / steps)) - 1);
}

/** @param {number} value @returns {number} the nearest whole number, of two the even one: as NumPy rounds */
function roundToEven(value) {
  const below = Math.floor(value);
  if (value - below === 0.5) return below + (below % 2);
  return Math.round(value);
}

/**
 * @param {Level[]} levels of the steps that are run
 * @param {number} order
 * @param {boolean} corrects
 * @returns {Step[]}
 */
function table(levels, order, corrects) {
  const end = { timestep: -1, signal: 1, sigma: 0 };
  /** @type {(i: number) => Level} */
  const at = (i) => levels[i] ?? end;
  const last = levels.length - 1;
  const orderOf = (/** @type {number} */ i) => (i === 0 || i === last ? 1 : order);
  const extrapolated = (/** @type {number} */ i) => weightsOf(at(i), at(i + 1), orderOf(i) === 2 ? at(i - 1) : null);

  /** What the latent after step i is made of: the latent before it, m, m before, and m before that. @param {number} i */
  const parts = (i) => {
    const { ofLatent, ofPrediction, ofPast } = extrapolated(i);
    const corrected = { now: 0, past: 0, older: 0 };
    if (corrects && i > 0 && i < last) {
      Object.assign(corrected, correction(at(i - 1), at(i), orderOf(i - 1) === 2 ? at(i - 2) : null));
    }
    return {
      latent: ofLatent,
      now: ofPrediction + ofLatent * corrected.now,
      past: ofPast + ofLatent * corrected.past,
      older: ofLatent * corrected.older,
    };
  };

  /** Whether step i needs the picture of three steps ago, which `kept` then holds. @param {number} i */
  const usesKept = (i) => corrects && i > 1 && i < last;

  return levels.map(({ timestep, signal, sigma }, i) => {
    // a row of four: latent, prediction, kept, noise
    const prediction = [1 / signal, 0, 0, -sigma / signal];
    const { latent, now, past } = parts(i);
    const next = usesKept(i) ? [0, 0, 1, now * prediction[3]] : [latent + now * prediction[0], past, 0, now * prediction[3]];
    let kept = [0, 0, 0, 0];
    if (usesKept(i + 1)) {
      const later = parts(i + 1);
      const ofNext = later.latent + later.now / at(i + 1).signal;
      kept = next.map((weight, column) => ofNext * weight + later.past * prediction[column]);
      kept[1] += later.older;
    }
    const rows = [next, prediction, kept];
    return {
      timestep,
      signal,
      sigma,
      stateWeights: rows.map((row) => row.slice(0, ROWS)),
      noiseWeights: rows.map((row) => row[ROWS]),
    };
  });
}

/** @param {Level} level */
function logRatio({ signal, sigma }) {
  return Math.log(signal / sigma);
}

/**
 * The next latent as ofLatent x + ofPrediction m + ofPast m before.
 *
 * @param {Level} here
 * @param {Level} next
 * @param {Level|null} before for order 2
 */
function weightsOf(here, next, before) {
  const ofLatent = next.sigma / here.sigma;
  const whole = next.signal - ofLatent * here.signal;
  if (!before) return { ofLatent, ofPrediction: whole, ofPast: 0 };
  const slope = (whole * (logRatio(next) - logRatio(here))) / (2 * (logRatio(here) - logRatio(before)));
  return { ofLatent, ofPrediction: whole + slope, ofPast: -slope };
}

/**
 * What UniPC adds to a latent that was predicted from `before` once the picture in it is known, in the form B(h) = exp(-h) - 1.
 *
 * The predictor took the slope of m from the past; the corrector weighs that slope and the one to the new m such that polynomials
 * of its order in l are integrated exactly: the two weights solve c1 + c2 = f1/B and r c1 + c2 = 2 f2/B, with r = (l of older - l of
 * before) / h, f1 = -B/h - 1 and f2 = -f1/h - 1/2. At order 1 there is the new slope alone, with the weight 1/2.
 *
 * @param {Level} before
 * @param {Level} here
 * @param {Level|null} older where the predictor was of order 2
 * @returns {{now: number, past: number, older: number}} weights of the new m, of m at `before` and of m at `older`
 */
function correction(before, here, older) {
  const h = logRatio(here) - logRatio(before);
  const b = Math.expm1(-h);
  const scale = -here.signal * b;
  if (!older) return { now: scale / 2, past: -scale / 2, older: 0 };
  const first = -b / h - 1;
  const second = -first / h - 1 / 2;
  const r = (logRatio(older) - logRatio(before)) / h;
  const ofSlope = ((2 * second) / b - first / b) / (r - 1);
  const ofNew = first / b - ofSlope;
  const excess = (scale * (ofSlope - 1 / 2)) / r; // the predictor had 1/2 of the past slope already
  return { now: scale * ofNew, past: -scale * ofNew - excess, older: excess };
}

/**
 * The columns of a step's matrix for the noise of each condition, (3, n): guided, n = 2, unconditional first; 1 where guidance is 1.
 * With guidance g the noise is u + g (c - u) = (1 - g) u + g c.
 *
 * @param {Step} step
 * @param {number} guidance
 * @returns {number[][]}
 */
export function guidedWeights({ noiseWeights }, guidance) {
  if (guidance === 1) return noiseWeights.map((weight) => [weight]);
  return noiseWeights.map((weight) => [weight * (1 - guidance), weight * guidance]);
}

/**
 * The inputs of the step graph that differ from step to step, besides the state.
 *
 * @param {Step} step
 * @param {number} guidance
 * @param {Constants} constants
 * @returns {Record<string, Values>}
 */
export function stepFeeds(step, guidance, { unconditional, conditional }) {
  const conditions = guidance === 1 ? [conditional] : [unconditional, conditional];
  return {
    timestep: tensor([1], [step.timestep]),
    conditions: tensor([conditions.length], conditions),
    state_weights: tensor([ROWS, ROWS], step.stateWeights.flat()),
    noise_weights: tensor([ROWS, conditions.length], guidedWeights(step, guidance).flat()),
  };
}

/**
 * The state before the first step: the latent and two tensors of zeros.
 *
 * @param {Float32Array} latent (1, 4, s, s)
 * @returns {Float32Array} (3, 4, s, s)
 */
export function firstState(latent) {
  const state = new Float32Array(ROWS * latent.length);
  state.set(latent);
  return state;
}

/** @param {number[]} dims @param {number[]} values @returns {Values} */
function tensor(dims, values) {
  return { dims, data: Float32Array.from(values) };
}

// Solvers as tables of numbers: what sampler.py reads off diffusers, from the papers' formulas. State, weights and names are described there.
//
// With m = (x - sigma e) / signal, a prime for the next timestep, l = log(signal / sigma), h = l' - l and h0 = l - l of the step before:
//
//     x' = (sigma'/sigma) x + P m + Q (m - m before),   P = signal' - sigma' signal / sigma,   Q = P h / (2 h0), or 0 at order 1
//
// Order 1 is DDIM (Song et al. 2021), order 2 DPM-Solver++ 2M (Lu et al. 2022). UniPC (Zhao et al. 2023) predicts like that, and corrects
// x once its m is known. The first and the last step are of order 1.

import { EngineError } from './errors.js';

/** @import { Constants, Level, Step, Values } from './types.js' */

/** @type {Record<string, {order: number, trailing: boolean, corrects: boolean}>} trailing: timesteps from the last on, with few steps too */
export const SOLVERS = {
  ddim: { order: 1, trailing: false, corrects: false },
  'ddim-trailing': { order: 1, trailing: true, corrects: false },
  'dpm++2m': { order: 2, trailing: true, corrects: false },
  unipc: { order: 2, trailing: true, corrects: true },
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
  const { order, trailing, corrects } = SOLVERS[solver];
  const run = Math.max(1, Math.trunc(steps * strength));
  if (run < order) {
    throw bad(`${solver} needs at least ${order} steps, and ${run} would run: raise steps or strength, or choose ddim.`);
  }
  const alphas = cumulativeAlphas(constants);
  const levels = Array.from({ length: run }, (_, i) => {
    const left = run - i;
    const timestep = trailing ? roundToEven(n - (steps - left) * (n / steps)) - 1 : (left - 1) * Math.floor(n / steps);
    return { timestep, signal: Math.sqrt(alphas[timestep]), sigma: Math.sqrt(1 - alphas[timestep]) };
  });
  return table(levels, order, corrects);
}

/** As NumPy rounds. @param {number} value */
function roundToEven(value) {
  return value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value);
}

/**
 * @param {Level[]} levels of the steps that are run
 * @param {number} order
 * @param {boolean} corrects
 * @returns {Step[]}
 */
function table(levels, order, corrects) {
  const last = levels.length - 1;
  const at = (/** @type {number} */ i) => levels[i] ?? { timestep: -1, signal: 1, sigma: 0 };
  const past = (/** @type {number} */ i) => (order === 2 && i > 0 && i < last ? at(i - 1) : null); // what step i extrapolates from
  const usesKept = (/** @type {number} */ i) => corrects && i > 1 && i < last; // to know the m of three steps before

  // the latent after step i as a sum of the latent before it, m, the m before and the one before that
  const sum = (/** @type {number} */ i) => {
    const [ofLatent, now, before] = prediction(at(i), at(i + 1), past(i));
    const added = corrects && i > 0 && i < last ? correction(at(i - 1), at(i), past(i - 1)) : [0, 0, 0];
    return [ofLatent, now + ofLatent * added[0], before + ofLatent * added[1], ofLatent * added[2]];
  };

  return levels.map((level, i) => {
    // rows of latent, prediction, kept, noise
    const clean = [1 / level.signal, 0, 0, -level.sigma / level.signal];
    const [ofLatent, now, before] = sum(i);
    const next = [ofLatent + now * clean[0], before, 0, now * clean[3]];
    if (usesKept(i)) next.splice(0, ROWS, 0, 0, 1);
    let kept = [0, 0, 0, 0];
    if (usesKept(i + 1)) {
      const later = sum(i + 1);
      kept = next.map((weight, k) => (later[0] + later[1] / at(i + 1).signal) * weight + later[2] * clean[k]);
      kept[1] += later[3];
    }
    const rows = [next, clean, kept];
    return { ...level, stateWeights: rows.map((row) => row.slice(0, ROWS)), noiseWeights: rows.map((row) => row[ROWS]) };
  });
}

/** @param {Level} from @param {Level} to */
function rise(from, to) {
  return Math.log(to.signal / to.sigma) - Math.log(from.signal / from.sigma);
}

/**
 * Weights of x, m and m before in the next latent.
 *
 * @param {Level} here
 * @param {Level} next
 * @param {Level|null} before
 */
function prediction(here, next, before) {
  const ofLatent = next.sigma / here.sigma;
  const whole = next.signal - ofLatent * here.signal;
  const slope = before ? (whole * rise(here, next)) / (2 * rise(before, here)) : 0;
  return [ofLatent, whole + slope, -slope];
}

/**
 * What UniPC adds to a latent predicted at `before`, as weights of its m, of m at `before` and of m at `older`.
 *
 * With B = exp(-h) - 1, the weights c1 of the past slope and c2 of the one to the new m make polynomials in l exact: c1 + c2 = f1 / B
 * and r c1 + c2 = 2 f2 / B, where r = (l of older - l of before) / h, f1 = -B / h - 1 and f2 = -f1 / h - 1/2. At order 1, c2 = 1/2.
 *
 * @param {Level} before
 * @param {Level} here
 * @param {Level|null} older where the predictor was of order 2
 */
function correction(before, here, older) {
  const h = rise(before, here);
  const b = Math.expm1(-h);
  const scale = -here.signal * b;
  if (!older) return [scale / 2, -scale / 2, 0];
  const f1 = -b / h - 1;
  const f2 = -f1 / h - 1 / 2;
  const r = rise(before, older) / h;
  const c1 = (2 * f2 - f1) / b / (r - 1);
  const c2 = f1 / b - c1;
  const excess = (scale * (c1 - 1 / 2)) / r; // the predictor had 1/2 of the past slope already
  return [scale * c2, -scale * c2 - excess, excess];
}

/**
 * The weights of each condition's noise u and c, (3, n): the noise is u + g (c - u), or c alone where the guidance g is 1.
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

/** @param {number[]} dims @param {number[]} values */
function tensor(dims, values) {
  return { dims, data: Float32Array.from(values) };
}

// The two numbers of a DDIM step, as ddim.py has them.

import { EngineError } from './errors.js';

/** @typedef {import('./manifest.js').Constants} Constants */
/** @typedef {{timestep: number, signal: number, sigma: number, latentScale: number, noiseScale: number}} Step */

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
 * How many steps of a schedule are run: floor(steps x strength), at least one.
 *
 * @param {number} steps
 * @param {number} strength
 */
export function stepsRun(steps, strength) {
  return Math.max(1, Math.trunc(steps * strength));
}

/**
 * The steps that are run, the last of a schedule of `steps`, high timesteps first.
 *
 * @param {number} steps
 * @param {number} strength
 * @param {Constants} constants
 * @returns {Step[]}
 * @throws {EngineError} code 'bad-input'
 */
export function ddimSteps(steps, strength, constants) {
  const n = constants.train_timesteps;
  if (!Number.isInteger(steps) || steps < 1 || steps > n) {
    throw new EngineError('bad-input', `Steps must be a whole number between 1 and ${n}, not ${steps}.`);
  }
  if (!(strength > 0 && strength <= 1)) {
    throw new EngineError('bad-input', `Strength must be above 0 and at most 1, not ${strength}.`);
  }
  const run = stepsRun(steps, strength);
  const alphas = cumulativeAlphas(constants);
  const ratio = Math.floor(n / steps);
  return Array.from({ length: run }, (_, i) => {
    const timestep = (run - 1 - i) * ratio;
    const a = alphas[timestep];
    const next = i + 1 < run ? alphas[timestep - ratio] : 1;
    return {
      timestep,
      signal: Math.sqrt(a),
      sigma: Math.sqrt(1 - a),
      latentScale: Math.sqrt(next / a),
      noiseScale: Math.sqrt(1 - next) - Math.sqrt((next * (1 - a)) / a),
    };
  });
}

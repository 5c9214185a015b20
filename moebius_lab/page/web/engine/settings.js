// What a person chooses, checked in the words of loop.py; which steps are guided, and what a choice will cost.

import { EngineError } from './errors.js';
import { solverSteps } from './sampler.js';

/** @import { Constants, Pace, Preset, Settings } from './types.js' */

const ROUNDING = 1e-6; // steps; step 7 of ten begins at 0.7 of the run, although 0.7 x 10 is not 7 in binary
const CHOSEN = /** @type {const} */ (['solver', 'steps', 'strength', 'guidance', 'guidance_interval', 'init', 'harmonize']); // by a preset

/**
 * @param {Settings} settings
 * @param {Constants} constants
 * @returns {import('./types.js').Step[]} the steps that are run
 * @throws {EngineError} code 'bad-input'
 */
export function checkSettings(settings, constants) {
  const bad = (/** @type {string} */ message) => new EngineError('bad-input', message);
  const { guidance, guidance_interval: interval, noise_offset, seed, init, coverage, harmonize } = settings;
  const steps = solverSteps(settings.solver, settings.steps, settings.strength, constants);
  const [from, to] = interval;
  if (!(interval.length === 2 && 0 <= from && from < to && to <= 1)) {
    throw bad(`Guidance must run from a share of 0 or more to a later one of at most 1, not from ${from} to ${to}.`);
  }
  if (!isGuided(interval, steps.length).includes(true)) {
    const why = `No step of ${steps.length} begins between ${from} and ${to} of the run`;
    throw bad(`${why}: widen the guidance interval, or set guidance to 1.`);
  }
  if (init !== 'image' && init !== 'noise') throw bad(`Init must be "image" or "noise", not '${init}'.`);
  if (!constants.coverages.includes(coverage)) {
    throw bad(`Coverage must be one of ${constants.coverages.join(', ')}, not '${coverage}'.`);
  }
  if (typeof harmonize !== 'boolean') throw bad(`Harmonize must be true or false, not '${harmonize}'.`);
  if (!Number.isFinite(guidance) || !Number.isFinite(noise_offset))
    throw bad('Guidance and noise offset must be finite numbers.');
  if (!Number.isSafeInteger(seed) || seed < 0) throw bad(`Seed must be a whole number from 0 to 2^53 - 1, not ${seed}.`);
  return steps;
}

/**
 * The guidance of each of `count` steps: 1 outside the interval.
 *
 * @param {Settings} settings
 * @param {number} count
 */
export function guidances({ guidance, guidance_interval: interval }, count) {
  return isGuided(interval, count).map((guided) => (guided ? guidance : 1));
}

/** @param {number[]} interval @param {number} count */
function isGuided([from, to], count) {
  return Array.from({ length: count }, (_, i) => from * count <= i + ROUNDING && i + ROUNDING < to * count);
}

/**
 * The name of the preset that has these settings; empty for none.
 *
 * @param {Partial<Settings>} settings
 * @param {Record<string, Preset>} presets
 */
export function presetOf(settings, presets) {
  const same = (/** @type {Preset} */ preset) => CHOSEN.every((field) => String(preset[field]) === String(settings[field]));
  return Object.keys(presets).find((name) => same(presets[name])) ?? '';
}

/**
 * How long each step of a window takes. A kind of step that was not seen yet counts as half or twice the other.
 *
 * @param {Settings} settings
 * @param {Pace} pace
 * @param {Constants} constants
 * @returns {number[]} ms
 */
export function stepCosts(settings, { guided, unguided }, constants) {
  const { length } = solverSteps(settings.solver, settings.steps, settings.strength, constants);
  return guidances(settings, length).map((guidance) => (guidance === 1 ? unguided || guided / 2 : guided || 2 * unguided));
}

/**
 * How long a window takes: its encodings, steps and decoding. A decoding that was not seen yet counts as two encodings.
 *
 * @param {Settings} settings
 * @param {Pace} pace
 * @param {Constants} constants
 * @returns {number} ms; 0 while no step was seen
 */
export function windowCost(settings, pace, constants) {
  const ofSteps = stepCosts(settings, pace, constants).reduce((sum, ms) => sum + ms, 0);
  return ofSteps && (settings.init === 'image' ? 2 : 1) * pace.encode + ofSteps + decodingCost(pace);
}

/** @param {Pace} pace */
export function decodingCost({ encode, decode }) {
  return decode || 2 * encode;
}

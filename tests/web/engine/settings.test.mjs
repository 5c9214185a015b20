import assert from 'node:assert/strict';
import { test } from 'node:test';

import { checkSettings, guidances, presetOf, stepCosts, windowCost } from '../../../moebius_lab/page/web/engine/settings.js';
import { constants, fixtures } from '../fixtures.mjs';

const released = fixtures.settings;

test('what is out of its range is refused in the words of Python', () => {
  checkSettings(released, constants);
  const plain = (message) => message.toLowerCase().replace(/\.$/, '');
  for (const { changes, message } of fixtures.refused) {
    const settings = { ...released, ...changes };
    if (changes.guidance === null) settings.guidance = Infinity; // which JSON cannot hold
    assert.throws(
      () => checkSettings(settings, constants),
      (error) => error.code === 'bad-input' && plain(error.message) === plain(message),
      `${JSON.stringify(changes)}: ${message}`,
    );
  }
  assert.throws(() => checkSettings({ ...released, seed: -1 }, constants), { code: 'bad-input', message: /whole number/ });
});

test('a step is guided where Python guides it', () => {
  for (const { steps, interval, guidances: expected } of fixtures.guidances) {
    const settings = { ...released, guidance: 2, guidance_interval: interval };
    assert.deepEqual(guidances(settings, steps), expected, `${interval} of ${steps}`);
  }
});

test('presets are known by their values, and cost what their evaluations do', () => {
  for (const [name, preset] of Object.entries(fixtures.presets)) {
    const settings = { ...released, seed: 5, ...preset };
    assert.equal(presetOf(settings, fixtures.presets), name);
    assert.equal(presetOf({ ...settings, steps: 77 }, fixtures.presets), '');
    const costs = stepCosts(settings, { encode: 0, guided: 200, unguided: 0, decode: 0 }, constants);
    assert.equal(
      costs.reduce((sum, ms) => sum + ms, 0),
      100 * preset.evaluations,
      name,
    );
  }
});

test('what a window costs follows from what was seen, and nothing is claimed before a step was', () => {
  const half = { steps: 6, guidance_interval: [0.5, 1] }; // three steps that are not guided, three that are
  const fast = { ...released, ...fixtures.presets.fast, ...half };
  const none = { encode: 0, guided: 0, unguided: 0, decode: 0 };
  assert.equal(windowCost(fast, none, constants), 0);
  assert.equal(windowCost(fast, { ...none, encode: 10 }, constants), 0);
  assert.equal(windowCost(fast, { ...none, encode: 10, unguided: 60 }, constants), 10 + 3 * 60 + 3 * 120 + 20);
  assert.equal(windowCost(fast, { encode: 10, unguided: 60, guided: 90, decode: 5 }, constants), 10 + 3 * 60 + 3 * 90 + 5);
  assert.equal(windowCost(released, { encode: 10, unguided: 60, guided: 90, decode: 5 }, constants), 20 + 19 * 90 + 5);
});

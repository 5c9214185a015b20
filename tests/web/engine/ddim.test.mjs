import assert from 'node:assert/strict';
import { test } from 'node:test';

import { cumulativeAlphas, ddimSteps } from '../../../moebius_lab/page/web/engine/ddim.js';
import { constants, fixtures } from '../fixtures.mjs';

test('cumulative alphas are those of the scheduler', () => {
  const alphas = cumulativeAlphas(constants);
  assert.equal(alphas.length, 1000);
  fixtures.alphas.forEach((expected, i) => assert.ok(Math.abs(alphas[i] - expected) < 1e-12, `timestep ${i}`));
});

test('every step has the numbers of ddim.py', () => {
  for (const { steps, strength, expected } of fixtures.schedules) {
    const got = ddimSteps(steps, strength, constants);
    assert.deepEqual(
      got.map((step) => step.timestep),
      expected.map((step) => step.timestep),
    );
    got.forEach((step, i) => {
      const { signal, sigma, latent_scale, noise_scale } = expected[i];
      const pairs = [
        [step.signal, signal],
        [step.sigma, sigma],
        [step.latentScale, latent_scale],
        [step.noiseScale, noise_scale],
      ];
      for (const [a, b] of pairs) assert.ok(Math.abs(a - b) < 1e-12);
    });
  }
});

test('values out of range say what to do', () => {
  assert.throws(() => ddimSteps(0, 1, constants), { code: 'bad-input', message: /between 1 and 1000/ });
  assert.throws(() => ddimSteps(2.5, 1, constants), { code: 'bad-input' });
  assert.throws(() => ddimSteps(20, 1.5, constants), { code: 'bad-input', message: /at most 1/ });
});

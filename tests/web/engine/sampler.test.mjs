import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  SOLVERS,
  cumulativeAlphas,
  firstState,
  guidedWeights,
  solverSteps,
  stepFeeds,
} from '../../../moebius_lab/page/web/engine/sampler.js';
import { constants, fixtures } from '../fixtures.mjs';

const CLOSE = 1e-9; // relative to the largest number of a row

function assertClose(got, expected, words) {
  assert.equal(got.length, expected.length, words);
  const largest = Math.max(...expected.map(Math.abs), Number.MIN_VALUE);
  got.forEach((value, i) => {
    assert.ok(Math.abs(value - expected[i]) <= CLOSE * largest, `${words}: ${got} is not ${expected}`);
  });
}

test('cumulative alphas are those of the scheduler', () => {
  const alphas = cumulativeAlphas(constants);
  assert.equal(alphas.length, 1000);
  fixtures.alphas.forEach((expected, i) => assert.ok(Math.abs(alphas[i] - expected) < 1e-12, `timestep ${i}`));
});

test('solvers and their orders are those of sampler.py', () => {
  assert.deepEqual(Object.fromEntries(Object.entries(SOLVERS).map(([name, { order }]) => [name, order])), fixtures.orders);
});

test('every step of every solver has the numbers that are read off diffusers', () => {
  for (const { solver, steps, strength, expected, guided } of fixtures.schedules) {
    const got = solverSteps(solver, steps, strength, constants);
    assert.deepEqual(
      got.map((step) => step.timestep),
      expected.map((step) => step.timestep),
    );
    got.forEach((step, i) => {
      const words = `${solver}, ${steps} steps, strength ${strength}, step ${i}`;
      const { signal, sigma, state_weights, noise_weights } = expected[i];
      assertClose([step.signal, step.sigma], [signal, sigma], words);
      for (const row of [0, 1, 2]) {
        const mine = [...step.stateWeights[row], step.noiseWeights[row]];
        assertClose(mine, [...state_weights[row], noise_weights[row]], `${words}, row ${row}`);
      }
    });
    guided.forEach((columns, i) => assertClose(guidedWeights(got[i], 2.5).flat(), columns.flat(), `${solver}, guided`));
  }
});

test('a step is fed with both conditions where it is guided, else with one', () => {
  const [step] = solverSteps('ddim', 20, 0.99, constants);
  const guided = stepFeeds(step, 2, constants);
  assert.deepEqual([...guided.conditions.data], [constants.unconditional, constants.conditional]);
  assert.deepEqual(
    Object.values(guided).map(({ dims }) => dims),
    [[1], [2], [3, 3], [3, 2]],
  );
  const alone = stepFeeds(step, 1, constants);
  assert.deepEqual([...alone.conditions.data], [constants.conditional]);
  assert.deepEqual(alone.noise_weights, { dims: [3, 1], data: Float32Array.from(step.noiseWeights) });
  assert.deepEqual([...firstState(Float32Array.of(1, 2))], [1, 2, 0, 0, 0, 0]);
});

test('a part of a step is refused', () => {
  assert.throws(() => solverSteps('ddim', 2.5, 1, constants), { code: 'bad-input', message: /whole number/ });
});

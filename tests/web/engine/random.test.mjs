import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Generator, randn } from '../../../moebius_lab/page/web/engine/random.js';
import { fixtures, floats, ulp } from '../fixtures.mjs';

test("torch's numbers, in torch's order, for long and short draws", () => {
  for (const { seed, draws } of fixtures.random) {
    const generator = new Generator(seed);
    for (const draw of draws) {
      const expected = floats(draw);
      const got = randn(expected.length, generator);
      expected.forEach((value, i) => {
        // torch's vectorised logarithm and sine are themselves a few units off in the last place
        const distance = Math.abs(got[i] - value);
        assert.ok(
          distance <= Math.max(4 * ulp(value), 1e-7),
          `seed ${seed}, ${expected.length} numbers, ${i}: ${got[i]} ${value}`,
        );
      });
    }
  }
});

test('a seed repeats itself and differs from the next', () => {
  const draw = (seed) => [...randn(32, new Generator(seed))];
  assert.deepEqual(draw(3), draw(3));
  assert.notDeepEqual(draw(3), draw(4));
});

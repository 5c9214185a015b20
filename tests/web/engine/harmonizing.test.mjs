// A fill brought nearer to its surroundings: the same pixels as in Python.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { harmonized } from '../../../moebius_lab/page/web/engine/harmonizing.js';
import { bytes, constants, fixtures } from '../fixtures.mjs';

for (const { name, seen, made, hole, harmonized: expected } of fixtures.harmonized) {
  test(`harmonized as in Python: ${name}`, () => {
    const numbers = { ...constants, image_size: fixtures.size };
    const given = bytes(made);
    const got = harmonized(given, { rgb: bytes(seen), hole: bytes(hole) }, numbers);
    assert.deepEqual(got, bytes(expected));
    assert.deepEqual(given, bytes(made), 'what was made stays');
    if (name !== 'everything') assert.notDeepEqual(got, given);
  });
}

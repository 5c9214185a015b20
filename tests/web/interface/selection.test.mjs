// Selections: the same masks as in Python.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as selection from '../../../moebius_lab/page/web/interface/selection.js';
import { bytes, constants, fixtures, withAlpha } from '../fixtures.mjs';

const [width, height] = [120, 90];

for (const [number, { x, y, px, ...given }] of fixtures.selections.entries()) {
  const picture = { width, height, data: withAlpha(bytes(given.image)) };
  const part = bytes(given.part);

  test(`wand ${number} at ${x}, ${y}, tolerance ${given.tolerance}`, () => {
    assert.deepEqual(selection.wand(picture, x, y, given.tolerance, given.contiguous), bytes(given.wand));
  });

  test(`wire ${number} of ${given.way.length} px`, () => {
    assert.deepEqual(selection.wire(picture, [x, y], given.end, constants.wire_margin), given.way);
  });

  test(`selection ${number}, by ${px} px`, () => {
    assert.deepEqual(selection.grow(part, width, height, px), bytes(given.grown));
    assert.deepEqual(selection.shrink(part, width, height, px), bytes(given.shrunk));
    assert.deepEqual(selection.feather(part, width, height, px), bytes(given.feathered));
    assert.deepEqual(selection.fillHoles(part, width, height), bytes(given.filled));
    assert.deepEqual(selection.keepLargest(part, width, height), bytes(given.largest));
  });
}

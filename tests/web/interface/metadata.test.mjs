// What a PNG says that it was made with: written there as in Python, and read from what Python wrote.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { madeChunk, madeWith } from '../../../moebius_lab/page/web/interface/metadata.js';
import { bytes, fixtures } from '../fixtures.mjs';

const { made, png } = fixtures.made;

test('what Python wrote is read', async () => {
  assert.deepEqual(await madeWith(new Blob([bytes(png)])), made);
});

test('what is written here is read again', async () => {
  const whole = bytes(png);
  const header = whole.subarray(0, 33); // signature and IHDR
  assert.deepEqual(await madeWith(new Blob([header, ...madeChunk(made)])), made);
});

test('other texts, other forms and damaged ones say nothing', async () => {
  const header = bytes(png).subarray(0, 33);
  const others = [[], madeChunk({ ...made, format: 2 }), madeChunk('x'), madeChunk(null), madeChunk(made).slice(0, 1)];
  for (const chunks of others) assert.equal(await madeWith(new Blob([header, ...chunks])), null);
  assert.equal(await madeWith(new Blob([])), null);
});

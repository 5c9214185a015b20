// Which file is the mask of which.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { matched } from '../../../moebius_lab/page/web/interface/batch.js';
import { fixtures } from '../fixtures.mjs';

const named = (names) => names.map((name) => ({ file: { name }, stem: name.replace(/\.[^.]*$/, '') }));
const told = (jobs) => jobs.map(({ picture, mask }) => [picture.file.name, mask?.file.name ?? null]);

for (const { names, jobs } of fixtures.batches) {
  test(`${names.join(', ')}: as in Python`, () => {
    assert.deepEqual(told(matched(named(names), () => false)), jobs);
  });
}

test('a black and white file of a picture’s name is its mask, and a single one that of all', () => {
  const isMask = ({ file }) => file.name === 'a.png';
  assert.deepEqual(told(matched(named(['a.jpg', 'a.png']), isMask)), [['a.jpg', 'a.png']]);
  assert.deepEqual(told(matched(named(['x.jpg', 'y.jpg', 'a.png']), isMask)), [
    ['x.jpg', 'a.png'],
    ['y.jpg', 'a.png'],
  ]);
  assert.deepEqual(told(matched(named(['x.jpg']), isMask)), [['x.jpg', null]]);
});

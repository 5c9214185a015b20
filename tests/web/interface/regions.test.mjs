// Parts of a picture: what differs, taken out and put back.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { cut, difference, put } from '../../../moebius_lab/page/web/interface/regions.js';

const picture = () => ({ width: 7, height: 5, data: Uint8ClampedArray.from({ length: 7 * 5 * 4 }, (_, i) => i) });

test('a difference is the smallest rectangle, and put back it gives the whole', async () => {
  const filled = picture();
  for (const [x, y] of [
    [2, 1],
    [5, 3],
  ])
    filled.data[(y * 7 + x) * 4 + 1] ^= 1;
  const region = await difference(picture(), filled);
  assert.deepEqual([region.left, region.top, region.width, region.height], [2, 1, 4, 3]);
  const rebuilt = picture();
  put(rebuilt, region);
  assert.deepEqual(rebuilt, filled);
});

test('taking out what was there undoes it', () => {
  const filled = picture();
  const region = { left: 3, top: 0, width: 4, height: 5, data: new Uint8ClampedArray(4 * 5 * 4).fill(9) };
  const before = { ...region, data: cut(filled, region) };
  put(filled, region);
  assert.notDeepEqual(filled, picture());
  put(filled, before);
  assert.deepEqual(filled, picture());
});

test('pictures that are equal differ in one pixel at most', async () => {
  assert.equal((await difference(picture(), picture())).data.length, 4);
});

test('a large picture is compared in parts, to its last row', async () => {
  const large = () => ({ width: 1500, height: 3000, data: new Uint8ClampedArray(4 * 1500 * 3000) });
  const filled = large();
  for (const place of [1333 * 1500 + 7, 2999 * 1500 + 1400]) filled.data[4 * place] = 1;
  const { left, top, width, height } = await difference(large(), filled);
  assert.deepEqual([left, top, width, height], [7, 1333, 1394, 1667]);
});

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { looksLikeMask } from '../../../moebius_lab/page/web/interface/dropped.js';
import { Generator } from '../../../moebius_lab/page/web/engine/random.js';

const SIDE = 40;

/** @param {(x: number, y: number) => number[]} colour RGBA */
function picture(colour) {
  const data = new Uint8ClampedArray(4 * SIDE * SIDE);
  for (let i = 0; i < SIDE * SIDE; i++) data.set(colour(i % SIDE, Math.floor(i / SIDE)), 4 * i);
  return { data };
}

const inHole = (x, y) => x > 10 && x < 30 && y > 5 && y < 20;
const grey = (value) => [value, value, value, 255];

test('black and white is a mask, also soft at the edge, noisy as a JPEG, or white on nothing', () => {
  const random = new Generator(1);
  assert.ok(looksLikeMask(picture((x, y) => grey(inHole(x, y) ? 255 : 0))));
  assert.ok(looksLikeMask(picture((x, y) => (x === 30 && y < 15 ? grey(120) : grey(inHole(x, y) ? 255 : 0)))));
  const noise = () => random.uint32() % 8;
  assert.ok(
    looksLikeMask(picture((x, y) => [noise(), noise(), noise(), 255].map((v, i) => (i < 3 && inHole(x, y) ? 255 - v : v)))),
  );
  assert.ok(looksLikeMask(picture((x, y) => [255, 255, 255, inHole(x, y) ? 255 : 0])));
});

test('photographs, grey pictures and single colours are none', () => {
  const random = new Generator(2);
  const any = () => random.uint32() % 256;
  assert.ok(!looksLikeMask(picture(() => [any(), any(), any(), 255])));
  assert.ok(!looksLikeMask(picture((x) => grey(Math.round((255 * x) / SIDE)))));
  assert.ok(!looksLikeMask(picture(() => grey(0))));
  assert.ok(!looksLikeMask(picture(() => grey(255))));
  assert.ok(!looksLikeMask(picture((x, y) => (x === 0 && y === 0 ? [255, 0, 0, 255] : grey(inHole(x, y) ? 255 : 0)))));
});

// Where a picture is on the screen, and how its hole looks there.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  fitted,
  inSight,
  overHole,
  pinched,
  rectangleCorners,
  toPicture,
  zoomed,
} from '../../../moebius_lab/page/web/interface/view.js';

const stage = { width: 800, height: 600 };
const close = (a, b, what) => assert.ok(Math.abs(a - b) < 1e-9, `${what}: ${a}, not ${b}`);

/** Where a point of the picture is on the stage. */
const onStage = (view, [x, y]) => ({ x: view.x + x * view.scale, y: view.y + y * view.scale });

test('a picture that is fitted stands in the middle, whole, and is not enlarged without end', () => {
  for (const picture of [
    { width: 3000, height: 500 },
    { width: 10, height: 4000 },
    { width: 640, height: 480 },
  ]) {
    const view = fitted(picture, stage);
    const [start, end] = [onStage(view, [0, 0]), onStage(view, [picture.width, picture.height])];
    close(start.x, stage.width - end.x, 'left and right');
    close(start.y, stage.height - end.y, 'above and below');
    assert.ok(start.x >= 23.99 && start.y >= 23.99 && Math.min(start.x, start.y) < 24.01, 'one side touches the margin');
  }
  assert.equal(fitted({ width: 4, height: 3 }, stage).scale, 8);
});

test('zooming keeps what is under the pointer, within the least and the largest scale', () => {
  let view = fitted({ width: 1000, height: 700 }, stage);
  const under = toPicture(view, { x: 120, y: 500 });
  for (const factor of [1.3, 4, 0.2, 1e6, 1e-6]) {
    view = zoomed(view, factor, 120, 500);
    const now = toPicture(view, { x: 120, y: 500 });
    close(now[0], under[0], 'x');
    close(now[1], under[1], 'y');
    assert.ok(view.scale <= 32 && view.scale >= 0.02);
  }
  assert.equal(zoomed({ scale: 0.005, x: 0, y: 0 }, 0.5, 0, 0).scale, 0.005, 'a huge picture that is fitted stays so');
});

test('screen and picture are each other’s inverse', () => {
  const view = { scale: 2.5, x: -30, y: 12 };
  assert.deepEqual(toPicture(view, onStage(view, [17, 4.5])), [17, 4.5]);
});

test('two fingers keep what is under each of them', () => {
  const view = { scale: 1.5, x: 40, y: -20 };
  const before = [
    { x: 100, y: 100 },
    { x: 200, y: 150 },
  ];
  const after = [
    { x: 90, y: 130 },
    { x: 290, y: 230 },
  ]; // twice as far apart
  const now = pinched(view, before, after);
  close(now.scale, 3, 'scale');
  before.forEach((finger, i) => {
    const [was, is] = [toPicture(view, finger), toPicture(now, after[i])];
    close(is[0], was[0], 'x');
    close(is[1], was[1], 'y');
  });
  assert.ok(pinched(view, before, [before[0], before[0]]).scale > 0, 'fingers that meet');
});

test('some of the picture always stays in sight', () => {
  const picture = { width: 300, height: 200 };
  for (const [x, y] of [
    [1e5, 1e5],
    [-1e5, -1e5],
    [1e5, -1e5],
  ]) {
    const view = inSight({ scale: 2, x, y }, picture, stage);
    assert.ok(view.x <= stage.width - 48 && view.x + 600 >= 48 && view.y <= stage.height - 48 && view.y + 400 >= 48);
  }
  assert.deepEqual(inSight({ scale: 2, x: 10, y: -20 }, picture, stage), { scale: 2, x: 10, y: -20 });
});

test('a rectangle has its four corners in order', () => {
  assert.deepEqual(rectangleCorners([1, 2], [5, 9]), [
    [1, 2],
    [5, 2],
    [5, 9],
    [1, 9],
  ]);
});

// -- the hole ----------------------------------------------------------------------------------------------------------

const mask = { width: 8, height: 6, level: 128, data: new Uint8Array(48) };
for (let y = 2; y < 4; y++) mask.data.fill(255, y * 8 + 3, y * 8 + 6); // 3 x 2 px
const part = { left: 0, top: 0, right: 80, bottom: 60 };
const shown = (view, ratio = 1, tinted = true, where = part) => overHole(mask, view, where, ratio, tinted);
const at = (pixels, x, y) => pixels[y * 80 + x];

test('stripes lie over the hole, an edge around it, nothing elsewhere', () => {
  const pixels = shown({ scale: 10, x: 0, y: 0 });
  for (let y = 0; y < 60; y++) {
    for (let x = 0; x < 80; x++) {
      const inside = x >= 30 && x < 60 && y >= 20 && y < 40;
      const edge = (inside && (x === 30 || y === 20)) || (x === 60 && y >= 20 && y < 40) || (y === 40 && x >= 30 && x < 60);
      const value = at(pixels, x, y);
      if (edge) assert.ok(value >>> 24 === 255, `${x}, ${y} is an edge`);
      else if (inside) assert.ok([0x70, 0xa8].includes(value >>> 24), `${x}, ${y} is striped`);
      else assert.equal(value, 0, `${x}, ${y} is free`);
    }
  }
  const stripes = new Set(Array.from({ length: 20 }, (_, i) => at(pixels, 35 + i, 30)));
  assert.equal(stripes.size, 2, 'stripes of two colours');
});

test('as an outline alone the hole has no stripes', () => {
  const pixels = shown({ scale: 10, x: 0, y: 0 }, 1, false);
  assert.ok(at(pixels, 45, 30) === 0 && at(pixels, 30, 30) >>> 24 === 255);
});

test('on a screen of two device pixels the edge is two thick, and the same place of the picture is shown', () => {
  const pixels = shown({ scale: 5, x: 0, y: 0 }, 2);
  assert.ok([30, 31].every((x) => at(pixels, x, 30) >>> 24 === 255) && at(pixels, 32, 30) >>> 24 !== 255);
  assert.ok(at(pixels, 45, 30) !== 0 && at(pixels, 20, 30) === 0);
});

test('a part that is drawn again is the same as in the whole', () => {
  const view = { scale: 7.3, x: 4.6, y: -3.1 };
  const whole = shown(view);
  const piece = { left: 21, top: 9, right: 50, bottom: 31 };
  const again = shown(view, 1, true, piece);
  again.forEach((value, i) => {
    const [x, y] = [piece.left + (i % 29), piece.top + Math.floor(i / 29)];
    assert.equal(value, at(whole, x, y), `${x}, ${y}`);
  });
});

test('a value below the level is no hole', () => {
  const soft = { ...mask, data: mask.data.map((value) => value && 127) };
  assert.ok(overHole(soft, { scale: 10, x: 0, y: 0 }, part, 1, true).every((value) => value === 0));
});

// The mask as data: what is drawn, counted, undone.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { HOLE, History, KEEP, Mask, SmoothPath, firstBrush, union } from '../../../moebius_lab/page/web/interface/mask.js';
import { inTurns } from '../../../moebius_lab/page/web/engine/turns.js';
import { bytes, constants, fixtures } from '../fixtures.mjs';

const W = 150;
const H = 130; // two tiles and a bit each way
const LEVEL = Math.ceil(255 * constants.mask_threshold);

/** @param {(mask: Mask) => void} draw */
function drawn(draw, width = W, height = H) {
  const mask = new Mask(width, height, LEVEL);
  mask.begin();
  draw(mask);
  return { mask, patch: mask.commit() };
}

/** @param {(x: number, y: number) => boolean} inside, of a pixel's centre */
function expected(inside, width = W, height = H) {
  return Uint8Array.from({ length: width * height }, (_, i) =>
    inside((i % width) + 0.5, Math.floor(i / width) + 0.5) ? HOLE : KEEP,
  );
}

function distance(x, y, [x0, y0, x1, y1]) {
  const [dx, dy] = [x1 - x0, y1 - y0];
  const along = dx || dy ? Math.min(Math.max(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0), 1) : 0;
  return Math.hypot(x - x0 - along * dx, y - y0 - along * dy);
}

test('a line holds the pixels within its radius, and no others', () => {
  const lines = [
    [20, 30, 100, 90],
    [100, 90, 20, 30],
    [50, 50, 50, 50],
    [10, 64, 140, 64],
    [64, 5, 64, 120],
    [-30, -20, 40, 35],
    [120, 100, 200, 300],
  ];
  for (const line of lines) {
    for (const radius of [0.61, 1.03, 7.31, 5, 10, 40.07]) {
      const { mask } = drawn((m) => m.line(...line, radius, HOLE));
      const exact = expected((x, y) => distance(x, y, line) <= radius + 1e-9);
      const wrong = mask.data.filter((value, i) => value !== exact[i]).length;
      assert.ok(wrong === 0, `${line} ${radius}: ${wrong}`);
    }
  }
});

test('the dirty rectangle of a line holds every pixel it changed', () => {
  const mask = new Mask(W, H, LEVEL);
  mask.begin();
  const rect = mask.line(20.2, 30.7, 90.9, 70.1, 6.4, HOLE);
  for (let i = 0; i < mask.data.length; i++) {
    const [x, y] = [i % W, Math.floor(i / W)];
    if (mask.data[i]) assert.ok(x >= rect.left && x < rect.right && y >= rect.top && y < rect.bottom);
  }
});

test('rectangle and polygon agree on a box, and a polygon winds', () => {
  const box = drawn((m) => m.rectangle(100, 90, 20, 30, HOLE)).mask;
  const outline = drawn((m) =>
    m.polygon(
      [
        [20, 30],
        [100, 30],
        [100, 90],
        [20, 90],
      ],
      HOLE,
    ),
  ).mask;
  assert.equal(box.holes, 80 * 60);
  assert.deepEqual(outline.data, box.data);
  const star = drawn((m) =>
    m.polygon(
      [
        [75, 5],
        [110, 120],
        [10, 45],
        [140, 45],
        [40, 120],
      ],
      HOLE,
    ),
  ).mask;
  assert.equal(star.data[65 * W + 75], HOLE, 'the middle of a star drawn in one go is inside');
});

test('the edge of a shape belongs to it', () => {
  const corners = [
    [20.5, 30.5],
    [100.5, 30.5],
    [100.5, 90.5],
    [20.5, 90.5],
  ];
  assert.equal(drawn((m) => m.rectangle(...corners[2], ...corners[0], HOLE)).mask.holes, 81 * 61);
  assert.equal(drawn((m) => m.polygon(corners, HOLE)).mask.holes, 81 * 61);
  assert.equal(
    drawn((m) => m.line(50.5, 50.5, 50.5, 50.5, 5, HOLE)).mask.holes,
    81,
    'the points (3, 4) and (0, 5) of a circle too',
  );
  assert.equal(
    drawn((m) =>
      m.polygon(
        [
          [9.5, 9.5],
          [9.5, 9.5],
          [9.5, 19.5],
        ],
        HOLE,
      ),
    ).mask.holes,
    11,
    'a lasso without an inside is a line',
  );
});

test('a gesture fills the pixels that it fills in the notebook', () => {
  for (const { width, height, gestures } of fixtures.paintings) {
    const mask = new Mask(width, height, LEVEL);
    for (const { tool, points, size, mask: expected } of gestures) {
      mask.begin();
      if (tool === 'lasso') mask.polygon(points, HOLE);
      else if (tool === 'rectangle') mask.rectangle(...points[0], ...points[1], HOLE);
      else
        for (let i = 0; i < Math.max(1, points.length - 1); i++)
          mask.line(...points[i], ...(points[i + 1] ?? points[i]), size / 2, tool === 'brush' ? HOLE : KEEP);
      mask.commit();
      const other = bytes(expected);
      const wrong = mask.data.filter((value, i) => value !== other[i]).length;
      assert.equal(wrong, 0, `${tool} ${JSON.stringify(points)} ${size}, on ${width} x ${height}`);
    }
  }
  assert.ok(fixtures.paintings.some(({ gestures }) => bytes(gestures.at(-1).mask).some((value) => value === HOLE)));
});

test('the brush begins with the size that it has in the notebook', () => {
  for (const [width, height, size] of fixtures.brushes) assert.equal(firstBrush(width, height, constants.brush_share), size);
});

/** Do all of what yields in between. */
function whole(steps) {
  let step = steps.next();
  while (!step.done) step = steps.next();
  return step.value;
}

test('holes are counted, whatever was drawn', () => {
  const count = (mask) => mask.data.filter((value) => value >= mask.level).length;
  const mask = new Mask(W, H, LEVEL);
  const soft = Uint8Array.from({ length: W * H }, (_, i) => i % 256);
  const outline = [[0, 0], [80, 3], [70, 90]]; // prettier-ignore
  const drawing = (act) => () => {
    mask.begin();
    act();
    return mask.commit();
  };
  const acts = [
    drawing(() => mask.line(10, 10, 120, 100, 9, HOLE)),
    drawing(() => mask.line(30, 10, 40, 100, 4, KEEP)),
    () => whole(mask.invert()),
    drawing(() => mask.polygon(outline, KEEP)),
    () => whole(mask.replace(soft)),
    () => whole(mask.fill(HOLE)),
    () => whole(mask.fill(KEEP)),
  ];
  const after = [mask.data.slice()];
  const patches = acts.map((act) => {
    const patch = act();
    assert.equal(mask.holes, count(mask));
    after.push(mask.data.slice());
    return patch;
  });
  assert.deepEqual(after[5], soft);
  for (const patch of patches.reverse()) {
    assert.deepEqual(mask.data, after.pop());
    whole(mask.swap(patch));
    assert.equal(mask.holes, count(mask));
  }
  assert.equal(mask.holes, 0);
});

test('another level counts anew', () => {
  const mask = new Mask(W, H, HOLE);
  whole(mask.replace(new Uint8Array(W * H).fill(LEVEL)));
  assert.equal(mask.holes, 0);
  mask.countFrom(LEVEL);
  assert.equal(mask.holes, W * H);
});

test('what changes all of a large mask can be interrupted, and short work is done at once', async () => {
  const mask = new Mask(3000, 2000, LEVEL);
  let steps = 0;
  for (const _ of mask.fill(HOLE)) steps++;
  assert.ok(steps > 20 && mask.holes === 6e6);
  let small = null;
  inTurns(new Mask(W, H, LEVEL).fill(HOLE), (patch) => (small = patch));
  assert.ok(small);
  let others = 0;
  const timer = setInterval(() => others++, 1);
  const made = await new Promise((done) => {
    inTurns(
      (function* () {
        for (const end = performance.now() + 150; performance.now() < end;) yield;
        return 'made';
      })(),
      done,
    );
  });
  clearInterval(timer);
  assert.ok(made === 'made' && others > 0);
});

test('a patch undoes and redoes, and knows where', () => {
  const { mask, patch } = drawn((m) => m.line(20, 20, 60, 40, 5, HOLE));
  const after = mask.data.slice();
  const rect = whole(mask.swap(patch));
  assert.ok(mask.data.every((value) => value === 0));
  assert.deepEqual(rect, { left: 0, top: 0, right: 128, bottom: 64 });
  whole(mask.swap(patch));
  assert.deepEqual(mask.data, after);
});

test('an edit that changes nothing is none, and a cancelled one leaves nothing', () => {
  assert.equal(drawn((m) => m.line(5, 5, 9, 9, 3, KEEP)).patch, null);
  const mask = new Mask(W, H, LEVEL);
  mask.begin();
  mask.rectangle(0, 0, W, H, HOLE);
  mask.cancel();
  assert.equal(mask.holes, 0);
  assert.ok(!mask.editing && mask.data.every((value) => value === 0));
  assert.throws(() => mask.line(0, 0, 1, 1, 1, HOLE));
});

test('uniform tiles cost next to nothing', () => {
  const patch = whole(new Mask(4000, 3000, LEVEL).invert());
  assert.ok(patch.bytes < 60_000, `${patch.bytes}`);
});

test('history drops the oldest first, keeps the last, and forgets what was undone', () => {
  const log = [];
  const change = (label, bytes) => ({ label, bytes, swap: () => log.push(label) });
  const history = new History(100);
  for (const label of ['a', 'b', 'c']) history.push(change(label, 40));
  assert.equal(history.bytes, 80);
  assert.equal(history.undo(), 'c');
  assert.equal(history.redo(), 'c');
  history.undo();
  history.push(change('huge', 500));
  assert.ok(history.canUndo && !history.canRedo);
  assert.equal(history.undo(), 'huge');
  assert.equal(history.undo(), null);
  assert.deepEqual(log, ['c', 'c', 'c', 'huge']);
});

test('a smooth path is continuous, ends where the pointer is, and does not cut corners by much', () => {
  const path = new SmoothPath(0, 0);
  const pieces = [
    [100, 0],
    [100, 100],
    [0, 100],
  ].flatMap(([x, y]) => path.add(x, y, 5));
  pieces.push(path.end());
  assert.deepEqual(pieces[0].slice(0, 2), [0, 0]);
  assert.deepEqual(pieces.at(-1).slice(2), [0, 100]);
  for (let i = 1; i < pieces.length; i++) assert.deepEqual(pieces[i].slice(0, 2), pieces[i - 1].slice(2));
  const nearest = Math.min(...pieces.map(([x, y]) => Math.hypot(x - 100, y - 0)));
  assert.ok(nearest < 36);
});

test('the union of rectangles ignores empty ones', () => {
  const a = { left: 1, top: 2, right: 3, bottom: 4 };
  assert.deepEqual(union({ left: 0, top: 0, right: 0, bottom: 0 }, a), a);
  assert.deepEqual(union(a, { left: 9, top: 0, right: 10, bottom: 1 }), { left: 1, top: 0, right: 10, bottom: 4 });
});

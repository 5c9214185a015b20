import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as imaging from '../../../moebius_lab/page/web/engine/imaging.js';
import { bytes, constants, fixtures, floats, withAlpha, withoutAlpha } from '../fixtures.mjs';

const same = (got, expected, what) => assert.ok(Buffer.compare(Buffer.from(got), Buffer.from(expected)) === 0, what);

for (const { name, coverage, width, height, image, mask, windows, plan, owners, result } of fixtures.pictures) {
  test(`windows, crops and pasting: ${name}`, () => {
    const numbers = { ...constants, image_size: fixtures.size, latent_size: fixtures.size / constants.vae_factor };
    const picture = { width, height, data: withAlpha(bytes(image), 77) };
    const painted = bytes(mask);
    const left = imaging.isHole(painted, numbers);
    const planned = imaging.planWindows(left, width, height, coverage, numbers);
    const places = ({ left, top, side }) => ({ left, top, side });
    assert.deepEqual(planned.map(places), windows.map(places));
    assert.equal(imaging.describeWindows(planned, fixtures.size), plan);
    same(planned[0].owners.buffer, bytes(owners).buffer, 'which window fills a pixel');
    planned.forEach((window, i) => {
      const seen = imaging.crop(picture, left, window, fixtures.size);
      same(seen.rgb, bytes(windows[i].seen), `window ${i} as the model sees it`);
      same(seen.hole, bytes(windows[i].seen_hole), `mask of window ${i}`);
      const told = imaging.maskToLatent(seen.hole, coverage, numbers);
      assert.deepEqual(told, floats(windows[i].told), `what the model is told of window ${i}`);
      const paste = imaging.pasting(painted, width, height, window, coverage, numbers);
      imaging.uncrop(bytes(windows[i].made), picture, window, paste, numbers);
      imaging.closeHole(left, window, picture);
    });
    assert.ok(!left.includes(1), 'no hole is left');
    same(withoutAlpha(picture.data), bytes(result), 'the picture after pasting');
    assert.ok(
      picture.data.every((value, i) => i % 4 !== 3 || value === 77),
      'alpha is kept',
    );
  });
}

test("the feather is Python's, as released Pillow's blur", () => {
  for (const { width, height, mask, blurred, weights } of fixtures.feathers) {
    const hole = imaging.isHole(bytes(mask), constants);
    same(imaging.feather(hole, width, height, constants), bytes(weights), `${width} x ${height}`);
    same(imaging.blur(bytes(mask), width, height, constants), bytes(blurred), `${width} x ${height}, as released`);
  }
});

test('windows are placed as in Python, whatever the holes', () => {
  for (const { width, height, size, coverage, mask, windows } of fixtures.plans) {
    const numbers = { ...constants, image_size: size };
    const planned = imaging.planWindows(imaging.isHole(bytes(mask), constants), width, height, coverage, numbers);
    const filled = new Array(planned.length + 1).fill(0);
    for (const number of planned[0].owners) filled[number] += 1;
    assert.deepEqual(
      planned.map(({ left, top, side, number }) => [left, top, side, filled[number]]),
      windows,
    );
  }
});

test('a long hole in a wide picture takes memory as the picture does, not as a square of its width', () => {
  const [width, height, size] = [12000, 100, 128];
  const image = { width, height, data: new Uint8ClampedArray(4 * width * height).fill(90) };
  const mask = new Uint8Array(width * height);
  for (let y = 20; y < 80; y++) mask.fill(255, y * width + 300, (y + 1) * width - 300);
  const numbers = { ...constants, image_size: size };
  const spent = bytesAllocated(() => {
    const hole = imaging.isHole(mask, numbers);
    const [window] = imaging.planWindows(hole, width, height, 'whole', numbers);
    assert.equal(window.side, width);
    imaging.crop(image, hole, window, size);
    const paste = imaging.pasting(mask, width, height, window, 'whole', numbers);
    imaging.uncrop(new Uint8Array(size * size * 3), image, window, paste, numbers);
  });
  assert.ok(spent < 20 * width * height + 10 * size * width, `${spent} bytes`);
});

/** Bytes of all typed arrays that are made meanwhile, whether they live on or not. */
function bytesAllocated(work) {
  const names = ['Uint8Array', 'Uint8ClampedArray', 'Int32Array', 'Uint32Array', 'Float32Array', 'Float64Array'];
  const real = Object.fromEntries(names.map((name) => [name, globalThis[name]]));
  let sum = 0;
  for (const name of names) {
    globalThis[name] = new Proxy(real[name], {
      construct(target, args, made) {
        const array = Reflect.construct(target, args, made);
        if (!(args[0] instanceof ArrayBuffer)) sum += array.byteLength;
        return array;
      },
    });
  }
  try {
    work();
  } finally {
    Object.assign(globalThis, real);
  }
  return sum;
}

test('ranges are converted as in Python', () => {
  const planes = imaging.toUnitRange(bytes(fixtures.range.rgb));
  assert.deepEqual([...planes], [...floats(fixtures.range.unit)]);
  same(imaging.toBytes(floats(fixtures.range.decoded)), bytes(fixtures.range.bytes), 'bytes');
});

test('the latent mask has every cell that the hole touches, as released those whose upper left pixel it touches', () => {
  const hole = new Uint8Array(256);
  hole[7 * 16 + 7] = hole[8 * 16 + 8] = 1;
  const latent = (coverage) => [...imaging.maskToLatent(hole, coverage, { ...constants, image_size: 16, latent_size: 2 })];
  assert.deepEqual(latent('whole'), [1, 0, 0, 1]);
  assert.deepEqual(latent('as-released'), [0, 0, 0, 1]);
});

test('a picture and a mask that cannot be used are refused with what to do', () => {
  const picture = { width: 4, height: 4, data: new Uint8ClampedArray(64) };
  const check =
    (mask, image = picture) =>
    () =>
      imaging.holeToFill(image, mask, constants);
  assert.throws(check(new Uint8Array(16)), { code: 'bad-input', message: /mask is empty/ });
  assert.throws(check(new Uint8Array(16).fill(255)), { code: 'bad-input', message: /whole picture/ });
  assert.throws(check(new Uint8Array(9)), { code: 'bad-input', message: /differ in size/ });
  const huge = { width: 20000, height: 10000, data: { length: 8e8 } };
  assert.throws(check({ length: 2e8 }, huge), { code: 'bad-input', message: /at most 100 megapixels/ });
});

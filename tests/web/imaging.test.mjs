import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as imaging from '../../moebius_lab/web/imaging.js';
import { bytes, constants, fixtures, floats, withAlpha, withoutAlpha } from './fixtures.mjs';

const same = (got, expected, what) => assert.ok(Buffer.compare(Buffer.from(got), Buffer.from(expected)) === 0, what);

for (const { name, width, height, image, mask, windows, result } of fixtures.pictures) {
  test(`windows, crops and pasting: ${name}`, () => {
    const numbers = { ...constants, image_size: fixtures.size };
    const picture = { width, height, data: withAlpha(bytes(image), 77) };
    const painted = bytes(mask);
    const left = imaging.isHole(painted, numbers);
    const planned = imaging.planWindows(left, width, height, numbers);
    const places = ({ left, top, side }) => ({ left, top, side });
    assert.deepEqual(planned.map(places), windows.map(places));
    planned.forEach((window, i) => {
      same(window.hole, bytes(windows[i].hole), `hole of window ${i}`);
      const seen = imaging.crop(picture, left, window, fixtures.size);
      same(seen.rgb, bytes(windows[i].seen), `window ${i} as the model sees it`);
      same(seen.hole, bytes(windows[i].seen_hole), `mask of window ${i}`);
      const paste = imaging.pasting(painted, width, height, window, numbers);
      imaging.uncrop(bytes(windows[i].made), picture, window, paste, numbers);
      window.hole.forEach((own, j) => own && (left[j] = 0));
    });
    same(withoutAlpha(picture.data), bytes(result), 'the picture after pasting');
    assert.ok(picture.data.every((value, i) => i % 4 !== 3 || value === 77), 'alpha is kept');
  });
}

test('the feather is Pillow\'s blur', () => {
  for (const { width, height, mask, blurred } of fixtures.feathers) {
    same(imaging.feather(bytes(mask), width, height, constants), bytes(blurred), `${width} x ${height}`);
  }
});

test('ranges are converted as in Python', () => {
  const planes = imaging.toUnitRange(bytes(fixtures.range.rgb));
  assert.deepEqual([...planes], [...floats(fixtures.range.unit)]);
  same(imaging.toBytes(floats(fixtures.range.decoded)), bytes(fixtures.range.bytes), 'bytes');
});

test('the latent mask takes the upper left pixel of each block', () => {
  const hole = new Uint8Array(256);
  hole[7 * 16 + 7] = hole[8 * 16 + 8] = 1;
  assert.deepEqual([...imaging.maskToLatent(hole, { ...constants, image_size: 16, latent_size: 2 })], [0, 0, 0, 1]);
});

test('a picture and a mask that cannot be used are refused with what to do', () => {
  const picture = { width: 4, height: 4, data: new Uint8ClampedArray(64) };
  const check = (mask, image = picture) => () => imaging.holeToFill(image, mask, constants);
  assert.throws(check(new Uint8Array(16)), { code: 'bad-input', message: /mask is empty/ });
  assert.throws(check(new Uint8Array(16).fill(255)), { code: 'bad-input', message: /whole picture/ });
  assert.throws(check(new Uint8Array(9)), { code: 'bad-input', message: /differ in size/ });
  const huge = { width: 20000, height: 10000, data: { length: 8e8 } };
  assert.throws(check({ length: 2e8 }, huge), { code: 'bad-input', message: /at most 100 megapixels/ });
});

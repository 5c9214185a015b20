// New canvas: the same windows and pixels as in Python.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as extending from '../../../moebius_lab/page/web/engine/extending.js';
import * as imaging from '../../../moebius_lab/page/web/engine/imaging.js';
import { bytes, constants, fixtures, withoutAlpha } from '../fixtures.mjs';

const numbers = { ...constants, image_size: fixtures.size };

for (const { width, height, extension, windows, ...arrays } of fixtures.extensions) {
  test(`${width} x ${height}, extended by ${JSON.stringify(extension)}, in ${windows.length} windows, as in Python`, () => {
    const old = { width, height, data: new Uint8ClampedArray(bytes(arrays.old)) };
    const image = extending.extend(old, extension);
    assert.deepEqual(new Uint8Array(image.data), bytes(arrays.image));
    const hole = imaging.isHole(bytes(arrays.mask), numbers);
    const planned = extending.planFilling(hole, image.width, image.height, extension, 'whole', numbers);
    const place = ({ left, top, side, joins, newCanvas }) => ({ left, top, side, joins: joins ?? newCanvas !== undefined });
    assert.deepEqual(planned.map(place), windows.map(place));
    for (const [i, window] of planned.entries()) {
      const seen = imaging.crop(image, hole, window, numbers.image_size);
      if (window.newCanvas) extending.hideBeyond(seen, window, image);
      assert.deepEqual(seen.rgb, bytes(windows[i].seen));
      assert.deepEqual(seen.hole, bytes(windows[i].seen_hole));
      const made = bytes(windows[i].made);
      if (window.newCanvas) {
        const paste = extending.joining(window, image, numbers);
        imaging.uncrop(extending.matched(made, image, window, numbers), image, window, paste, numbers);
      } else {
        const paste = imaging.pasting(bytes(arrays.mask), image.width, image.height, window, 'whole', numbers);
        imaging.uncrop(made, image, window, paste, numbers);
      }
      imaging.closeHole(hole, window, image);
    }
    assert.ok(!hole.includes(1));
    assert.deepEqual(withoutAlpha(image.data), bytes(arrays.result));
  });
}

test('an aspect ratio keeps the picture in the middle', () => {
  assert.deepEqual(extending.extensionTo(16, 10, 720, 405), { left: 0, top: 22, right: 0, bottom: 23 });
  assert.deepEqual(extending.extensionTo(1, 1, 720, 405), { left: 0, top: 157, right: 0, bottom: 158 });
  assert.deepEqual(extending.extensionTo(16, 9, 720, 405), { left: 0, top: 0, right: 0, bottom: 0 });
});

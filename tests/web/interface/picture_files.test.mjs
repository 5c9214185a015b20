// Sizes read from file headers, masks resized, and PNG files that another reader opens.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inflateSync } from 'node:zlib';

import {
  contentsOf,
  maskToPng,
  orientationOf,
  pictureToPng,
  resizeMask,
  sizeInHeader,
  turn,
} from '../../../moebius_lab/page/web/interface/picture_files.js';

/** The pixels of a PNG whose rows all use one filter type. @param {Buffer} png @param {number} channels */
function decode(png, channels) {
  const [width, height] = [png.readUInt32BE(16), png.readUInt32BE(20)];
  const data = [];
  for (let at = 8; at < png.length; at += png.readUInt32BE(at) + 12) {
    if (png.toString('latin1', at + 4, at + 8) === 'IDAT') data.push(png.subarray(at + 8, at + 8 + png.readUInt32BE(at)));
  }
  const raw = inflateSync(Buffer.concat(data));
  const stride = width * channels;
  const out = new Uint8Array(stride * height);
  for (let y = 0; y < height; y++) {
    assert.equal(raw[y * (stride + 1)], 4);
    for (let i = 0; i < stride; i++) {
      const a = i < channels ? 0 : out[y * stride + i - channels];
      const b = y ? out[(y - 1) * stride + i] : 0;
      const c = y && i >= channels ? out[(y - 1) * stride + i - channels] : 0;
      const guess = [a, b, c].reduce((best, v) => (Math.abs(a + b - c - v) < Math.abs(a + b - c - best) ? v : best));
      out[y * stride + i] = raw[y * (stride + 1) + 1 + i] + guess;
    }
  }
  return { width, height, data: out };
}

const noise = (/** @type {number} */ length) =>
  Uint8ClampedArray.from({ length }, (_, i) => (i * 7919 + (i >> 3) * 104729) % 256);

test('a mask survives as PNG', async () => {
  const data = new Uint8Array(noise(37 * 21));
  const png = Buffer.from(await (await maskToPng({ width: 37, height: 21, data })).arrayBuffer());
  assert.deepEqual(decode(png, 1), { width: 37, height: 21, data });
  assert.deepEqual(sizeInHeader(png), { width: 37, height: 21 });
});

test('a picture survives as PNG, with alpha only where it has some', async () => {
  const data = noise(33 * 9 * 4);
  const translucent = decode(Buffer.from(await (await pictureToPng({ width: 33, height: 9, data })).arrayBuffer()), 4);
  assert.deepEqual(translucent.data, new Uint8Array(data));
  for (let i = 3; i < data.length; i += 4) data[i] = 255;
  const opaque = decode(Buffer.from(await (await pictureToPng({ width: 33, height: 9, data })).arrayBuffer()), 3);
  assert.deepEqual(opaque.data, new Uint8Array(data.filter((_, i) => i % 4 < 3)));
});

test('sizes are read from headers', () => {
  const bytes = (/** @type {(number|string)[]} */ ...parts) => {
    const joined = Buffer.concat(
      parts.map((part) => (typeof part === 'string' ? Buffer.from(part, 'latin1') : Buffer.from([part]))),
    );
    return new Uint8Array(Buffer.concat([joined, Buffer.alloc(64)]));
  };
  assert.deepEqual(sizeInHeader(bytes('GIF89a', 0x2c, 0x01, 0xc8, 0)), { width: 300, height: 200 });
  assert.deepEqual(sizeInHeader(bytes('RIFF....WEBPVP8X', 10, 0, 0, 0, 0, 0, 0, 0, 0x2b, 1, 0, 0xc7, 0, 0)), {
    width: 300,
    height: 200,
  });
  const jpeg = bytes(0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2, 0xff, 0xff, 0xc2, 0, 17, 8, 0, 0xc8, 1, 0x2c, 3);
  assert.deepEqual(sizeInHeader(jpeg), { width: 300, height: 200 });
  assert.equal(sizeInHeader(bytes('not a picture at all, but a text of some length')), null);
  assert.equal(sizeInHeader(new Uint8Array(5)), null);
});

test('a mask is stretched by nearest neighbour', () => {
  const small = { width: 2, height: 1, data: Uint8Array.of(0, 255) };
  assert.deepEqual(resizeMask(small, 4, 2).data, Uint8Array.of(0, 0, 255, 255, 0, 0, 255, 255));
});

test('orientation is read from EXIF, and a picture is turned by it', () => {
  const block = (/** @type {number} */ kind, /** @type {number} */ value) =>
    Uint8Array.of(0x4d, 0x4d, 0, 42, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, kind, 0, 0, 0, 1, 0, value, 0, 0, 0, 0, 0, 0);
  assert.equal(orientationOf(block(3, 6)), 6);
  assert.equal(orientationOf(block(3, 9)), 1);
  assert.equal(orientationOf(block(4, 6)), 1);
  for (let length = 0; length < 26; length++) assert.equal(orientationOf(block(3, 6).subarray(0, length)), length < 22 ? 1 : 6);
  const picture = { width: 3, height: 2, data: Uint8ClampedArray.from({ length: 24 }, (_, i) => i >> 2) }; // 0 1 2 / 3 4 5
  const turned = (/** @type {number} */ orientation) => {
    const { width, data } = turn(picture, orientation);
    return [width, ...data.filter((_, i) => i % 4 === 0)].join('');
  };
  assert.deepEqual([1, 2, 3, 4, 5, 6, 7, 8].map(turned), [
    '3012345',
    '3210543',
    '3543210',
    '3345012',
    '2031425',
    '2304152',
    '2524130',
    '2251403',
  ]);
});

test('a browser gets a file without EXIF, and a PNG with its end', async () => {
  const png = new Uint8Array(
    await (await pictureToPng({ width: 2, height: 1, data: Uint8ClampedArray.of(1, 2, 3, 255, 4, 5, 6, 255) })).arrayBuffer(),
  );
  const whole = async (/** @type {Uint8Array<ArrayBuffer>} */ bytes) =>
    new Uint8Array(await new Blob(contentsOf(bytes).parts).arrayBuffer());
  assert.deepEqual(await whole(png), png);
  for (const cut of [4, 12]) assert.deepEqual(await whole(png.slice(0, -cut)), png);
  const jpeg = Uint8Array.of(0xff, 0xd8, 0xff, 0xe1, 0, 10, ...Buffer.from('Exif\0\0II'), 0xff, 0xdb, 0, 2, 0xff, 0xda, 1, 2, 3);
  assert.deepEqual(await whole(jpeg), Uint8Array.of(0xff, 0xd8, 0xff, 0xdb, 0, 2, 0xff, 0xda, 1, 2, 3));
});

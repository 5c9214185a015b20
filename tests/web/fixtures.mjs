// The numbers that tests/page/test_web.py computed with the Python of the same checkout.

import { readFileSync } from 'node:fs';

export const fixtures = JSON.parse(readFileSync(process.env.FIXTURES, 'utf8'));

export const { constants } = fixtures;

export function bytes(text) {
  return new Uint8Array(Buffer.from(text, 'base64'));
}

export function floats(text) {
  return new Float32Array(bytes(text).buffer);
}

export function withAlpha(rgb, alpha = 255) {
  const data = new Uint8ClampedArray((rgb.length / 3) * 4).fill(alpha);
  for (let i = 0; i < rgb.length / 3; i++) data.set(rgb.subarray(3 * i, 3 * i + 3), 4 * i);
  return data;
}

export function withoutAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let i = 0; i < rgba.length / 4; i++) rgb.set(rgba.subarray(4 * i, 4 * i + 3), 3 * i);
  return rgb;
}

/** One unit in the last place of a float32. */
export function ulp(value) {
  return 2 ** (Math.max(Math.floor(Math.log2(Math.abs(value))), -126) - 23);
}

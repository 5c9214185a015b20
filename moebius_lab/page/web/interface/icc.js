// The colour profile (ICC) of a picture's file: found, used to bring sRGB into its colours, and written into another file.
//
// Profiles of three curves and a matrix are used, which are those of cameras, phones and screens; see colours.py.

import { blocksOf, chunk, text } from './picture_files.js';

/** @import { Bytes } from './types.js' */

const JPEG_HEAD = 'ICC_PROFILE\0';
const JPEG_PART = 65_519; // bytes of a profile that a segment takes
const SRGB = [0.4360747, 0.3850649, 0.1430804, 0.2225045, 0.7168786, 0.0606169, 0.0139322, 0.0971045, 0.7141733]; // to XYZ, D50

/** The profile that a JPEG, PNG or WebP holds; empty where there is none. @param {Blob} file @returns {Promise<Bytes>} */
export async function profileOf(file) {
  /** @type {Bytes[]} */
  const parts = [];
  for (const { kind, body } of blocksOf(new Uint8Array(await file.arrayBuffer()))) {
    if (kind === 'IDAT' || kind === 'cICP') break; // what cICP says counts before it
    if (kind === 'ICCP') return body.slice();
    if (kind === 'e2' && text(body, 0, 12) === JPEG_HEAD) parts[body[12]] = body.subarray(14);
    if (kind === 'iCCP')
      return through(body.subarray(body.indexOf(0) + 2), new DecompressionStream('deflate')).catch(() => new Uint8Array(0));
  }
  return new Uint8Array(await new Blob(parts.filter(Boolean)).arrayBuffer());
}

/**
 * What turns a colour of sRGB into a profile's.
 *
 * @param {Bytes} profile
 * @returns {((from: ArrayLike<number>, to: Uint8ClampedArray, at: number) => void) | null} reads and writes three values at one place,
 *   uint8; null for a profile that works in another way
 */
export function fromSrgb(profile) {
  const view = new DataView(profile.buffer, profile.byteOffset, profile.byteLength);
  if (profile.length < 132 || text(profile, 16, 8) !== 'RGB XYZ ') return null;
  /** @type {Map<string, DataView>} */
  const tags = new Map();
  for (let i = 0, at = 132; i < view.getUint32(128) && at + 12 <= profile.length; i++, at += 12) {
    const [from, length] = [view.getUint32(at + 4), view.getUint32(at + 8)];
    if (from + length > profile.length) return null;
    tags.set(text(profile, at, 4), new DataView(profile.buffer, profile.byteOffset + from, length));
  }
  const columns = ['rXYZ', 'gXYZ', 'bXYZ'].map((name) => tags.get(name));
  const curves = ['rTRC', 'gTRC', 'bTRC'].map((name) => curveOf(tags.get(name)));
  if (tags.has('A2B0') || tags.has('B2A0') || columns.some((tag) => !tag || tag.byteLength < 20)) return null;
  const matrix = [8, 12, 16].flatMap((at) => columns.map((tag) => (tag?.getInt32(at) ?? 0) / 65536));
  const device = product(inverse(matrix), SRGB);
  const thresholds = curves.map((curve) => curve && Float64Array.from({ length: 255 }, (_, v) => curve((v + 0.5) / 255)));
  if (thresholds.includes(null) || !device.every(Number.isFinite)) return null;
  const light = Float64Array.from({ length: 256 }, (_, v) => (v <= 10 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return (from, to, at) => {
    const [r, g, b] = [light[from[at]], light[from[at + 1]], light[from[at + 2]]];
    for (let c = 0; c < 3; c++)
      to[at + c] = rank(thresholds[c] ?? light, device[3 * c] * r + device[3 * c + 1] * g + device[3 * c + 2] * b);
  };
}

/** How many of 255 numbers, in order, are not above one. @param {Float64Array} numbers @param {number} x */
function rank(numbers, x) {
  let [low, high] = [0, 255];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= x) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** A curve from value to light, both 0..1. @param {DataView | undefined} tag of type curv or para @returns {((x: number) => number) | null} */
function curveOf(tag) {
  if (!tag || tag.byteLength < 12) return null;
  const kind = text(new Uint8Array(tag.buffer, tag.byteOffset, 4), 0, 4);
  if (kind === 'curv') {
    const count = tag.getUint32(8);
    if (12 + 2 * count > tag.byteLength) return null;
    if (count === 0) return (x) => x;
    if (count === 1) return (x) => x ** (tag.getUint16(12) / 256);
    return (x) => {
      const [at, i] = [x * (count - 1), Math.min(Math.floor(x * (count - 1)), count - 2)];
      const [a, b] = [tag.getUint16(12 + 2 * i), tag.getUint16(14 + 2 * i)];
      return (a + (b - a) * (at - i)) / 65535;
    };
  }
  const form = kind === 'para' ? tag.getUint16(8) : 5;
  const size = [1, 3, 4, 5, 7][form];
  if (!size || tag.byteLength < 12 + 4 * size) return null;
  const [g, a = 1, b = 0, c = 0, d = 0, e = 0, f = 0] = Array.from({ length: size }, (_, i) => tag.getInt32(12 + 4 * i) / 65536);
  const power = (/** @type {number} */ x) => Math.max(a * x + b, 0) ** g;
  if (form === 0) return (x) => x ** g;
  if (form === 1) return (x) => (x >= -b / a ? power(x) : 0);
  if (form === 2) return (x) => (x >= -b / a ? power(x) + c : c);
  return (x) => (x >= d ? power(x) + e : c * x + f);
}

/** @param {number[]} m 3 x 3, by rows */
function inverse([a, b, c, d, e, f, g, h, i]) {
  const cofactors = [e * i - f * h, c * h - b * i, b * f - c * e, f * g - d * i, a * i - c * g, c * d - a * f, d * h - e * g, b * g - a * h, a * e - b * d]; // prettier-ignore
  const determinant = a * cofactors[0] + b * cofactors[3] + c * cofactors[6];
  return cofactors.map((value) => value / determinant);
}

/** @param {number[]} a @param {number[]} b both 3 x 3, by rows */
function product(a, b) {
  return a.map((_, i) => [0, 1, 2].reduce((sum, k) => sum + a[i - (i % 3) + k] * b[3 * k + (i % 3)], 0));
}

/** @param {Bytes} bytes @param {CompressionStream | DecompressionStream} stream */
async function through(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

/** The chunk of a PNG. @param {Bytes} profile */
export async function pngChunk(profile) {
  const packed = await through(profile, new CompressionStream('deflate'));
  const body = new Uint8Array(5 + packed.length);
  body.set([0x49, 0x43, 0x43]); // its name, "ICC", and that it is deflated
  body.set(packed, 5);
  return chunk('iCCP', body);
}

/** The segments of a JPEG. @param {Bytes} profile @returns {Bytes[]} */
export function jpegSegments(profile) {
  const count = Math.ceil(profile.length / JPEG_PART);
  return Array.from({ length: count }, (_, i) => {
    const part = profile.subarray(i * JPEG_PART, (i + 1) * JPEG_PART);
    const segment = new Uint8Array(18 + part.length);
    new DataView(segment.buffer).setUint32(0, 0xffe20000 + 16 + part.length);
    segment.set(new TextEncoder().encode(JPEG_HEAD), 4);
    segment.set([i + 1, count], 16);
    segment.set(part, 18);
    return segment;
  });
}

/** What follows in a JPEG, without the profile that it has. @param {Bytes} b @param {number} from where a segment begins @returns {Bytes[]} */
export function withoutProfile(b, from) {
  const parts = [];
  let rest = from;
  for (const { kind, body, at, end } of blocksOf(b)) {
    if (at < from) continue;
    if (kind !== 'e2' || text(body, 0, 12) !== JPEG_HEAD) parts.push(b.subarray(at, end));
    rest = end;
  }
  return [...parts, b.subarray(rest)];
}

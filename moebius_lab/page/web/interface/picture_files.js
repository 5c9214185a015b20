// Pictures in and out of files, value for value: reading, and writing PNG. The rules are those of moebius_lab/picture_files.py.
//
// Every browser converts colours by a file's profile. Orientation they read each in their own way, and few from WebP; so it is read
// here, from EXIF alone, and no browser gets to see it.

import { nextTask } from '../engine/turns.js';

/** @import { Bytes, Contents, FilePicture, Grey, Picture, Reader } from './types.js' */

/** A file that cannot be used; the message says why and what to do. */
export class FileError extends Error {}

export const SAFE_MEGAPIXELS = 16; // that a canvas holds in every browser
const STRIP = 1024; // px, rows or columns that are converted at a time

/**
 * Read a picture file upright, in sRGB.
 *
 * @param {Blob} file @param {number} maxMegapixels
 * @param {{ownColours?: boolean}} [options] the file's very values instead, in the colours of its profile
 * @returns {Promise<FilePicture>}
 * @throws {FileError} empty, not a picture, damaged, or too large
 */
export async function readPicture(file, maxMegapixels, { ownColours = false } = {}) {
  const name = file instanceof File && file.name ? `“${file.name}”` : 'This';
  if (!file.size) throw new FileError(`${name} is an empty file. Choose another one.`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  const said = sizeInHeader(bytes);
  if (said) checkSize(said.width, said.height, name, maxMegapixels);
  const { parts, orientation, depth } = contentsOf(bytes);
  if (depth === 'hdr')
    throw new FileError(`${name} has colours of high dynamic range (PQ or HLG). Save it with standard range, and open that.`);
  let bitmap;
  try {
    const whole = joined(parts); // Firefox knows a file by the first of a blob's parts, and two bytes of a JPEG say too little
    bitmap = await createImageBitmap(new Blob([whole], { type: file.type }), {
      premultiplyAlpha: 'none',
      colorSpaceConversion: ownColours ? 'none' : 'default',
    });
  } catch {
    const why = said
      ? 'is damaged or cut short. Save it again'
      : 'is not a picture that this browser can read. Use PNG, JPEG or WebP';
    throw new FileError(`${name} ${why}, and open that.`);
  }
  try {
    checkSize(bitmap.width, bitmap.height, name, maxMegapixels);
    const picture = await pixelsOf(bitmap);
    await nextTask(); // what shows it takes as long
    if (depth && isBlack(picture.data))
      throw new FileError(
        `${name} has 16 bits but no value above 255, where 65535 is white: all of it is black. Save it with 8 bits, and open that.`,
      );
    return { ...picture, ...turn(picture, orientation) };
  } catch (error) {
    if (error instanceof FileError) throw error;
    throw new FileError(`${name} needs more memory than this browser gives. Make it smaller, or close other tabs.`);
  } finally {
    bitmap.close();
  }
}

/**
 * Read a mask file: white is the hole; transparency hides its white. Where the largest value is 1, 1 is white.
 *
 * @param {Blob} file @param {number} maxMegapixels
 * @returns {Promise<Grey>}
 */
export async function readMask(file, maxMegapixels) {
  const { width, height, data } = await readPicture(file, maxMegapixels);
  await nextTask();
  const grey = new Uint8Array(width * height);
  for (let i = 0, p = 0; i < grey.length; i++, p += 4) {
    const luma = (data[p] * 19595 + data[p + 1] * 38470 + data[p + 2] * 7471 + 0x8000) >> 16;
    grey[i] = Math.min(luma, data[p + 3]);
  }
  await nextTask();
  if (grey.every((value) => value <= 1)) for (let i = 0; i < grey.length; i++) grey[i] *= 255;
  return { width, height, data: grey };
}

/** A mask in another size, by nearest neighbour. @param {Grey} mask @param {number} width @param {number} height */
export function resizeMask(mask, width, height) {
  const data = new Uint8Array(width * height);
  for (let y = 0, to = 0; y < height; y++) {
    const row = Math.floor(((y + 0.5) * mask.height) / height) * mask.width;
    for (let x = 0; x < width; x++) data[to++] = mask.data[row + Math.floor(((x + 0.5) * mask.width) / width)];
  }
  return { width, height, data };
}

/** @param {number} width @param {number} height @param {string} name @param {number} maxMegapixels */
function checkSize(width, height, name, maxMegapixels) {
  const fits = width * height <= maxMegapixels * 1e6;
  if (fits && canvasHolds(width, height)) return;
  const size = `${name} has ${Math.round((width * height) / 1e6)} megapixels (${width} × ${height})`;
  const most = fits ? `${SAFE_MEGAPIXELS} can be used in this browser` : `${maxMegapixels} can be used`;
  throw new FileError(`${size}; at most ${most}. Save it smaller, and open that.`);
}

let held = SAFE_MEGAPIXELS * 1e6; // px that a canvas is known to hold here

/** Whether a canvas of this size keeps what is drawn: in Safari of iOS larger ones stay blank, and nothing says so. @param {number} width px @param {number} height */
export function canvasHolds(width, height) {
  if (width * height <= held) return true;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d');
  context?.fillRect(width - 1, height - 1, 1, 1);
  const drawn = context?.getImageData(width - 1, height - 1, 1, 1).data[3] === 255;
  canvas.width = 0; // its memory is given back at once
  if (drawn) held = width * height;
  return drawn;
}

// -- what a file says about itself -------------------------------------------------------------------------------------

/** @param {Uint8Array} b @param {number} at @param {number} n */
export const text = (b, at, n) => String.fromCharCode(...b.subarray(at, at + n));

/** Which of three kinds of file this is; empty for others. @param {Uint8Array} b its first bytes */
export function formatOf(b) {
  if (text(b, 1, 3) === 'PNG') return 'png';
  if (b[0] === 0xff && b[1] === 0xd8) return 'jpeg';
  return text(b, 0, 4) === 'RIFF' && text(b, 8, 4) === 'WEBP' ? 'webp' : '';
}

/** @param {Bytes} b a whole file @returns {Contents} */
export function contentsOf(b) {
  const format = formatOf(b);
  if (format === 'png') return contentsOfPng(b);
  if (format === 'jpeg') return contentsOfJpeg(b);
  if (format === 'webp') return contentsOfWebp(b);
  return { parts: [b], orientation: 1, depth: '' };
}

/**
 * The blocks of a PNG, a WebP or a JPEG, up to a JPEG's pixels.
 *
 * @param {Bytes} b a whole file
 * @returns {Generator<{kind: string, body: Bytes, at: number, end: number}>} kind: a block's name, or a segment's
 *   marker in hexadecimal; at, end: where the whole of it lies, in a file that is cut short past its end
 */
export function* blocksOf(b) {
  const view = new DataView(b.buffer, b.byteOffset, b.byteLength);
  const format = formatOf(b);
  if (format === 'png') {
    for (let at = 8, end = at; at + 12 <= b.length; at = end) {
      end = at + 12 + view.getUint32(at);
      yield { kind: text(b, at + 4, 4), body: b.subarray(at + 8, end - 4), at, end };
    }
  } else if (format === 'webp') {
    for (let at = 12, end = at; at + 8 <= b.length; at = end + (end % 2)) {
      end = at + 8 + view.getUint32(at + 4, true);
      yield { kind: text(b, at, 4), body: b.subarray(at + 8, end), at, end };
    }
  } else if (format === 'jpeg') {
    for (let at = 2, end = at; at + 4 <= b.length && b[at] === 0xff; at = end) {
      const marker = b[at + 1];
      end = at + 1;
      if (marker === 0xff) continue; // a fill byte
      if (marker === 0xda || marker < 0xc0 || (marker >= 0xd0 && marker <= 0xd9)) return;
      end = at + 2 + view.getUint16(at + 2);
      yield { kind: marker.toString(16), body: b.subarray(at + 4, end), at, end };
    }
  }
}

const PNG_CHUNKS = ['IHDR', 'PLTE', 'tRNS', 'IDAT', 'IEND', 'iCCP', 'sRGB', 'gAMA', 'cHRM'];
const PRIMARIES = [1, 4, 5, 6, 9, 11, 12]; // of cICP, by ITU-T H.273: what the library knows
const TRANSFERS = [1, 4, 5, 6, 8, 13, 14, 15];
const HDR_TRANSFERS = [16, 18];

/** @param {Bytes} b @returns {Contents} */
function contentsOfPng(b) {
  const view = new DataView(b.buffer, b.byteOffset, b.byteLength);
  const parts = [b.subarray(0, 8)];
  let exif = b.subarray(0, 0);
  /** @type {Contents['depth']} */
  let depth = b[24] === 16 ? '16 bits' : '';
  let open = true;
  for (const { kind, body, at, end } of blocksOf(b)) {
    const whole = b.subarray(at, end);
    const gamma = kind === 'gAMA' && body.length === 4 ? view.getUint32(at + 8) / 100_000 : 1;
    if (PNG_CHUNKS.includes(kind) && gamma >= 0.01 && gamma <= 100) parts.push(whole);
    if (kind === 'eXIf' && !exif.length && isSound(whole)) exif = body;
    if (kind === 'cICP' && isSound(whole) && body.length === 4 && body[2] === 0 && body[3] === 1) {
      if (HDR_TRANSFERS.includes(body[1])) depth = 'hdr';
      else if (PRIMARIES.includes(body[0]) && TRANSFERS.includes(body[1])) parts.push(whole);
    }
    open = kind !== 'IEND' && end <= b.length;
    if (!open) break;
  }
  if (open) parts.push(...chunk('IEND', new Uint8Array(0))); // every row may be there
  return { parts, orientation: orientationOf(exif), depth };
}

/** Whether a PNG's chunk has the checksum that it names. @param {Uint8Array} chunk */
function isSound(chunk) {
  const end = chunk.length - 4;
  return new DataView(chunk.buffer, chunk.byteOffset, chunk.length).getUint32(end) === crc32(chunk.subarray(4, end));
}

/** @param {Bytes} b @returns {Contents} */
function contentsOfJpeg(b) {
  const parts = [b.subarray(0, 2)];
  const exif = [];
  let rest = 2;
  for (const { kind, body, at, end } of blocksOf(b)) {
    if (kind === 'e1' && text(body, 0, 6) === EXIF) exif.push(body.subarray(6));
    else parts.push(b.subarray(at, end));
    rest = end;
  }
  parts.push(b.subarray(rest));
  return { parts, orientation: orientationOf(joined(exif)), depth: '' };
}

/** @param {Uint8Array[]} blocks */
function joined(blocks) {
  const whole = new Uint8Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let at = 0;
  for (const block of blocks) {
    whole.set(block, at);
    at += block.length;
  }
  return whole;
}

/** @param {Bytes} b @returns {Contents} */
function contentsOfWebp(b) {
  const copy = b.slice();
  let exif = null;
  for (const { kind, body, at } of blocksOf(b)) {
    if (kind !== 'EXIF') continue;
    exif ??= body;
    copy.set([0x6e, 0x6f, 0x6e, 0x65], at); // "none": a chunk that no decoder knows is skipped
  }
  return { parts: [copy], orientation: orientationOf(exif ?? new Uint8Array(0)), depth: '' };
}

export const EXIF = 'Exif\0\0';

/** Orientation in an EXIF block, 1 where it says none that counts. @param {Uint8Array} block @returns {number} 1..8 */
export function orientationOf(block) {
  while (text(block, 0, 6) === EXIF) block = block.subarray(6);
  const { little, entries = [] } = orientationEntries(block) ?? {};
  const counted = entries.filter((entry) => entry.getUint16(2, little) === 3 && entry.getUint32(4, little) === 1);
  return counted.map((entry) => entry.getUint16(8, little)).find((value) => value >= 1 && value <= 8) ?? 1;
}

/**
 * The entries of an EXIF block that say an orientation: tag, type, count and value. Null for a block that cannot be read.
 *
 * @param {Uint8Array} block @returns {{little: boolean, entries: DataView[]} | null} little: whether their low bytes come first
 */
export function orientationEntries(block) {
  const order = text(block, 0, 4);
  if (block.length < 14 || (order !== 'II*\0' && order !== 'MM\0*')) return null;
  const little = order[0] === 'I';
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  const directory = view.getUint32(4, little);
  if (directory + 2 > block.length) return null;
  const end = Math.min(directory + 2 + 12 * view.getUint16(directory, little), block.length - 11);
  const entries = [];
  for (let at = directory + 2; at < end; at += 12)
    if (view.getUint16(at, little) === 0x0112) entries.push(new DataView(block.buffer, block.byteOffset + at, 12));
  return { little, entries };
}

/** Make a picture upright. @param {Picture} picture @param {number} orientation 1..8 */
export function turn({ width, height, data }, orientation) {
  if (orientation === 1) return { width, height, data };
  const from = new Uint32Array(data.buffer, data.byteOffset, width * height);
  const to = new Uint32Array(width * height);
  const swaps = orientation >= 5;
  const [w, h] = swaps ? [height, width] : [width, height];
  const mirrorsX = [2, 3, 7, 8].includes(orientation); // seen from the file's own axes
  const mirrorsY = [3, 4, 6, 7].includes(orientation);
  for (let y = 0, i = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const [u, v] = swaps ? [y, x] : [x, y];
      to[i++] = from[(mirrorsY ? height - 1 - v : v) * width + (mirrorsX ? width - 1 - u : u)];
    }
  }
  return { width: w, height: h, data: new Uint8ClampedArray(to.buffer) };
}

/** @param {Uint8ClampedArray} data RGBA */
function isBlack(data) {
  for (let i = 0; i < data.length; i += 4) if (data[i] || data[i + 1] || data[i + 2]) return false;
  return true;
}

const FRAME = /^c[^48c]$/; // a JPEG's segments that name its size

/** What the first bytes of a PNG, GIF, BMP, WebP or JPEG say. @param {Bytes} b @returns {{width: number, height: number} | null} */
export function sizeInHeader(b) {
  const view = new DataView(b.buffer, b.byteOffset, b.byteLength);
  if (b.length < 30) return null;
  const format = formatOf(b);
  if (format === 'png') return { width: view.getUint32(16), height: view.getUint32(20) };
  if (text(b, 0, 3) === 'GIF') return { width: view.getUint16(6, true), height: view.getUint16(8, true) };
  if (text(b, 0, 2) === 'BM') return { width: view.getInt32(18, true), height: Math.abs(view.getInt32(22, true)) };
  if (format === 'webp') {
    const kind = text(b, 12, 4);
    if (kind === 'VP8 ') return { width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff };
    const bits = view.getUint32(21, true);
    if (kind === 'VP8L') return { width: (bits & 0x3fff) + 1, height: ((bits >> 14) & 0x3fff) + 1 };
    return { width: (view.getUint32(24, true) & 0xffffff) + 1, height: (b[27] | (b[28] << 8) | (b[29] << 16)) + 1 };
  }
  if (format !== 'jpeg') return null;
  for (const { kind, body, at } of blocksOf(b))
    if (FRAME.test(kind) && body.length >= 5) return { height: view.getUint16(at + 5), width: view.getUint16(at + 7) };
  return null;
}

/** @param {ImageBitmap} bitmap */
async function pixelsOf(bitmap) {
  const { width, height } = bitmap;
  const data = new Uint8ClampedArray(width * height * 4);
  let translucent = false;
  const canvas = new OffscreenCanvas(width, Math.min(height, STRIP));
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext('2d', { willReadFrequently: true }));
  for (let top = 0; top < height; top += STRIP) {
    const rows = Math.min(STRIP, height - top);
    const part = await createImageBitmap(bitmap, 0, top, width, rows, { premultiplyAlpha: 'none' });
    context.clearRect(0, 0, width, STRIP);
    context.drawImage(part, 0, 0); // not the bitmap itself: Firefox premultiplies for good what was drawn once
    part.close();
    const strip = context.getImageData(0, 0, width, rows).data;
    translucent ||= hasTransparency(strip);
    data.set(strip, top * width * 4);
    await nextTask();
  }
  const exact = !translucent || (await readWithoutPremultiplying(bitmap, data));
  return { width, height, data, exact, translucent };
}

/** @param {Picture} picture */
export function canvasOf({ width, height, data }) {
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext('2d')?.putImageData(new ImageData(/** @type {Uint8ClampedArray<ArrayBuffer>} */ (data), width), 0, 0);
  return canvas;
}

/** @param {Uint8ClampedArray} data RGBA */
function hasTransparency(data) {
  for (let i = 3; i < data.length; i += 4) if (data[i] !== 255) return true;
  return false;
}

/**
 * A 2D canvas rounds the colours of translucent pixels and forgets those of invisible ones; WebGL hands them over as they are, and in
 * some browsers a frame of a video does. The first that gives a known picture back as it is reads this one.
 *
 * @type {(...what: Parameters<Reader>) => Promise<boolean>} false where no way is exact; the array is as it was then
 */
async function readWithoutPremultiplying(bitmap, data) {
  const gl = new OffscreenCanvas(1, 1).getContext('webgl2');
  const ways = [...(gl ? [textureReader(gl)] : []), ...('VideoFrame' in globalThis ? [readFrame] : [])];
  try {
    for (const read of ways) {
      if (!(await isExact(read))) continue;
      await read(bitmap, data);
      return true;
    }
    return false;
  } finally {
    gl?.getExtension('WEBGL_lose_context')?.loseContext();
  }
}

/** @param {WebGL2RenderingContext} gl @returns {Reader} */
function textureReader(gl) {
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  const tile = new Uint8Array(STRIP * STRIP * 4);
  return async (bitmap, data) => {
    const { width, height } = bitmap;
    for (let top = 0; top < height; top += STRIP) {
      for (let left = 0; left < width; left += STRIP) {
        const [w, h] = [Math.min(STRIP, width - left), Math.min(STRIP, height - top)];
        const part = await createImageBitmap(bitmap, left, top, w, h, { premultiplyAlpha: 'none' });
        gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, part);
        gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
        gl.readPixels(0, 0, w, h, gl.RGBA, gl.UNSIGNED_BYTE, tile);
        part.close();
        for (let y = 0; y < h; y++) data.set(tile.subarray(y * w * 4, (y + 1) * w * 4), ((top + y) * width + left) * 4);
      }
    }
  };
}

/** @type {Reader} the whole of it: in Firefox a frame takes no notice of where a bitmap was cut */
async function readFrame(bitmap, data) {
  const frame = new VideoFrame(bitmap, { timestamp: 0, alpha: 'keep' });
  await frame.copyTo(data, { format: 'RGBA' });
  frame.close();
}

/** Whether a reader gives back nearly invisible and invisible colours as they are in a file. @param {Reader} read */
async function isExact(read) {
  const known = new Uint8ClampedArray([201, 101, 51, 3, 90, 80, 70, 0, 7, 150, 250, 128]);
  const data = new Uint8ClampedArray(known.length);
  const file = await encodePng(known.length / 4, 1, 4, () => known);
  const bitmap = await createImageBitmap(file, { premultiplyAlpha: 'none' });
  try {
    await read(bitmap, data);
    return data.every((value, i) => value === known[i]);
  } catch {
    return false; // it cannot read such pictures at all
  } finally {
    bitmap.close();
  }
}

// -- PNG ---------------------------------------------------------------------------------------------------------------

/**
 * A PNG with these very values, with an alpha channel only where it is used.
 *
 * @param {Picture} picture @param {Bytes[]} [more] chunks that say something about it, of `chunk`
 * @param {Bytes[]} [colours] the chunk that says what its colours are; sRGB where it is not given
 * @returns {Promise<Blob>}
 */
export function pictureToPng({ width, height, data }, more = [], colours = SRGB_CHUNK) {
  const channels = hasTransparency(data) ? 4 : 3;
  const rgb = new Uint8Array(width * 3);
  const rowAt = (/** @type {number} */ row) => {
    const whole = data.subarray(row * width * 4, (row + 1) * width * 4);
    if (channels === 4) return whole;
    for (let from = 0, to = 0; to < rgb.length; from++) {
      rgb[to++] = whole[from++];
      rgb[to++] = whole[from++];
      rgb[to++] = whole[from++];
    }
    return rgb;
  };
  return encodePng(width, height, channels, rowAt, [...colours, ...more]);
}

/** @param {Grey} mask */
export function maskToPng({ width, height, data }) {
  return encodePng(width, height, 1, (row) => data.subarray(row * width, (row + 1) * width));
}

/**
 * @param {number} width @param {number} height @param {1|3|4} channels 8 bits each
 * @param {(row: number) => Uint8Array | Uint8ClampedArray} rowAt @param {Bytes[]} [more] chunks before the pixels
 * @returns {Promise<Blob>}
 */
async function encodePng(width, height, channels, rowAt, more = []) {
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header.set([8, { 1: 0, 3: 2, 4: 6 }[channels], 0, 0, 0], 8);
  const parts = [new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), ...chunk('IHDR', header)];
  parts.push(...more);
  const stream = new CompressionStream('deflate');
  const filtered = writeRows(stream.writable.getWriter(), width * channels, height, channels, rowAt);
  const reader = stream.readable.getReader();
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    if (value) parts.push(...chunk('IDAT', value));
  }
  await filtered;
  parts.push(...chunk('IEND', new Uint8Array(0)));
  return new Blob(parts, { type: 'image/png' });
}

/**
 * Every row through PNG's Paeth filter.
 *
 * @param {WritableStreamDefaultWriter<BufferSource>} writer @param {number} bytes of a row @param {number} height
 * @param {number} channels @param {(row: number) => Uint8Array | Uint8ClampedArray} rowAt
 */
async function writeRows(writer, bytes, height, channels, rowAt) {
  let above = new Uint8Array(bytes);
  const block = Math.max(1, Math.floor((1 << 20) / bytes));
  for (let top = 0; top < height; top += block) {
    const rows = Math.min(block, height - top);
    const out = new Uint8Array(rows * (bytes + 1));
    for (let y = 0, to = 0; y < rows; y++) {
      const row = Uint8Array.from(rowAt(top + y));
      out[to++] = 4;
      for (let i = 0; i < bytes; i++) {
        const a = i < channels ? 0 : row[i - channels];
        const b = above[i];
        const c = i < channels ? 0 : above[i - channels];
        const [pa, pb, pc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
        out[to++] = row[i] - (pa <= pb && pa <= pc ? a : pb <= pc ? b : c);
      }
      above = row;
    }
    await writer.write(out);
    await nextTask();
  }
  await writer.close();
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

/** @param {Uint8Array[]} parts @returns {number} of all of them, one after another */
function crc32(...parts) {
  let crc = 0xffffffff;
  for (const part of parts) {
    for (let i = 0; i < part.length; i++) crc = CRC_TABLE[(crc ^ part[i]) & 255] ^ (crc >>> 8);
  }
  return (crc ^ 0xffffffff) >>> 0;
}

const SRGB_CHUNK = chunk('sRGB', new Uint8Array(1));

/** @param {string} type @param {Bytes} body @returns {Bytes[]} length and type, body, checksum */
export function chunk(type, body) {
  const head = new Uint8Array(8);
  new DataView(head.buffer).setUint32(0, body.length);
  for (let i = 0; i < 4; i++) head[4 + i] = type.charCodeAt(i);
  const tail = new Uint8Array(4);
  new DataView(tail.buffer).setUint32(0, crc32(head.subarray(4), body));
  return [head, body, tail];
}

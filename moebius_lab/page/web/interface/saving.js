// In what format a picture is saved, and what of its file is kept.

import { madeChunk } from './metadata.js';
import { add, addNumber, addSelect } from './page.js';
import {
  EXIF,
  blocksOf,
  canvasOf,
  chunk,
  formatOf,
  orientationEntries,
  pictureToPng,
  readPicture,
  text,
} from './picture_files.js';
import { nextTask } from '../engine/turns.js';

/** @import { Bytes, Coloured, Made, Picture, Place } from './types.js' */

const FORMATS = /** @type {const} */ ({
  png: { ending: '.png', type: 'image/png', label: 'PNG' },
  original: { ending: '', type: '', label: 'as the file' },
  jpeg: { ending: '.jpg', type: 'image/jpeg', label: 'JPEG' },
  webp: { ending: '.webp', type: 'image/webp', label: 'WebP' },
});
const ROWS_AT_ONCE = 64; // that are converted in one task
const LARGEST_EXIF = 65_000; // bytes that a JPEG takes

const chosen = { format: /** @type {keyof typeof FORMATS} */ ('png'), quality: 95, exif: false, profile: false, made: true };

/** @param {import('./main.js').Desk} _desk @param {HTMLElement} panel */
export function build(_desk, panel) {
  const fields = add(panel, 'div', { className: 'fields' });
  const options = Object.entries(FORMATS).map(([name, { label }]) => /** @type {[string, string]} */ ([name, label]));
  const format = addSelect(fields, 'Format', 'save-format', options);
  const quality = addNumber(fields, 'Quality', { id: 'save-quality', value: chosen.quality, min: 1, max: 100 });
  const check = (/** @type {string} */ id, /** @type {string} */ words, /** @type {boolean} */ checked) => {
    const label = add(panel, 'label', { className: 'check' });
    const input = add(label, 'input', { type: 'checkbox', id, checked });
    label.append(` ${words}`);
    return input;
  };
  const exif = check('save-exif', 'Keep the camera’s data (EXIF)', chosen.exif);
  const profile = check('save-profile', 'Keep the colour profile (ICC)', chosen.profile);
  const made = check('save-made', 'Write the settings into a PNG', chosen.made);
  add(panel, 'p', {
    className: 'fine',
    textContent:
      'PNG keeps every value; JPEG and WebP change every pixel a little. A picture that is opened with its settings brings them back.',
  });
  const take = () => {
    chosen.format = /** @type {keyof typeof FORMATS} */ (format.value);
    if (quality.checkValidity() && quality.value) chosen.quality = quality.valueAsNumber;
    chosen.exif = exif.checked;
    chosen.profile = profile.checked;
    chosen.made = made.checked;
    quality.disabled = chosen.format === 'png';
    const button = document.getElementById('save');
    if (button) button.textContent = chosen.format === 'png' ? 'Save PNG' : 'Save';
  };
  panel.addEventListener('input', take);
  take();
}

/**
 * A picture as a file, as the panel says.
 *
 * @param {Picture} picture
 * @param {{source: Blob, made: Made | null, place?: Place}} about the file it comes from, what it was made with, and where in it the file lies
 * @returns {Promise<{blob: Blob, ending: string, colours: string}>} colours: what they are, in words
 */
export async function encode(picture, { source, made, place = { left: 0, top: 0 } }) {
  const { profile, pixels, colours } = chosen.profile ? await inItsProfile(picture, source, place) : IN_SRGB;
  return { ...(await encodeAs(pixels ?? picture, { source, made, profile })), colours };
}

/** @type {Coloured} */
const IN_SRGB = { profile: null, pixels: null, colours: 'in sRGB' };

/**
 * A picture in the colours of its file: what is as in the file has the file's very values, the rest is converted.
 *
 * @param {Picture} picture in sRGB @param {Blob} source @param {Place} place @returns {Promise<Coloured>}
 */
async function inItsProfile(picture, source, { left, top }) {
  const { fromSrgb, profileOf } = await import('./icc.js');
  const profile = await profileOf(source);
  if (!profile.length) return IN_SRGB;
  const convert = fromSrgb(profile);
  if (!convert) return { ...IN_SRGB, colours: 'in sRGB: into its own profile this page cannot convert' };
  const [read, own] = [await readPicture(source, Infinity), await readPicture(source, Infinity, { ownColours: true })];
  const { width, height, data } = picture;
  const from = new Uint32Array(data.buffer, data.byteOffset, width * height);
  const before = new Uint32Array(read.data.buffer, read.data.byteOffset, read.width * read.height);
  const to = data.slice();
  for (let y = 0, i = 0; y < height; y++) {
    if (y % ROWS_AT_ONCE === ROWS_AT_ONCE - 1) await nextTask();
    const row = (y - top) * read.width - left; // of the file; negative and past its end on new canvas
    const inside = y >= top && y < top + read.height;
    for (let x = 0; x < width; x++, i++) {
      const old = inside && x >= left && x < left + read.width && from[i] === before[row + x];
      if (old) to.set(own.data.subarray(4 * (row + x), 4 * (row + x) + 3), 4 * i);
      else convert(data, to, 4 * i);
    }
  }
  return { profile, pixels: { ...picture, data: to }, colours: 'in its own colour profile' };
}

/** @param {Picture} picture @param {{source: Blob, made: Made | null, profile: Bytes | null}} about */
async function encodeAs(picture, { source, made, profile }) {
  const own = formatOf(new Uint8Array(await source.slice(0, 12).arrayBuffer())) || 'png';
  const name = chosen.format === 'original' ? own : chosen.format;
  const { ending, type } = FORMATS[name];
  if (name === 'jpeg' && picture.translucent) throw new Error('a JPEG keeps no transparency; choose PNG or WebP under Saving');
  const exif = chosen.exif ? upright(await exifOf(source)) : null;
  if (name === 'png') {
    const more = [...(exif ? chunk('eXIf', exif) : []), ...(made && chosen.made ? madeChunk(made) : [])];
    return {
      blob: await pictureToPng(picture, more, profile ? await (await import('./icc.js')).pngChunk(profile) : undefined),
      ending,
    };
  }
  const blob = await canvasOf(picture).convertToBlob({ type, quality: chosen.quality / 100 });
  if (blob.type !== type) throw new Error(`this browser does not write ${name === 'webp' ? 'WebP' : 'JPEG'}; save a PNG`);
  const block = exif && exif.length <= LARGEST_EXIF ? exif : null;
  if (!block && !profile) return { blob, ending };
  const put = name === 'jpeg' ? intoJpeg : intoWebp;
  return { blob: await put(blob, block, profile, picture), ending };
}

/** The EXIF block of a JPEG, PNG or WebP, without its header; empty where there is none. @param {Blob} file */
async function exifOf(file) {
  for (const { kind, body } of blocksOf(new Uint8Array(await file.arrayBuffer()))) {
    const headed = text(body, 0, 6) === EXIF;
    if (kind === 'eXIf' || kind === 'EXIF' || (kind === 'e1' && headed)) return headed ? body.subarray(6) : body;
  }
  return new Uint8Array(0);
}

/** An EXIF block that says that the picture is upright, which it is; null for one that cannot be read. @param {Bytes} block */
export function upright(block) {
  const copy = block.slice();
  const found = orientationEntries(copy);
  if (!found) return null;
  const { little, entries } = found;
  for (const entry of entries) {
    entry.setUint16(2, 3, little);
    entry.setUint32(4, 1, little);
    entry.setUint16(8, 1, little);
    entry.setUint16(10, 0, little);
  }
  return copy;
}

/** @param {Blob} blob @param {Bytes | null} exif @param {Bytes | null} profile */
async function intoJpeg(blob, exif, profile) {
  const start = new Uint8Array(await blob.slice(0, 20).arrayBuffer());
  const after = start[3] === 0xe0 ? 4 + ((start[4] << 8) | start[5]) : 2; // behind the JFIF segment, which comes first
  /** @type {(Bytes | string)[]} */
  const more = [];
  if (exif) {
    const head = new Uint8Array(4);
    new DataView(head.buffer).setUint32(0, 0xffe10000 + 2 + EXIF.length + exif.length);
    more.push(head, EXIF, exif);
  }
  if (!profile) return new Blob([blob.slice(0, after), ...more, blob.slice(after)], { type: blob.type });
  const { jpegSegments, withoutProfile } = await import('./icc.js');
  const rest = withoutProfile(new Uint8Array(await blob.arrayBuffer()), after); // Firefox writes its own
  return new Blob([blob.slice(0, after), ...more, ...jpegSegments(profile), ...rest], { type: blob.type });
}

/** @param {Blob} blob @param {Bytes | null} exif @param {Bytes | null} profile @param {Picture} picture */
async function intoWebp(blob, exif, profile, { width, height }) {
  const b = new Uint8Array(await blob.arrayBuffer());
  const extended = text(b, 12, 4) === 'VP8X';
  const flags = extended ? b.slice(12, 30) : new Uint8Array(18);
  const view = new DataView(flags.buffer);
  if (!extended) {
    flags.set([0x56, 0x50, 0x38, 0x58, 10]);
    if (text(b, 12, 4) === 'VP8L') flags[8] = b[24] & 0x10; // whether it has alpha
    for (const [at, size] of [
      [12, width - 1],
      [15, height - 1],
    ]) {
      view.setUint16(at, size & 0xffff, true);
      flags[at + 2] = size >> 16;
    }
  }
  let rest = b.subarray(extended ? 30 : 12);
  if (text(rest, 0, 4) === 'ICCP' && profile) {
    const length = new DataView(rest.buffer, rest.byteOffset).getUint32(4, true);
    rest = rest.subarray(8 + length + (length % 2)); // the browser's own
  }
  if (exif) flags[8] |= 0x08;
  if (profile) flags[8] |= 0x20;
  const parts = [flags, ...riffChunk('ICCP', profile), rest, ...riffChunk('EXIF', exif)];
  const riff = new Uint8Array(12);
  riff.set(b.subarray(0, 12));
  new DataView(riff.buffer).setUint32(4, 4 + parts.reduce((sum, part) => sum + part.length, 0), true);
  return new Blob([riff, ...parts], { type: blob.type });
}

/** @param {string} name @param {Bytes | null} body @returns {Bytes[]} nothing without a body */
function riffChunk(name, body) {
  if (!body) return [];
  const head = new Uint8Array(8);
  for (let i = 0; i < 4; i++) head[i] = name.charCodeAt(i);
  new DataView(head.buffer).setUint32(4, body.length, true);
  return [head, body, new Uint8Array(body.length % 2)];
}

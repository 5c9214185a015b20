// What a picture was made with, in its PNG: an iTXt chunk of JSON, the same as picture_files.py writes and reads.

import { say } from './page.js';
import { blocksOf, chunk, text } from './picture_files.js';

/** @import { Bytes, Made } from './types.js' */

const HEAD = 'moebius_lab\0\0\0\0\0'; // a keyword; not compressed, no language, keyword not translated
const LIMIT = 65536; // bytes that may be such a chunk

/** @param {Made} made @returns {Bytes[]} the chunk, for `pictureToPng` */
export function madeChunk(made) {
  return chunk('iTXt', new TextEncoder().encode(HEAD + JSON.stringify(made)));
}

/** What a PNG says that it was made with; null where it says nothing, or not in this form. @param {Blob} file @returns {Promise<Made | null>} */
export async function madeWith(file) {
  for (const { kind, body } of blocksOf(new Uint8Array(await file.arrayBuffer()))) {
    if (kind === 'IDAT' || kind === 'IEND') return null;
    if (kind === 'iTXt' && body.length <= LIMIT && text(body, 0, HEAD.length) === HEAD)
      return checked(new TextDecoder().decode(body.subarray(HEAD.length)));
  }
  return null;
}

/** A picture that was saved with its settings opens with them. @param {import('./main.js').Desk} desk @param {Blob} file */
export async function takeSettings(desk, file) {
  const made = await madeWith(file);
  if (made && desk.useSettings(made.settings))
    say(`This picture was made here; its settings are in use (seed ${made.settings.seed}).`);
}

/** @param {string} json @returns {Made | null} */
function checked(json) {
  try {
    const made = JSON.parse(json);
    return made?.format === 1 && typeof made.settings === 'object' && made.settings ? made : null;
  } catch {
    return null;
  }
}

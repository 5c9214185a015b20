// What a picture was made with, in its PNG: an iTXt chunk of JSON, the same as picture_files.py writes and reads.

import { say } from './page.js';
import { chunk, text } from './picture_files.js';

/** @import { Made } from './types.js' */

const KEYWORD = 'moebius_lab';
const LIMIT = 65536; // bytes that may be such a chunk

/** @param {Made} made @returns {Uint8Array<ArrayBuffer>[]} the chunk, for `pictureToPng` */
export function madeChunk(made) {
  const head = `${KEYWORD}\0\0\0\0\0`; // not compressed, no language, keyword not translated
  return chunk('iTXt', new TextEncoder().encode(head + JSON.stringify(made)));
}

/** What a PNG says that it was made with; null where it says nothing, or not in this form. @param {Blob} file @returns {Promise<Made | null>} */
export async function madeWith(file) {
  for (let at = 8; at + 12 <= file.size;) {
    const head = new Uint8Array(await file.slice(at, at + 8).arrayBuffer());
    const length = new DataView(head.buffer).getUint32(0);
    const kind = text(head, 4, 4);
    if (kind === 'IDAT' || kind === 'IEND') return null;
    if (kind === 'iTXt' && length <= LIMIT) {
      const body = new Uint8Array(await file.slice(at + 8, at + 8 + length).arrayBuffer());
      const start = KEYWORD.length + 5;
      if (text(body, 0, start) === `${KEYWORD}\0\0\0\0\0`) return checked(new TextDecoder().decode(body.subarray(start)));
    }
    at += 12 + length;
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

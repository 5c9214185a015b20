// Files that were dropped or pasted. What each of them is, is decided by what it holds, never by its name.

import { notice } from './page.js';
import { readPicture } from './picture_files.js';

/** @import { Desk } from './main.js' */
/** @import { Picture } from './types.js' */

const SHADE = 16; // levels from black or white that an edge's softness or a JPEG's noise may take
const SHARE = 0.97; // of the pixels that are black or white in a mask
const TINT = 12; // levels by which the channels of a grey pixel differ in a JPEG

/**
 * Whether a picture is black and white alone, with some of both, as masks are.
 *
 * @param {{data: Uint8ClampedArray}} picture RGBA
 */
export function looksLikeMask({ data }) {
  let [black, white] = [0, 0];
  for (let p = 0; p < data.length; p += 4) {
    const [r, g, b, alpha] = [data[p], data[p + 1], data[p + 2], data[p + 3]];
    if (alpha && Math.max(r, g, b) - Math.min(r, g, b) > TINT) return false;
    const value = Math.min(g, alpha);
    if (value <= SHADE) black++;
    else if (value >= 255 - SHADE) white++;
  }
  return Boolean(black && white) && black + white >= (SHARE * data.length) / 4;
}

/**
 * Open a picture, or both picture and mask. What looks like a mask of the picture is asked about; so is what to do with more files.
 *
 * @param {Desk} desk @param {File[]} files
 */
export async function take(desk, files) {
  const limit = await desk.largest();
  const some = await Promise.all(
    files.slice(0, 2).map(async (file) => {
      const picture = await readPicture(file, limit).catch(() => null); // opening it says why
      return { file, picture, isMask: picture !== null && looksLikeMask(picture) };
    }),
  );
  const first = some.find(({ isMask }) => !isMask) ?? some[0];
  const { picture: before } = desk.work ?? {};
  const fits = (/** @type {Picture | null} */ picture) =>
    picture && picture.width === before?.width && picture.height === before.height;
  if (some.length === 1 && first.isMask && fits(first.picture)) {
    ask(desk, first.file);
    return;
  }
  await desk.open(first.file, first.file.name || 'pasted picture');
  const second = some.find((each) => each !== first);
  if (files.length === 2 && second?.isMask) {
    ask(desk, second.file);
  } else if (second) {
    const fill = async () => (await import('./batch.js')).openBatch(desk, files);
    notice('file', `${files.length} files were dropped, and one picture is open at a time.`, {
      bad: false,
      actions: [{ label: 'Fill all of them', run: () => void fill() }],
    });
  }
}

/** Ask whether a file is the mask. @param {Desk} desk @param {File} file */
function ask(desk, file) {
  const name = file.name || 'The pasted picture';
  const actions = [
    { label: 'Use it as the mask', run: () => void desk.importMask(file, name) },
    { label: 'Open it as a picture', run: () => void desk.open(file, name) },
  ];
  notice('file', `“${name}” is black and white, as a mask is. What is it?`, { bad: false, actions });
}

// What a file is that was dropped or pasted: decided by what it holds, never by its name.

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

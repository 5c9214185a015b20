// Sums over squares around each pixel, for what is loaded when it is used.

/**
 * Sums over the box of 2 `reach` + 1 px a side around each pixel, with nothing beyond the edges.
 *
 * @param {Float64Array} values @param {number} width @param {number} height @param {number} reach px
 */
export function boxSum(values, width, height, reach) {
  const along = (
    /** @type {Float64Array} */ from,
    /** @type {number} */ lines,
    /** @type {number} */ gap,
    /** @type {number} */ length,
    /** @type {number} */ step,
  ) => {
    const to = new Float64Array(from.length);
    for (let line = 0; line < lines; line++) {
      const start = line * gap;
      let sum = 0;
      for (let k = -reach; k < length; k++) {
        if (k + reach < length) sum += from[start + (k + reach) * step];
        if (k - reach - 1 >= 0) sum -= from[start + (k - reach - 1) * step];
        if (k >= 0) to[start + k * step] = sum;
      }
    }
    return to;
  };
  return along(along(values, height, width, width, 1), width, 1, height, width);
}

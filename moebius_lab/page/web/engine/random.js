// torch.Generator('cpu') and torch.randn, so that a seed gives the same picture here as in PyTorch.

const N = 624;
const M = 397;
const round = Math.fround;
const TWO_PI = round(2 * Math.PI);

export class Generator {
  /**
   * The 32-bit Mersenne twister (Matsumoto and Nishimura 1998), seeded as torch.manual_seed does: with the seed's low 32 bits.
   *
   * @param {number} seed 0..2^53 - 1
   */
  constructor(seed) {
    this.state = new Uint32Array(N);
    this.state[0] = seed % 2 ** 32;
    for (let i = 1; i < N; i++) {
      const previous = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, previous) + i;
    }
    this.next = N;
    /** @type {number|null} the second number of the last pair that `normalDouble` made */
    this.spare = null;
  }

  /** @returns {number} uniform in 0..2^32 - 1 */
  uint32() {
    if (this.next === N) this.#twist();
    let y = this.state[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** @returns {number} uniform in [0, 1), 24 bits */
  uniformFloat() {
    return (this.uint32() & 0xffffff) / 2 ** 24;
  }

  /** @returns {number} uniform in [0, 1), 53 bits of two draws, the first of them the high half */
  uniformDouble() {
    const high = this.uint32() & 0x1fffff;
    return (high * 2 ** 32 + this.uint32()) / 2 ** 53;
  }

  /** @returns {number} one standard normal number by Box and Muller; pairs are made together */
  normalDouble() {
    if (this.spare !== null) {
      const value = this.spare;
      this.spare = null;
      return value;
    }
    const angle = 2 * Math.PI * this.uniformDouble();
    const radius = Math.sqrt(-2 * Math.log1p(-this.uniformDouble()));
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  #twist() {
    const s = this.state;
    for (let i = 0; i < N; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % N] & 0x7fffffff);
      s[i] = s[(i + M) % N] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }
}

/**
 * torch.randn(count, generator=generator) in float32.
 *
 * Sixteen numbers and more are made in blocks: eight radii from the first eight uniform numbers, eight angles from the
 * others; a last, partial block is drawn anew over the last sixteen places. Fewer numbers come one by one in double.
 *
 * @param {number} count
 * @param {Generator} generator
 * @returns {Float32Array}
 */
export function randn(count, generator) {
  const values = new Float32Array(count);
  if (count < 16) {
    for (let i = 0; i < count; i++) values[i] = generator.normalDouble();
    return values;
  }
  for (let i = 0; i < count; i++) values[i] = generator.uniformFloat();
  for (let start = 0; start + 16 <= count; start += 16) toNormal(values, start);
  if (count % 16) {
    for (let i = count - 16; i < count; i++) values[i] = generator.uniformFloat();
    toNormal(values, count - 16);
  }
  return values;
}

/**
 * Rounds where torch does, which computes in float32.
 *
 * @param {Float32Array} values
 * @param {number} start
 */
function toNormal(values, start) {
  for (let i = start; i < start + 8; i++) {
    const radius = round(Math.sqrt(-2 * round(Math.log(1 - values[i]))));
    const angle = round(TWO_PI * values[i + 8]);
    values[i] = radius * round(Math.cos(angle));
    values[i + 8] = radius * round(Math.sin(angle));
  }
}

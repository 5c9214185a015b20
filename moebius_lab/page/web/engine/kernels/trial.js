// Which of several ways to compute the same is fastest on this device.

import { Capture, Placeholder, Replay, usesOf } from '../capture.js';

/** @typedef {import('../types.js').Command} Command */
/** @typedef {import('../types.js').Lifetime} Lifetime */

const { GPUBufferUsage, GPUMapMode } = /** @type {any} */ (globalThis); // flags that TypeScript's library lacks
const LONG = 2; // ms that a measurement should take: browsers round times of the device to 0.1 ms, to keep them from spying
const OFTEN = 50; // times that a way is run at most in one measurement
const HOPELESS = 4; // a way that first took so many times the best is not measured again

export class Trial {
  /** @param {GPUDevice} device */
  constructor(device) {
    this.device = device;
    /** @type {GPUBuffer[]} memory for what is computed, the largest first; its content does not matter */
    this.memory = [];
    this.timestamps = device.features.has('timestamp-query');
    if (!this.timestamps) return;
    this.queries = device.createQuerySet({ type: 'timestamp', count: 2 });
    this.times = device.createBuffer({ size: 16, usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC });
    this.read = device.createBuffer({ size: 16, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
  }

  /** Keep the device busy for so many milliseconds: after a rest it is slow. @param {Command[]} commands @param {number} ms */
  async wake(commands, ms) {
    const replay = this.#prepare(commands);
    let often = 1;
    for (const end = performance.now() + ms; performance.now() < end;) {
      const took = (await this.#once(replay, often)) / often;
      often = Math.max(1, Math.min(OFTEN, Math.floor(LONG / took)));
    }
  }

  /**
   * The fastest of several ways, and how long each took.
   *
   * @param {Command[][]} ways dispatches only
   * @returns {Promise<{best: number, milliseconds: number[]}>}
   */
  async fastest(ways) {
    /** @type {number[]} */
    const milliseconds = [];
    for (const commands of ways) {
      const replay = this.#prepare(commands);
      let took = await this.#once(replay, 1);
      if (took < HOPELESS * Math.min(...milliseconds, took)) {
        const times = Math.min(OFTEN, Math.ceil(LONG / Math.max(took, LONG / OFTEN)));
        if (times > 1) took = (await this.#once(replay, times)) / times;
      }
      milliseconds.push(took);
    }
    return { best: milliseconds.indexOf(Math.min(...milliseconds)), milliseconds };
  }

  /** @param {Command[]} commands */
  #prepare(commands) {
    const capture = new Capture();
    capture.commands = commands;
    const computed = commands.flatMap(usesOf).map(({ place }) => place);
    const places = /** @type {Placeholder[]} */ (
      [...new Set(computed)].filter((place) => place instanceof Placeholder && !place.uniform)
    );
    const lifetimes = places.map((buffer) => ({ buffer, from: 0, to: commands.length, read: true, uses: new Map() }));
    const largest = [...lifetimes].sort((a, b) => b.buffer.size - a.buffer.size);
    largest.forEach(({ buffer: { size } }, i) => {
      if (this.memory[i]?.size >= size) return;
      this.memory[i]?.destroy();
      this.memory[i] = this.device.createBuffer({ size, usage: GPUBufferUsage.STORAGE });
    });
    const place = (/** @type {Lifetime} */ lifetime) => ({ buffer: this.memory[largest.indexOf(lifetime)], offset: 0 });
    return new Replay(this.device, capture, lifetimes, place);
  }

  /**
   * @param {Replay} replay
   * @param {number} times
   * @returns {Promise<number>} milliseconds of all runs
   */
  async #once(replay, times) {
    const { device, queries, times: resolved, read } = this;
    const began = performance.now();
    const encoder = device.createCommandEncoder();
    const timestampWrites = queries && { querySet: queries, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 };
    const pass = encoder.beginComputePass(timestampWrites ? { timestampWrites } : {});
    for (let i = 0; i < times; i++) for (const command of replay.commands) command(encoder, pass);
    pass.end();
    if (queries && resolved && read) {
      encoder.resolveQuerySet(queries, 0, 2, resolved, 0);
      encoder.copyBufferToBuffer(resolved, 0, read, 0, 16);
    }
    device.queue.submit([encoder.finish()]);
    if (!read) {
      await device.queue.onSubmittedWorkDone();
      return performance.now() - began;
    }
    await read.mapAsync(GPUMapMode.READ);
    const [from, to] = new BigUint64Array(read.getMappedRange());
    const elapsed = Number(to - from) / 1e6;
    read.unmap();
    return elapsed > 0 ? elapsed : performance.now() - began; // some devices give no time at all
  }

  close() {
    for (const buffer of [...this.memory, this.times, this.read]) buffer?.destroy();
    this.queries?.destroy();
  }
}

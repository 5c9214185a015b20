// Which of several ways to compute the same is fastest on this device.

import { Capture, Placeholder, Replay, usesOf } from '../capture.js';
import { memoryBack } from '../device.js';

/** @import { Command, Lifetime } from '../types.js' */

const { GPUBufferUsage, GPUMapMode } = /** @type {any} */ (globalThis); // flags that TypeScript's library lacks
const LONG = 2; // ms that a measurement should take: browsers round times of the device to 0.1 ms, to keep them from spying
const OFTEN = 300; // times that a way is run at most in one measurement
const STEP = 16; // times as often as before, at most, where a measurement was too short
const HOPELESS = 4; // a way that took so many times the best is not measured again
const PATIENT = 20; // ms that one measurement may keep whoever waits: a software adapter tells next to no time, whatever it does
const UNTOLD = 10; // ms that a device with timestamps does not need without telling one: some give none at all
const SOON = 8; // turns of the event loop's own queue in which a promise that is settled says so
const BUSY = 4; // ms for which a device is given something to do at a time

export class Trial {
  /** @param {GPUDevice} device */
  constructor(device) {
    this.device = device;
    /** @type {GPUBuffer[]} memory for what is computed, the largest first; its content does not matter */
    this.memory = [];
    this.timestamps = device.features.has('timestamp-query');
    this.waited = 0; // ms for the last measurement
    this.untold = false; // whether the last measurement should have had a time, and had none
    if (!this.timestamps) return;
    this.queries = device.createQuerySet({ type: 'timestamp', count: 2 });
    this.times = device.createBuffer({ size: 16, usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC });
    this.read = device.createBuffer({ size: 16, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
  }

  /** Keep the device busy for so many milliseconds: after a rest it is slow. @param {Command[]} commands @param {number} ms */
  async wake(commands, ms) {
    const [replay] = this.#prepare([commands]);
    let often = 1;
    for (const end = performance.now() + ms; performance.now() < end;) {
      await this.#once(replay, often);
      often = Math.max(1, Math.min(OFTEN, Math.floor((LONG * often) / this.waited)));
    }
  }

  /**
   * What a promise gives, while the device is kept busy: it would be slow for what is tried next.
   *
   * @template T
   * @param {Promise<T>} promise
   * @param {Command[]} commands
   * @param {() => boolean} isOver whether to wait no longer
   * @returns {Promise<T|null>} null: it was not there in time
   */
  async meanwhile(promise, commands, isOver) {
    let waiting = true;
    const settled = promise.finally(() => (waiting = false));
    settled.catch(() => {}); // it is awaited below
    for (let i = 0; i < SOON && waiting; i++) await null;
    while (waiting && !isOver()) await this.wake(commands, BUSY);
    return waiting ? null : settled;
  }

  /**
   * The fastest of several ways, and how long each took: the best of two turns, of which the second goes backward.
   *
   * @param {Command[][]} ways dispatches only
   * @returns {Promise<{best: number, milliseconds: number[]}>}
   */
  async fastest(ways) {
    const replays = this.#prepare(ways);
    /** @type {{times: number, took: number}[]} */
    const found = [];
    for (const replay of replays) found.push(await this.#long(replay));
    const milliseconds = found.map(({ times, took }) => took / times);
    for (const [i, { times }] of [...found.entries()].reverse()) {
      if (times === 1 || milliseconds[i] > HOPELESS * Math.min(...milliseconds)) continue;
      milliseconds[i] = Math.min(milliseconds[i], (await this.#once(replays[i], times)) / times);
    }
    return { best: milliseconds.indexOf(Math.min(...milliseconds)), milliseconds };
  }

  /** As many runs as take long enough to be measured. @param {Replay} replay */
  async #long(replay) {
    let [times, took] = [1, await this.#once(replay, 1)];
    if (this.untold) took = await this.#once(replay, 1); // the first may have waited for something else
    while (took < LONG && times < OFTEN && this.waited < PATIENT) {
      times = Math.min(OFTEN, Math.ceil(times * Math.min(STEP, (1.2 * LONG) / took, (2 * PATIENT) / this.waited)));
      took = await this.#once(replay, times);
    }
    if (this.untold) this.timestamps = false;
    return { times, took };
  }

  /** @param {Command[][]} ways */
  #prepare(ways) {
    const plans = ways.map((commands) => {
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
      return { capture, lifetimes, largest };
    });
    return plans.map(({ capture, lifetimes, largest }) => {
      const place = (/** @type {Lifetime} */ lifetime) => ({ buffer: this.memory[largest.indexOf(lifetime)], offset: 0 });
      return new Replay(this.device, capture, lifetimes, place);
    });
  }

  /**
   * @param {Replay} replay
   * @param {number} times
   * @returns {Promise<number>} milliseconds of all runs; 0 where there were too few to tell
   */
  async #once(replay, times) {
    const { device, queries, times: resolved, read } = this;
    const began = performance.now();
    const encoder = device.createCommandEncoder();
    const timestampWrites = this.timestamps &&
      queries && { querySet: queries, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 };
    const pass = encoder.beginComputePass(timestampWrites ? { timestampWrites } : {});
    for (let i = 0; i < times; i++) for (const command of replay.commands) command(encoder, pass);
    pass.end();
    if (timestampWrites && resolved && read) {
      encoder.resolveQuerySet(queries, 0, 2, resolved, 0);
      encoder.copyBufferToBuffer(resolved, 0, read, 0, 16);
    }
    device.queue.submit([encoder.finish()]);
    this.untold = false;
    if (!timestampWrites || !read) {
      await device.queue.onSubmittedWorkDone();
      this.waited = performance.now() - began;
      return this.waited;
    }
    await read.mapAsync(GPUMapMode.READ);
    const [from, to] = new BigUint64Array(read.getMappedRange());
    const elapsed = Number(to - from) / 1e6;
    read.unmap();
    this.waited = performance.now() - began;
    if (elapsed > 0) return elapsed;
    this.untold = this.waited > UNTOLD;
    return this.untold || times === OFTEN ? this.waited : 0; // 0: shorter than what times are rounded to
  }

  /** Settled when its memory is given back. */
  async close() {
    for (const buffer of [...this.memory, this.times, this.read]) buffer?.destroy();
    this.queries?.destroy();
    await memoryBack(this.device);
  }
}

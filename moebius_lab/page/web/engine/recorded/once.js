// What a graph computes of its weights alone is computed once, before it runs.
//
// A weight that is stored in 16 bits and read in 32 always is. What commands make of weights then has memory of its own: the smallest first.

import { Capture, Placeholder, Replay, Widened, renameIn, usesOf } from '../capture.js';
import { memoryBack } from '../device.js';
import { room } from './weights.js';

/** @import { Command, GraphCapture, Lifetime, Place } from '../types.js' */
/** @typedef {{place: Place, use: import('../types.js').Use, lifetime: Lifetime|undefined}} Used by a command */
/** @typedef {{value: number, graph: Constants, lifetime: Lifetime, times: number[]}} Task a constant, and which commands make it */

const MOST = 2 ** 26; // bytes that commands make of weights, all together
const TOGETHER = 2 ** 26; // bytes that are made at a time: until then what they are made of is there as well

/**
 * Compute what no input of a run has to do with, and give back all weights that nothing reads from then on.
 *
 * @param {GPUDevice} device
 * @param {Map<string, GraphCapture>} captures
 * @param {(GPUBuffer|Widened)[]} places of the weights, whose numbers are there
 * @param {boolean} all what commands make of weights, too; otherwise all commands stay as they are
 * @returns {Promise<{captures: Map<string, GraphCapture>, bytes: number}>} captures without the commands for it; of what commands made, for good
 */
export async function computeOnce(device, captures, places, all) {
  /** @type {Map<unknown, number>} things and texts by their numbers: the same text is the same value */
  const known = new Map();
  const numberOf = (/** @type {unknown} */ thing) => known.get(thing) ?? (known.set(thing, known.size), known.size - 1);
  const graphs = [...captures].map(([name, captured]) => ({ name, graph: new Constants(captured, numberOf) }));
  /** @type {Map<number, {graph: Constants, lifetime: Lifetime}>} */
  const wanted = new Map();
  for (const { graph } of graphs) for (const lifetime of graph.wanted) wanted.set(graph.valueOf(lifetime), { graph, lifetime });

  /** @type {Task[]} */
  const tasks = [];
  let left = MOST;
  for (const [value, { graph, lifetime }] of [...wanted].sort(([, a], [, b]) => sizeOf(a) - sizeOf(b))) {
    const wide = lifetime.buffer instanceof Widened;
    if (!wide && (!all || lifetime.buffer.size > left)) continue;
    if (!wide) left -= lifetime.buffer.size;
    tasks.push({ value, graph, lifetime, times: graph.making([lifetime]) });
  }
  const there = new Set(tasks.map(({ value }) => value));
  const staying = new Map(graphs.map(({ name, graph }) => [name, { graph, times: graph.staying(there) }]));
  const read = new Set([...staying.values()].flatMap(({ graph, times }) => graph.placesIn(times)));
  const made = await inTurns(device, tasks, read, places);
  const without = [...staying].map(([name, { graph, times }]) => /** @type {const} */ ([name, graph.without(times, made)]));
  return { captures: new Map(without), bytes: MOST - left };
}

/** @param {{lifetime: Lifetime}} wanted */
const sizeOf = ({ lifetime }) => lifetime.buffer.size;

/** A capture, and what of it depends on no input. */
class Constants {
  /**
   * @param {GraphCapture} captured
   * @param {(thing: unknown) => number} numberOf a thing or a text
   */
  constructor(captured, numberOf) {
    this.captured = captured;
    this.numberOf = numberOf;
    const { capture, inputs, lifetimes } = captured;
    const of = Map.groupBy(lifetimes, ({ buffer }) => buffer);
    const at = (/** @type {Place} */ place, /** @type {number} */ time) =>
      of.get(/** @type {Placeholder} */ (place))?.find(({ from, to }) => from <= time && time <= to);
    /** @type {Used[][]} by command */
    this.uses = capture.commands.map((command, time) =>
      usesOf(command).map(({ place, use }) => ({ place, use, lifetime: at(place, time) })),
    );
    this.inputs = new Set(inputs.values());
    /** @type {Set<Lifetime|undefined>} */
    this.varying = new Set(lifetimes.filter((lifetime) => lifetime.to === capture.commands.length || isMixed(lifetime)));
    for (let before = -1; before < this.varying.size;) {
      before = this.varying.size;
      for (const uses of this.uses) if (this.#varies(uses)) for (const lifetime of written(uses)) this.varying.add(lifetime);
    }
    /** @type {Set<Lifetime>} constants that commands read which stay */
    this.wanted = new Set(this.uses.filter((some) => this.#varies(some)).flatMap((uses) => this.#constants(uses)));
    this.values = this.#values();
  }

  /** @param {Used[]} uses */
  #varies(uses) {
    return uses.some(({ place, lifetime }) => this.inputs.has(/** @type {any} */ (place)) || this.varying.has(lifetime));
  }

  /** @param {Used[]} uses @returns {Lifetime[]} constants that are read */
  #constants(uses) {
    return uses.flatMap(({ use, lifetime }) => (lifetime && use === 'read' && !this.varying.has(lifetime) ? [lifetime] : []));
  }

  /** A number for each constant, the same for what is computed from the same in the same way. */
  #values() {
    /** @type {Map<Lifetime, number>} */
    const values = new Map();
    this.captured.capture.commands.forEach((command, time) => {
      const uses = this.uses[time];
      if (this.#varies(uses)) return;
      const names = new Map(
        uses.map(({ place, lifetime }) => [place, /** @type {any} */ (this.#nameOf(place, lifetime, values))]),
      );
      const own = (/** @type {string} */ key, /** @type {unknown} */ value) =>
        key === 'pipeline' ? this.numberOf(value) : key === 'layout' ? undefined : value;
      const text = JSON.stringify(renameIn(command, names), own);
      written(uses).forEach((lifetime, i) => values.set(lifetime, this.numberOf(`${text} ${i}`)));
    });
    return values;
  }

  /** @param {Place} place @param {Lifetime|undefined} lifetime @param {Map<Lifetime, number>} values @returns {unknown} */
  #nameOf(place, lifetime, values) {
    if (lifetime && !(place instanceof Widened)) return values.get(lifetime) ?? lifetime.buffer.size;
    return place instanceof Placeholder && place.uniform ? String(place.written) : this.numberOf(place);
  }

  /** @param {Lifetime} lifetime of a constant */
  valueOf(lifetime) {
    return /** @type {number} */ (this.values.get(lifetime) ?? this.numberOf(lifetime.buffer));
  }

  /**
   * The commands that make some constants, or that run in any case.
   *
   * @param {Iterable<Lifetime>} constants
   * @param {(uses: Used[]) => boolean} [always]
   * @param {(lifetime: Lifetime) => boolean} [there] what is not to be made
   * @returns {number[]} in their order
   */
  making(constants, always = () => false, there = () => false) {
    const needed = new Set(constants);
    /** @type {number[]} */
    const found = [];
    for (let time = this.uses.length - 1; time >= 0; time--) {
      const uses = this.uses[time];
      if (!always(uses) && !written(uses).some((lifetime) => needed.has(lifetime))) continue;
      found.unshift(time);
      for (const lifetime of this.#constants(uses)) if (!there(lifetime)) needed.add(lifetime);
    }
    return found;
  }

  /** The commands of each run. @param {Set<number>} there values that are computed once */
  staying(there) {
    const isThere = (/** @type {Lifetime} */ lifetime) => there.has(this.valueOf(lifetime));
    return this.making([], (uses) => this.#varies(uses), isThere);
  }

  /** What commands use. @param {number[]} times @returns {Place[]} */
  placesIn(times) {
    return times.flatMap((time) => this.uses[time].map(({ place }) => place));
  }

  /**
   * What computes one constant.
   *
   * @param {GPUDevice} device
   * @param {Task} task
   * @param {GPUBuffer} buffer of the constant
   * @param {(weight: Widened, buffer: GPUBuffer) => Promise<Command>} widened
   * @returns {Promise<{commands: Command[], own: GPUBuffer[]}>} `own` is only for what happens in between
   */
  async commands(device, { lifetime: constant, times }, buffer, widened) {
    /** @type {Command[]} */
    const commands = [];
    /** @type {Map<Lifetime, GPUBuffer>} */
    const buffers = new Map([[constant, buffer]]);
    if (constant.buffer instanceof Widened) commands.push(await widened(constant.buffer, buffer));
    for (const time of times) {
      for (const { place, lifetime } of this.uses[time]) {
        if (!lifetime || buffers.has(lifetime)) continue;
        const own = room(device, place.size);
        buffers.set(lifetime, own);
        if (place instanceof Widened) commands.push(await widened(place, own));
      }
      commands.push(this.#on(time, (lifetime) => buffers.get(lifetime)));
    }
    return { commands, own: [...buffers.values()].slice(1) };
  }

  /** A command on buffers. @param {number} time @param {(lifetime: Lifetime) => GPUBuffer|undefined} bufferOf @returns {Command} */
  #on(time, bufferOf) {
    const named = this.uses[time].map(({ place, lifetime }) => [place, (lifetime && bufferOf(lifetime)) ?? place]);
    return renameIn(this.captured.capture.commands[time], new Map(/** @type {[unknown, Place][]} */ (named)));
  }

  /**
   * The capture of these commands alone.
   *
   * @param {number[]} times
   * @param {Map<number, GPUBuffer>} made what is there, by its value
   * @returns {GraphCapture}
   */
  without(times, made) {
    const bufferOf = (/** @type {Lifetime} */ lifetime) =>
      this.varying.has(lifetime) ? undefined : made.get(this.valueOf(lifetime));
    const capture = new Capture();
    capture.commands = times.map((time) => this.#on(time, bufferOf));
    const results = [...this.captured.outputs.values()].map(({ buffer }) => buffer);
    return { ...this.captured, capture, lifetimes: capture.lifetimes(results) };
  }
}

/** Whether something is written in part after it was read. @param {Lifetime} lifetime */
function isMixed({ uses }) {
  const times = (/** @type {boolean} */ writing) => [...uses].flatMap(([time, writes]) => (writes === writing ? [time] : []));
  return Math.max(...times(true)) > Math.min(...times(false));
}

/** @param {Used[]} uses @returns {Lifetime[]} */
function written(uses) {
  return uses.flatMap(({ use, lifetime }) => (lifetime && use !== 'read' ? [lifetime] : []));
}

/**
 * Run tasks, some at a time, and give back what nothing reads any more.
 *
 * @param {GPUDevice} device
 * @param {Task[]} tasks
 * @param {Set<unknown>} read what is read after them
 * @param {(GPUBuffer|Widened)[]} weights
 * @returns {Promise<Map<number, GPUBuffer>>} what was made, by its value
 */
async function inTurns(device, tasks, read, weights) {
  const storedAt = (/** @type {Place} */ place) => (place instanceof Widened ? place.stored : place);
  const readBy = (/** @type {Task} */ { graph, lifetime, times }) => [lifetime.buffer, ...graph.placesIn(times)].map(storedAt);
  const stored = new Set(weights.map(storedAt));
  const giveBack = async (/** @type {Task[]} */ next) => {
    const used = new Set(next.flatMap(readBy));
    for (const buffer of stored) {
      if (read.has(buffer) || used.has(buffer)) continue;
      buffer.destroy();
      stored.delete(buffer);
    }
    await memoryBack(device);
  };
  /** @type {import('../kernels/launch.js').Programs|undefined} */
  let programs;
  const widened = async (/** @type {Widened} */ weight, /** @type {GPUBuffer} */ buffer) => {
    const { Programs, widening } = await import('../kernels/launch.js'); // which is fetched only where there are such
    programs ??= new Programs(device);
    return renameIn(await programs.dispatch(widening(weight)), new Map([[weight, buffer]]));
  };
  /** @type {Map<number, GPUBuffer>} */
  const made = new Map();
  await giveBack(tasks);
  for (let next = 0; next < tasks.length;) {
    const capture = new Capture();
    /** @type {GPUBuffer[]} */
    const between = [];
    for (let size = 0; next < tasks.length && size < TOGETHER; next++) {
      const { value, graph, lifetime } = tasks[next];
      made.set(value, room(device, lifetime.buffer.size));
      const { commands, own } = await graph.commands(device, tasks[next], /** @type {GPUBuffer} */ (made.get(value)), widened);
      capture.commands.push(...commands);
      between.push(...own);
      size += [lifetime.buffer, ...own].reduce((sum, { size }) => sum + size, 0);
    }
    new Replay(device, capture, [], () => ({ buffer: /** @type {any} */ (null), offset: 0 })).run(); // all that it needs is there
    await device.queue.onSubmittedWorkDone();
    for (const buffer of between) buffer.destroy();
    await giveBack(tasks.slice(next));
  }
  return made;
}

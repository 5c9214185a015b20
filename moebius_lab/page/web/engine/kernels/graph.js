// A capture as a graph in which every value is a buffer of its own, and back.
//
// The runtime reuses buffers; here each thing that is held has its own placeholder (single assignment), so that what reads what is
// plain, and commands can be merged and replaced. Planning finds room for all of it again afterwards.

import { Capture, Placeholder, Widened, programOf, renameIn, usesOf } from '../capture.js';
import { operationOf, readDispatch } from './operations.js';

/** @import { Command, GraphCapture } from '../types.js' */
/** @import { Operation, Value } from './operations.js' */
/** @import { Merged } from './passes.js' */

/**
 * One command of the runtime, or several that are merged into one operation.
 *
 * @typedef {object} Node
 * @property {Command[]} commands the runtime's, on values
 * @property {Operation|Merged|null} operation what they compute; null where that is not understood
 * @property {Value[]} reads
 * @property {Value[]} writes
 * @property {number} at which command it was, or the last of them
 */

export class Graph {
  /**
   * @param {GraphCapture} captured
   * @returns {Graph}
   */
  static of(captured) {
    /** @type {Map<Placeholder, {value: Placeholder, read: boolean}>} */
    const last = new Map();
    const nodes = captured.capture.commands.map((command, at) => {
      const label = ('pipeline' in command && programOf(command.pipeline)?.label) || '';
      const uses = usesOf(command);
      /** @type {Map<unknown, Placeholder>} */
      const renamed = new Map();
      for (const { place, use } of uses) {
        if (!(place instanceof Placeholder) || place.uniform || place instanceof Widened) continue;
        const writes = use === 'write' || (use === 'both' && label.endsWith('LayerNorm')); // which reads what it has just written
        let held = last.get(place);
        if (!held || (writes && held.read)) {
          held = { value: new Placeholder(place), read: false };
          last.set(place, held);
        }
        if (!writes) held.read = true;
        renamed.set(place, held.value);
      }
      const own = renameIn(command, renamed);
      const read = 'pipeline' in own ? readDispatch(own) : null;
      const reads = uses.filter(
        ({ use, place }) => use !== 'write' && !isUniform(place) && !(use === 'both' && label.endsWith('LayerNorm')),
      );
      const writes = uses.filter(({ use }) => use !== 'read');
      const value = (/** @type {{place: any}} */ { place }) => renamed.get(place) ?? place;
      return { commands: [own], operation: read && operationOf(read), reads: reads.map(value), writes: writes.map(value), at };
    });
    const outputs = new Map();
    for (const [name, { buffer, dims }] of captured.outputs)
      outputs.set(name, { buffer: last.get(buffer)?.value ?? buffer, dims });
    return new Graph(nodes, captured.inputs, outputs);
  }

  /**
   * @param {Node[]} nodes
   * @param {GraphCapture['inputs']} inputs
   * @param {GraphCapture['outputs']} outputs
   */
  constructor(nodes, inputs, outputs) {
    this.nodes = nodes;
    this.inputs = inputs;
    this.outputs = outputs;
    this.results = new Set([...outputs.values()].map(({ buffer }) => buffer));
    /** @type {Map<Value, Node[]>} */
    this.readersOf = new Map();
    /** @type {Map<Value, Node[]>} */
    this.writersOf = new Map();
    for (const node of nodes) this.#index(node);
  }

  /** @param {Node} node */
  #index(node) {
    for (const value of new Set(node.reads)) this.readersOf.set(value, inOrder([...this.readers(value), node]));
    for (const value of new Set(node.writes)) this.writersOf.set(value, inOrder([...this.#writers(value), node]));
  }

  /** @param {Value} value @returns {Node[]} */
  #writers(value) {
    return this.writersOf.get(value) ?? [];
  }

  /** @param {Value} value @returns {Node[]} */
  readers(value) {
    return this.readersOf.get(value) ?? [];
  }

  /**
   * The node that computes a value, where it is one node.
   *
   * @param {Value} value
   * @returns {Node|null}
   */
  writer(value) {
    const writers = this.#writers(value);
    return writers.length === 1 ? writers[0] : null;
  }

  /**
   * The node that a value is computed for, where nothing else needs it.
   *
   * @param {Value} value
   * @returns {Node|null}
   */
  onlyReader(value) {
    const readers = this.readers(value);
    return readers.length === 1 && !this.results.has(/** @type {any} */ (value)) ? readers[0] : null;
  }

  /**
   * Put one node in the place of several.
   *
   * @param {Node[]} nodes
   * @param {Operation|Merged} operation
   * @param {Value[]} reads
   * @param {Value[]} writes
   */
  merge(nodes, operation, reads, writes) {
    const sorted = inOrder([...nodes]);
    const last = sorted[sorted.length - 1];
    const commands = this.#afterWriters(sorted).flatMap(({ commands }) => commands);
    const merged = { commands, operation, reads, writes, at: last.at };
    const gone = new Set(nodes);
    this.nodes = this.nodes.filter((node) => node === last || !gone.has(node));
    this.nodes[this.nodes.indexOf(last)] = merged;
    for (const index of [this.readersOf, this.writersOf])
      for (const value of new Set(nodes.flatMap(({ reads, writes }) => [...reads, ...writes])))
        if (index.has(value)) index.set(value, index.get(value)?.filter((node) => !gone.has(node)) ?? []);
    this.#index(merged);
  }

  /**
   * The nodes in an order in which each value is computed before it is read, as near to the runtime's as can be.
   *
   * @returns {Node[]}
   */
  ordered() {
    return this.#afterWriters(this.nodes);
  }

  /**
   * Some nodes, each after those of them that write what it reads: one that was merged of several may end after what reads a part of it.
   *
   * @param {Node[]} nodes
   * @returns {Node[]}
   */
  #afterWriters(nodes) {
    const all = new Set(nodes);
    /** @type {Set<Node>} */
    const placed = new Set(); // which keeps their order
    /** @type {Set<Node>} */
    const begun = new Set();
    const place = (/** @type {Node} */ node) => {
      if (begun.has(node)) return;
      begun.add(node);
      for (const value of node.reads) for (const writer of this.#writers(value)) if (all.has(writer)) place(writer);
      placed.add(node);
    };
    nodes.forEach(place);
    return [...placed];
  }

  /**
   * Those of some commands for this graph's nodes whose results are used: kernels of ours read some of what the runtime makes in between
   * as it was before.
   *
   * @param {Command[]} commands
   * @returns {Command[]}
   */
  needed(commands) {
    /** @type {Set<unknown>} */
    const used = new Set(this.results);
    const kept = [...commands].reverse().filter((command) => {
      const uses = usesOf(command).filter(({ place }) => !isUniform(place));
      const written = uses.filter(({ use }) => use !== 'read');
      if (written.every(({ place }) => place instanceof Placeholder && !used.has(place))) return false;
      for (const { place, use } of uses) if (use !== 'write') used.add(place);
      return true;
    });
    return kept.reverse();
  }

  /**
   * The capture of commands for this graph's nodes.
   *
   * @param {Command[]} commands
   * @returns {GraphCapture}
   */
  captured(commands) {
    const capture = new Capture();
    capture.commands = commands;
    const results = [...this.outputs.values()].map(({ buffer }) => buffer);
    return { capture, inputs: this.inputs, outputs: this.outputs, lifetimes: capture.lifetimes(results) };
  }
}

/** @param {Node[]} nodes */
function inOrder(nodes) {
  return nodes.sort((a, b) => a.at - b.at);
}

/** @param {unknown} place */
function isUniform(place) {
  return place instanceof Placeholder && place.uniform;
}

// Captures in which kernels of ours stand for commands of the runtime, wherever they are faster on this device and give the same.

import { PASSES } from './passes.js';
import { Graph } from './graph.js';
import { Programs } from './launch.js';
import { RUNTIME } from './operations.js';
import { Trial } from './trial.js';
import { differences, isHalf, timesOf } from './comparison.js';
import { isTiny } from './product.js';
import { optionsFor } from './options.js';
import { programOf } from '../capture.js';

/** @typedef {import('../types.js').Command} Command */
/** @typedef {import('../types.js').GraphCapture} GraphCapture */
/** @typedef {import('./graph.js').Node} Node */
/** @typedef {import('./launch.js').Launch} Launch */
/** @typedef {import('./options.js').Option} Option */
/** @typedef {Record<string, string>} Choices the name of what was chosen, by the key of a form: a way of ours, or RUNTIMES */
/** @typedef {'fastest'|'all'|'none'} Wanted kernels of ours where they are faster, wherever there are any, or nowhere */
/**
 * @typedef {object} Form of a node: others are the same but for their buffers
 * @property {string} key
 * @property {Node} node one of them
 * @property {Option[]} options
 * @property {number} work of all of them, in all runs of their graphs for a picture
 * @property {string} family forms of one family differ only in what follows a product
 */
/** @typedef {{key: string, options: Option[]}} Way of ours, with the key of its form */
/**
 * @typedef {object} Replaced
 * @property {Map<string, GraphCapture>} captures
 * @property {Choices} choices to be given the next time
 * @property {number} replaced commands of the runtime that kernels of ours stand for
 * @property {number} commands of all captures before
 * @property {string} note what was left out and why, in words; empty where nothing was
 * @property {Took} took
 */
/** @typedef {{trying: number, comparing: number, making: number}} Took milliseconds: ways tried, compared, and put together */

const RUNTIMES = "the runtime's";
export const AT_ONCE = { trying: 0, comparing: 0, making: 0 };
const ENTIRE = 'all of '; // before a graph's name: whether kernels of ours are used in it at all
const ACCEPTED = 2e-5; // of a tensor's largest magnitude: sums of thousands of products in another order differ by a tenth of it
const ACCEPTED_HALVES = 1e-2; // the runtime's sums of numbers of 16 bits have 16 bits themselves
const SECONDS = 1; // in which ways are tried; what is left is as far as is known beforehand
const NEXT_STATE = 'next_state';
const AWAKE = 60; // ms of work after which a device runs at its full speed
const LOOPED = 20; // times that a graph runs for a picture which makes the next state from the last; others run once
const BYTE = 40; // arithmetic operations for which a byte of memory counts, where the work of forms is compared

/**
 * @param {GPUDevice} device
 * @param {Map<string, GraphCapture>} captures
 * @param {object} options
 * @param {string} options.version of ONNX Runtime Web
 * @param {Wanted} options.wanted
 * @param {Choices|null} options.choices of an earlier visit; null: this is the first
 * @param {(share: number) => void} options.report how much is done, from 0 to 1
 * @returns {Promise<Replaced>}
 */
export async function replaceKernels(device, captures, { version, wanted, choices, report }) {
  const commands = [...captures.values()].reduce((sum, { capture }) => sum + capture.commands.length, 0);
  const began = performance.now();
  if (version !== RUNTIME) {
    return {
      captures,
      choices: {},
      replaced: 0,
      commands,
      note: `ONNX Runtime Web ${version}'s programs are not known, only ${RUNTIME}'s`,
      took: { ...AT_ONCE },
    };
  }
  const graphs = new Map([...captures].map(([name, captured]) => [name, understood(captured)]));
  const programs = new Programs(device);
  const { ways, forms } = formsOf([...graphs.values()], device);
  const known = choices && [...forms.keys()].every((key) => key in choices);
  const chosen = known ? choices : await choose(device, programs, [...forms.values()], wanted, report);
  const tried = performance.now();
  const notes = [];
  if (!known) {
    for (const [name, graph] of graphs) {
      const wrong = await different(device, programs, graph, ways, chosen);
      for (const key of wrong.keys()) chosen[key] = RUNTIMES;
      if (wrong.size)
        notes.push(
          `${wrong.size} kernels of ${name} differ from the runtime's by up to ${Math.max(...wrong.values()).toExponential(1)} and are not used`,
        );
    }
  }
  const compared = performance.now();
  for (const form of forms.values()) {
    const option = optionOf(form, chosen);
    if (option) void wayOf(programs, option); // all at once: making programs takes longest
  }
  let replaced = 0;
  /** @type {Map<string, GraphCapture>} */
  const made = new Map();
  for (const [name, graph] of graphs) {
    /** @type {Command[]} */
    const own = [];
    let count = 0;
    for (const node of graph.ordered()) {
      const option = optionOf(ways.get(node), chosen);
      if (option) count += node.commands.length;
      own.push(...(option ? await Promise.all(option.launches.map((launch) => programs.dispatch(launch))) : node.commands));
    }
    const ours = graph.captured(own);
    const whole = `${ENTIRE}${name}`;
    if (!known) chosen[whole] = wanted === 'all' || (await isFaster(device, graph, ours)) ? '' : RUNTIMES;
    if (chosen[whole] === RUNTIMES) notes.push(`all of ${name} is faster with the runtime's`);
    else replaced += count;
    made.set(name, chosen[whole] === RUNTIMES ? /** @type {GraphCapture} */ (captures.get(name)) : ours);
  }
  const took = { trying: tried - began, comparing: compared - tried, making: performance.now() - compared };
  return { captures: made, choices: chosen, replaced, commands, note: notes.join('; '), took };
}

/**
 * Whether a graph takes less time with our kernels than with the runtime's commands alone: what was tried one by one may be slower
 * side by side.
 *
 * @param {GPUDevice} device
 * @param {Graph} graph
 * @param {GraphCapture} ours
 */
async function isFaster(device, graph, ours) {
  const runtimes = graph.captured(graph.ordered().flatMap(({ commands }) => commands));
  const [before, after] = await timesOf(device, [runtimes, ours]);
  return after < before;
}

/** @param {GraphCapture} captured */
function understood(captured) {
  const graph = Graph.of(captured);
  for (const pass of Object.values(PASSES)) pass(graph);
  return graph;
}

/**
 * @param {Graph[]} graphs
 * @param {GPUDevice} device
 * @returns {{ways: Map<Node, Way>, forms: Map<string, Form>}} by key
 */
function formsOf(graphs, device) {
  /** @type {Map<Node, Way>} */
  const ways = new Map();
  /** @type {Map<string, Form>} */
  const forms = new Map();
  for (const { nodes, outputs } of graphs) {
    const times = outputs.has(NEXT_STATE) ? LOOPED : 1;
    for (const node of nodes) {
      const options = optionsFor(node, device.limits);
      if (!options.length) continue;
      const key = keyOf(node, options);
      ways.set(node, { key, options });
      const form = forms.get(key);
      const work = workOf(node) * times;
      if (form) form.work += work;
      else forms.set(key, { key, node, options, work, family: familyOf(node, key) });
    }
  }
  return { ways, forms };
}

/**
 * What two nodes have in common that are the same but for their buffers.
 *
 * @param {Node} node
 * @param {Option[]} options
 */
function keyOf({ commands, operation }, [{ launches }]) {
  const numbers = launches.map(({ numbers, workgroups, values }) =>
    [...(numbers ?? []), ...workgroups, ...values.map(({ size }) => size)].join(),
  );
  const labels = commands.map((command) => ('pipeline' in command ? programOf(command.pipeline)?.label : ''));
  const codes = launches.map(({ code }) => digest(code));
  return `${operation?.kind} ${digest([...labels, ...codes, ...numbers].join(' '))}`;
}

/** A short name of a text (FNV-1a). @param {string} text */
export function digest(text) {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return (hash >>> 0).toString(36);
}

/** @param {Node['operation']} operation */
function productsOf(operation) {
  return operation?.kind === 'product' ? [operation] : operation?.kind === 'products' ? operation.products : [];
}

/** About how much a node has to do. @param {Node} node */
function workOf({ operation, reads, writes }) {
  const bytes = [...reads, ...writes].reduce((sum, { size }) => sum + size, 0);
  return BYTE * bytes + productsOf(operation).reduce((sum, { M, N, K, outer, inner }) => sum + 2 * M * N * K * outer * inner, 0);
}

/** @param {Way|undefined} way @param {Choices} chosen */
function optionOf(way, chosen) {
  return way?.options.find(({ name }) => name === chosen[way.key]);
}

/**
 * Try families of forms on the device, products and those with the most work first, until the time is over.
 *
 * @param {GPUDevice} device
 * @param {Programs} programs
 * @param {Form[]} forms
 * @param {Wanted} wanted
 * @param {(share: number) => void} report
 * @returns {Promise<Choices>}
 */
async function choose(device, programs, forms, wanted, report) {
  const first = wanted === 'all'; // of the ways, which is taken untried: making the others' programs would take most of the time
  for (const { options } of forms) {
    for (const { launches } of first ? options.slice(0, 1) : options) {
      for (const launch of launches) void programs.pipeline(launch).catch(() => {});
    }
  }
  if (first) return Object.fromEntries(forms.map(({ key, options }) => [key, options[0].name]));
  const families = [...Map.groupBy(forms, ({ family }) => family).values()];
  const work = (/** @type {Form[]} */ family) => family.reduce((sum, form) => sum + form.work, 0);
  const certain = (/** @type {Form[]} */ [{ options }]) => Number(options.length === 1);
  families.sort((a, b) => certain(a) - certain(b) || work(b) - work(a));
  const trial = new Trial(device);
  /** @type {Choices} */
  const chosen = Object.fromEntries(forms.map((form) => [form.key, expected(form)]));
  try {
    if (families.length) await trial.wake(families[0][0].node.commands, AWAKE);
    const end = performance.now() + 1000 * SECONDS;
    for (const [i, family] of families.entries()) {
      if (performance.now() > end) break;
      const form = family.reduce((most, other) => (other.work > most.work ? other : most));
      const made = await Promise.all(form.options.map((option) => wayOf(programs, option)));
      const ways = made.flatMap((commands, i) => (commands ? [{ commands, name: form.options[i].name }] : []));
      const { best } = await trial.fastest([form.node.commands, ...ways.map(({ commands }) => commands)]);
      for (const { key } of family) chosen[key] = best === 0 ? RUNTIMES : ways[best - 1].name;
      report((i + 1) / families.length);
    }
  } finally {
    trial.close();
  }
  for (const form of forms) {
    const option = optionOf(form, chosen);
    if (option && !(await wayOf(programs, option))) chosen[form.key] = RUNTIMES;
  }
  return chosen;
}

/** What is used where nothing was tried: ours but for tiny products, the most promising of several. @param {Form} form */
function expected({ node: { operation }, options }) {
  return operation?.kind === 'product' && isTiny(operation) ? RUNTIMES : options[0].name;
}

/** @param {Node} node @param {string} key of its form */
function familyOf({ operation }, key) {
  const [product] = productsOf(operation);
  if (!product) return key;
  const { M, N, K, outer, inner, window, gathered, half, narrow, turned } = product;
  return [
    operation?.kind,
    M,
    N,
    K,
    outer * inner,
    window?.stride,
    Boolean(gathered),
    half,
    narrow.A?.group,
    narrow.B?.group,
    turned,
  ].join(' ');
}

/**
 * @param {Programs} programs
 * @param {Option} option
 * @returns {Promise<Command[]|null>} null where the device refuses a program
 */
function wayOf(programs, { launches }) {
  return Promise.all(launches.map((launch) => programs.dispatch(launch))).catch(() => null);
}

/**
 * @param {GPUDevice} device
 * @param {Programs} programs
 * @param {Graph} graph
 * @param {Map<Node, Way>} ways
 * @param {Choices} chosen
 * @returns {Promise<Map<string, number>>} how far off each form is that is too far off
 */
async function different(device, programs, graph, ways, chosen) {
  /** @type {Map<Node, Launch[]>} */
  const ours = new Map();
  for (const node of graph.nodes) {
    const option = optionOf(ways.get(node), chosen);
    if (option) ours.set(node, option.launches);
  }
  const shares = await differences(device, programs, graph, ours);
  const wrong = [...shares].filter(([node, share]) => !(share <= (isHalf(node) ? ACCEPTED_HALVES : ACCEPTED)));
  return new Map(wrong.map(([node, share]) => [/** @type {Way} */ (ways.get(node)).key, share]));
}

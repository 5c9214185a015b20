// Captures in which kernels of ours stand for commands of the runtime, wherever they are faster on this device and give the same.

import { PASSES } from './passes.js';
import { Graph } from './graph.js';
import { Programs } from './launch.js';
import { RUNTIME } from './operations.js';
import { Trial } from './trial.js';
import { accepted, differences, timesOf } from './comparison.js';
import { halfTilesFor, hasHalves, isTiny, tilesFor, traitsOf } from './product.js';
import { optionsFor } from './options.js';
import { NEXT_STATE, programOf } from '../capture.js';

/** @import { Command, GraphCapture } from '../types.js' */
/** @import { Node } from './graph.js' */
/** @import { Launch } from './launch.js' */
/** @import { Product } from './operations.js' */
/** @import { Option } from './options.js' */
/** @typedef {Record<string, string>} Choices the name of what was chosen, by the key of a form: a way of ours, or RUNTIMES */
/**
 * @typedef {'fastest'|'matrix'|'matrix exact'|'all'|'none'} Wanted kernels of ours where they are faster, products on matrix units among them, in
 *   16 bits or three for each, wherever there are any, or nowhere
 */
/**
 * @typedef {object} Form of a node: others are the same but for their buffers
 * @property {string} key
 * @property {Node} node one of them
 * @property {Option[]} options
 * @property {number} work of all of them, in all runs of their graphs for a picture
 * @property {string} family forms of one family differ only in what follows a product
 * @property {string} nature families of one differ only in sizes; empty for what is no product
 */
/** @typedef {{key: string, options: Option[]}} Way of ours, with the key of its form */
/**
 * @typedef {object} Kept of one visit for the next: forms whose way stays what it was are not compared with the runtime's again
 * @property {Choices} choices
 * @property {string[]} tried families
 * @property {string[]} notes what differed from the runtime's, in words
 * @property {{label: string, code: string}[]} programs of the ways that were chosen: they can be made before anything else is known
 */
/**
 * @typedef {object} Replaced
 * @property {Map<string, GraphCapture>} captures
 * @property {Choices} choices
 * @property {Kept} kept to be given the next time
 * @property {number} replaced commands of the runtime that kernels of ours stand for
 * @property {number} commands of all captures before
 * @property {number} left shapes that no visit has tried so far
 * @property {string} note what was left out and why, in words; empty where nothing was
 * @property {Took} took
 */
/**
 * @typedef {{trying: number, comparing: number, making: number}} Took milliseconds after all weights were there: ways tried, compared, and put together
 */

const RUNTIMES = "the runtime's";
export const AT_ONCE = { trying: 0, comparing: 0, making: 0 };
const ENTIRE = 'all of '; // before a graph's name: whether kernels of ours are used in it at all
const SECONDS = 1; // in which ways are tried, a visit; what is left is tried at later ones
const NEXT = 4; // families whose programs are made while one is tried
const LITTLE = 0.002; // of all work: a family that does less tries one way of ours
const NOTHING = 0.0005; // of all work: a family that does less is not tried
const NEAR = 3; // doublings of sides, all together, up to which a product is like another
const AWAKE = 60; // ms of work after which a device runs at its full speed
const LOOPED = 20; // times that a graph runs for a picture which makes the next state from the last; others run once
const BYTE = 40; // arithmetic operations for which a byte of memory counts, where the work of forms is compared

/**
 * @param {GPUDevice} device
 * @param {Map<string, GraphCapture>} captures
 * @param {object} options
 * @param {string} options.version of ONNX Runtime Web
 * @param {Wanted} options.wanted
 * @param {Kept|null} options.earlier of an earlier visit; null: this is the first
 * @param {Programs} [options.programs] some of which may be under way
 * @param {number} [options.trying] seconds in which ways are tried, those in which weights are read among them
 * @param {Promise<void>|null} [options.filled] when the weights are on the device; what needs none is done meanwhile. Null: they are
 * @param {(share: number) => void} options.report how much is done, from 0 to 1
 * @returns {Promise<Replaced>}
 */
export async function replaceKernels(device, captures, options) {
  const { version, wanted, earlier, programs = new Programs(device), trying, filled = null, report } = options;
  const commands = [...captures.values()].reduce((sum, { capture }) => sum + capture.commands.length, 0);
  let from = filled ? Infinity : performance.now();
  const there = Promise.resolve(filled).then(() => void (from = Math.min(from, performance.now())));
  there.catch(() => {}); // it is awaited where weights are needed
  if (version !== RUNTIME) {
    return {
      captures,
      choices: {},
      kept: { choices: {}, tried: [], notes: [], programs: [] },
      replaced: 0,
      commands,
      left: 0,
      note: `ONNX Runtime Web ${version}'s programs are not known, only ${RUNTIME}'s`,
      took: { ...AT_ONCE },
    };
  }
  const graphs = new Map([...captures].map(([name, captured]) => [name, understood(captured)]));
  const asked = wanted.startsWith('matrix');
  const units = asked ? (await import('./units.js')).tilesOn(device, wanted === 'matrix exact') : undefined;
  const [traits, inHalves] = [traitsOf(device.adapterInfo), await hasHalves(device)];
  const tiles = (/** @type {Product} */ product) => {
    const special = units?.(product) ?? (inHalves ? halfTilesFor(product, device.limits, traits) : []);
    const others = tilesFor(product, device.limits, traits);
    return [...special, ...(special.length ? others.slice(0, 1) : others)]; // which are hardly ever faster, and programs take time
  };
  const { ways, forms } = formsOf([...graphs.values()], device, tiles);
  const before = earlier && [...forms.keys()].every((key) => key in earlier.choices) ? earlier : null;
  const { chosen, tried, left } = await choose(device, programs, [...forms.values()], wanted, before, trying, filled, report);
  const began = performance.now();
  const wrongs = before ? [...before.notes] : asked && !units ? ['this device or this browser gives no matrix units'] : [];
  const isNew = (/** @type {Node} */ node) => {
    const key = ways.get(node)?.key;
    return key !== undefined && chosen[key] !== before?.choices[key];
  };
  const changed = new Set([...graphs].flatMap(([name, { nodes }]) => (nodes.some(isNew) || !before ? [name] : [])));
  for (const name of changed) {
    await there;
    const wrong = await different(device, programs, /** @type {Graph} */ (graphs.get(name)), ways, chosen, isNew);
    for (const key of wrong.keys()) chosen[key] = RUNTIMES;
    if (wrong.size)
      wrongs.push(
        `${wrong.size} kernels of ${name} differ from the runtime's by up to ${Math.max(...wrong.values()).toExponential(1)} and are not used`,
      );
  }
  const compared = performance.now();
  const notes = [...wrongs];
  let replaced = 0;
  /** @type {Map<string, GraphCapture>} */
  const made = new Map();
  for (const [name, graph] of graphs) {
    /** @type {Command[]} */
    const own = [];
    for (const node of graph.ordered()) {
      const option = optionOf(ways.get(node), chosen);
      own.push(...(option ? await Promise.all(option.launches.map((launch) => programs.dispatch(launch))) : node.commands));
    }
    const needed = graph.needed(own);
    const runtimes = new Set(graph.nodes.flatMap((node) => node.commands));
    const count = runtimes.size - needed.filter((command) => runtimes.has(command)).length;
    const ours = graph.captured(needed);
    const whole = `${ENTIRE}${name}`;
    const known = before?.choices[whole] === ''; // what changed since is at least faster by itself
    if (changed.has(name) && !known) chosen[whole] = wanted === 'all' || (await isFaster(device, graph, ours)) ? '' : RUNTIMES;
    if (chosen[whole] === RUNTIMES) notes.push(`all of ${name} is faster with the runtime's`);
    else replaced += count;
    made.set(name, chosen[whole] === RUNTIMES ? /** @type {GraphCapture} */ (captures.get(name)) : ours);
  }
  if (left) notes.push(`${tried.length} of ${tried.length + left} shapes are tried so far, the others at later visits`);
  const end = performance.now();
  const spent = (/** @type {number} */ since, /** @type {number} */ until) => Math.max(0, until - Math.max(since, from));
  const took = { trying: spent(0, began), comparing: spent(began, compared), making: spent(compared, end) };
  const used = [...forms.values()].flatMap((form) => optionOf(form, chosen)?.launches ?? []);
  const texts = new Map(used.map(({ code, label = '' }) => [code, label]));
  const kept = { choices: chosen, tried, notes: wrongs, programs: [...texts].map(([code, label]) => ({ label, code })) };
  return { captures: made, choices: chosen, kept, replaced, commands, left, note: notes.join('; '), took };
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
  const [after, before] = await timesOf(device, [ours, runtimes]);
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
 * @param {import('./options.js').Tiles} tiles of products that are worth a try
 * @returns {{ways: Map<Node, Way>, forms: Map<string, Form>}} by key
 */
function formsOf(graphs, device, tiles) {
  /** @type {Map<Node, Way>} */
  const ways = new Map();
  /** @type {Map<string, Form>} */
  const forms = new Map();
  for (const { nodes, outputs } of graphs) {
    const times = outputs.has(NEXT_STATE) ? LOOPED : 1;
    for (const node of nodes) {
      const options = optionsFor(node, device.limits, tiles);
      if (!options.length) continue;
      const key = keyOf(node, options);
      ways.set(node, { key, options });
      const form = forms.get(key);
      const work = workOf(node) * times;
      if (form) form.work += work;
      else forms.set(key, { key, node, options, work, ...familyOf(node, key) });
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
  const codes = launches.map(({ code }) => digestOf(code));
  return `${operation?.kind} ${digest([...labels, ...codes, ...numbers].join(' '))}`;
}

/** @type {Map<string, string>} of the texts of programs, which are few and long */
const digests = new Map();

/** @param {string} code */
function digestOf(code) {
  const known = digests.get(code) ?? digest(code);
  digests.set(code, known);
  return known;
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
 * Try families of forms on the device that no earlier visit tried, products and those with the most work first, until the time is over.
 *
 * @param {GPUDevice} device
 * @param {Programs} programs
 * @param {Form[]} forms
 * @param {Wanted} wanted
 * @param {Kept|null} before
 * @param {number|undefined} trying seconds
 * @param {Promise<void>|null} filled when the weights are on the device; null: they are
 * @param {(share: number) => void} report
 * @returns {Promise<{chosen: Choices, tried: string[], left: number}>} families that are tried by now, and how many are not
 */
async function choose(device, programs, forms, wanted, before, trying, filled, report) {
  const all = Map.groupBy(forms, ({ family }) => family);
  const certain = (/** @type {Form[]} */ [{ options }]) => Number(options.length === 1);
  const families = [...all.values()].sort((a, b) => certain(a) - certain(b) || workIn(b) - workIn(a));
  const first = wanted === 'all'; // of the ways, which is taken untried: making the others' programs would take most of the time
  /** @type {Choices} */
  const chosen = before
    ? { ...before.choices }
    : Object.fromEntries(forms.map((form) => [form.key, first ? form.options[0].name : expected(form)]));
  // all at once, and those that take the longest first: making programs takes longest
  const begin = () =>
    families.flat().map((form) => {
      const option = optionOf(form, chosen);
      return { form, made: option && wayOf(programs, option) };
    });
  begin();
  const tried = new Set(before?.tried.filter((family) => all.has(family)));
  const whole = workIn(forms);
  const open = first ? [] : families.filter((some) => !tried.has(some[0].family) && workIn(some) > NOTHING * whole);
  if (open.length) await tryThese(device, programs, open, LITTLE * whole, trying, Boolean(before), chosen, tried, filled, report);
  if (!before && !first) {
    const known = families.filter(([{ family }]) => tried.has(family)).map(largest);
    for (const form of forms) if (!tried.has(form.family)) chosen[form.key] = likeOthers(form, known, chosen);
  }
  for (const { form, made } of begin()) if ((await made) === null) chosen[form.key] = RUNTIMES;
  return { chosen, tried: [...tried], left: open.filter(([{ family }]) => !tried.has(family)).length };
}

/**
 * @param {GPUDevice} device
 * @param {Programs} programs
 * @param {Form[][]} families in the order in which they are tried
 * @param {number} little work, up to which one way of ours is tried
 * @param {number|undefined} trying seconds
 * @param {boolean} later whether an earlier visit tried some
 * @param {Choices} chosen what is found is put here
 * @param {Set<string>} tried and which families were, here
 * @param {Promise<void>|null} filled
 * @param {(share: number) => void} report
 */
async function tryThese(device, programs, families, little, trying, later, chosen, tried, filled, report) {
  const made = families.map((family) => {
    const { options, node } = largest(family);
    const some = workIn(family) > little ? options : options.slice(0, 1);
    /** @type {Promise<{name: string, commands: Command[]}[]>|null} */
    let ways = null;
    const make = async () => {
      const found = await Promise.all(some.map((option) => wayOf(programs, option)));
      const ours = some.flatMap(({ name }, i) => (found[i] ? [{ name, commands: /** @type {Command[]} */ (found[i]) }] : []));
      return [{ name: RUNTIMES, commands: node.commands }, ...ours];
    };
    return () => (ways ??= make());
  });
  const prepare = (/** @type {number} */ i) => {
    for (const make of made.slice(i, i + NEXT)) void make();
    return made[i]();
  };
  const trial = new Trial(device);
  const busy = families[0][0].node.commands;
  let [waiting, failed] = [true, false];
  const ended = (/** @type {unknown} */ error) => void ([waiting, failed] = [false, Boolean(error)]);
  const weights = Promise.resolve(filled).then(ended, ended);
  // the device's own times tell nothing of what else is done while weights are read, but a clock would
  for (let i = 0; filled && waiting && !trial.timestamps && i < families.length; i++) await Promise.race([prepare(i), weights]);
  const meanwhile = filled && trial.timestamps;
  if (!meanwhile) await filled;
  try {
    await trial.wake(busy, AWAKE);
    const seconds = trying ?? (meanwhile && later ? 0 : SECONDS);
    let end = performance.now() + 1000 * seconds;
    let least = Number(later); // so that visits come to an end; the first only tries what is ready in time
    for (const [i, family] of families.entries()) {
      if (waiting && !trial.timestamps) {
        await weights; // for there were no such times after all
        [end, least] = [performance.now() + 1000 * seconds, i + Number(later)];
      }
      const isOver = () => failed || (!waiting && i >= least && performance.now() >= end);
      const ways = isOver() ? null : await trial.meanwhile(prepare(i), busy, isOver);
      if (!ways) break;
      const { best } = await trial.fastest(ways.map(({ commands }) => commands));
      for (const { key } of family) chosen[key] = ways[best].name;
      tried.add(family[0].family);
      report((i + 1) / families.length);
    }
  } finally {
    await trial.close();
  }
}

/** @param {Form[]} forms */
function workIn(forms) {
  return forms.reduce((sum, form) => sum + form.work, 0);
}

/** @param {Form[]} family the one with the most work */
function largest(family) {
  return family.reduce((most, other) => (other.work > most.work ? other : most));
}

/**
 * What is used for a form that there was no time to try: what is fastest for the product that is most like it; where there is none, what
 * is expected, as long as ours were faster in most of the work that was tried. (The graph is timed as a whole afterwards.)
 *
 * @param {Form} form
 * @param {Form[]} tried
 * @param {Choices} chosen
 */
function likeOthers(form, tried, chosen) {
  const [product] = productsOf(form.node.operation);
  if (!product) return expected(form);
  const sides = (/** @type {Product} */ { M, N, K, outer, inner }) => [M, N, K, outer * inner].map(Math.log2);
  const own = sides(product);
  const apart = tried.flatMap((other) => {
    const [its] = other.nature === form.nature ? productsOf(other.node.operation) : [];
    return its ? [{ other, far: sides(its).reduce((sum, side, i) => sum + Math.abs(side - own[i]), 0) }] : [];
  });
  const nearest = apart.filter(({ far }) => far <= NEAR).sort((a, b) => a.far - b.far)[0]?.other;
  const products = tried.filter(({ node }) => productsOf(node.operation).length);
  const won = workIn(products.filter(({ key }) => chosen[key] !== RUNTIMES)) >= workIn(products) / 2;
  const way = nearest ? chosen[nearest.key] : won ? expected(form) : RUNTIMES;
  return way === RUNTIMES || form.options.some(({ name }) => name === way) ? way : form.options[0].name;
}

/** What is used where nothing was tried: ours but for tiny products, the most promising of several. @param {Form} form */
function expected({ node: { operation }, options }) {
  return operation?.kind === 'product' && isTiny(operation) ? RUNTIMES : options[0].name;
}

/** @param {Node} node @param {string} key of its form @returns {{family: string, nature: string}} */
function familyOf({ operation }, key) {
  const [product] = productsOf(operation);
  if (!product) return { family: key, nature: '' };
  const { M, N, K, outer, inner, window, gathered, half, narrow, turned, split } = product;
  const nature = [
    operation?.kind,
    window?.stride,
    Boolean(gathered),
    Boolean(split),
    half,
    narrow.A?.group,
    narrow.B?.group,
    turned,
  ].join(' ');
  return { family: [nature, M, N, K, outer * inner].join(' '), nature };
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
 * @param {(node: Node) => boolean} isNew which are compared
 * @returns {Promise<Map<string, number>>} how far off each form is that is too far off
 */
async function different(device, programs, graph, ways, chosen, isNew) {
  /** @type {Map<Node, Launch[]>} */
  const ours = new Map();
  for (const node of graph.nodes) {
    const option = isNew(node) && optionOf(ways.get(node), chosen);
    if (option) ours.set(node, option.launches);
  }
  if (!ours.size) return new Map();
  const shares = await differences(device, programs, graph, ours);
  const most = (/** @type {Node} */ node) => Math.max(accepted(node), optionOf(ways.get(node), chosen)?.off ?? 0);
  const wrong = [...shares].filter(([node, share]) => !(share <= most(node)));
  return new Map(wrong.map(([node, share]) => [/** @type {Way} */ (ways.get(node)).key, share]));
}

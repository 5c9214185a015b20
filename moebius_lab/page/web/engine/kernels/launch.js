// What one dispatch of ours is, and what its WGSL is made from.

import { Placeholder, pipelineOf } from '../capture.js';
import { HALVES, volume } from './operations.js';

/** @import { Narrow, Value } from './operations.js' */
/** @import { Dispatch } from '../types.js' */
/**
 * @typedef {object} Launch
 * @property {string} code WGSL; its bindings are `values` in their order, then the numbers
 * @property {Value[]} values
 * @property {Uint32Array} [numbers] of its uniforms
 * @property {[number, number, number]} workgroups
 * @property {string} [label] of the program, for those who look at it
 */

const { GPUBufferUsage } = /** @type {any} */ (globalThis); // flags that TypeScript's library lacks
const ROW = 32768; // workgroups in a row of a grid: a device takes 65535 at most

/**
 * Declarations of bindings: `reads` as they are, then the last, which is written.
 *
 * @param {Record<string, string>} types of the elements, by name; a name that begins with an exclamation mark is written
 * @returns {string}
 */
export function storage(types) {
  return lines(
    Object.entries(types).map(([name, type], i) => {
      const written = name.startsWith('!');
      const access = written ? 'read_write' : 'read';
      return `@group(0) @binding(${i}) var<storage, ${access}> ${name.replace('!', '')}: array<${type}>;`;
    }),
  );
}

/** @param {string[]} parts */
export function lines(parts) {
  return parts.join('\n');
}

/**
 * Numbers that are read as float32, however they are stored: the type of their binding, and WGSL of the functions `oneOfNAME(at)`, which
 * gives a number, or `fourOfNAME(at)`, which gives the four from 4 at on.
 *
 * @param {string} name of the binding; where its numbers have scales, theirs are bound as scaleOfNAME
 * @param {'one'|'four'} width of what is read
 * @param {Narrow|null} narrow null: float32
 * @returns {{types: Record<string, string>, code: string}}
 */
export function reading(name, width, narrow) {
  const one = width === 'one';
  const scaled = narrow?.scale ? ` * scaleOf${name}[at / ${narrow.group / (one ? 1 : 4)}u]` : '';
  const [type, number] = !narrow
    ? [one ? 'f32' : 'vec4f', `${name}[at]`]
    : narrow.scale
      ? ['u32', one ? `f32(extractBits(bitcast<i32>(${name}[at / 4u]), 8u * (at % 4u), 8u))` : `vec4f(unpack4xI8(${name}[at]))`]
      : one
        ? ['u32', `unpack2x16float(${name}[at / 2u] >> (16u * (at % 2u))).x`]
        : ['vec2u', `vec4f(unpack2x16float(${name}[at].x), unpack2x16float(${name}[at].y))`];
  return {
    types: { [name]: type, ...(scaled && { [`scaleOf${name}`]: 'f32' }) },
    code: `fn ${width}Of${name}(at: u32) -> ${one ? 'f32' : 'vec4f'} { return ${number}${scaled}; }`,
  };
}

/**
 * How four float32 numbers of WGSL are stored: the type of the binding, and the text that stands for an expression's value.
 *
 * @param {boolean} half as numbers of 16 bits, each rounded
 * @returns {{type: string, code: string, of: (value: string) => string}}
 */
export function storing(half) {
  if (!half) return { type: 'vec4f', code: '', of: (value) => value };
  const code = 'fn packed(v: vec4f) -> vec2u { return vec2u(pack2x16float(v.xy), pack2x16float(v.zw)); }';
  return { type: 'vec2u', code, of: (value) => `packed(${value})` };
}

/** `make(0)` to `make(count - 1)`, one after another. @param {number} count @param {(i: number) => string} make */
export function repeat(count, make) {
  return lines(Array.from({ length: count }, (_, i) => make(i)));
}

/**
 * Numbers that a program reads as `u.NAME`, rather than as constants of its own: so that one program does for all sizes, as making
 * programs is most of what a first visit waits for.
 *
 * @param {Record<string, string>} types of the bindings before them
 * @param {Record<string, number>} values by name, unsigned integers
 * @returns {{declared: string, numbers: Uint32Array}} WGSL, and what goes with a launch
 */
export function numbered(types, values) {
  return { declared: uniforms(types, Object.keys(values)), numbers: Uint32Array.from(Object.values(values)) };
}

/**
 * The declaration of numbers that a program reads as `u.NAME`.
 *
 * @param {Record<string, string>} types of the bindings before them
 * @param {readonly string[]} names
 */
export function uniforms(types, names) {
  const members = names.map((name) => `${name}: u32`).join(', ');
  return `struct U { ${members} };\n@group(0) @binding(${Object.keys(types).length}) var<uniform> u: U;`;
}

/**
 * Workgroups for so many threads, and the line of WGSL that gives each its number `id` and ends those past the last.
 *
 * @param {number} threads
 * @param {number} size threads of a workgroup
 * @param {string} [last] WGSL of their number
 * @returns {{workgroups: [number, number, number], id: string}}
 */
export function grid(threads, size, last = `${threads}u`) {
  const count = Math.ceil(threads / size);
  const rows = Math.ceil(count / ROW);
  const id = `let id = global.x + global.y * ${ROW * size}u; if (id >= ${last}) { return; }`;
  return { workgroups: rows > 1 ? [ROW, rows, 1] : [count, 1, 1], id };
}

/**
 * A sum over a workgroup: `s[0]` has it afterwards; or over each of its groups of threads, whose first has it.
 *
 * @param {number} size threads of the workgroup, or of a group: a power of two
 * @param {(one: string, other: string) => string} [join] what to find instead of the sum
 * @param {string} [place] of a thread in its group
 */
export function sumOver(size, join = (one, other) => `${one} + ${other}`, place = 't') {
  const steps = [];
  for (let half = size / 2; half >= 1; half /= 2)
    steps.push(`workgroupBarrier(); if (${place} < ${half}u) { s[t] = ${join('s[t]', `s[t + ${half}u]`)}; }`);
  return lines([...steps, 'workgroupBarrier();']);
}

/** What makes a weight in 32 bits. @param {import('../capture.js').Widened} weight @returns {Launch} */
export function widening(weight) {
  const { size, stored, axes } = weight;
  const { shape, order } = axes ?? { shape: [size / 4], order: [0] };
  const { types, code } = reading('X', 'one', HALVES);
  const before = Array(4 - order.length).fill(1);
  const sides = [...before, ...order.map((axis) => shape[axis])];
  const strides = [...before, ...order.map((axis) => volume(shape.slice(axis + 1)))];
  const text = `${storage({ ...types, '!Y': 'f32' })}
${code}
struct U { sides: vec4u, strides: vec4u };
@group(0) @binding(2) var<uniform> u: U;
@compute @workgroup_size(256) fn main(@builtin(global_invocation_id) g: vec3u, @builtin(num_workgroups) n: vec3u) {
  let id = g.x + g.y * n.x * 256u; var rest = id; var at = 0u;
  for (var i = 3; i >= 0; i--) { at += rest % u.sides[i] * u.strides[i]; rest /= u.sides[i]; }
  if (rest == 0u) { Y[id] = oneOfX(at); }
}`;
  const { workgroups } = grid(volume(sides), 256);
  return { code: text, values: [stored, weight], numbers: Uint32Array.of(...sides, ...strides), workgroups };
}

/** Pipelines by their code, each made once for a device. */
export class Programs {
  /** @param {GPUDevice} device */
  constructor(device) {
    this.device = device;
    /** @type {Map<string, Promise<GPUComputePipeline>>} */
    this.made = new Map();
  }

  /**
   * @param {Pick<Launch, 'code'|'label'>} launch
   * @returns {Promise<GPUComputePipeline>} rejected where the device refuses the program
   */
  pipeline({ code, label = '' }) {
    const known = this.made.get(code);
    if (known) return known;
    const made = pipelineOf(this.device, label, code, {});
    this.made.set(code, made);
    return made;
  }

  /**
   * @param {Launch} launch
   * @returns {Promise<Dispatch>}
   */
  async dispatch(launch) {
    const { values, numbers, workgroups } = launch;
    const pipeline = await this.pipeline(launch);
    const places = /** @type {Value[]} */ ([...values, ...(numbers ? [uniform(numbers)] : [])]);
    const entries = /** @type {any[]} */ (places.map((buffer, binding) => ({ binding, resource: { buffer } })));
    return { pipeline, groups: [{ layout: pipeline.getBindGroupLayout(0), entries }], workgroups };
  }
}

/** @param {Uint32Array} numbers */
function uniform(numbers) {
  const place = new Placeholder({
    size: Math.ceil(numbers.byteLength / 16) * 16,
    usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
  });
  place.written = new Uint8Array(numbers.buffer.slice(0));
  return place;
}

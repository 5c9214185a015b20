// The commands of a graph for the graphics device: captured once without being run, and replayed in memory that was planned for them.
//
// ONNX Runtime reuses a tensor's buffer only for tensors of the same size. Once all commands are captured, every lifetime is known, so
// what is never alive at the same time, in one graph or in several, shares memory (`plan`).

const { GPUBufferUsage, GPUShaderStage } = /** @type {any} */ (globalThis); // flags that TypeScript's library lacks
export const NEXT_STATE = 'next_state'; // an output
const AT_ONCE = 64; // commands that are submitted together: the device starts on them while the next are encoded

/** @import { Allocation, Command, Guest, Lifetime, Place, Program, Region, Use } from './types.js' */

// -- programs ---------------------------------------------------------------------------------------------------------

/** @type {WeakMap<object, Program>} of modules and pipelines */
const programs = new WeakMap();

/** From now on know every program: the runtime makes some before anything is captured. */
export function watchPrograms() {
  const devices = GPUDevice.prototype;
  const { createShaderModule, createComputePipeline, createComputePipelineAsync } = devices;
  devices.createShaderModule = function (descriptor) {
    const module = createShaderModule.call(this, descriptor);
    const { label = '', code } = descriptor;
    programs.set(module, { label, code, constants: {}, uses: usesIn(code) });
    return module;
  };
  devices.createComputePipeline = function (descriptor) {
    return known(createComputePipeline.call(this, descriptor), descriptor);
  };
  devices.createComputePipelineAsync = async function (descriptor) {
    return known(await createComputePipelineAsync.call(this, descriptor), descriptor);
  };
}

/**
 * Know the program of a pipeline whose module was made while programs are watched.
 *
 * @template {object} T
 * @param {T} pipeline
 * @param {GPUComputePipelineDescriptor} descriptor
 */
export function known(pipeline, { label, compute }) {
  const found = programs.get(compute.module);
  if (found) programs.set(pipeline, { ...found, label: label || found.label, constants: { ...compute.constants } });
  return pipeline;
}

/**
 * Make a pipeline of a program, which is known from then on. Its layout has every binding that the program declares, used or not.
 *
 * @param {GPUDevice} device
 * @param {string} label
 * @param {string} code WGSL, with the entry point `main`
 * @param {Record<string, number>} constants
 * @returns {Promise<GPUComputePipeline>} rejected where the device refuses the program
 */
export async function pipelineOf(device, label, code, constants) {
  device.pushErrorScope('validation');
  const module = device.createShaderModule({ label, code });
  const layout = device.createPipelineLayout({ bindGroupLayouts: [device.createBindGroupLayout({ entries: entriesOf(code) })] });
  void device.popErrorScope(); // the pipeline says it
  const compute = { module, entryPoint: 'main', constants };
  const pipeline = await device.createComputePipelineAsync({ label, layout, compute });
  programs.set(pipeline, { label, code, constants, uses: usesIn(code) });
  return pipeline;
}

/**
 * The program of a pipeline that was made by `pipelineOf`, or while programs are watched.
 *
 * @param {GPUComputePipeline} pipeline
 * @returns {Program|undefined}
 */
export function programOf(pipeline) {
  return programs.get(pipeline);
}

const BUFFER = /@group\(0\)\s*@binding\((\d+)\)\s*var<\s*(storage|uniform)\s*(?:,\s*(\w+))?\s*>\s*(\w+)\s*:\s*([^;]+);/g;

/** @param {string} code @returns {GPUBindGroupLayoutEntry[]} of group 0 */
function entriesOf(code) {
  return [...code.matchAll(BUFFER)].map(([, binding, kind, access]) => ({
    binding: Number(binding),
    visibility: GPUShaderStage.COMPUTE,
    buffer: { type: kind === 'uniform' ? kind : access === 'read_write' ? 'storage' : 'read-only-storage' },
  }));
}

/**
 * What a program in WGSL does with the buffers of group 0.
 *
 * @param {string} code
 * @returns {Map<number, Use>} by binding
 */
export function usesIn(code) {
  /** @type {Map<number, Use>} */
  const found = new Map();
  for (const [, binding, , access, name, type] of code.matchAll(BUFFER)) {
    const reads = access !== 'read_write' || type.includes('atomic') || readsElement(code, name);
    found.set(Number(binding), access !== 'read_write' ? 'read' : reads ? 'both' : 'write');
  }
  return found;
}

/**
 * Whether a variable stands anywhere but, with an index, left of an assignment.
 *
 * @param {string} code
 * @param {string} name
 */
function readsElement(code, name) {
  for (const { index } of code.matchAll(new RegExp(`(?<![.\\w])${name}\\b(?!\\s*:)`, 'g'))) {
    let at = index + name.length;
    let depth = 0;
    do depth += code[at] === '[' ? 1 : code[at] === ']' ? -1 : 0;
    while (depth > 0 && ++at < code.length);
    if (code[at] !== ']' || !/^\s*=[^=]/.test(code.slice(at + 1))) return true;
  }
  return false;
}

// -- capture ----------------------------------------------------------------------------------------------------------

/** Stands for a buffer that does not exist yet: one that was asked for during a capture. */
export class Placeholder {
  /** @param {GPUBufferDescriptor} descriptor */
  constructor({ size, usage }) {
    this.size = size;
    this.usage = usage; // the runtime reads both
    this.uniform = (usage & GPUBufferUsage.UNIFORM) !== 0;
    /** @type {Uint8Array|null} what was written to it beforehand: the numbers that go with one dispatch */
    this.written = null;
  }

  destroy() {}
}

/** Stands for a weight in 32 bits, which takes memory only where something reads it so; what is stored is on the device. */
export class Widened extends Placeholder {
  /**
   * @param {number} size bytes
   * @param {GPUBuffer} stored its numbers in 16 bits
   * @param {{shape: number[], order: number[]}|null} axes of what is stored, and which of them each of its own is; null: the same
   */
  constructor(size, stored, axes) {
    super({ size, usage: GPUBufferUsage.STORAGE });
    this.stored = stored;
    this.axes = axes;
  }
}

/** The commands of one run, without memory for what they compute. */
export class Capture {
  constructor() {
    /** @type {Command[]} */
    this.commands = [];
  }

  /**
   * Capture what `work` asks of a device, which only makes the programs and runs nothing.
   *
   * @template T
   * @param {GPUDevice} device
   * @param {() => Promise<T>} work
   * @returns {Promise<{capture: Capture, value: T}>}
   * @throws {Error} `work` moves data between processor and device, or does anything else that a capture cannot hold
   */
  static async make(device, work) {
    const capture = new Capture();
    const { queue } = device;
    const submit = queue.submit.bind(queue);
    const instead = {
      createBuffer: placeholder,
      createBindGroup: (/** @type {GPUBindGroupDescriptor} */ descriptor) => descriptor,
      createCommandEncoder: () => capture.#encoder(),
    };
    const insteadOfQueue = {
      submit: (/** @type {GPUCommandBuffer[]} */ buffers) =>
        submit(buffers.filter((buffer) => buffer instanceof GPUCommandBuffer)),
      writeBuffer: keepWritten,
    };
    Object.assign(device, instead); // in front of the methods that it inherits
    Object.assign(queue, insteadOfQueue);
    try {
      return { capture, value: await work() };
    } finally {
      for (const name of Object.keys(instead)) Reflect.deleteProperty(device, name);
      for (const name of Object.keys(insteadOfQueue)) Reflect.deleteProperty(queue, name);
    }
  }

  #encoder() {
    const { commands } = this;
    return {
      beginComputePass() {
        /** @type {GPUComputePipeline} */
        let pipeline;
        /** @type {GPUBindGroupDescriptor[]} */
        const groups = [];
        return {
          setPipeline(/** @type {GPUComputePipeline} */ next) {
            pipeline = next;
          },
          setBindGroup(
            /** @type {number} */ index,
            /** @type {GPUBindGroupDescriptor} */ group,
            /** @type {unknown[]} */ ...offsets
          ) {
            if (index || offsets.length) throw new Error('a second group or offsets of a dispatch cannot be captured');
            groups[index] = group;
          },
          dispatchWorkgroups(x = 1, y = 1, z = 1) {
            commands.push({ pipeline, groups: [...groups], workgroups: [x, y, z] });
          },
          end() {},
        };
      },
      copyBufferToBuffer(
        /** @type {Place} */ source,
        /** @type {number} */ sourceOffset,
        /** @type {Place} */ target,
        /** @type {number} */ targetOffset,
        /** @type {number} */ size,
      ) {
        commands.push({ source, sourceOffset, target, targetOffset, size });
      },
      clearBuffer(/** @type {Place} */ cleared, offset = 0, size = cleared.size - offset) {
        commands.push({ cleared, offset, size });
      },
      finish: () => ({}),
    };
  }

  /**
   * The lifetimes of what the placeholders hold, except the numbers of single dispatches. The runtime itself reuses a buffer for
   * several tensors of one size: a lifetime ends where a program writes to the buffer after others have read it.
   *
   * @param {Iterable<unknown>} results buffers that are read when all commands are done
   * @returns {Lifetime[]}
   */
  lifetimes(results) {
    const { commands } = this;
    /** @type {Map<Placeholder, Lifetime>} */
    const last = new Map();
    /** @type {Lifetime[]} */
    const lifetimes = [];
    commands.forEach((command, at) => {
      for (const { place, use } of usesOf(command)) {
        if (!(place instanceof Placeholder) || place.uniform) continue;
        let lifetime = last.get(place);
        if (!lifetime && use === 'read' && !(place instanceof Widened)) throw new Error('a program reads what none has written');
        if (!lifetime || (use === 'write' && lifetime.read && lifetime.to < at)) {
          lifetime = { buffer: place, from: at, to: at, read: false, uses: new Map() };
          last.set(place, lifetime);
          lifetimes.push(lifetime);
        }
        lifetime.to = at;
        lifetime.read ||= use !== 'write';
        lifetime.uses.set(at, lifetime.uses.get(at) || use !== 'read');
      }
    });
    for (const result of results) {
      const lifetime = last.get(/** @type {Placeholder} */ (result));
      if (lifetime) lifetime.to = commands.length;
    }
    return lifetimes;
  }
}

/** @param {GPUBufferDescriptor} descriptor */
function placeholder(descriptor) {
  const mapped = GPUBufferUsage.MAP_READ | GPUBufferUsage.MAP_WRITE;
  if (descriptor.mappedAtCreation || descriptor.usage & mapped)
    throw new Error('data between processor and device cannot be captured');
  return new Placeholder(descriptor);
}

/**
 * @param {Place} place
 * @param {number} offset
 * @param {Uint8Array} data
 * @param {number} from
 * @param {number} size
 */
function keepWritten(place, offset, data, from = 0, size = data.length - from) {
  const numbers = place instanceof Placeholder && place.uniform && !place.written && !offset;
  if (!numbers) throw new Error('data for the device cannot be captured');
  place.written = data.slice(from, from + size);
}

/**
 * @param {Command} command
 * @returns {{place: Place, use: Use}[]}
 */
export function usesOf(command) {
  /** @returns {{place: Place, use: Use}} */
  const written = (/** @type {Place} */ place, /** @type {number} */ size) => ({
    place,
    use: size >= place.size ? 'write' : 'both',
  });
  if ('source' in command) return [{ place: command.source, use: 'read' }, written(command.target, command.size)];
  if ('cleared' in command) return [written(command.cleared, command.size)];
  const known = programOf(command.pipeline)?.uses;
  return command.groups.flatMap(({ entries }) =>
    [...entries].map(({ binding, resource }) => ({
      place: /** @type {any} */ (resource).buffer,
      use: known?.get(binding) ?? 'both',
    })),
  );
}

/**
 * A command on other buffers.
 *
 * @param {Command} command
 * @param {Map<unknown, Place>} names what stands for which
 * @returns {Command}
 */
export function renameIn(command, names) {
  const named = (/** @type {any} */ place) => names.get(place) ?? place;
  if ('source' in command) return { ...command, source: named(command.source), target: named(command.target) };
  if ('cleared' in command) return { ...command, cleared: named(command.cleared) };
  const groups = command.groups.map(({ layout, entries }) => {
    const own = /** @type {any[]} */ ([...entries]).map(({ binding, resource }) => ({
      binding,
      resource: { ...resource, buffer: named(resource.buffer) },
    }));
    return { layout, entries: own };
  });
  return { ...command, groups };
}

// -- planning ---------------------------------------------------------------------------------------------------------

/**
 * Allocate memory for the lifetimes of several captures, of which one is replayed at a time.
 *
 * The largest go first, each to the smallest buffer that has room for it, next to others if need be; a buffer is as large as
 * its first guest. A device lets no command write to a buffer that it also reads, so what meets in a command that writes is put
 * in different buffers.
 *
 * @param {Lifetime[][]} captures
 * @param {number} apart bytes; every allocation begins at a multiple of it
 * @returns {{sizes: number[], allocations: Map<Lifetime, Allocation>}} bytes of each buffer; where each lifetime is
 */
export function plan(captures, apart) {
  const guests = captures.flatMap((lifetimes, capture) =>
    lifetimes.map((lifetime) => ({ lifetime, capture, size: lifetime.buffer.size, offset: 0 })),
  );
  /** @type {{size: number, taken: Guest[]}[]} */
  const buffers = [];
  /** @type {Map<Lifetime, Allocation>} */
  const allocations = new Map();
  for (const guest of guests.sort((a, b) => b.size - a.size)) {
    let index = buffers.length;
    /** @type {number|null} */
    let offset = null;
    while (offset === null && index > 0) offset = roomIn(buffers[--index], guest, apart);
    if (offset === null) index = buffers.push({ size: guest.size, taken: [] }) - 1;
    guest.offset = offset ?? 0;
    buffers[index].taken.push(guest);
    allocations.set(guest.lifetime, { index, offset: guest.offset });
  }
  return { sizes: buffers.map(({ size }) => size), allocations };
}

/**
 * @param {{size: number, taken: Guest[]}} buffer
 * @param {Guest} guest
 * @param {number} apart
 * @returns {number|null} from which byte; null where there is no room
 */
function roomIn({ size, taken }, guest, apart) {
  const { from, to } = guest.lifetime;
  const alive = taken.filter(({ lifetime, capture }) => capture === guest.capture && lifetime.from <= to && lifetime.to >= from);
  if (alive.some(({ lifetime }) => clash(lifetime, guest.lifetime))) return null;
  let offset = 0;
  for (const other of alive.sort((a, b) => a.offset - b.offset)) {
    if (offset + guest.size <= other.offset) break;
    offset = Math.max(offset, Math.ceil((other.offset + other.size) / apart) * apart);
  }
  return offset + guest.size <= size ? offset : null;
}

/**
 * Whether a command that writes to one of two has to do with the other as well.
 *
 * @param {Lifetime} a
 * @param {Lifetime} b
 */
function clash(a, b) {
  return [...a.uses].some(([at, writes]) => b.uses.has(at) && (writes || b.uses.get(at)));
}

// -- replay -----------------------------------------------------------------------------------------------------------

/** A capture with memory allocated for it, to be run as often as wanted. */
export class Replay {
  /**
   * @param {GPUDevice} device
   * @param {Capture} capture
   * @param {Lifetime[]} lifetimes of the capture
   * @param {(lifetime: Lifetime) => Region} place
   */
  constructor(device, capture, lifetimes, place) {
    this.device = device;
    const numbers = dispatchNumbers(device, capture);
    const of = Map.groupBy(lifetimes, ({ buffer }) => buffer);
    const region = (/** @type {Place} */ buffer, /** @type {number} */ at) => {
      if (!(buffer instanceof Placeholder)) return { buffer, offset: 0 };
      return (
        numbers.get(buffer) ?? place(/** @type {Lifetime} */ (of.get(buffer)?.find(({ from, to }) => from <= at && at <= to)))
      );
    };
    const bind = (/** @type {any} */ { layout, entries }, /** @type {number} */ at) =>
      device.createBindGroup({
        layout,
        entries: [...entries].map(({ binding, resource: { buffer, offset = 0, size = buffer.size - offset } }) => {
          const found = region(buffer, at);
          return { binding, resource: { buffer: found.buffer, offset: found.offset + offset, size } };
        }),
      });
    /** @type {((encoder: GPUCommandEncoder, pass: GPUComputePassEncoder|null) => GPUComputePassEncoder|null)[]} */
    this.commands = capture.commands.map((command, at) => {
      if ('source' in command) {
        const { sourceOffset, targetOffset, size } = command;
        const [from, to] = [region(command.source, at), region(command.target, at)];
        return (encoder, pass) => {
          pass?.end();
          encoder.copyBufferToBuffer(from.buffer, from.offset + sourceOffset, to.buffer, to.offset + targetOffset, size);
          return null;
        };
      }
      if ('cleared' in command) {
        const { buffer, offset } = region(command.cleared, at);
        return (encoder, pass) => {
          pass?.end();
          encoder.clearBuffer(buffer, offset + command.offset, command.size);
          return null;
        };
      }
      const { pipeline, workgroups } = command;
      const [group] = command.groups.map((descriptor) => bind(descriptor, at));
      return (encoder, pass) => {
        const open = pass ?? encoder.beginComputePass();
        open.setPipeline(pipeline);
        open.setBindGroup(0, group);
        open.dispatchWorkgroups(...workgroups);
        return open;
      };
    });
  }

  /** Submit all commands; the device runs them in its own time. */
  run() {
    for (const buffer of this.#encoded()) this.device.queue.submit([buffer]);
  }

  /** Have the device look at all commands without running them: what is wrong with one is an error of validation. */
  check() {
    for (const _ of this.#encoded());
  }

  *#encoded() {
    for (let i = 0; i < this.commands.length; i += AT_ONCE) {
      const encoder = this.device.createCommandEncoder();
      /** @type {GPUComputePassEncoder|null} */
      let pass = null;
      for (const command of this.commands.slice(i, i + AT_ONCE)) pass = command(encoder, pass);
      pass?.end();
      yield encoder.finish();
    }
  }
}

/**
 * Put the numbers that go with each dispatch of a capture into one buffer.
 *
 * @param {GPUDevice} device
 * @param {Capture} capture
 * @returns {Map<Placeholder, Region>}
 */
function dispatchNumbers(device, capture) {
  const apart = device.limits.minUniformBufferOffsetAlignment;
  const places = new Set(capture.commands.flatMap(usesOf).map(({ place }) => place));
  /** @type {Map<Placeholder, number>} */
  const offsets = new Map();
  let size = 0;
  for (const place of places) {
    if (!(place instanceof Placeholder) || !place.uniform) continue;
    offsets.set(place, size);
    size += Math.ceil(place.size / apart) * apart;
  }
  const bytes = new Uint8Array(Math.max(size, apart));
  for (const [{ written }, offset] of offsets) bytes.set(written ?? [], offset);
  const buffer = device.createBuffer({ size: bytes.length, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST });
  device.queue.writeBuffer(buffer, 0, bytes);
  return new Map([...offsets].map(([place, offset]) => [place, { buffer, offset }]));
}

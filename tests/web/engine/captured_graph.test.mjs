// Graphs that are captured and replayed, on a device whose buffers are bytes in memory and whose only commands are copies.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import '../group_by.mjs';

globalThis.GPUBufferUsage = { MAP_READ: 1, MAP_WRITE: 2, COPY_SRC: 4, COPY_DST: 8, UNIFORM: 64, STORAGE: 128 };
globalThis.GPUMapMode = { READ: 1 };
globalThis.GPUCommandBuffer = class {
  constructor(copies) {
    this.copies = copies;
  }
};

const { ReplayedLoop, captureGraph, placeTogether } = await import('../../../moebius_lab/page/web/engine/captured_graph.js');

class Buffer {
  constructor({ size, usage }) {
    Object.assign(this, { size, usage, bytes: new Uint8Array(size) });
  }
  async mapAsync() {}
  getMappedRange() {
    return this.bytes.buffer;
  }
  destroy() {}
}

class Queue {
  writeBuffer(buffer, offset, data) {
    buffer.bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), offset);
  }
  submit(buffers) {
    for (const { copies } of buffers) {
      for (const [from, at, to, where, size] of copies) to.bytes.set(from.bytes.slice(at, at + size), where);
    }
  }
  async onSubmittedWorkDone() {}
}

class Device {
  queue = new Queue();
  limits = { minStorageBufferOffsetAlignment: 256, minUniformBufferOffsetAlignment: 256 };
  made = [];
  createBuffer(descriptor) {
    const buffer = new Buffer(descriptor);
    this.made.push(buffer);
    return buffer;
  }
  createCommandEncoder() {
    const copies = [];
    return { copyBufferToBuffer: (...copy) => copies.push(copy), finish: () => new globalThis.GPUCommandBuffer(copies) };
  }
}

const ort = { Tensor: { fromGpuBuffer: (gpuBuffer, { dims }) => ({ gpuBuffer, dims }) } };
const floats = (values) => Float32Array.from(values);

/** A graph that swaps the halves of a state of four, and hands `timestep` on once a condition, each through a buffer between. */
function session(device, types = {}) {
  const inputs = { state: [1, 4], timestep: [1], conditions: ['n'] };
  return {
    inputMetadata: Object.entries(inputs).map(([name, shape]) => ({ name, shape, type: types[name] ?? 'float32' })),
    async run({ state, timestep, conditions }) {
      const usage = globalThis.GPUBufferUsage.STORAGE;
      const [n] = conditions.dims;
      const [between, next, told] = [16, 16, 4 * n].map((size) => device.createBuffer({ size, usage }));
      const encoder = device.createCommandEncoder();
      encoder.copyBufferToBuffer(state.gpuBuffer, 0, between, 0, 16);
      encoder.copyBufferToBuffer(between, 8, next, 0, 8);
      encoder.copyBufferToBuffer(between, 0, next, 8, 8);
      for (let i = 0; i < n; i++) encoder.copyBufferToBuffer(timestep.gpuBuffer, 0, told, 4 * i, 4);
      device.queue.submit([encoder.finish()]);
      const dispose = () => {};
      return { next_state: { gpuBuffer: next, dims: [1, 4], dispose }, told: { gpuBuffer: told, dims: [n], dispose } };
    },
  };
}

async function captured(sizes = { step: 2 }) {
  const device = new Device();
  const captures = new Map();
  const one = session(device);
  let earlier;
  for (const [name, n] of Object.entries(sizes)) {
    earlier = await captureGraph(ort, one, device, { n }, earlier);
    captures.set(name, earlier);
  }
  return { device, ...placeTogether(device, captures) };
}

test('a capture does nothing while it is made, and what the inputs hold each time it runs', async () => {
  const { device, graphs } = await captured();
  const graph = graphs.get('step');
  assert.ok(
    device.made.every(({ bytes }) => bytes.every((value) => value === 0)),
    'nothing was copied yet',
  );
  for (const values of [
    [1, 2, 3, 4],
    [-5, 6, 7, 8],
  ]) {
    graph.write('state', floats(values));
    graph.write('timestep', floats([values[0] * 10]));
    graph.run();
    const outputs = await graph.values();
    assert.deepEqual([...outputs.next_state.data], [values[2], values[3], values[0], values[1]]);
    assert.deepEqual(outputs.next_state.dims, [1, 4]);
    assert.deepEqual([...outputs.told.data], [values[0] * 10, values[0] * 10]);
  }
  assert.throws(() => graph.write('mask', floats([1])), { code: 'bad-input', message: /no input "mask"/ });
});

const feeds = (timestep, n) => ({
  timestep: { dims: [1], data: floats([timestep]) },
  conditions: { dims: [n], data: new Float32Array(n) },
});

test('steps of both forms follow each other on the device, and stop where the device reports an error', async () => {
  const { graphs } = await captured({ step: 2, step_unguided: 1 });
  const [guided, unguided] = ['step', 'step_unguided'].map((name) => graphs.get(name));
  guided.write('state', floats([1, 2, 3, 4]));
  let broken = false;
  const loop = new ReplayedLoop(
    ({ conditions }) => (conditions.dims[0] === 1 ? unguided : guided),
    guided,
    () => {
      if (broken) throw new Error('device is gone');
    },
  );
  await loop.step(feeds(900, 1));
  assert.deepEqual([...(await loop.state())], [3, 4, 1, 2]);
  assert.deepEqual([...(await unguided.values()).told.data], [900]);
  await loop.step(feeds(850, 2));
  assert.deepEqual([...(await loop.state())], [1, 2, 3, 4]);
  assert.deepEqual([...(await guided.values()).told.data], [850, 850]);
  await loop.step(feeds(800, 1));
  assert.deepEqual([...(await loop.state())], [3, 4, 1, 2]);
  broken = true;
  await assert.rejects(loop.step(feeds(750, 2)), /device is gone/);
});

test('a step asked for while the one before is being computed goes on from its state', async () => {
  const { device, graphs } = await captured({ step: 2, step_unguided: 1 });
  const [guided, unguided] = ['step', 'step_unguided'].map((name) => graphs.get(name));
  const done = [];
  device.queue.onSubmittedWorkDone = () => new Promise((resolve) => done.push(resolve));
  guided.write('state', floats([1, 2, 3, 4]));
  const loop = new ReplayedLoop(
    ({ conditions }) => (conditions.dims[0] === 1 ? unguided : guided),
    guided,
    () => {},
  );
  const steps = [loop.step(feeds(900, 2)), loop.step(feeds(850, 1)), loop.step(feeds(800, 2))];
  assert.equal(done.length, 3, 'none waits for another');
  done.forEach((resolve) => resolve());
  await Promise.all(steps);
  assert.deepEqual([...(await loop.state())], [3, 4, 1, 2]);
  assert.deepEqual([...(await guided.values()).told.data], [800, 800]);
});

test('captures of which one runs at a time share their memory, and each still gives its own', async () => {
  const one = await captured();
  const two = await captured({ step: 2, step_unguided: 1 });
  assert.equal(two.bytes, one.bytes);
  assert.ok(one.bytes >= 16 + 16);
  for (const [i, graph] of [...two.graphs.values()].entries()) {
    graph.write('state', floats([i, 2, 3, 4]));
    graph.run();
    assert.deepEqual([...(await graph.values()).next_state.data], [3, 4, i, 2]);
  }
});

test('a size that nobody names is told', async () => {
  const device = new Device();
  await assert.rejects(captureGraph(ort, session(device), device, {}), {
    code: 'uncapturable',
    message: /its input conditions has the shape n, which leaves a size open/,
  });
});

test('what a capture cannot hold is told, and the device is as before', async () => {
  const device = new Device();
  await assert.rejects(captureGraph(ort, session(device, { timestep: 'int64' }), device, { n: 2 }), {
    code: 'uncapturable',
    message: /its input timestep is int64/,
  });
  const reads = {
    ...session(device),
    run: async () => device.createBuffer({ size: 4, usage: globalThis.GPUBufferUsage.MAP_READ }),
  };
  await assert.rejects(captureGraph(ort, reads, device, { n: 2 }), {
    code: 'uncapturable',
    message: /between processor and device/,
  });
  assert.ok(device.createBuffer({ size: 4, usage: 128 }) instanceof Buffer);
  assert.deepEqual(Object.keys(device.queue), []);
});

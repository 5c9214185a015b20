// Graphs that are captured and replayed, on a device whose buffers are bytes in memory and whose only commands are copies.

import assert from 'node:assert/strict';
import { test } from 'node:test';

globalThis.GPUBufferUsage = { MAP_READ: 1, MAP_WRITE: 2, COPY_SRC: 4, COPY_DST: 8, UNIFORM: 64, STORAGE: 128 };
globalThis.GPUMapMode = { READ: 1 };
globalThis.GPUCommandBuffer = class {
  constructor(copies) {
    this.copies = copies;
  }
};
Map.groupBy ??= (items, key) => {
  // browsers have it; Node does from 21
  const groups = new Map();
  for (const item of items) groups.set(key(item), [...(groups.get(key(item)) ?? []), item]);
  return groups;
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

/** A graph that swaps the halves of four latents, and hands `timestep` on, each through a buffer between. */
function session(device, types = {}) {
  const inputs = { latents: [1, 4], timestep: [1], latent_scale: [1], noise_scale: [1] };
  return {
    inputMetadata: Object.entries(inputs).map(([name, shape]) => ({ name, shape, type: types[name] ?? 'float32' })),
    async run({ latents, timestep }) {
      const usage = globalThis.GPUBufferUsage.STORAGE;
      const [between, next, told] = [16, 16, 4].map((size) => device.createBuffer({ size, usage }));
      const encoder = device.createCommandEncoder();
      encoder.copyBufferToBuffer(latents.gpuBuffer, 0, between, 0, 16);
      encoder.copyBufferToBuffer(between, 8, next, 0, 8);
      encoder.copyBufferToBuffer(between, 0, next, 8, 8);
      encoder.copyBufferToBuffer(timestep.gpuBuffer, 0, told, 0, 4);
      device.queue.submit([encoder.finish()]);
      const dispose = () => {};
      return { next_latents: { gpuBuffer: next, dims: [1, 4], dispose }, told: { gpuBuffer: told, dims: [1], dispose } };
    },
  };
}

async function captured(names = ['step']) {
  const device = new Device();
  const captures = new Map();
  for (const name of names) captures.set(name, await captureGraph(ort, session(device), device));
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
    graph.write('latents', floats(values));
    graph.write('timestep', floats([values[0] * 10]));
    await graph.run();
    const outputs = await graph.values();
    assert.deepEqual([...outputs.next_latents.data], [values[2], values[3], values[0], values[1]]);
    assert.deepEqual(outputs.next_latents.dims, [1, 4]);
    assert.deepEqual([...outputs.told.data], [values[0] * 10]);
  }
  assert.throws(() => graph.write('mask', floats([1])), { code: 'bad-input', message: /no input "mask"/ });
});

test('steps follow each other on the device, with their numbers, and stop where the device reports an error', async () => {
  const { graphs } = await captured();
  const graph = graphs.get('step');
  graph.write('latents', floats([1, 2, 3, 4]));
  let broken = false;
  const loop = new ReplayedLoop(graph, () => {
    if (broken) throw new Error('device is gone');
  });
  await loop.step({ timestep: 900, latentScale: 1, noiseScale: 0 });
  assert.deepEqual([...(await loop.latents())], [3, 4, 1, 2]);
  assert.deepEqual([...(await graph.values()).told.data], [900]);
  await loop.step({ timestep: 850, latentScale: 1, noiseScale: 0 });
  assert.deepEqual([...(await loop.latents())], [1, 2, 3, 4]);
  broken = true;
  await assert.rejects(loop.step({ timestep: 800, latentScale: 1, noiseScale: 0 }), /device is gone/);
  assert.deepEqual([...(await loop.latents())], [1, 2, 3, 4], 'latents are those before');
});

test('graphs of which one runs at a time share their memory, and each still gives its own', async () => {
  const one = await captured();
  const two = await captured(['step', 'again']);
  assert.equal(two.bytes, one.bytes);
  assert.ok(one.bytes >= 16 + 16);
  for (const [i, graph] of [...two.graphs.values()].entries()) graph.write('latents', floats([i, 2, 3, 4]));
  for (const [i, graph] of [...two.graphs.values()].entries()) {
    await graph.run();
    assert.deepEqual([...(await graph.values()).next_latents.data], [3, 4, i, 2]);
  }
});

test('what a capture cannot hold is told, and the device is as before', async () => {
  const device = new Device();
  await assert.rejects(captureGraph(ort, session(device, { timestep: 'int64' }), device), {
    code: 'uncapturable',
    message: /its input timestep is int64/,
  });
  const reads = {
    ...session(device),
    run: async () => device.createBuffer({ size: 4, usage: globalThis.GPUBufferUsage.MAP_READ }),
  };
  await assert.rejects(captureGraph(ort, reads, device), { code: 'uncapturable', message: /between processor and device/ });
  assert.ok(device.createBuffer({ size: 4, usage: 128 }) instanceof Buffer);
  assert.deepEqual(Object.keys(device.queue), []);
});

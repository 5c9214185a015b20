// What is computed once of weights alone, on a device that adds numbers.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import '../group_by.mjs';

globalThis.GPUBufferUsage = { UNIFORM: 64, STORAGE: 128, COPY_DST: 8, COPY_SRC: 4, MAP_READ: 1, MAP_WRITE: 2 };
globalThis.GPUShaderStage = { COMPUTE: 4 };

/** Runs each dispatch as it is submitted: z = x + y + the first of its uniforms. */
globalThis.GPUDevice = class {
  limits = { minUniformBufferOffsetAlignment: 256 };
  ran = 0;
  held = 0;
  most = 0;
  queue = {
    writeBuffer: ({ content }, at, data) => new Uint8Array(content.buffer).set(data, at),
    submit: (lists) => lists.flat().forEach((command) => (this.ran++, command())),
    onSubmittedWorkDone: async () => {},
  };

  createBuffer({ size }) {
    const destroy = () => ((buffer.gone = true), (this.held -= size));
    const buffer = { size, content: new Float32Array(size / 4), gone: false, destroy };
    this.held += size;
    this.most = Math.max(this.most, this.held);
    return buffer;
  }

  createBindGroup({ entries }) {
    return entries.map(({ resource }) => resource);
  }

  createShaderModule() {
    return {};
  }

  createComputePipeline() {
    return {};
  }

  createCommandEncoder() {
    const commands = [];
    let bound = null;
    const pass = {
      setPipeline() {},
      setBindGroup: (_, group) => (bound = group),
      dispatchWorkgroups() {
        const [x, y, z, u] = bound;
        for (const { buffer } of [x, y, z]) assert.ok(!buffer.gone);
        commands.push(() =>
          z.buffer.content.forEach(
            (_, i, all) => (all[i] = x.buffer.content[i] + y.buffer.content[i] + u.buffer.content[u.offset / 4]),
          ),
        );
      },
      end() {},
    };
    return { beginComputePass: () => pass, finish: () => commands };
  }
};
const engine = '../../../moebius_lab/page/web/engine';
const { Capture, Placeholder, Replay, watchPrograms } = await import(`${engine}/capture.js`);
const { computeOnce } = await import(`${engine}/recorded/once.js`);
watchPrograms();

const SIZE = 16;
const names = ['x', 'y', 'z'].map(
  (name, i) => `@group(0) @binding(${i}) var<storage, ${i < 2 ? 'read' : 'read_write'}> ${name}: array<f32>;`,
);
const code = `${names.join('\n')}\n@group(0) @binding(3) var<uniform> u: f32;\nfn main() { z[0] = 1; }`;

function setUp() {
  const device = new GPUDevice();
  const adding = device.createComputePipeline({ label: 'Add', compute: { module: device.createShaderModule({ code }) } });
  const number = (value, size = SIZE) => {
    const buffer = device.createBuffer({ size });
    buffer.content.fill(value);
    return buffer;
  };
  const between = (size = SIZE) => new Placeholder({ size, usage: 128 });
  const sum = (x, y, z, more = 0) => {
    const numbers = new Placeholder({ size: 16, usage: 64 });
    numbers.written = new Uint8Array(Float32Array.of(more, 0, 0, 0).buffer);
    const entries = [x, y, z, numbers].map((buffer, binding) => ({ binding, resource: { buffer } }));
    return { pipeline: adding, groups: [{ layout: null, entries }], workgroups: [1, 1, 1] };
  };
  const captured = (input, commands, output) => {
    const capture = new Capture();
    capture.commands = commands;
    return {
      capture,
      inputs: new Map([['x', input]]),
      outputs: new Map([['y', { buffer: output, dims: [4] }]]),
      lifetimes: capture.lifetimes([output]),
    };
  };
  const result = ({ capture, lifetimes, outputs }) => {
    const places = new Map(lifetimes.map((lifetime) => [lifetime, device.createBuffer({ size: lifetime.buffer.size })]));
    new Replay(device, capture, lifetimes, (lifetime) => ({ buffer: places.get(lifetime), offset: 0 })).run();
    const { buffer } = outputs.get('y');
    return places.get(lifetimes.findLast((lifetime) => lifetime.buffer === buffer)).content[0];
  };
  return { device, number, between, sum, captured, result };
}

test('what depends on weights alone is computed once for all graphs, and weights that only it reads are given back', async () => {
  const { device, number, between, sum, captured, result } = setUp();
  const [input, a, b, c] = [1, 10, 100, 1000].map((value) => number(value));
  const graph = (more) => {
    const [once, twice, next, y] = [between(), between(), between(), between()];
    const chain = [sum(a, b, once), sum(once, b, twice, 5)]; // 215
    return captured(input, [...chain, sum(twice, input, next), sum(next, c, y, more)], y);
  };
  const graphs = new Map([
    ['one', graph(0)],
    ['other', graph(0.5)],
  ]);
  const before = [...graphs.values()].map(result);
  assert.deepEqual(before, [1216, 1216.5]);
  device.ran = 0;
  const { captures: made, bytes } = await computeOnce(device, graphs, [a, b, c], true);
  assert.deepEqual([device.ran, bytes], [2, SIZE]); // the chain, for both graphs
  assert.deepEqual(
    [a, b, c, input].map(({ gone }) => gone),
    [true, true, false, false],
  );
  const left = [...made.values()].map(({ capture }) => capture.commands.length);
  assert.deepEqual([left, [...made.values()].map(result)], [[2, 2], before]);
});

test('a buffer that later holds something else, numbers of a dispatch, and what a run gives are told apart', async () => {
  const { device, number, between, sum, captured, result } = setUp();
  const [input, a, b] = [1, 10, 100].map((value) => number(value));
  const [held, other, sums, y] = [between(), between(), between(), between()];
  const commands = [
    sum(a, b, held), // 110
    sum(held, input, sums), // 111
    sum(a, b, other, 7), // 117: not the same
    sum(sums, other, held), // 228, where 110 was
    sum(held, b, y), // 328
  ];
  const graphs = new Map([['varies', captured(input, commands, y)]]);
  const constant = captured(input, [sum(a, b, other), sum(other, a, y)], y); // a result: it is computed in each run
  graphs.set('gives a constant', constant);
  const { captures: made } = await computeOnce(device, graphs, [a, b], true);
  assert.deepEqual(
    [...made.values()].map(({ capture }) => capture.commands.length),
    [3, 1],
  );
  assert.deepEqual([...made.values()].map(result), [328, 120]);
  assert.ok(!a.gone && !b.gone);
});

test('what would take too much memory stays, the smallest come first, and where all is to stay it does', async () => {
  const { device, number, between, sum, captured, result } = setUp();
  const LARGE = 2 ** 26;
  const [input, a, wide] = [number(1), number(10), number(100, LARGE)];
  const [large, small, next, y] = [between(LARGE), between(), between(), between()];
  const graph = () =>
    captured(input, [sum(wide, wide, large), sum(a, a, small), sum(large, input, next), sum(next, small, y)], y);
  const { captures: kept } = await computeOnce(device, new Map([['graph', graph()]]), [a, wide], true);
  assert.deepEqual(
    [kept.get('graph').capture.commands.length, result(kept.get('graph')), a.gone, wide.gone],
    [3, 221, true, false],
  );
  a.gone = false;
  const { captures: none } = await computeOnce(device, new Map([['graph', graph()]]), [a, wide], false);
  assert.deepEqual([none.get('graph').capture.commands.length, result(none.get('graph')), a.gone], [4, 221, false]);
});

test('what stands between takes memory in its turn only, and so do weights that nothing else reads', async () => {
  const { device, number, between, sum, captured } = setUp();
  const LARGE = 2 ** 26;
  const [input, ...weights] = [number(1), ...[1, 2, 3].map((value) => number(value, LARGE))];
  const [all, y] = [between(), between()];
  const chains = weights.map((weight) => ({ weight, large: between(LARGE), small: between() }));
  const made = chains.flatMap(({ weight, large, small }) => [sum(weight, weight, large), sum(large, large, small)]);
  const [one, two, three] = chains.map(({ small }) => small);
  const graph = captured(input, [...made, sum(one, input, all), sum(two, all, all), sum(three, all, y)], y);
  device.most = 0;
  await computeOnce(device, new Map([['graph', graph]]), weights, true);
  assert.ok(device.most < 4.1 * LARGE, `${device.most / LARGE}`); // three weights and what the first becomes, then ever less
  assert.ok(weights.every(({ gone }) => gone));
});

// What the runtime's commands mean and how they are merged; what kernels compute, tests/page/test_kernels.py knows.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import '../group_by.mjs';

globalThis.GPUMapMode = { READ: 1 };
globalThis.GPUBufferUsage = { UNIFORM: 64, STORAGE: 128, COPY_DST: 8, COPY_SRC: 4, MAP_READ: 1, MAP_WRITE: 2 };
globalThis.GPUShaderStage = { COMPUTE: 4 };
globalThis.GPUDevice = class {
  createShaderModule() {
    return {};
  }

  createBindGroupLayout() {
    return {};
  }

  createPipelineLayout() {
    return {};
  }

  createComputePipeline() {
    return {};
  }

  async createComputePipelineAsync() {
    return { getBindGroupLayout: () => null };
  }

  pushErrorScope() {}

  async popErrorScope() {}
};
const engine = '../../../moebius_lab/page/web/engine';
const { Capture, Placeholder, Widened, plan, usesOf, watchPrograms } = await import(`${engine}/capture.js`);
const { Graph } = await import(`${engine}/kernels/graph.js`);
const { numbersOf, plainProduct } = await import(`${engine}/kernels/operations.js`);
const { PASSES, simplified } = await import(`${engine}/kernels/passes.js`);
const { optionsFor } = await import(`${engine}/kernels/options.js`);
const { Programs } = await import(`${engine}/kernels/launch.js`);
const { TILES, halfTilesFor, isTiny, launchProduct, memoryOf, nameOf, threadsOf, tilesFor, traitsOf } = await import(
  `${engine}/kernels/product.js`
);
const { accepted } = await import(`${engine}/kernels/comparison.js`);
const { MATRIX_UNITS, infos } = await import(`${engine}/device.js`);
const { replaceKernels } = await import(`${engine}/kernels/replacement.js`);
watchPrograms();
const device = new GPUDevice();

const DEFAULT = {
  maxComputeInvocationsPerWorkgroup: 256,
  maxComputeWorkgroupStorageSize: 16384,
  maxStorageBuffersPerShaderStage: 8,
  maxStorageBufferBindingSize: 2 ** 27,
};

/** A program with these buffers, the last of them `written`, and these uniforms: what it does is its name. */
function program(label, buffers, uniforms, more = '', written = 1) {
  const names = Object.entries(buffers);
  const bindings = names.map(([name, type], i) => {
    const access = i >= names.length - written ? 'read_write' : 'read';
    return `@group(0) @binding(${i}) var<storage, ${access}> ${name}: array<${type}>;`;
  });
  const code = `${bindings.join('\n')}
struct Uniforms {
  ${uniforms.join(',\n  ')}
};
@group(0) @binding(${names.length}) var<uniform> uniforms: Uniforms;
${more}
fn main() { ${names.at(-1)[0]}[0] = 1; }`;
  return device.createComputePipeline({ label, compute: { module: device.createShaderModule({ code }) } });
}

const four = 'vec4<f32>';
const PRODUCT = [
  'a_shape: vec3<u32>',
  'b_shape: vec3<u32>',
  'batch_dims_shape: u32',
  ...['dim_a_outer', 'dim_b_outer', 'dim_inner'].map((n) => `${n}: u32`),
  'splits_per_batch: u32',
];
const STORES = 'fn mm_write(valueIn: output_value_t) {\n  var value = valueIn;\n}';
const matmul = program('MatMul', { a: four, b: four, output: four }, PRODUCT, STORES);
const silu = program('QuickGelu', { x: four, y: four }, ['vec_size: u32', 'attr: f32']);
const add = program('Add', { input_a: four, input_b: four, output: four }, ['vec_size: u32', 'element_count: u32']);
const cast = program('Cast', { x: 'vec4<f16>', y: four }, ['vec_size: u32', 'output_size: u32']);
const dequantize = program(
  'DequantizeLinear',
  { input: 'u32', scale: 'f32', output: 'f32' },
  ['output_shape: vec2<u32>', 'output_stride: u32', 'axis: u32', 'block_size: u32', 'output_size: u32'],
  'let x_vec = unpack4xI8(x);\nlet zero_point_value = input_element_t(0);',
);
const transpose = program('Transpose', { a: 'f32', output: 'f32' }, ['a_shape: vec2<u32>'], 'a[0]=i[1];\na[1]=i[0];');
const blockwise = program(
  'Transpose',
  { a: 'f32', output: 'f32' },
  ['a_shape: vec2<u32>', 'a_stride: u32'],
  'set_output_by_indices(output_indices_t(output_row, output_col), tile[local_id.x][local_id.y]);',
);
const gemm = program(
  'Gemm',
  { a: four, b: four, c: four, output: four },
  ['dim_a_outer: u32', 'dim_b_outer: u32', 'dim_inner: u32', 'alpha: f32', 'beta: f32', 'c_shape: vec2<u32>'],
  'mm_readA(batch, globalRow + innerRow, 0);\nmm_readB(batch, globalColStart + innerRow, 0);',
);
const unknown = program('Unknown', { x: four, y: four }, ['size: u32']);

const tensor = (numbers) => new Placeholder({ size: 4 * numbers, usage: 128 });

function dispatch(pipeline, buffers, words) {
  const uniform = new Placeholder({ size: 4 * words.length, usage: 64 });
  uniform.written = new Uint8Array(Uint32Array.from(words).buffer);
  const entries = [...buffers, uniform].map((buffer, binding) => ({ binding, resource: { buffer } }));
  return { pipeline, groups: [{ layout: null, entries }], workgroups: [1, 1, 1] };
}

const ONE = 0x3f800000; // 1 as a float32
const M = 16;
const N = 8;
const K = 12;
const multiplied = (A, B, C) => dispatch(matmul, [A, B, C], [1, M, K / 4, 0, 1, K, N / 4, 1, M, N, K, 1]);
const activated = (x, y) => dispatch(silu, [x, y], [(M * N) / 4, ONE]);
const added = (x, y, z) => dispatch(add, [x, y, z], [(M * N) / 4, M * N]);

function captured(commands, output, ...inputs) {
  const capture = new Capture();
  capture.commands = commands;
  return {
    capture,
    inputs: new Map(inputs.map((input, i) => [`input ${i}`, input])),
    outputs: new Map([['y', { buffer: output, dims: [M, N] }]]),
    lifetimes: [],
  };
}

/** Buffers that are there before a run, as weights and inputs are. */
const given = (numbers) => ({ size: 4 * numbers, usage: 128 });

test('the numbers of a dispatch lie as WGSL lays them out', () => {
  const code =
    'struct Uniforms {\n  one: u32,\n  two: vec2<u32>,\n  three: vec3<u32>,\n  last: u32,\n  many: array<vec4<u32>, 2>,\n  end: f32\n};';
  const words = Uint32Array.from({ length: 20 }, (_, i) => i);
  assert.deepEqual(numbersOf(code, new Uint8Array(words.buffer)), {
    one: [0],
    two: [2, 3],
    three: [4, 5, 6],
    last: [7],
    many: [8, 9, 10, 11, 12, 13, 14, 15],
    end: [16],
  });
});

test('what follows a product moves into it', () => {
  const [A, B, R] = [given(M * K), given(K * N), given(M * N)];
  const [c, s, y] = [tensor(M * N), tensor(M * N), tensor(M * N)];
  const graph = Graph.of(captured([multiplied(A, B, c), activated(c, s), added(R, s, y)], y, A, R));
  for (const pass of Object.values(PASSES)) pass(graph);
  assert.equal(graph.nodes.length, 1);
  const [{ operation, commands }] = graph.nodes;
  assert.equal(commands.length, 3);
  assert.deepEqual([operation.M, operation.N, operation.K, operation.silu, operation.sums], [M, N, K, true, [R]]);
  assert.equal(operation.C, graph.outputs.get('y').buffer);
  assert.ok(optionsFor(graph.nodes[0], DEFAULT).length > 0);
});

test('a product whose result others need keeps it', () => {
  const [A, B] = [given(M * K), given(K * N)];
  const [c, s, y] = [tensor(M * N), tensor(M * N), tensor(M * N)];
  const graph = Graph.of(captured([multiplied(A, B, c), activated(c, s), added(c, s, y)], y, A));
  for (const pass of Object.values(PASSES)) pass(graph);
  assert.deepEqual(
    graph.nodes.map(({ operation }) => operation.kind),
    ['product', 'silu', 'add'],
  );
  const result = Graph.of(captured([multiplied(A, B, c), activated(c, s)], c, A)); // it is what the graph gives
  for (const pass of Object.values(PASSES)) pass(result);
  assert.equal(result.nodes.length, 2);
});

test('a buffer that the runtime uses twice is two values', () => {
  const [A, B] = [given(M * K), given(K * N)];
  const [c, s] = [tensor(M * N), tensor(M * N)];
  const graph = Graph.of(captured([multiplied(A, B, c), activated(c, s), multiplied(A, B, c), added(c, s, s)], s, A));
  const [first, , second, last] = graph.nodes;
  assert.notEqual(first.writes[0], second.writes[0]);
  assert.deepEqual(last.reads.includes(second.writes[0]), true);
  assert.equal(graph.onlyReader(first.writes[0]), graph.nodes[1]);
});

const placeOf = (size) => new Placeholder({ size, usage: 128 });
const passed = (captured) => {
  const graph = Graph.of(captured);
  for (const pass of Object.values(PASSES)) pass(graph);
  return graph;
};
const commandsOf = (graph) => graph.ordered().flatMap(({ commands }) => commands);
const widened = (x, y) => dispatch(cast, [x, y], [(K * N) / 4, K * N]);
const scaled = (x, scale, y, group) => dispatch(dequantize, [x, scale, y], [(K * N) / group, group, group, 0, 0, K * N]);
const turned = (x, y) => dispatch(transpose, [x, y], [N, K]);
const inBlocks = (x, y) => dispatch(blockwise, [x, y], [N, K, K]);
const byColumns = (A, B, bias, y) => dispatch(gemm, [A, B, bias, y], [M, N, K, ONE, ONE, 0, 1, N / 4]);

test('weights that are widened in each run are read as they are stored, and no memory is planned for what they become', async () => {
  const [A, halves, bytes, scale] = [given(M * K), given((K * N) / 2), given((K * N) / 4), given((K * N) / 8)];
  const [B, C, other, y] = [tensor(K * N), tensor(M * N), tensor(K * N), tensor(M * N)];
  const shapes = {
    halves: [widened(halves, B), multiplied(A, B, y)],
    bytes: [scaled(bytes, scale, B, 8), multiplied(A, B, y)],
    'bytes by columns': [scaled(bytes, scale, B, 8), turned(B, other), multiplied(A, other, y)],
    'bytes by columns, block by block': [scaled(bytes, scale, B, 8), inBlocks(B, other), multiplied(A, other, y)],
    'bytes by columns, as Gemm reads them': [scaled(bytes, scale, B, 8), byColumns(A, B, given(N), y)],
    'an A of halves': [widened(halves, C), multiplied(C, A, y)],
  };
  for (const [name, commands] of Object.entries(shapes)) {
    const graph = Graph.of(captured(commands, y, A));
    const planned = (own) => plan([graph.captured(own).lifetimes], 256).sizes.reduce((sum, size) => sum + size, 0);
    const before = planned(commandsOf(graph));
    for (const pass of Object.values(PASSES)) pass(graph);
    assert.deepEqual([graph.nodes.length, graph.nodes[0].commands.length], [1, commands.length], name);
    assert.equal(planned(commandsOf(graph)), before, name); // the runtime's commands stay with their node
    const { operation, reads } = graph.nodes[0];
    const programs = new Programs(device);
    const ours = await Promise.all(launchProduct(operation, TILES.small).map((launch) => programs.dispatch(launch)));
    assert.ok(before > y.size && planned(ours) === y.size, name);
    assert.deepEqual([operation.turned, reads.includes(scale)], [/by columns/.test(name), name.startsWith('bytes')], name);
  }
});

test('weights of 16 bits in a recording are read as they are stored, and take memory in 32 where something reads them so', () => {
  const A = given(M * K);
  const stored = given((K * N) / 2);
  const weight = (axes = null) => new Widened(4 * K * N, stored, axes);
  const y = tensor(M * N);
  const graphOf = (commands) => {
    const graph = Graph.of(captured(commands, y, A));
    for (const pass of Object.values(PASSES)) pass(graph);
    return graph;
  };
  for (const axes of [null, { shape: [N, K], order: [1, 0] }]) {
    const [B, C] = [weight(axes), tensor(M * N)];
    const { nodes } = graphOf([multiplied(A, B, C), multiplied(A, B, y)]); // each of its readers for itself
    for (const { operation, reads, commands } of nodes) {
      assert.deepEqual([operation.B, operation.turned, reads], [stored, axes !== null, [A, stored]]);
      assert.ok(commands.flatMap(usesOf).some(({ place }) => place === B)); // the runtime's command does not
    }
  }
  const first = graphOf([multiplied(weight(), A, y)]).nodes[0].operation;
  assert.deepEqual([first.A, first.narrow], [stored, { A: { scale: null, group: 1 }, B: null }]);
  const others = [weight({ shape: [4, 3, N], order: [2, 0, 1] }), weight({ shape: [K, N], order: [1, 0] })];
  for (const B of others) assert.equal(graphOf([multiplied(A, B, y)]).nodes[0].operation.B, B);

  const B = weight();
  const added = graphOf([dispatch(unknown, [B, tensor(K * N)], [1]), multiplied(A, B, y)]);
  assert.deepEqual(added.nodes[0].reads, [B]);
  const { lifetimes } = added.captured(commandsOf(added));
  const held = lifetimes.find(({ buffer }) => buffer === B);
  assert.deepEqual([held.from, held.to, held.read], [0, 1, true]); // from the first that reads it to the last
});

test('kernels of a convolution are read as ONNX stores them, and no others', () => {
  const [N, channels, taps] = [8, 16, 9];
  const x = given((N * channels * taps) / 4);
  const merged = (order, window) => {
    const [y, B, C] = [tensor(N * channels * taps), tensor(N * channels * taps), tensor(64 * N)];
    const A = given(64 * channels);
    const product = { ...plainProduct({ M: 64, N, K: channels * taps, A, B, C }), window };
    const operations = [
      { kind: 'widen', x, narrow: { scale: null, group: 1 }, y },
      { kind: 'transpose', x: y, y: B, half: false, shape: [N, channels, 3, 3], order },
      product,
    ];
    const reads = [[x], [y], [A, B]];
    const nodes = operations.map((operation, at) => ({
      commands: [],
      operation,
      reads: reads[at],
      writes: [[y], [B], [C]][at],
      at,
    }));
    const graph = new Graph(nodes, new Map(), new Map([['y', { buffer: C, dims: [64, N] }]]));
    PASSES['narrow weights'](graph);
    return graph.nodes.length === 1 && graph.nodes[0].operation.turned && graph.nodes[0].operation.B === x;
  };
  assert.ok(merged([2, 3, 1, 0], { channels }));
  assert.ok(!merged([2, 3, 0, 1], { channels }) && !merged([2, 3, 1, 0], null) && !merged([2, 3, 1, 0], { channels: 8 }));
});

const halved = program('MatMul', { a: 'vec4<f16>', b: 'vec4<f16>', output: 'vec4<f16>' }, PRODUCT, STORES);
const activatedHalves = program('QuickGelu', { x: 'vec4<f16>', y: 'vec4<f16>' }, ['vec_size: u32', 'attr: f32']);

test('a product of 16 bits is one, and takes SiLU of 16 bits with it', () => {
  const half = (numbers) => new Placeholder({ size: 2 * numbers, usage: 128 });
  const [A, B, c, y] = [given((M * K) / 2), given((K * N) / 2), half(M * N), half(M * N)];
  const numbers = [1, M, K / 4, 0, 1, K, N / 4, 1, M, N, K, 1];
  const commands = [dispatch(halved, [A, B, c], numbers), dispatch(activatedHalves, [c, y], [(M * N) / 4, ONE])];
  const graph = Graph.of(captured(commands, y, A));
  for (const pass of Object.values(PASSES)) pass(graph);
  assert.equal(graph.nodes.length, 1);
  const { half: halves, silu: active, narrow } = graph.nodes[0].operation;
  assert.deepEqual([halves, active, Boolean(narrow.A), Boolean(narrow.B)], [true, true, true, true]);
  const single = Graph.of(captured([multiplied(A, B, y)], y, A)).nodes[0].operation;
  assert.deepEqual([single.half, single.narrow.A], [false, null]);
});

test('norms of 16 bits read what the runtime widens for them, and write what it rounds, without its Casts', async (t) => {
  const half = 'vec4<f16>';
  const rounded = program('Cast', { x: four, y: half }, ['vec_size: u32', 'output_size: u32']);
  const moments = program(
    'ComputeChannelScaleShift',
    { x: four, scale: 'f32', bias: 'f32', output: four },
    ['x_shape: vec3<u32>'],
    'inverseSqrt(squared_sum / f32(size) + f32(1e-05));',
  );
  const normal = program('InstanceNorm', { input: four, scale_shift: 'vec2<f32>', output: four }, ['size: u32']);
  const affine = program(
    'BatchNormalization',
    { input_tensor: half, scale: 'f16', B: 'f16', input_mean: 'f16', input_var: 'f16', output: half },
    ['output_shape: vec4<u32>'],
    'let cOffset = outputIndices[1]; inverseSqrt(input_var + 1e-05)',
  );
  const gelu = program('QuickGelu', { x: half, y: half }, ['vec_size: u32', 'attr: f32']);
  const grouped = program('GroupedConv', { x: 'f16', w: 'f16', b: 'f16', output: 'f16' }, [
    ...['output_shape', 'x_shape', 'w_shape'].map((name) => `${name}: vec4<u32>`),
    ...['dilations', 'strides', 'pads'].map((name) => `${name}: vec2<u32>`),
    'components: u32',
    'output_channels_per_group: u32',
  ]);
  const [C, side] = [8, 8];
  const numbers = C * side * side;
  const [picture, y] = [given(numbers / 2), placeOf(2 * numbers)];
  const weights = Array.from({ length: 9 }, () => given(C));
  const [wide, sums, even, back, scaled, active] = [4, 0, 4, 2, 2, 2].map((bytes) => placeOf(bytes * numbers || 16));
  const shape = [1, C, side, side];
  const commands = [
    dispatch(cast, [picture, wide], [numbers / 4, numbers]),
    dispatch(moments, [wide, weights[0], weights[1], sums], [1, 2, numbers / 8, 0]),
    dispatch(normal, [wide, sums, even], [numbers]),
    dispatch(rounded, [even, back], [numbers / 4, numbers]),
    dispatch(affine, [back, ...weights.slice(2, 6), scaled], shape),
    dispatch(gelu, [scaled, active], [numbers / 4, ONE]),
    dispatch(grouped, [active, weights[6], weights[7], y], [...shape, ...shape, C, 1, 3, 3, ...Array(6).fill(1), 1, 1]),
  ];
  const [node, ...others] = passed(captured(commands, y, picture)).nodes;
  assert.equal(others.length, 0);
  assert.equal(node.operation.kind, 'norm depthwise');
  assert.ok(node.operation.norm.half && node.operation.depthwise.half);
  assert.equal(node.operation.norm.moments.x, picture);
  assert.equal(accepted(node), 1e-2);
  const layer = program('LayerNorm', { x: four, scale: four, bias: four, y: four }, [
    'norm_count: u32',
    'norm_size: u32',
    'norm_size_vectorized: u32',
    'epsilon: f32',
  ]);
  const x = given(numbers / 2);
  const [read, made, written, more] = [4, 4, 2, 4].map((bytes) => placeOf(bytes * numbers));
  const normed = [
    dispatch(cast, [x, read], [numbers / 4, numbers]),
    dispatch(layer, [read, weights[0], weights[1], made], [numbers / C, C, C / 4, ONE]),
    dispatch(rounded, [made, written], [numbers / 4, numbers]),
  ];
  const alone = passed(captured(normed, written, x)).nodes;
  assert.deepEqual(
    alone.map(({ operation }) => [operation.kind, operation.halves.length]),
    [['layer norm', 2]],
  );
  // what others read widened, too, stays; where all of them have kernels of ours, it is not run
  const twice = [...normed, dispatch(layer, [read, weights[0], weights[1], more], [numbers / C, C, C / 4, ONE])];
  const graph = captured(twice, written, x);
  graph.outputs.set('more', { buffer: more, dims: [numbers] });
  const kinds = passed(graph).nodes.map(({ operation }) => [operation.kind, operation.halves?.length]);
  assert.deepEqual(kinds, [
    ['widen', undefined],
    ['layer norm', 2],
    ['layer norm', 1],
  ]);
  const { device: own, clock } = timed();
  t.mock.method(performance, 'now', () => clock.now);
  const ours = await replaceKernels(own, new Map([['g', graph]]), { ...FAST, wanted: 'all', earlier: null });
  assert.deepEqual([ours.replaced, ours.captures.get('g').capture.commands.length], [4, 2]);
});

test('the softmax of columns is one, with the transpositions around it, where nothing else reads what is between', () => {
  const [T, C, parts] = [32, 8, 4];
  const softmax = program('Softmax', { x: four, result: four }, ['packedCols: i32']);
  const parted = program('Transpose', { a: 'f32', output: 'f32' }, ['a_shape: vec3<u32>'], 'a[0]=i[1];\na[1]=i[0];\na[2]=i[2];');
  const x = given(T * C);
  const [columns, shares, y] = [tensor(T * C), tensor(T * C), tensor(T * C)];
  const rows = { ...dispatch(softmax, [columns, shares], [T / 4]), workgroups: [C, 1, 1] };
  const chain = [dispatch(transpose, [x, columns], [T, C]), rows, dispatch(parted, [shares, y], [C, parts, T / parts])];
  const [node, ...others] = passed(captured(chain, y, x)).nodes;
  assert.equal(others.length, 0);
  const { kind, B, per, half } = node.operation;
  assert.deepEqual([kind, B, node.operation.T, node.operation.C, per, half], ['softmax down', 1, T, C, T / parts, false]);
  assert.equal(optionsFor(node, DEFAULT).length, 1);
  const kept = passed(captured(chain, shares, x)); // shares are what the graph gives
  assert.deepEqual(
    kept.nodes.map(({ operation }) => [operation.kind, operation.per]),
    [
      ['softmax down', T],
      ['transpose', undefined],
    ],
  );
  const long = { operation: { ...node.operation, T: 8192, per: 8192 } };
  assert.equal(optionsFor(long, DEFAULT).length, 0);
});

test('a content lambda is one: softmax, products of parts, their sum, put behind values and numbers between', () => {
  const [B, T, C, N, parts, size] = [2, 32, 8, 12, 4, 24];
  const softmax = program('Softmax', { x: four, result: four }, ['packedCols: i32']);
  const sides = ['a_shape: vec3<u32>'];
  const columns = program('Transpose', { a: 'f32', output: 'f32' }, sides, 'a[0]=i[0];\na[1]=i[2];\na[2]=i[1];');
  const parted = program(
    'Transpose',
    { a: 'f32', output: 'f32' },
    ['a_shape: vec4<u32>'],
    'a[0]=i[0];\na[1]=i[2];\na[2]=i[1];\na[3]=i[3];',
  );
  const summing = (axis) =>
    program(
      'ReduceSum',
      { input: 'f32', output: 'f32' },
      ['input_shape: vec4<u32>', 'reduce_size: u32'],
      `for (var i${axis} : u32 = 0; i${axis} < uniforms.input_shape[${axis}]; i${axis}++) {`,
    );
  const joined = program(
    'Concat',
    { input_0: 'f32', input_1: 'f32', input_2: 'f32', output: 'f32' },
    ['input_0_shape: vec2<u32>', 'input_1_shape: vec2<u32>', 'input_2_shape: vec2<u32>', 'output_shape: vec2<u32>'],
    '',
    1,
  );
  const chain = (axis = 1, per = T / parts) => {
    const [keys, values, between] = [B * T * C, B * T * N, B * size].map(given);
    const [turnedKeys, shares, spread] = [1, 2, 3].map(() => tensor(B * T * C));
    const [partial, sum, y] = [B * parts * C * N, B * C * N, B * ((T + C) * N + size)].map(tensor);
    const rows = { ...dispatch(softmax, [turnedKeys, shares], [T / 4]), workgroups: [B * C, 1, 1] };
    const commands = [
      dispatch(columns, [keys, turnedKeys], [B, T, C]),
      rows,
      dispatch(parted, [shares, spread], [B, C, parts, per]),
      dispatch(matmul, [spread, values, partial], [B * parts, C, per / 4, 0, B * parts, per, N / 4, B * parts, C, N, per, 1]),
      dispatch(summing(axis), [partial, sum], [B, parts, C, N, parts]),
      dispatch(joined, [values, between, sum, y], [B, T * N, B, size, B, C * N, B, (T + C) * N + size]),
    ];
    return { capture: captured(commands, y, keys, values, between), inputs: [keys, values, between], y };
  };
  const whole = chain();
  const [node, ...others] = passed(whole.capture).nodes;
  assert.equal(others.length, 0);
  const { kind, keys, values, between, y, ...found } = node.operation;
  assert.equal(kind, 'content lambda');
  assert.deepEqual([keys, values, between, y], [...whole.inputs, whole.y]);
  assert.deepEqual(found, { half: false, B, T, C, N, size });
  assert.equal(optionsFor(node, DEFAULT).length, 1);
  for (const other of [{ N: 260 }, { T: 4100 }, { size: 3 }])
    assert.equal(optionsFor({ operation: { ...node.operation, ...other } }, DEFAULT).length, 0);
  assert.ok(passed(chain(2).capture).nodes.length > 1); // a sum along another axis
});

test("a widened weight that others read too, or that is transposed otherwise, stays the runtime's", () => {
  const [A, halves] = [given(M * K), given((K * N) / 2)];
  const [B, C, y] = [tensor(K * N), tensor(M * N), tensor(M * N)];
  const kinds = (commands) => {
    const graph = Graph.of(captured(commands, y, A));
    for (const pass of Object.values(PASSES)) pass(graph);
    return graph.nodes.map(({ operation }) => operation?.kind);
  };
  assert.deepEqual(kinds([widened(halves, B), multiplied(A, B, C), multiplied(A, B, y)]), ['widen', 'product', 'product']);
  assert.deepEqual(kinds([widened(halves, C), turned(C, A), multiplied(A, B, y)]).slice(0, 2), ['widen', 'transpose']);
});

test('attention to a condition is one: gathered keys and values, a sum over tokens, two products', () => {
  const [B, T, H, D, J, rows] = [2, 3, 8, 20, 12, 2];
  const gatherAlong = (axis, sides) =>
    program(
      'Gather',
      { data: 'f32', input_indices: 'u32', output: 'f32' },
      [`data_indices_shape: vec${sides}<u32>`, 'input_indices_shape: u32'],
      `indices_indices=output_indices[${axis}];`,
    );
  const shapes = ['bcast_indices_shape', 'a_indices_shape', 'b_indices_shape'].map((name) => `${name}: vec4<u32>`);
  const spread = program('Add', { input_a: four, input_b: four, output: four }, shapes);
  const chain = (axis = 0, other = [B, 1, D, J], narrow = false) => {
    const [q, wide, k, v, indices] = [B * T * H * D, T * D * J, rows * D * J, rows * J * D, B].map(given);
    const [bytes, scale] = [given((T * D * J) / 4), given((T * D * J) / 8)];
    const E = narrow ? tensor(T * D * J) : wide;
    const [ks, vs, keys, S, y] = [B * D * J, B * J * D, B * T * D * J, B * T * H * J, B * T * H * D].map(tensor);
    const product = (A, X, C, Z, m, n, d) => dispatch(matmul, [A, X, C], [Z, m, d / 4, 0, Z, d, n / 4, Z, m, n, d, 1]);
    const widening = dispatch(dequantize, [bytes, scale, E], [(T * D * J) / 8, 8, 8, 0, 0, T * D * J]);
    const commands = [
      ...(narrow ? [widening] : []),
      dispatch(gatherAlong(axis, 4), [k, indices, ks], [rows, 1, D, J, B]),
      dispatch(spread, [E, ks, keys], [B, T, D, J, T, D, J, 0, ...other]),
      product(q, keys, S, B * T, H, J, D),
      dispatch(gatherAlong(axis, 3), [v, indices, vs], [rows, J, D, B]),
      product(S, vs, y, B, T * H, D, J),
    ];
    return { capture: captured(commands, y, q, E, k, v, indices), given: [q, E, k, v, indices], bytes, scale };
  };
  const whole = chain();
  const [node, ...others] = passed(whole.capture).nodes;
  assert.equal(others.length, 0);
  const { kind, a, sums, ...found } = node.operation;
  assert.equal(kind, 'condition attention');
  assert.deepEqual([found.q, found.E, found.k, found.v, found.indices], whole.given);
  assert.deepEqual([found.B, found.T, found.H, found.D, found.J, sums], [B, T, H, D, J, []]);
  assert.deepEqual(a, { outer: (T * H * D) / 4, inner: (H * D) / 4 });
  assert.equal(optionsFor(node, DEFAULT).length, 1);
  assert.equal(optionsFor({ operation: { ...node.operation, D: 512 } }, DEFAULT).length, 0); // more than a workgroup keeps
  assert.ok(passed(chain(1).capture).nodes.length > 1); // gathered along another axis
  const stored = chain(0, [B, 1, D, J], true); // weights of 8 bits, which the runtime widens in each run
  const [narrow, ...more] = passed(stored.capture).nodes;
  assert.deepEqual(
    [more.length, narrow.operation.E, narrow.operation.narrow],
    [0, stored.bytes, { scale: stored.scale, group: 8 }],
  );
  assert.ok(passed(chain(0, [1, T, D, J]).capture).nodes.length > 1); // added to each condition alike
});

test('columns that are split over three tensors are stored there, where nothing else reads them together', () => {
  const counts = ['input_size: u32', 'total_segment_elements: u32', 'segment_sizes: vec3<u32>'];
  const divided = program('Split', { input: four, a: four, b: four, c: four }, counts, '', 3);
  const sizes = [16, 4, 12];
  const N = 32;
  const [A, B, C, ...parts] = [given(M * K), given(K * N), tensor(M * N), ...sizes.map((size) => tensor(M * size))];
  const [q, k, v] = parts;
  const split = dispatch(divided, [C, q, k, v], [M * (N / 4), N / 4, 0, 0, ...sizes.map((size) => size / 4)]);
  const product = dispatch(matmul, [A, B, C], [1, M, K / 4, 0, 1, K, N / 4, 1, M, N, K, 1]);
  const [node, ...others] = passed(captured([product, split], q, A, B)).nodes;
  assert.equal(others.length, 0);
  assert.deepEqual(node.operation.split.sizes, sizes);
  assert.deepEqual(node.writes, node.operation.split.parts);
  assert.ok(optionsFor(node, DEFAULT).every(({ launches }) => launches.at(-1).values.length <= 8));
  const kept = passed(captured([product, split], C, A, B)); // the graph gives what is split
  assert.deepEqual(
    kept.nodes.map(({ operation }) => operation.kind),
    ['product', 'split'],
  );
});

test('a layer norm gives a picture where all that reads its tokens does', () => {
  const [B, C, gy, py, gx, px] = [2, 8, 3, 2, 2, 2];
  const count = B * gy * py * gx * px;
  const names = { x: four, skip: four, gamma: four, beta: four, output: four, input_skip_bias_sum: four };
  const norm = program('SkipLayerNorm', names, ['hidden_size: u32', 'skip_size: u32', 'epsilon: f32'], '', 2);
  const order = [0, 5, 3, 1, 4, 2];
  const text = order.map((from, to) => `a[${from}]=i[${to}];`).join('\n');
  const turn = program('Transpose', { a: 'f32', output: 'f32' }, ['a_shape: array<vec4<u32>, 2>'], text);
  const [x, skip, scale, bias] = [count * C, count * C, C, C].map(given);
  const all = [x, skip, scale, bias];
  const [y, sum, picture, other] = Array.from({ length: 4 }, () => tensor(count * C));
  const normed = { ...dispatch(norm, [...all, y, sum], [C, count * C, 0]), workgroups: [count, 1, 1] };
  const turned = (from, to) => dispatch(turn, [from, to], [B, py, px, gy, gx, C, 0, 0]);
  const result = tensor(count * C);
  const chain = [normed, turned(y, picture), turned(sum, other)];
  const [node, last] = passed(captured([...chain, added(picture, other, result)], result, ...all)).nodes;
  assert.deepEqual([node.operation.kind, last.operation.kind], ['layer norm', 'add']);
  assert.deepEqual(node.operation.picture, { shape: [B, C, gy, py, gx, px], turned: true });
  assert.deepEqual(node.writes, [last.operation.x, last.operation.other]);
  assert.equal(optionsFor(node, DEFAULT).length, 1);
  const half = passed(captured([...chain.slice(0, 2), added(picture, sum, result)], result, ...all)).nodes[0];
  assert.equal(half.operation.picture.turned, false); // the sum stays one of tokens
  const none = passed(captured([normed, turned(y, picture), added(picture, y, result)], result, ...all)).nodes;
  assert.deepEqual(
    none.map(({ operation }) => operation.kind),
    ['layer norm', 'tokens', 'add'],
  );
});

test('commands of a merged node stay in order where a part of it ends after what reads another', () => {
  const [B, C, gy, py, gx, px] = [1, 8, 2, 2, 2, 2];
  const count = B * gy * py * gx * px;
  const half = 'vec4<f16>';
  const names = { x: four, skip: four, gamma: four, beta: four, output: four, input_skip_bias_sum: four };
  const norm = program('SkipLayerNorm', names, ['hidden_size: u32', 'skip_size: u32', 'epsilon: f32'], '', 2);
  const rounded = program('Cast', { x: four, y: half }, ['vec_size: u32', 'output_size: u32']);
  const text = [0, 5, 3, 1, 4, 2].map((from, to) => `a[${from}]=i[${to}];`).join('\n');
  const turn = program('Transpose', { a: 'f16', output: 'f16' }, ['a_shape: array<vec4<u32>, 2>'], text);
  const all = [count * C, count * C, C, C].map(given);
  const [y, sum] = [tensor(count * C), tensor(count * C)];
  const [y16, sum16, picture] = Array.from({ length: 3 }, () => placeOf(2 * count * C));
  const graph = passed({
    ...captured(
      [
        { ...dispatch(norm, [...all, y, sum], [C, count * C, 0]), workgroups: [count, 1, 1] },
        dispatch(rounded, [y, y16], [(count * C) / 4, count * C]),
        dispatch(turn, [y16, picture], [B, py, px, gy, gx, C, 0, 0]), // before the sum is rounded
        dispatch(rounded, [sum, sum16], [(count * C) / 4, count * C]),
      ],
      picture,
      ...all,
    ),
    outputs: new Map([picture, sum16].map((buffer, i) => [`y${i}`, { buffer, dims: [count, C] }])),
  });
  const [node, ...others] = graph.nodes;
  assert.equal(others.length, 0);
  assert.deepEqual(node.operation.picture, { shape: [B, C, gy, py, gx, px], turned: false });
  graph.captured(node.commands); // throws where one reads what none has written
});

test('a convolution is a product of windows, with a bias and without', () => {
  const shapes = ['x_shape', 'w_shape', 'result_shape', 'pads'].map((name) => `${name}: vec4<u32>`);
  const uniforms = [...shapes, 'strides: vec2<u32>', 'dilations: vec2<u32>', ...PRODUCT.slice(3, 6)];
  const [side, channels, N] = [16, 8, 12];
  const sides = [1, side, side, channels / 4, 3, 3, channels, N / 4, 1, side, side, N / 4];
  const words = [...sides, 1, 1, 1, 1, 1, 1, 1, 1, side * side, N, 9 * channels];
  const made = (biased) => {
    const [x, w, b] = [side * side * channels, 9 * channels * N, N].map(given);
    const y = tensor(side * side * N);
    const buffers = { x: four, w: four, ...(biased && { bias: four }), result: four };
    const convolve = program('Conv2dMM', buffers, uniforms);
    const command = dispatch(convolve, [x, w, ...(biased ? [b] : []), y], words);
    const [{ operation }] = passed(captured([command], y, x, w, b)).nodes;
    return [operation?.kind, operation?.biased, operation?.bias === b, operation?.window.channels];
  };
  assert.deepEqual(made(true), ['product', 'column', true, channels]);
  assert.deepEqual(made(false), ['product', '', false, channels]);
});

test('what is not understood stays, and is in order', () => {
  const [A, B] = [given(M * K), given(K * N)];
  const [c, d, y] = [tensor(M * N), tensor(M * N), tensor(M * N)];
  const graph = Graph.of(captured([multiplied(A, B, c), dispatch(unknown, [c, d], [1]), activated(d, y)], y, A));
  assert.deepEqual(
    graph.nodes.map(({ operation }) => operation?.kind),
    ['product', undefined, 'silu'],
  );
  assert.deepEqual(optionsFor(graph.nodes[1], DEFAULT), []);
  graph.nodes.reverse();
  assert.deepEqual(
    graph.ordered().map(({ at }) => at),
    [0, 1, 2],
  );
  const { lifetimes } = graph.captured(graph.ordered().flatMap(({ commands }) => commands));
  assert.equal(lifetimes.length, 3);
});

test('axes that stay together are one', () => {
  const of = (shape, order) => Object.values(simplified({ shape, order }));
  assert.deepEqual(of([2, 640, 3, 64, 32], [0, 1, 3, 2, 4]), [
    [1280, 3, 64, 32],
    [0, 2, 1, 3],
  ]);
  assert.deepEqual(of([1, 64, 64, 2, 2, 512], [0, 1, 3, 2, 4, 5]), [
    [64, 64, 2, 1024],
    [0, 2, 1, 3],
  ]);
  assert.deepEqual(of([2, 3, 4], [0, 2, 1]), [
    [2, 3, 4],
    [0, 2, 1],
  ]);
  assert.deepEqual(of([5, 1, 7], [1, 0, 2]), [[35], [0]]);
});

test('one program does for all sizes, as making programs is what a first visit waits for', () => {
  const value = tensor(4);
  const norm = (groups, size) => {
    const moments = { x: value, scale: value, bias: value, y: value, batch: 2, groups, size, epsilon: 1e-5 };
    return { moments, affine: null, half: false };
  };
  const plane = (B, C, H, W4) => ({
    kind: 'depthwise',
    x: value,
    W: value,
    bias: value,
    y: value,
    narrow: null,
    half: false,
    B,
    C,
    H,
    W4,
  });
  const attended = { kind: 'condition attention', q: value, E: value, k: value, v: value, indices: value, y: value };
  const normed = { kind: 'layer norm', x: value, skip: value, scale: value, bias: value, y: value, sum: value, C: 320 };
  const shaped = { epsilon: 1e-5, halves: [] };
  const pairs = [
    [1, 3].map((outer) => ({ kind: 'concat', parts: [value, value], y: value, half: false, outer, sizes: [4 * outer, 8] })),
    [64, 32].map((side) => ({
      kind: 'norm depthwise',
      depthwise: plane(2, side, side, side / 4),
      norm: norm(side / 4, 64),
      kept: null,
    })),
    [64, 32].map((side) => ({
      kind: 'middle',
      value: plane(1, side, side, side / 4),
      gate: plane(1, side, side, 16),
      first: 0,
      second: 4,
      D: 4,
      y: value,
    })),
    [64, 16].map((C) => ({
      kind: 'tokens',
      x: value,
      y: value,
      half: false,
      shape: [2, C, 16, 4, 16, 4],
      back: false,
      norm: norm(C / 4, 64),
    })),
    [2048, 8192].map((count) => ({ ...normed, ...shaped, count, skipped: count / 2, picture: null })),
    [16, 32].map((g) => ({
      ...normed,
      ...shaped,
      count: 32 * g * g,
      skipped: 0,
      picture: { shape: [2, 320, g, 4, g, 4], turned: true },
    })),
    [256, 1024].map((T) => ({
      ...attended,
      a: { outer: 0, inner: T },
      words: 1,
      sums: [],
      half: false,
      B: 2,
      T,
      H: 8,
      D: 40,
      J: 12,
    })),
    [2 ** 14, 2 ** 16].map((pixels) => ({
      kind: 'norm last',
      x: value,
      y: value,
      scale: value,
      bias: value,
      channels: 256,
      groups: 32,
      pixels,
      epsilon: 1e-6,
    })),
  ];
  for (const pair of pairs) {
    const [one, other] = pair.map((operation) => optionsFor({ operation }, DEFAULT)[0].launches.map(({ code }) => code));
    assert.ok(one.length > 0);
    assert.deepEqual(one, other, pair[0].kind);
  }
});

test('tiles are held to what a device has, and to what a product fills', () => {
  const product = plainProduct({ M: 4096, N: 1280, K: 1280, A: null, B: null, C: null });
  const all = tilesFor(product, DEFAULT);
  assert.ok(all.length > 1 && all.every((tile) => threadsOf(tile) <= 256 && memoryOf(tile) <= 16384));
  const small = tilesFor(product, { maxComputeInvocationsPerWorkgroup: 128, maxComputeWorkgroupStorageSize: 8192 });
  assert.ok(small.length > 0 && small.every((tile) => threadsOf(tile) <= 128 && memoryOf(tile) <= 8192));
  assert.deepEqual(tilesFor(product, { maxComputeInvocationsPerWorkgroup: 16, maxComputeWorkgroupStorageSize: 8192 }), []);
  assert.ok(tilesFor({ ...product, M: 33, N: 32 }, DEFAULT).every(({ M, N }) => M <= 64 && N <= 64));
  assert.ok(Object.values(TILES).every(({ M, N, K, m, n }) => M % 32 === 0 && N % n === 0 && M % m === 0 && K % 4 === 0));
});

test('where threads have few registers, tiles have few sums a thread', () => {
  const sums = ['apple', 'qualcomm', 'intel', 'nvidia', '', undefined].map((vendor) => traitsOf({ vendor }).sums);
  assert.deepEqual(sums, [32, 32, 64, 128, 128, 128]);
  assert.deepEqual(traitsOf(undefined), traitsOf({ vendor: 'nvidia' }));
  const product = plainProduct({ M: 320, N: 4096, K: 320, A: null, B: null, C: tensor(320 * 4096) });
  const on = (vendor, of = product) => tilesFor(of, DEFAULT, traitsOf({ vendor }));
  assert.deepEqual(on('apple')[0], TILES.medium);
  for (const vendor of ['apple', 'intel', 'nvidia'])
    assert.ok(on(vendor).every(({ m, n }) => m * n <= traitsOf({ vendor }).sums));
  const small = plainProduct({ M: 64, N: 64, K: 2048, A: null, B: null, C: tensor(64 * 64) });
  assert.ok(on('apple', small)[0].parts > 1); // few blocks leave any device idle
});

test('what is multiplied in 16 bits has tiles of its own, of which no other product hears', () => {
  const C = tensor(256 * 256);
  const product = (more) => plainProduct({ M: 256, N: 256, K: 320, A: null, B: null, C, half: true, ...more });
  const tiles = halfTilesFor(product(), DEFAULT);
  assert.equal(tiles.length, 3);
  assert.ok(tiles.every(({ half, K }) => half && K === 32));
  assert.ok(tiles.every(({ M, N, m, n }) => M % 32 === 0 && N % 64 === 0 && N % n === 0 && m % 8 === 0 && n % 4 === 0));
  const slim = halfTilesFor(product(), DEFAULT, traitsOf({ vendor: 'apple' }));
  assert.ok(slim.length > 0 && slim.every(({ m, n }) => m * n <= 32));
  assert.ok(tiles.every((tile) => 2 * memoryOf(tile) === memoryOf({ ...tile, half: false })));
  assert.match(launchProduct(product(), tiles[0])[0].code, /^enable f16;\n/);
  assert.deepEqual(halfTilesFor(product({ half: false }), DEFAULT), []);
  const window = { height: 16, width: 16, channels: 24, columns: 3, top: 1, left: 1, stride: 1, across: 16 };
  assert.deepEqual(halfTilesFor(product({ K: 216, window }), DEFAULT), []);
});

test('what is known beforehand: parts that leave no core idle, large blocks for many, nothing of ours for tiny products', () => {
  const all = (sizes, limits = DEFAULT) => tilesFor(plainProduct({ A: null, B: null, C: null, ...sizes }), limits);
  const first = (sizes, limits) => all(sizes, limits)[0];
  // what was fastest of all tiles and parts on one H100, or within 4 % of it, is among those that are tried
  const fastest = [
    [
      { M: 1280, N: 256, K: 3200, outer: 2 },
      { ...TILES.large, parts: 6 },
    ],
    [
      { M: 640, N: 1024, K: 1600, outer: 2 },
      { ...TILES.large, parts: 3 },
    ],
    [
      { M: 6400, N: 256, K: 1280, outer: 2 },
      { ...TILES.large, parts: 5 },
    ],
    [
      { M: 512, N: 1280, K: 1280 },
      { ...TILES.large, parts: 3 },
    ],
    [{ M: 1600, N: 1024, K: 640, outer: 2 }, TILES.large],
    [{ M: 800, N: 4096, K: 320, outer: 2 }, TILES.square],
    [{ M: 8192, N: 320, K: 320 }, TILES.square],
    [{ M: 5760, N: 1024, K: 640, outer: 2 }, TILES.wide],
  ];
  const names = (tiles) => tiles.map(nameOf);
  for (const [sizes, tile] of fastest) assert.ok(names(all(sizes)).includes(nameOf(tile)), nameOf(tile));
  assert.equal(first({ M: 128, N: 40, K: 368, outer: 512 }), TILES.narrow);
  assert.equal(first({ M: 262144, N: 128, K: 1152, window: { channels: 128 } }), TILES.large);
  assert.ok(first({ M: 4096, N: 512, K: 72, window: { channels: 8 } }).K === 8); // a slab lies within a pixel's channels
  const room = { ...DEFAULT, maxStorageBufferBindingSize: 4 * 2 * 640 * 1024 };
  assert.equal(first({ M: 640, N: 1024, K: 1600, outer: 2 }, room).parts, undefined); // all parts lie in one buffer
  const tiny = (sizes) => isTiny(plainProduct({ A: null, B: null, C: null, ...sizes }));
  assert.ok(tiny({ M: 40, N: 40, K: 256, outer: 32 }) && tiny({ M: 8, N: 12, K: 80, outer: 2048 }));
  assert.ok(!tiny({ M: 512, N: 408, K: 80, outer: 32 }));
});

test('in 16 bits a product may be as far off as the roundings of its sum add up to', () => {
  const C = tensor(64 * 64);
  const product = (K, half) => plainProduct({ M: 64, N: 64, K, half, A: null, B: null, C });
  const of = (operation) => accepted({ operation, writes: [C] });
  assert.equal(of(product(4096, false)), 2e-5);
  assert.equal(of(product(64, true)), 1e-2);
  assert.equal(of(product(1024, true)), 2 ** -5);
  assert.equal(of({ kind: 'products', products: [product(64, true), product(1024, true)] }), 2 ** -5);
  assert.equal(of(null), 2e-5);
});

/**
 * A device with a clock of its own, which goes on while commands run: `cost` gives the milliseconds of a dispatch by its program's label.
 * `held` are the bytes of its storage buffers: as in browsers, those of one that was destroyed until what is submitted next is done.
 * With `stamps` it tells times itself; where these are 'none' it does not, though it says that it can.
 */
function timed(cost = () => 0, stamps = '') {
  const clock = { now: 0, runs: 0, programs: 0, held: 0 };
  let last = 0;
  let [destroyed, leaving] = [0, 0];
  const queue = {
    writeBuffer: () => {},
    submit: (buffers) => {
      [destroyed, leaving] = [0, leaving + destroyed];
      buffers.forEach((costs) => {
        last = costs.reduce((a, b) => a + b, 0);
        clock.runs += costs.length;
        clock.now += last;
      });
    },
    onSubmittedWorkDone: async () => {
      clock.held -= leaving;
      leaving = 0;
    },
  };
  const made = Object.assign(new GPUDevice(), {
    queue,
    features: new Set(stamps && ['timestamp-query']),
    createQuerySet: () => ({ destroy() {} }),
    limits: { ...DEFAULT, minStorageBufferOffsetAlignment: 256, minUniformBufferOffsetAlignment: 256 },
    createBuffer: ({ size, usage }) => {
      const held = usage & GPUBufferUsage.STORAGE ? size : 0;
      clock.held += held;
      const told = () => new BigUint64Array([0n, BigInt(stamps === 'none' ? 0 : 1e6 * last)]).buffer;
      const read = () => (usage & GPUBufferUsage.MAP_READ && stamps ? told() : new ArrayBuffer(size));
      return { size, destroy: () => (destroyed += held), mapAsync: async () => {}, getMappedRange: read, unmap: () => {} };
    },
    createBindGroup: () => ({}),
    createComputePipelineAsync: async ({ label }) => (clock.programs++, { label, getBindGroupLayout: () => null }),
    createCommandEncoder: () => {
      const costs = [];
      let label = '';
      const pass = {
        setPipeline: (pipeline) => (label = pipeline.label ?? 'MatMul'),
        setBindGroup: () => {},
        dispatchWorkgroups: () => costs.push(cost(label)),
        end: () => {},
      };
      const others = { copyBufferToBuffer: () => {}, resolveQuerySet: () => {} };
      return { beginComputePass: () => pass, ...others, finish: () => costs };
    },
  });
  return { device: made, clock };
}

/** Products of these sizes, one after another. */
function products(...sizes) {
  const given = (numbers) => ({ size: 4 * numbers, usage: 128 });
  const [buffers, outputs] = [[], []];
  const commands = sizes.map(([M, N, K]) => {
    const [A, B, C] = [given(M * K), given(K * N), tensor(M * N)];
    buffers.push(A, B);
    outputs.push(C);
    return dispatch(matmul, [A, B, C], [1, M, K / 4, 0, 1, K, N / 4, 1, M, N, K, 1]);
  });
  const graph = captured(commands, outputs[0], ...buffers);
  outputs.forEach((buffer, i) => graph.outputs.set(`y${i}`, { buffer, dims: [sizes[i][0], sizes[i][1]] }));
  return graph;
}

const FAST = { version: '1.30.0', wanted: 'fastest', report: () => {} };

test('a visit tries for so long, what has the most work first, and later visits try the rest', async (t) => {
  const slow = (label) => (label === 'MatMul' ? 300 : 100); // a way of ours runs once or twice, the runtime's too
  const { device: own, clock } = timed(slow);
  t.mock.method(performance, 'now', () => clock.now);
  const sizes = [
    [1024, 1024, 1024],
    [1024, 1024, 512],
    [512, 1024, 512],
    [256, 512, 512],
    [64, 128, 512],
    [8, 8, 8],
  ];
  const captures = new Map([['g', products(...sizes)]]);
  const visits = [];
  for (let earlier = null, i = 0; i < 6; i++) {
    const began = clock.now;
    const visit = await replaceKernels(own, captures, { ...FAST, earlier });
    assert.equal(clock.held, 0); // all that was tried and compared is given back
    visits.push({ ...visit, took: clock.now - began, of: visit.took });
    earlier = JSON.parse(JSON.stringify(visit.kept));
  }
  const [first] = visits;
  const count = first.kept.tried.length;
  assert.ok(count > 0 && count < sizes.length, `${count}`);
  assert.match(first.note, new RegExp(`${count} of 5 shapes are tried so far, the others at later visits`));
  assert.match(first.kept.tried[0], / 1024 1024 1024 1$/); // the most work
  assert.ok(first.of.trying <= 1000 + 4 * 300 + 2 * 60, `${first.of.trying}`); // what had begun when the time was over ends
  const way = Object.entries(first.choices).filter(([key]) => key.startsWith('product'));
  assert.equal(way.filter(([, name]) => name === "the runtime's").length, 1); // the smallest is tiny
  for (const [before, after] of visits.map((visit, i) => [visit, visits[i + 1]]).slice(0, -1)) {
    assert.deepEqual(after.kept.tried.slice(0, before.kept.tried.length), before.kept.tried);
    if (before.kept.tried.length < 5) assert.ok(after.kept.tried.length > before.kept.tried.length);
  }
  const last = visits.at(-1);
  assert.deepEqual([last.kept.tried.length, last.note, last.took], [5, '', 0]);
  assert.equal(Object.values(last.choices).filter((name) => name === "the runtime's").length, 1); // too small to be tried at all
});

test('where one shape takes longer than a visit may try, each visit tries one', async (t) => {
  const { device: own, clock } = timed((label) => (label === 'MatMul' ? 2000 : 3000));
  t.mock.method(performance, 'now', () => clock.now);
  const captures = new Map([['g', products([1024, 1024, 1024], [512, 1024, 512], [512, 512, 512])]]);
  let earlier = null;
  for (const count of [1, 2, 3, 3]) {
    const { kept } = await replaceKernels(own, captures, { ...FAST, earlier });
    assert.equal(kept.tried.length, count);
    earlier = kept;
  }
});

test("what nothing that was tried is like takes ours where ours were faster, and else the runtime's", async (t) => {
  for (const [ours, expected] of [
    [1000, false],
    [3000, true],
  ]) {
    const { device: own, clock } = timed((label) => (label === 'MatMul' ? 2000 : ours));
    t.mock.method(performance, 'now', () => clock.now);
    const captures = new Map([['g', products([2048, 2048, 2048], [64, 4096, 128])]]);
    const { kept, choices } = await replaceKernels(own, captures, { ...FAST, earlier: null });
    assert.equal(kept.tried.length, 1);
    const names = Object.entries(choices).filter(([key]) => key.startsWith('product'));
    assert.deepEqual([names.length, ...names.map(([, name]) => name === "the runtime's")], [2, expected, expected]);
  }
});

test('a later visit runs nothing, compares what changed alone, and says again what differed', async (t) => {
  const { device: own, clock } = timed((label) => (label === 'MatMul' ? 3 : 1));
  t.mock.method(performance, 'now', () => clock.now);
  const captures = new Map([
    ['g', products([1024, 1024, 1024], [512, 512, 512])],
    ['h', products([256, 256, 1024])],
  ]);
  const first = await replaceKernels(own, captures, { ...FAST, earlier: null });
  assert.deepEqual([first.kept.tried.length, first.note], [3, '']);
  assert.ok(clock.runs > 0);

  clock.runs = 0;
  const kept = { ...first.kept, notes: ['1 kernels of g differ'] };
  const programs = new Programs(own);
  for (const program of kept.programs) await programs.pipeline(program);
  clock.programs = 0; // all that is needed has begun
  const later = await replaceKernels(own, captures, { ...FAST, earlier: kept, programs, filled: new Promise(() => {}) }); // waits for no weight
  assert.ok(kept.programs.length > 0 && clock.programs === 0);
  assert.deepEqual([clock.runs, later.choices, later.note], [0, first.choices, '1 kernels of g differ']);
  assert.deepEqual(later.took, { trying: 0, comparing: 0, making: 0 });

  const untried = { ...first.kept, choices: { ...first.choices }, tried: first.kept.tried.slice(1) };
  for (const key of Object.keys(untried.choices)) if (!key.startsWith('all')) untried.choices[key] = "the runtime's";
  const more = await replaceKernels(own, captures, { ...FAST, earlier: untried });
  const changed = Object.keys(more.choices).filter((key) => more.choices[key] !== untried.choices[key]);
  assert.equal(changed.length, 1);
  assert.deepEqual(more.kept.tried.length, 3);
  const runsWith = async (choices) => {
    clock.runs = 0;
    await replaceKernels(own, captures, { ...FAST, earlier: { ...untried, choices } });
    return clock.runs;
  };
  const unknown = Object.fromEntries(Object.entries(untried.choices).filter(([key]) => !key.startsWith('all')));
  assert.ok((await runsWith(untried.choices)) < (await runsWith(unknown))); // a graph that is faster with ours is not timed again

  const other = { ...first.kept, choices: {} }; // of another page's kernels
  assert.deepEqual((await replaceKernels(own, captures, { ...FAST, earlier: other })).choices, first.choices);
});

test('on a first visit nothing is run before the weights are there, and programs are made meanwhile', async (t) => {
  const { device: own, clock } = timed((label) => (label === 'MatMul' ? 3 : 1));
  t.mock.method(performance, 'now', () => clock.now);
  let there = () => {};
  const filled = new Promise((resolve) => (there = resolve));
  const visit = replaceKernels(own, new Map([['g', products([1024, 1024, 1024])]]), { ...FAST, earlier: null, filled });
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.ok(clock.runs === 0 && clock.programs > 1);
  clock.now = 5000;
  there();
  const { took } = await visit;
  assert.ok(clock.runs > 0 && took.trying < 1000); // not what was waited for
  const refused = Promise.reject(new Error('no file'));
  await assert.rejects(
    replaceKernels(own, new Map([['g', products([1024, 1024, 512])]]), { ...FAST, earlier: null, filled: refused }),
  );
});

test('where a device tells its own times, ways are tried while weights are read, and at later visits only then', async (t) => {
  const sizes = [
    [1024, 1024, 1024],
    [512, 1024, 512],
    [512, 512, 512],
  ];
  const captures = new Map([['g', products(...sizes)]]);
  const visit = async (earlier, stamps, until, cost = 3) => {
    const { device: own, clock } = timed((label) => (label === 'MatMul' ? cost : 1), stamps);
    t.mock.method(performance, 'now', () => clock.now);
    let there = () => {};
    const filled = new Promise((resolve) => (there = resolve));
    const made = replaceKernels(own, captures, { ...FAST, earlier, filled });
    for (let i = 0; i < 400 && !until(clock); i++) await new Promise((resolve) => setTimeout(resolve, 2));
    const before = clock.runs;
    there();
    const { kept, took } = await made;
    assert.equal(clock.held, 0);
    return { kept, took, before };
  };
  const quiet = () => {
    let [seen, since] = [-1, 0]; // nothing has run for ten looks
    return ({ runs }) => (runs === seen ? ++since : (since = 0), (seen = runs), since > 10);
  };
  const first = await visit(null, 'told', quiet());
  assert.deepEqual([first.kept.tried.length, first.took.trying], [3, 0]);
  assert.ok(first.before > 0);

  const untried = { ...first.kept, tried: first.kept.tried.slice(0, 1) };
  const later = await visit(untried, 'told', quiet());
  assert.deepEqual([later.kept.tried.length, later.took.trying], [3, 0]);
  const cached = await visit(untried, 'told', () => true); // weights are there before anything could be tried
  assert.deepEqual(cached.kept.tried, first.kept.tried.slice(0, 2)); // one, so that visits come to an end
  const whole = await visit(first.kept, 'told', quiet());
  assert.equal(whole.before, 0);

  for (const stamps of ['', 'none']) {
    const { kept, before } = await visit(null, stamps, quiet(), 300); // a clock would time what else is done
    assert.equal(kept.tried.length, 3);
    assert.ok(before < 20, `${before}`); // what tells that there are no times
    const next = await visit({ ...kept, tried: [] }, stamps, quiet(), 3000);
    assert.ok(next.kept.tried.length > 0); // so that visits come to an end
  }
  const { device: own, clock } = timed(() => 300, 'told');
  t.mock.method(performance, 'now', () => clock.now);
  let refuse = () => {};
  const filled = new Promise((_, reject) => (refuse = reject));
  const many = new Map([['g', products(...Array.from({ length: 30 }, (_, i) => [1024, 1024, 512 + 64 * i]))]]);
  const refused = replaceKernels(own, many, { ...FAST, trying: 60, earlier: null, filled });
  while (clock.runs < 2) await null;
  const { runs } = clock;
  refuse(new Error('stopped'));
  await assert.rejects(refused, /stopped/);
  assert.ok(clock.runs - runs < 30, `${clock.runs - runs}`); // nothing is tried but what had begun

  const slow = await visit(null, 'told', ({ now }) => now > 400, 200);
  assert.ok(slow.kept.tried.length > 0 && slow.took.trying < 1000); // the second counts from when trying began
});

test('products are tried on matrix units where they are asked for and a device has some, and else that is said', async (t) => {
  const captures = new Map([['g', products([1024, 1024, 1024], [512, 512, 512])]]);
  const config = (M, N, K, result = 'f32') => ({ componentType: 'f16', resultComponentType: result, M, N, K });
  const info = {
    subgroupMinSize: 32,
    subgroupMaxSize: 32,
    subgroupMatrixConfigs: [config(16, 16, 8), config(16, 16, 16), config(8, 8, 8, 'f16')],
  };
  const visit = async (wanted, of) => {
    const { device: own, clock } = timed((label) => (label === 'MatMul' ? 3 : 1));
    t.mock.method(performance, 'now', () => clock.now);
    own.limits.maxComputeWorkgroupStorageSize = 32768;
    if (of) {
      own.features.add(MATRIX_UNITS);
      infos.set(own, of);
    }
    return replaceKernels(own, captures, { ...FAST, wanted, earlier: null });
  };
  const ways = ({ choices }) => Object.values(choices).filter((name) => / on matrix units/.test(name));
  for (const [wanted, end] of [
    ['matrix', /on matrix units$/],
    ['matrix exact', /on matrix units, exact$/],
  ]) {
    const made = await visit(wanted, info);
    assert.deepEqual([ways(made).length, made.note], [2, '']); // of equally fast ones the first
    assert.ok(ways(made).every((name) => end.test(name)));
    const codes = made.kept.programs.map(({ code }) => code).filter((code) => /subgroup_matrix/.test(code));
    assert.ok(codes.length > 0 && codes.every((code) => /subgroup_matrix_left<f16, 16, 16>/.test(code))); // of the forms there are
  }
  assert.equal(ways(await visit('fastest', info)).length, 0);
  for (const lacking of [null, { ...info, subgroupMinSize: 16 }, { ...info, subgroupMatrixConfigs: [config(8, 8, 8, 'f16')] }]) {
    const made = await visit('matrix', lacking);
    assert.deepEqual([ways(made).length, made.replaced], [0, 2]);
    assert.match(made.note, /gives no matrix units/);
  }
});

test('what was chosen at an earlier visit is used again, and a graph that is faster as a whole without ours keeps its commands', async (t) => {
  const options = { version: '1.30.0', wanted: 'fastest', report: () => {} };
  const { device: own, clock } = timed((label) => (label === 'MatMul' ? 3 : 1));
  t.mock.method(performance, 'now', () => clock.now);
  const [A, B] = [given(M * K), given(K * N)];
  const y = tensor(M * N);
  const graph = captured([multiplied(A, B, tensor(M * N)), multiplied(A, B, y)], y, A, B);
  const { kept } = await replaceKernels(own, new Map([['g', graph]]), { ...options, earlier: null });
  const remembered = (whole) => ({ ...kept, choices: { ...kept.choices, 'all of g': whole } });
  const ours = await replaceKernels(own, new Map([['g', graph]]), { ...options, earlier: remembered('') });
  assert.deepEqual([ours.replaced, ours.commands, ours.note], [2, 2, '']);
  assert.deepEqual(Object.keys(ours.took), ['trying', 'comparing', 'making']);
  assert.ok(Object.values(ours.took).every((milliseconds) => milliseconds >= 0));
  assert.ok(ours.captures.get('g').capture.commands.every(({ pipeline }) => pipeline !== matmul));
  const whole = await replaceKernels(own, new Map([['g', graph]]), { ...options, earlier: remembered("the runtime's") });
  assert.equal(whole.captures.get('g'), graph);
  assert.deepEqual([whole.replaced, whole.note], [0, "all of g is faster with the runtime's"]);
  const other = await replaceKernels(own, new Map([['g', graph]]), { ...options, version: '1.31.0', earlier: null });
  assert.equal(other.captures.get('g'), graph);
  assert.match(other.note, /1\.31\.0's programs are not known/);
});

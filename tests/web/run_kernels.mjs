// Runs kernels of the page on arrays, in a page that serves its modules: what tests/page/test_kernels.py sees of them.

const { GPUBufferUsage: Usage, GPUMapMode } = globalThis;
const FOR_ALL = Usage.STORAGE | Usage.COPY_SRC | Usage.COPY_DST;

const HALVES = 'shader-f16';

let device;

/** A device whose programs are watched from the first on. */
export async function start(base) {
  const { watchPrograms } = await import(`${base}engine/capture.js`);
  watchPrograms();
  const adapter = await navigator.gpu.requestAdapter();
  device = await adapter.requestDevice({ requiredFeatures: [HALVES].filter((feature) => adapter.features.has(feature)) });
  return adapter.info.isFallbackAdapter === true;
}

/**
 * Launch one kernel.
 *
 * `args` are what its function takes, in which a text "@name" stands for a buffer: one of `arrays` (bytes in base64), or of
 * `outputs` (so many bytes), which come back in base64.
 */
export async function run({ base, module, launch, args, arrays, outputs }) {
  const { Capture, Replay } = await import(`${base}engine/capture.js`);
  const { Programs } = await import(`${base}engine/kernels/launch.js`);
  const kernels = await import(`${base}engine/kernels/${module}`);
  device.pushErrorScope('validation');
  const buffers = {};
  for (const [name, text] of Object.entries(arrays)) {
    const letters = atob(text);
    const bytes = new Uint8Array(Math.ceil(letters.length / 16) * 16).map((_, i) => letters.charCodeAt(i));
    buffers[name] = device.createBuffer({ size: bytes.length, usage: FOR_ALL });
    device.queue.writeBuffer(buffers[name], 0, bytes);
  }
  for (const [name, size] of Object.entries(outputs)) {
    buffers[name] = device.createBuffer({ size, usage: FOR_ALL });
  }
  const given = JSON.parse(JSON.stringify(args), (_, value) => (/^@/.test(value) ? buffers[value.slice(1)] : value));
  const programs = new Programs(device);
  const capture = new Capture();
  const [, tile] = given;
  if (tile?.units) tile.core = (await import(`${base}engine/kernels/units.js`)).inUnits;
  const { hasHalves } = await import(`${base}engine/kernels/product.js`);
  const plainly = tile?.units ? withoutUnits : tile?.half && !(await hasHalves(device)) ? inFull : (each) => each;
  const launches = kernels[launch](...given).map(plainly);
  capture.commands = await Promise.all(launches.map((each) => programs.dispatch(each))).catch(async (error) => {
    throw new Error((await complaints(launches)) || ((await device.popErrorScope())?.message ?? error.message));
  });
  const lifetimes = capture.lifetimes([]);
  const places = new Map(lifetimes.map((each) => [each, device.createBuffer({ size: each.buffer.size, usage: FOR_ALL })]));
  new Replay(device, capture, lifetimes, (each) => ({ buffer: places.get(each), offset: 0 })).run();
  const results = {};
  for (const [name, size] of Object.entries(outputs)) {
    const copy = device.createBuffer({ size, usage: Usage.COPY_DST | Usage.MAP_READ });
    const encoder = device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffers[name], 0, copy, 0, size);
    device.queue.submit([encoder.finish()]);
    await copy.mapAsync(GPUMapMode.READ);
    const bytes = new Uint8Array(copy.getMappedRange());
    results[name] = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''));
  }
  const error = await device.popErrorScope();
  if (error) throw new Error(error.message);
  return results;
}

/** A program that multiplies in 16 bits as one that does in 32. */
function inFull(launch) {
  const code = launch.code.replace('enable f16;', '').replaceAll('bitcast<vec4<f16>>', 'halves').replaceAll('vec4<f16>', 'vec4f');
  const halves = 'fn halves(v: vec2u) -> vec4f { return vec4f(unpack2x16float(v.x), unpack2x16float(v.y)); }';
  return { ...launch, code: `${code}\n${halves}` };
}

/**
 * A program for matrix units as one that needs none, nor numbers of 16 bits: each thread has whole matrices, and computes all of them.
 */
function withoutUnits(launch) {
  const functions = new Map();
  const matrix = /subgroup_matrix_(\w+)<f\w+, (\d+), (\d+)>/g; // columns, then rows
  let code = launch.code
    .replace(/^enable .*\ndiagnostic.*$/m, '')
    .replaceAll('array<vec4<f16>', 'array<vec4f')
    .replaceAll('vec4<f16>(', 'rounded(')
    .replace(
      /subgroupMatrixLoad<subgroup_matrix_(\w+)<f16, (\d+), (\d+)>, row_major>\(&(\w+), /g,
      (_, side, columns, rows, from) => {
        const name = `load_${side}_${from}`;
        functions.set(
          name,
          `fn ${name}(at: u32, stride: u32) -> array<f32, ${rows * columns}> { var m: array<f32, ${rows * columns}>;
  for (var r = 0u; r < ${rows}u; r++) { for (var c = 0u; c < ${columns}u; c++) { m[r * ${columns}u + c] = ${from}[at + r * stride + c / 4u][c % 4u]; } }
  return m; }`,
        );
        return `${name}(`;
      },
    );
  const [, N, M] = /subgroup_matrix_result<f32, (\d+), (\d+)>/.exec(launch.code) ?? [];
  if (!N) return launch; // it adds parts
  const [, K] = /subgroup_matrix_left<f16, (\d+), \d+>/.exec(launch.code);
  code = code
    .replace(matrix, (_, side, columns, rows) => `array<f32, ${columns * rows}>`)
    .replaceAll('subgroupMatrixMultiplyAccumulate(', 'multiplied(')
    .replaceAll('subgroupMatrixStore<row_major>(&Cs, ', 'if (lane == 0u) { store(')
    .replace(/(if \(lane == 0u\) \{ store\(.*\);)/g, '$1 }');
  const helpers = `fn rounded(v: vec4f) -> vec4f { return vec4f(unpack2x16float(pack2x16float(v.xy)), unpack2x16float(pack2x16float(v.zw))); }
fn multiplied(a: array<f32, ${M * K}>, b: array<f32, ${K * N}>, c: array<f32, ${M * N}>) -> array<f32, ${M * N}> {
  var left = a; var right = b; var sum = c;
  for (var r = 0u; r < ${M}u; r++) { for (var n = 0u; n < ${N}u; n++) { for (var k = 0u; k < ${K}u; k++) {
    sum[r * ${N}u + n] = fma(left[r * ${K}u + k], right[k * ${N}u + n], sum[r * ${N}u + n]); } } }
  return sum; }
fn store(at: u32, c: array<f32, ${M * N}>, stride: u32) { var m = c;
  for (var r = 0u; r < ${M}u; r++) { for (var n = 0u; n < ${N}u; n++) { Cs[at + r * stride + n / 4u][n % 4u] = m[r * ${N}u + n]; } } }`;
  return { ...launch, code: code.replace('@compute', () => `${[...functions.values(), helpers].join('\n')}\n@compute`) };
}

/** What the browser's compiler says of programs, with the lines of which it says it. */
async function complaints(launches) {
  const found = [];
  for (const { code } of launches) {
    const { messages } = await device.createShaderModule({ code }).getCompilationInfo();
    for (const { message, lineNum } of messages) found.push(`${message} in: ${code.split('\n')[lineNum - 1]}`);
  }
  return found.join('\n');
}

// Runs kernels of the page on arrays, in a page that serves its modules: what tests/page/test_kernels.py sees of them.

const { GPUBufferUsage: Usage, GPUMapMode } = globalThis;
const FOR_ALL = Usage.STORAGE | Usage.COPY_SRC | Usage.COPY_DST;

let device;

/** A device whose programs are watched from the first on. */
export async function start(base) {
  const { watchPrograms } = await import(`${base}engine/capture.js`);
  watchPrograms();
  const adapter = await navigator.gpu.requestAdapter();
  device = await adapter.requestDevice();
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
  const launches = kernels[launch](...given);
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

/** What the browser's compiler says of programs, with the lines of which it says it. */
async function complaints(launches) {
  const found = [];
  for (const { code } of launches) {
    const { messages } = await device.createShaderModule({ code }).getCompilationInfo();
    for (const { message, lineNum } of messages) found.push(`${message} in: ${code.split('\n')[lineNum - 1]}`);
  }
  return found.join('\n');
}

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { placement } from '../../../moebius_lab/page/web/engine/backend.js';
import { EngineError, classify, fromMessage, mayPass, toMessage } from '../../../moebius_lab/page/web/engine/errors.js';
import { sketch } from '../../../moebius_lab/page/web/engine/inpaint.js';
import { FORMAT, checkManifest, filesOf } from '../../../moebius_lab/page/web/engine/manifest.js';
import { examined } from '../../../moebius_lab/page/web/engine/model_cache.js';

test('what a runtime throws becomes a sentence and a code', () => {
  const codes = {
    'Error: Failed to get GPU adapter.': 'no-webgpu',
    'The device was lost': 'device-lost',
    'std::bad_alloc': 'out-of-memory',
    'Array buffer allocation failed': 'out-of-memory',
    'Out of bounds memory access (evaluating f)': 'out-of-memory', // in WebKit's words
    'Invalid ShaderModule "Conv"': 'shader',
    'something else': 'worker',
  };
  for (const [message, code] of Object.entries(codes)) {
    const error = classify(new Error(message));
    assert.equal(error.code, code, message);
    assert.match(error.message, /[A-Z].*\./);
  }
  assert.equal(classify(new DOMException('x', 'AbortError')).code, 'cancelled');
});

test('what says nothing of device or choice may pass in a new worker, and what does will not', () => {
  const crossed = (/** @type {string} */ message) => fromMessage(toMessage(classify(new Error(message))));
  const traps = ['memory access out of bounds', 'Out of bounds memory access (evaluating f)', 'index out of bounds'];
  for (const message of ["Can't create a session", ...traps]) assert.ok(mayPass(crossed(message)), message);
  for (const message of ['std::bad_alloc', 'Failed to get GPU adapter.', 'The device was lost', 'Invalid ShaderModule'])
    assert.ok(!mayPass(crossed(message)), message);
  assert.ok(!mayPass(new EngineError('network', 'The connection broke.')));
});

test('an error crosses from the worker whole', () => {
  const error = fromMessage(toMessage(new EngineError('quota', 'Full.', new Error('why'))));
  assert.deepEqual([error.code, error.message, error.cause.message], ['quota', 'Full.', 'why']);
});

test("the runtime's log says where nodes ran", () => {
  assert.deepEqual(placement(['[V] All nodes placed on [WebGpuExecutionProvider]. Number of nodes: 12']), { WebGpu: 12 });
  const split = [
    ' Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2',
    ' Node(s) placed on [WebGpuExecutionProvider]. Number of nodes: 9',
  ];
  assert.deepEqual(placement(split), { CPU: 2, WebGpu: 9 });
});

test('a manifest of another version is refused', () => {
  assert.throws(() => checkManifest({ format: 99 }), { code: 'manifest-version', message: /Reload the page/ });
  assert.throws(() => checkManifest([]), { code: 'manifest' });
  assert.throws(() => checkManifest({ format: FORMAT, version: 'x', page: 'page-x/' }), {
    code: 'manifest',
    message: /lacks network/,
  });
});

test('a file that two graphs share is fetched once', () => {
  const file = (sha256) => ({ name: sha256, file: sha256, bytes: 1, sha256 });
  const graphs = { vae_encoder: [file('a')], step: [file('b'), file('c')], vae_decoder: [file('a')] };
  const builds = Object.fromEntries(['wasm', 'jspi', 'asyncify'].map((build) => [build, { wasm: file('w') }]));
  const manifest = { runtime: { builds }, precisions: { fp32: { graphs }, fp16: { graphs, recording: file('r') } } };
  const names = (...choice) => filesOf(manifest, ...choice).map(({ file }) => file.sha256);
  assert.deepEqual(names('fp32', 'wasm'), ['w', 'a', 'b', 'c']);
  assert.deepEqual(names('fp32', 'webgpu'), ['w', 'a', 'b', 'c']);
  // a recording stands for the runtime and the graphs' own files
  assert.deepEqual(names('fp16', 'webgpu'), ['r', 'c']);
  assert.deepEqual(names('fp16', 'webgpu', { recorded: false }), ['w', 'a', 'b', 'c']);
  assert.deepEqual(names('fp16', 'wasm'), ['w', 'a', 'b', 'c']);
});

test('hashes are hexadecimal', async () => {
  const { hash } = await examined(new Uint8Array(0).buffer, true, []);
  assert.match(hash, /^e3b0c44298fc1c14[0-9a-f]{48}$/);
});

test('a sketch has the colours of the latents, enlarged without steps', () => {
  const constants = { image_size: 32, latent_size: 4, latent_channels: 4 };
  const latents = Float32Array.from({ length: 64 }, (_, i) => (i < 16 ? i % 4 : 0)); // the first channel grows to the right
  const planes = sketch(
    latents,
    [
      [0.1, 0, 0],
      [0, 0, 0],
      [0, 0, 0],
      [0, 0, 0],
      [0, 0.5, -0.5],
    ],
    constants,
  );
  const row = [...planes.subarray(0, 32)];
  assert.ok(row[0] === 0 && Math.abs(row[31] - 0.3) < 1e-6 && row.every((v, i) => i === 0 || v >= row[i - 1]));
  assert.ok(Math.max(...row.map((v, i) => (i ? v - row[i - 1] : 0))) < 0.02);
  assert.ok(planes.subarray(1024, 2048).every((v) => v === 0.5) && planes.subarray(2048).every((v) => v === -0.5));
});

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { browserIn, compared, made, measured } from '../../../moebius_lab/page/web/measuring/measuring.js';
import { fixtures, floats } from '../fixtures.mjs';

test('inputs are those that PyTorch was given', () => {
  for (const inputs of Object.values(fixtures.reference)) {
    for (const [described, expected] of Object.values(inputs)) {
      const { dims, data } = made(described);
      assert.deepEqual(dims, described.dims);
      assert.deepEqual(data, floats(expected));
    }
  }
  const { data } = made(fixtures.reference.vae_encoder.image[0]);
  const mean = data.reduce((sum, value) => sum + value, 0) / data.length;
  assert.ok(Math.abs(mean) < 0.02 && Math.min(...data) < -0.99 && Math.max(...data) > 0.99);
});

test('the largest difference is found at the numbers that are known, and NaN is the largest of all', () => {
  const output = { size: 6, every: 2, values: [1, 2, 3], range: 10 };
  const { largest, decibel } = compared(Float32Array.of(1, 9, 2.5, 9, 2.75, 9), output);
  assert.equal(largest, 0.5);
  assert.ok(Math.abs(decibel - (20 - 10 * Math.log10((0.25 + 0.0625) / 3))) < 1e-9);
  assert.ok(Number.isNaN(compared(Float32Array.of(1, 9, NaN, 9, 3, 9), output).largest));
  assert.throws(() => compared(new Float32Array(5), output), /5 numbers instead of 6/);
});

test('browsers are told by their user agents', () => {
  const agents = {
    'Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0': ['Firefox', '153.0'],
    'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/156.0.0.0 Safari/537.36': [
      'Chrome',
      '156.0.0.0',
    ],
    'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36 Edg/156.0.0.0':
      ['Edge', '156.0.0.0'],
    'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.0 Safari/605.1.15': [
      'Safari',
      '26.0',
    ],
    'Mozilla/5.0 (iPhone; CPU iPhone OS 26_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/156.0.1 Mobile/15E148 Safari/604.1':
      ['Chrome', '156.0.1'],
    'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/60.5 Safari/605.1.15': [
      'WebKitGTK',
      '60.5',
    ],
    'something else': ['another browser', ''],
  };
  for (const [agent, [engine, version]] of Object.entries(agents)) assert.deepEqual(browserIn(agent), { engine, version });
});

test('a measurement names the device and nothing of the person', async () => {
  const description = { dims: [2], data: [1, 2] };
  const reference = {
    vae_encoder: { inputs: { image: description }, outputs: { mean: { size: 2, every: 1, values: [1, 2], range: 1 } } },
  };
  globalThis.fetch = async () => new Response(JSON.stringify(reference));
  Object.defineProperty(globalThis, 'navigator', {
    value: { userAgent: 'Firefox/153.0 secret', platform: 'Linux x86_64', hardwareConcurrency: 4 },
    configurable: true,
  });
  const asked = [];
  const engine = {
    url: new URL('https://somebody.example/secret/manifest.json'),
    manifest: {
      reference: 'reference-1.json',
      network: 'tiny',
      weights: 'demo',
      version: '0123456789abcdef',
      runtime: { version: '1.30.0' },
      constants: { image_size: 8 },
      runs: { vae_encoder: { graph: 'vae_encoder', sizes: {} } },
    },
    loaded: {
      provider: 'wasm',
      precision: 'fp32',
      adapter: null,
      features: [],
      threads: 4,
      captured: false,
      workspace: 0,
      evidence: 'all of it',
    },
    run: async (graph, feeds, { times = 1 } = {}) => {
      asked.push(times);
      return { outputs: { mean: { dims: [2], data: Float32Array.of(1, 2.5) } }, milliseconds: Array(times).fill(1500) };
    },
  };
  const data = await measured(engine, { webgpu: { limits: { secret: 1 } } }, new AbortController().signal, () => {});
  assert.deepEqual(asked, [1, 3]); // after the first as many as fit into four seconds
  const named = Object.fromEntries(data.rows.map((row) => [row.what, [row.median, row.unit, row.repeats]]));
  assert.deepEqual(named['largest difference, vae_encoder.mean'], [0.5, '', 1]);
  assert.deepEqual(named.encode, [1500, 'ms', 3]);
  assert.equal(data.rows[0].backend, 'Firefox, wasm, all threads');
  assert.ok(!JSON.stringify(data).includes('secret') && !JSON.stringify(data).includes('somebody'));
});

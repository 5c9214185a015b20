import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Seen, inOrder, instead, isTooMuch, lacking, plannedMemory } from '../../../moebius_lab/page/web/engine/suited.js';

const GB = 1e9;
const needs = {
  limits: { maxStorageBufferBindingSize: 268435456, maxStorageBuffersPerShaderStage: 8 },
  weights: 2 * GB,
  widened: 3 * GB,
  activations: GB,
};
const form = { requires: ['shader-f16'], options: { keep: '1' }, options_require: ['shader-f16'], needs };

test('what a device lacks is told with what it has', () => {
  const limits = { maxStorageBufferBindingSize: 134217728, maxStorageBuffersPerShaderStage: 8 };
  assert.deepEqual(lacking(form, { features: ['shader-f16'], limits }), [
    'maxStorageBufferBindingSize of 268 MB (it has 134 MB)',
  ]);
  assert.deepEqual(lacking(form, { features: [], limits: needs.limits }), ['shader-f16']);
  assert.deepEqual(lacking(form, { features: ['shader-f16'], limits: { ...needs.limits, more: 1 } }), []);
  const few = { ...needs.limits, maxStorageBuffersPerShaderStage: 4 };
  assert.deepEqual(lacking(form, { features: ['shader-f16'], limits: few }), ['maxStorageBuffersPerShaderStage of 8 (it has 4)']);
});

test('weights that are widened at load count as widened', () => {
  const [plain, half] = [{ features: [] }, { features: ['shader-f16'] }].map((has) => ({ ...has, adapter: { fallback: false } }));
  const software = { ...half, adapter: { fallback: true } };
  assert.equal(plannedMemory(form, 'webgpu', half, false), 3 * GB);
  assert.equal(plannedMemory(form, 'webgpu', plain, false), 4 * GB);
  assert.equal(plannedMemory(form, 'wasm', { features: [], adapter: null }, false), 3 * GB);
  for (const [provider, webgpu] of Object.entries({ webgpu: half, wasm: plain }))
    assert.equal(plannedMemory({ ...form, options: {} }, provider, webgpu, false), 4 * GB); // the runtime widens unless it is told not to
  assert.equal(plannedMemory(form, 'webgpu', plain, true), 3 * GB); // our kernels need no feature
  assert.equal(plannedMemory(form, 'webgpu', software, true), 4 * GB); // and are not used there
});

test('memory is compared where the browser tells it', () => {
  const where = Object.getOwnPropertyDescriptor(globalThis, 'navigator');
  const tell = (navigator) => Object.defineProperty(globalThis, 'navigator', { value: navigator, configurable: true });
  tell({});
  assert.equal(isTooMuch(100 * GB), false);
  tell({ deviceMemory: 4 });
  assert.deepEqual([isTooMuch(2 * GB), isTooMuch(3 * GB)], [false, true]);
  if (where) Object.defineProperty(globalThis, 'navigator', where);
  else Reflect.deleteProperty(globalThis, 'navigator');
});

const choice = (provider, precision, more = {}) => ({
  provider,
  precision,
  bytes: 10,
  cachedBytes: 0,
  memory: 5,
  tight: false,
  seen: '',
  ...more,
});
const names = (choices) => choices.map(({ provider, precision }) => `${provider} ${precision}`);

test('what works here comes first on its provider, what failed here last', () => {
  const offered = [choice('webgpu', 'fp16'), choice('webgpu', 'fp32'), choice('wasm', 'fp32')];
  assert.deepEqual(inOrder(offered), offered);
  offered[0].seen = 'failed';
  assert.deepEqual(names(inOrder(offered)), ['webgpu fp32', 'wasm fp32', 'webgpu fp16']);
  offered[0].seen = '';
  offered[1].seen = 'works';
  assert.deepEqual(names(inOrder(offered)), ['webgpu fp32', 'webgpu fp16', 'wasm fp32']);
  const heavy = [choice('webgpu', 'fp32', { tight: true }), choice('webgpu', 'int8'), choice('wasm', 'int8')];
  assert.deepEqual(names(inOrder(heavy)), ['webgpu int8', 'webgpu fp32', 'wasm int8']);
});

test('instead of what failed comes what is here already, on either provider, and never what failed too', () => {
  const failed = choice('webgpu', 'fp16', { memory: 6 });
  const others = [
    failed,
    choice('webgpu', 'fp16-storage', { memory: 7 }),
    choice('webgpu', 'fp32', { cachedBytes: 10, memory: 8 }),
    choice('webgpu', 'int8', { memory: 4 }),
    choice('wasm', 'fp32', { cachedBytes: 9, memory: 8 }),
    choice('wasm', 'int8', { memory: 4 }),
  ];
  assert.deepEqual(names(instead(others, failed, false)), ['webgpu fp32', 'wasm fp32']);
  assert.deepEqual(names(instead(others, failed, true)), ['webgpu int8', 'wasm fp32']);
  others[2].seen = 'failed';
  assert.deepEqual(names(instead(others, failed, false)), ['webgpu fp16-storage', 'wasm fp32']);
  assert.deepEqual(names(instead(others, others[4], false)), ['wasm int8']); // where the processor failed, no device is offered
});

test('verdicts are kept for one device, browser and version', () => {
  const store = new Map();
  Object.defineProperty(globalThis, 'localStorage', {
    value: { getItem: (key) => store.get(key) ?? null, setItem: (key, value) => store.set(key, value) },
    configurable: true,
    writable: true,
  });
  const way = { provider: 'webgpu', precision: 'fp16' };
  new Seen('a').note(way, 'failed');
  assert.equal(new Seen('a').of(way), 'failed');
  assert.equal(new Seen('b').of(way), '');
  new Seen('a', 'this device').note(way, 'failed');
  assert.equal(new Seen('a', 'another device').of(way), '');
  const without = new Seen('a'); // as after a crash, when the browser gives no device
  assert.equal(without.of(way), 'failed');
  without.note({ ...way, provider: 'wasm' }, 'works');
  assert.equal(new Seen('a', 'this device').of(way), 'failed');
  store.set('seen', '{');
  assert.equal(new Seen('a').of(way), '');
  globalThis.localStorage = undefined; // as where storage is blocked
  const seen = new Seen('a');
  seen.note(way, 'works');
  assert.equal(seen.of(way), 'works');
});

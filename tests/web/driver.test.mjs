// What the driver of the headless browser does around every call. The calls themselves: tests/page/test_browser.py.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { inTime } from '../../moebius_lab/page/driver.js';

test('a result comes through, and leaves no timer that would keep a process', async () => {
  const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;
  const before = timers();
  assert.equal(await inTime(Promise.resolve(5), 600, 'It is late.'), 5);
  assert.equal(timers(), before);
});

test('the cause of an error is told in its message, which alone reaches Python', async () => {
  const failing = (cause) => inTime(Promise.reject(new Error('It failed.', { cause })), 600, 'It is late.');
  await assert.rejects(failing(undefined), { message: 'It failed.' });
  await assert.rejects(failing(new RangeError('no memory')), { message: 'It failed. (no memory)' });
  await assert.rejects(failing('words'), { message: 'It failed. (words)' });
});

test('what does not end is told when its time is over', async () => {
  const began = performance.now();
  await assert.rejects(inTime(new Promise(() => {}), 0.05, 'It is late.'), /It is late\./);
  assert.ok(performance.now() - began >= 45);
});

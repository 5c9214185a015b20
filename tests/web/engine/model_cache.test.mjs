// A model's files from a real server, where the browser gives no storage: what is fetched, told, tried again and refused.
// With storage: tests/test_browser.py.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import { after, before, beforeEach, test } from 'node:test';

import { ModelCache } from '../../../moebius_lab/page/web/engine/model_cache.js';

const FILES = Object.fromEntries(
  [300_000, 70_000, 5, 120_000, 90_000, 40_000].map((size, i) => [`${i}.bin`, Buffer.alloc(size, i + 1)]),
);
const digest = (bytes) => createHash('sha256').update(bytes).digest('hex');

/** @type {(name: string, answer: import('node:http').ServerResponse) => boolean} whether it answered in its own way */
let badly = () => false;
let server, base, asked, open, most;

before(async () => {
  server = createServer((request, answer) => {
    const name = request.url.slice(1);
    asked.push(name);
    most = Math.max(most, ++open);
    answer.on('close', () => open--);
    if (badly(name, answer)) return;
    const body = FILES[name];
    answer.writeHead(200, { 'content-length': body.length });
    answer.write(body.subarray(0, body.length / 2));
    setTimeout(() => answer.end(body.subarray(body.length / 2)), 20);
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  base = `http://127.0.0.1:${server.address().port}/`;
});
after(() => new Promise((done) => (server.closeAllConnections(), server.close(done))));
beforeEach(() => {
  [badly, asked, open, most] = [() => false, [], 0, 0];
});

const wanted = (...names) =>
  names.map((name) => {
    const file = { name, file: name, bytes: FILES[name].length, sha256: digest(FILES[name]) };
    return { graph: 'step', precision: 'fp32', url: new URL(name, base), file };
  });

/** @param {ReturnType<typeof wanted>} items */
async function provide(items, signal = new AbortController().signal) {
  const seen = [];
  const cache = new ModelCache(new URL('manifest.json', base), { precisions: {}, runtime: { builds: {} } });
  const files = await cache.provide(items, (progress) => seen.push(progress), signal);
  await files.whole;
  return { files, seen };
}

test('every file arrives whole, at most four at a time, and the visit is told that nothing is kept', async () => {
  const all = wanted(...Object.keys(FILES));
  const { files, seen } = await provide(all);
  assert.equal(files.storage, 'memory');
  for (const { file } of all) {
    const bytes = Buffer.from((await files.file(file.sha256)).bytes);
    assert.equal(digest(bytes), file.sha256);
  }
  assert.deepEqual([...asked].sort(), Object.keys(FILES));
  assert.ok(most > 1 && most <= 4, `${most} at a time`);
  await assert.rejects(files.file('0'.repeat(64)), { code: 'bad-input' });

  const done = seen.map(({ doneBytes }) => doneBytes);
  assert.deepEqual(
    done,
    [...done].sort((a, b) => a - b),
    'progress never runs backwards',
  );
  const last = seen.at(-1);
  assert.equal(last.doneBytes, last.totalBytes);
  assert.equal(
    last.totalBytes,
    all.reduce((sum, { file }) => sum + file.bytes, 0),
  );
  assert.ok(last.secondsLeft === 0 && last.cachedBytes === 0 && last.phase === 'download');
  assert.match(last.message, /does not let the page keep files/);
});

test('a connection that breaks is tried again, and what had come does not count twice', async () => {
  let broken = 0;
  badly = (name, answer) => {
    if (name !== '0.bin' || broken++) return false;
    answer.writeHead(200, { 'content-length': FILES[name].length });
    answer.write(FILES[name].subarray(0, 1000), () => answer.destroy());
    return true;
  };
  const { files, seen } = await provide(wanted('0.bin'));
  assert.deepEqual(asked, ['0.bin', '0.bin']);
  assert.equal((await files.file(digest(FILES['0.bin']))).bytes.byteLength, 300_000);
  assert.ok(seen.some(({ message }) => /connection broke/.test(message ?? '')));
  assert.equal(seen.at(-1).doneBytes, 300_000);
});

test('a file that arrives damaged is fetched once more, and refused after that', async () => {
  let times = 0;
  badly = (name, answer) => {
    if (times++ >= 1) return false;
    answer.end(Buffer.alloc(FILES[name].length, 99));
    return true;
  };
  const { seen } = await provide(wanted('1.bin'));
  assert.equal(asked.length, 2);
  assert.ok(seen.some(({ message }) => /arrived damaged/.test(message ?? '')));
  badly = (name, answer) => (answer.end(Buffer.alloc(FILES[name].length, 99)), true);
  await assert.rejects(provide(wanted('1.bin')), {
    code: 'corrupt',
    message: /1\.bin from 127\.0\.0\.1.* is not the file that the manifest names/,
  });
});

test('what is not there, too long or too short is said at once', async () => {
  badly = (name, answer) => (answer.writeHead(404).end(), true);
  await assert.rejects(provide(wanted('2.bin')), { code: 'not-found', message: /2\.bin is not there \(404\)/ });
  assert.equal(asked.length, 1);
  for (const size of [4, 6]) {
    badly = (name, answer) => (answer.writeHead(200, { 'content-length': size }).end(Buffer.alloc(size, 3)), true);
    await assert.rejects(provide(wanted('2.bin')), { code: 'corrupt' });
  }
  assert.equal(asked.length, 3);
});

test('an error of one file ends the others too', async () => {
  badly = (name, answer) => name === '2.bin' && (answer.writeHead(410).end(), true);
  const error = await provide(wanted('2.bin', '0.bin', '1.bin', '3.bin', '4.bin', '5.bin')).catch((each) => each);
  assert.equal(error.code, 'not-found');
  assert.ok(!asked.includes('5.bin'), 'no further file is begun');
});

test('a stop is a stop, while a file comes and while the next attempt waits', async () => {
  for (const broken of [false, true]) {
    const stop = new AbortController();
    badly = (name, answer) => {
      setTimeout(() => stop.abort(), 30);
      answer.writeHead(200, { 'content-length': FILES[name].length });
      answer.write(FILES[name].subarray(0, 1000), () => broken && answer.destroy());
      return true;
    };
    const began = performance.now();
    await assert.rejects(provide(wanted('0.bin'), stop.signal), { code: 'cancelled' });
    assert.ok(performance.now() - began < 400, 'before the pause is over');
  }
});

test('who reads a file waits for it alone, and for an error of any', async () => {
  let release = () => {};
  badly = (name, answer) => {
    if (name === '1.bin') release = () => answer.end(FILES[name]);
    if (name === '2.bin') setTimeout(() => answer.writeHead(404).end(), 60);
    return name === '1.bin' || name === '2.bin';
  };
  const signal = new AbortController().signal;
  const begun = (...names) => {
    const cache = new ModelCache(new URL('manifest.json', base), { precisions: {}, runtime: { builds: {} } });
    return cache.provide(wanted(...names), () => {}, signal, true);
  };
  const files = await begun('0.bin', '1.bin');
  let whole = false;
  files.whole.then(() => (whole = true));
  assert.equal((await files.file(digest(FILES['0.bin']))).bytes.byteLength, 300_000);
  assert.equal(whole, false);
  const last = files.file(digest(FILES['1.bin']));
  release();
  assert.equal((await last).bytes.byteLength, 70_000);
  await files.whole;

  const failing = await begun('1.bin', '2.bin');
  await assert.rejects(failing.file(digest(FILES['2.bin'])), { code: 'not-found' });
  release();
  await assert.rejects(failing.whole, { code: 'not-found' });
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';

import { derive, storedNarrow } from '../../../moebius_lab/page/web/engine/recorded/weights.js';
import { readRecording } from '../../../moebius_lab/page/web/engine/recorded/recording.js';

/** What a formula makes of numbers that stand where no number of four bytes would begin. */
async function made(stored, dims, formulaOf) {
  const file = new Uint8Array(6 + stored.byteLength);
  file.set(new Uint8Array(stored.buffer), 6);
  const leaf = { stored: { file: 'f', from: 6, length: stored.byteLength, dims } };
  return derive(formulaOf(leaf), async () => file);
}

test('16 bits become 32, every one of them', async () => {
  const halves = Uint16Array.from({ length: 65536 }, (_, i) => i).filter((half) => (half & 0x7c00) !== 0x7c00 || !(half & 1023));
  const { words } = await made(halves, [halves.length], (leaf) => ({ cast: 'float32', of: [leaf] }));
  assert.equal(words.length, halves.length);
  const wide = new Float32Array(words.buffer);
  const bits = new Map([...halves].map((half, i) => [half, wide[i]]));
  const known = {
    0x3c00: 1,
    0xc000: -2,
    0x7bff: 65504,
    0x0001: 2 ** -24,
    0x03ff: 1023 * 2 ** -24,
    0x0400: 2 ** -14,
    0x3555: 1365 / 4096,
  };
  for (const [half, value] of Object.entries(known)) assert.equal(bits.get(Number(half)), value, half);
  assert.ok(Object.is(bits.get(0x8000), -0) && bits.get(0x7c00) === Infinity && bits.get(0xfc00) === -Infinity);
  assert.ok(wide.subarray(1, 0x7c00).every((value, i) => value > wide[i])); // each the next larger
});

test('a weight is transposed, and zeros fill up its last word', async () => {
  const stored = Float32Array.from({ length: 30 }, (_, i) => i);
  const { dims, words } = await made(stored, [2, 5, 3], (leaf) => ({ transpose: [2, 0, 1], of: [leaf] }));
  const expected = [0, 1, 2].flatMap((c) => [0, 1].flatMap((a) => [0, 1, 2, 3, 4].map((b) => 15 * a + 3 * b + c)));
  assert.deepEqual([dims, [...new Float32Array(words.buffer)]], [[3, 2, 5], expected]);
  const bytes = await made(Uint8Array.of(7, 8, 9, 10, 11), [5], (leaf) => leaf);
  assert.deepEqual([...new Uint8Array(bytes.words.buffer)], [7, 8, 9, 10, 11, 0, 0, 0]);
  const three = await made(Uint16Array.of(0x3c00, 0xc000, 0x3c00), [3], (leaf) => ({ cast: 'float32', of: [leaf] }));
  assert.deepEqual([...new Float32Array(three.words.buffer)], [1, -2, 1]);
});

test('only a weight that is widened and no more can stay as it is stored', () => {
  const leaf = { stored: { file: 'f', from: 0, length: 12, dims: [2, 3], kind: 'float16' } };
  const cast = { cast: 'float32', of: [leaf] };
  assert.equal(storedNarrow(cast), leaf);
  assert.equal(storedNarrow({ transpose: [1, 0], of: [cast] }), leaf);
  const others = [leaf, { transpose: [1, 0], of: [leaf] }, { reshape: [6], of: [cast] }, { cast: 'int64', of: [leaf] }];
  others.push({ transpose: [0, 1], of: [{ transpose: [1, 0], of: [cast] }] });
  for (const formula of others) assert.equal(storedNarrow(formula), undefined);
});

test("a recording's file has a description and numbers", async () => {
  const text = new TextEncoder().encode(JSON.stringify({ runtime: 'ö' }));
  const head = new Uint8Array(Uint32Array.of(text.length).buffer);
  const { recording, own } = await readRecording(gzipSync(new Uint8Array([...head, ...text, 1, 2, 3])));
  assert.deepEqual([recording, [...own]], [{ runtime: 'ö' }, [1, 2, 3]]);
});

test('what the runtime computes from weights is computed again', async () => {
  const table = Float32Array.from({ length: 12 }, (_, i) => i / 3);
  const rows = Int32Array.of(3, 0, 2, 2);
  const files = { t: new Uint8Array([...new Uint8Array(4), ...new Uint8Array(table.buffer)]), r: new Uint8Array(rows.buffer) };
  const file = async (/** @type {'t'|'r'} */ name) => files[name];
  const weight = { stored: { file: 't', from: 4, length: 48, dims: [4, 3], kind: 'float32' } };
  const indices = { stored: { file: 'r', from: 0, length: 16, dims: [2, 2], kind: 'int32' } };
  const numbers = async (/** @type {any} */ formula) => {
    const { dims, words } = await derive(formula, file);
    return [dims, [...new Float32Array(words.buffer, words.byteOffset, words.length)]];
  };
  const at = (...places) => places.map((place) => table[place]);
  const [first, last] = [0, 2].map((column) => ({ slice: [1, column, column + 1], of: [weight] }));
  assert.deepEqual(await numbers(first), [[4, 1], at(0, 3, 6, 9)]);
  const sums = [0, 3, 6, 9].map((i) => Math.fround(table[i] + table[i + 2]));
  assert.deepEqual(await numbers({ add: 'float32', of: [first, last] }), [[4, 1], sums]);
  assert.deepEqual(await numbers({ concat: 1, of: [last, first] }), [[4, 2], at(2, 0, 5, 3, 8, 6, 11, 9)]);
  assert.deepEqual(await numbers({ reshape: [2, 6], of: [{ slice: [0, 2, 4], of: [weight] }] }), [
    [2, 6],
    at(6, 7, 8, 9, 10, 11),
  ]);
  const picked = { gather: 0, of: [weight, indices] };
  assert.deepEqual(await numbers(picked), [[2, 2, 3], at(9, 10, 11, 0, 1, 2, 6, 7, 8, 6, 7, 8)]);
  const turned = { transpose: [0, 2, 1], of: [picked] };
  assert.deepEqual(await numbers(turned), [[2, 3, 2], at(9, 0, 10, 1, 11, 2, 6, 6, 7, 7, 8, 8)]);
  const { dims, words } = await derive({ cast: 'int64', of: [indices] }, file);
  assert.deepEqual(
    [dims, [...words]],
    [
      [2, 2, 2],
      [3, 0, 0, 0, 2, 0, 2, 0],
    ],
  );
  await assert.rejects(derive({ of: [] }, file), /does not know/);
});

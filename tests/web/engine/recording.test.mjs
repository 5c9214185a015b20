import assert from 'node:assert/strict';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';

import '../group_by.mjs';

globalThis.GPUBufferUsage = { STORAGE: 128, COPY_SRC: 4, COPY_DST: 8 };
const recorded = '../../../moebius_lab/page/web/engine/recorded';
const { derive, fillWeights, placeWeights, storedNarrow } = await import(`${recorded}/weights.js`);
const { readRecording } = await import(`${recorded}/recording.js`);

/** What a formula makes of numbers that stand where no number of four bytes would begin. */
async function made(stored, dims, formulaOf) {
  const file = new Uint8Array(6 + stored.byteLength);
  file.set(new Uint8Array(stored.buffer), 6);
  const leaf = { stored: { file: 'f', from: 6, length: stored.byteLength, dims } };
  return derive(formulaOf(leaf), () => file);
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
  const { recording, own } = await readRecording(new Uint8Array(gzipSync(new Uint8Array([...head, ...text, 1, 2, 3]))).buffer);
  assert.deepEqual([recording, [...own]], [{ runtime: 'ö' }, [1, 2, 3]]);
});

test('what the runtime computes from weights is computed again', async () => {
  const table = Float32Array.from({ length: 12 }, (_, i) => i / 3);
  const rows = Int32Array.of(3, 0, 2, 2);
  const files = { t: new Uint8Array([...new Uint8Array(4), ...new Uint8Array(table.buffer)]), r: new Uint8Array(rows.buffer) };
  const file = (/** @type {'t'|'r'} */ name) => files[name];
  const weight = { stored: { file: 't', from: 4, length: 48, dims: [4, 3], kind: 'float32' } };
  const indices = { stored: { file: 'r', from: 0, length: 16, dims: [2, 2], kind: 'int32' } };
  const numbers = async (/** @type {any} */ formula) => {
    const { dims, words } = derive(formula, file);
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
  const { dims, words } = derive({ cast: 'int64', of: [indices] }, file);
  assert.deepEqual(
    [dims, [...words]],
    [
      [2, 2, 2],
      [3, 0, 0, 0, 2, 0, 2, 0],
    ],
  );
  assert.throws(() => derive({ of: [] }, file), /does not know/);
});

test('every order of axes, of sides below and above what is transposed together', async () => {
  const orders = (axes) =>
    axes.length < 2 ? [axes] : axes.flatMap((axis) => orders(axes.filter((a) => a !== axis)).map((o) => [axis, ...o]));
  for (const dims of [[70], [33, 65], [3, 40, 34], [2, 35, 3, 33]]) {
    const strides = dims.map((_, i) => dims.slice(i + 1).reduce((a, b) => a * b, 1));
    const stored = Float32Array.from({ length: dims.reduce((a, b) => a * b) }, (_, i) => i);
    for (const order of orders(dims.map((_, i) => i))) {
      const { dims: sides, words } = await made(stored, dims, (leaf) => ({ transpose: order, of: [leaf] }));
      const expected = new Float32Array(stored.length).map((_, at) => {
        let rest = at;
        let from = 0;
        for (let i = order.length - 1; i >= 0; i--) {
          from += (rest % sides[i]) * strides[order[i]];
          rest = Math.floor(rest / sides[i]);
        }
        return from;
      });
      assert.deepEqual(sides, order.map((axis) => dims[axis])); // prettier-ignore
      assert.deepEqual(new Float32Array(words.buffer), expected, order.join());
    }
  }
});

test('weights have their places before any file is read, and each file is read once, whatever the order of weights', async () => {
  const names = ['a', 'b', 'c', 'd', 'e'];
  const files = Object.fromEntries(
    names.map((name, i) => [name, Float32Array.from({ length: 300_000 }, (_, n) => n + i / 8).buffer]),
  );
  const leaf = (file, from, dims) => {
    return { stored: { file, from: 4 * from, length: 4 * dims.reduce((x, y) => x * y), dims, kind: 'float32' } };
  };
  const [table, half] = [leaf('a', 8, [6, 4]), { stored: { file: 'b', from: 16, length: 48, dims: [4, 6], kind: 'float16' } }];
  const rows = { stored: { file: '', from: 1, length: 8, dims: [2], kind: 'int32' } };
  const own = new Uint8Array([99, 5, 0, 0, 0, 1, 0, 0, 0]);
  const cast = { cast: 'float32', of: [half] };
  const formulas = [
    leaf('a', 0, [5]),
    leaf('c', 1, [290_000]), // in several pieces
    table,
    { stored: { file: 'b', from: 2, length: 7, dims: [7], kind: 'int8' } },
    { slice: [1, 1, 3], of: [table] },
    { concat: 0, of: [table, leaf('d', 3, [2, 4])] },
    { gather: 0, of: [table, rows] },
    { cast: 'int64', of: [rows] },
    { add: 'float32', of: [table, leaf('e', 3, [6, 4])] },
    { reshape: [3, 8], of: [{ transpose: [1, 0], of: [table] }] },
    cast,
    { transpose: [1, 0], of: [cast] },
    leaf('e', 2, [9]),
    leaf('a', 4, [9]),
    leaf('d', 7, [2]),
  ];
  const contentOf = (sha256) => (sha256 ? new Uint8Array(files[sha256]) : own);
  const sizeOf = (formula) => Math.ceil(derive(formula, contentOf).words.byteLength / 16) * 16;
  const recording = { weights: formulas.map((formula) => ({ name: '', formula, bytes: sizeOf(formula) })) };
  const device = {
    createBuffer: ({ size }) => ({ size, content: new Uint8Array(size) }),
    queue: {
      writeBuffer: ({ content }, at, data, from, size) => {
        assert.ok(at % 4 === 0 && size % 4 === 0); // what devices demand
        content.set(new Uint8Array(data, from, size), at);
      },
    },
  };
  for (const narrow of [false, true]) {
    const places = placeWeights(device, recording, narrow);
    const read = [];
    await fillWeights(
      device,
      recording,
      places,
      own,
      async (sha256) => (read.push(sha256), { bytes: files[sha256], numbers: new Map() }),
    );
    assert.deepEqual(read.sort(), names); // one that a formula needs beside its own is there until then
    for (const [i, formula] of formulas.entries()) {
      const stored = narrow && storedNarrow(formula);
      const { words } = derive(stored || formula, contentOf);
      const { size, content } = stored ? places[i].stored : places[i];
      const bytes = new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
      assert.deepEqual([size, content.subarray(0, bytes.length)], [Math.ceil(bytes.length / 16) * 16, bytes], `${i}`);
      assert.ok(content.subarray(bytes.length).every((byte) => byte === 0));
      if (stored) assert.deepEqual([places[i].size, places[i].axes?.order], [96, formula.transpose]);
    }
  }
});

test('a file that cannot be read ends the filling', async () => {
  const recording = {
    weights: [{ name: '', formula: { stored: { file: 'a', from: 0, length: 4, dims: [1], kind: 'float32' } }, bytes: 16 }],
  };
  const device = { createBuffer: ({ size }) => ({ size }) };
  const refused = async () => Promise.reject(new Error('gone'));
  await assert.rejects(fillWeights(device, recording, placeWeights(device, recording, false), new Uint8Array(), refused), /gone/);
});

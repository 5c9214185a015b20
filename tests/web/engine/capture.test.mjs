import assert from 'node:assert/strict';
import { test } from 'node:test';

import { plan, usesIn } from '../../../moebius_lab/page/web/engine/capture.js';
import { Generator } from '../../../moebius_lab/page/web/engine/random.js';

test('what a program does with its buffers', () => {
  const code = `
    @group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
    @group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
    @group(0) @binding(2) var<storage, read_write> total: array<f32>;
    @group(0) @binding(3) var<storage, read_write> count: array<atomic<i32>>;
    @group(0) @binding(4) var<storage, read_write> handed: array<f32>;
    @group(0) @binding(5) var<uniform> uniforms: Uniforms;
    @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id : vec3<u32>) {
      y[offset[id.y] + 1] = x[id.x];
      if (y_size == 2) { total[id.x] = total[id.x] + 1; }
      atomicAdd(&count[0], 1);
      keep(&handed);
    }`;
  assert.deepEqual(
    [...usesIn(code)],
    [
      [0, 'read'],
      [1, 'write'],
      [2, 'both'],
      [3, 'both'],
      [4, 'both'],
      [5, 'read'],
    ],
  );
  const compared = '@group(0) @binding(0) var<storage, read_write> y: array<f32>; fn main() { if (y[0] == 1) { y[1] = 2; } }';
  assert.deepEqual([...usesIn(compared)], [[0, 'both']]);
  assert.deepEqual(
    [...usesIn('@group(0) @binding(0) var<storage, read_write> y: array<f32>; fn main() { y[a[0 }')],
    [[0, 'both']],
  );
});

/** Something of `size` bytes, written by the first command of `uses` and read by the others. */
function lifetime(size, ...uses) {
  return { buffer: { size }, from: uses[0], to: uses.at(-1), read: true, uses: new Map(uses.map((at, i) => [at, i === 0])) };
}

test('what is never wanted together shares room, and a command never reads the buffer that it writes to', () => {
  const chain = [lifetime(1000, 0, 1), lifetime(1000, 1, 2), lifetime(1000, 2, 3), lifetime(1000, 3, 4)]; // each made from the one before
  assert.deepEqual(plan([chain], 256).sizes, [1000, 1000]);
  assert.deepEqual(plan([chain, chain.map((each) => ({ ...each }))], 256).sizes, [1000, 1000]); // another graph needs none of its own

  const large = lifetime(1024, 0, 1);
  const halves = [lifetime(500, 2, 9), lifetime(500, 3, 9)]; // alive together, met by one command that reads both
  const { sizes, allocations } = plan([[large, ...halves]], 256);
  assert.deepEqual(sizes, [1024]);
  assert.deepEqual(
    halves.map((half) => allocations.get(half)),
    [
      { index: 0, offset: 0 },
      { index: 0, offset: 512 },
    ],
  );

  const apart = [lifetime(500, 2, 3), lifetime(500, 3, 9)]; // the second is made from the first
  assert.deepEqual(plan([[large, ...apart]], 256).sizes, [1024, 500]);
});

test('no two that are wanted at once overlap, in a hundred random plans', () => {
  const random = new Generator(1);
  const below = (n) => random.uint32() % n;
  for (let round = 0; round < 100; round++) {
    const captures = [0, 1].map(() =>
      Array.from({ length: 40 }, () => {
        const from = below(60);
        return lifetime(16 * (1 + below(64)), from, from + 1 + below(4), from + 6 + below(12));
      }),
    );
    const { sizes, allocations } = plan(captures, 256);
    for (const lifetimes of captures) {
      for (const a of lifetimes) {
        const at = allocations.get(a);
        assert.ok(at.offset % 256 === 0 && at.offset + a.buffer.size <= sizes[at.index]);
        for (const b of lifetimes.slice(lifetimes.indexOf(a) + 1)) {
          const other = allocations.get(b);
          if (at.index !== other.index || a.to < b.from || a.from > b.to) continue;
          assert.ok(at.offset + a.buffer.size <= other.offset || other.offset + b.buffer.size <= at.offset);
          for (const [command, writes] of a.uses) assert.ok(!b.uses.has(command) || !(writes || b.uses.get(command)));
        }
      }
    }
    const all = captures.flat().reduce((sum, each) => sum + each.buffer.size, 0);
    assert.ok(sizes.reduce((sum, size) => sum + size, 0) < all / 2);
  }
});

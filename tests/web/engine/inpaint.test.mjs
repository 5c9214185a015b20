import assert from 'node:assert/strict';
import { test } from 'node:test';

import { inpaint } from '../../../moebius_lab/page/web/engine/inpaint.js';
import { Generator, randn } from '../../../moebius_lab/page/web/engine/random.js';
import { solverSteps } from '../../../moebius_lab/page/web/engine/sampler.js';
import { nextTask } from '../../../moebius_lab/page/web/engine/turns.js';
import { constants } from '../fixtures.mjs';

const { image_size: S, latent_size: s, latent_channels: channels, scaling_factor: factor } = constants;
const count = channels * s * s;
const round = Math.fround;
const settings = {
  solver: 'ddim',
  steps: 2,
  strength: 1,
  guidance: 2,
  guidance_interval: [0, 1],
  seed: 7,
  noise_offset: 0.5,
  init: 'noise',
  coverage: 'whole',
  harmonize: false,
};
const preview = Array.from({ length: channels + 1 }, () => [0, 0, 0]);

/** A white picture with a hole in its upper rows. */
function job(init) {
  const mask = new Uint8Array(S * S).fill(255, 0, (S * S) / 2);
  return {
    image: { width: S, height: S, data: new Uint8ClampedArray(4 * S * S).fill(255) },
    mask,
    settings: { ...settings, init },
  };
}

/** The least that a model can be: every latent has mean 0 and deviation 1, steps change nothing, what is decoded is black. */
class Plain {
  provider = 'none';
  encoded = [];

  async encode(planes) {
    this.encoded.push(planes.slice());
    return { mean: new Float32Array(count), std: new Float32Array(count).fill(1) };
  }

  async denoise(state, mask, maskedLatents) {
    Object.assign(this, { latents: state.subarray(0, count), mask, maskedLatents, fed: [] });
    return { step: async (feeds) => void this.fed.push(feeds), state: async () => state, close: () => {} };
  }

  async decode() {
    return new Float32Array(3 * S * S).fill(-1);
  }
}

const run = (backend, init) =>
  inpaint(
    backend,
    job(init),
    constants,
    preview,
    () => {},
    async () => false,
  );

test('random numbers are drawn in the order image, masked image, noise, offset', async () => {
  const generator = new Generator(settings.seed);
  const [ofImage, ofMasked, noise] = [1, 2, 3].map(() => randn(count, generator));
  const offset = randn(channels, generator);
  const start = noise.map((n, i) => n + round(settings.noise_offset * offset[Math.floor(i / (s * s))]));
  const [{ signal, sigma }] = solverSteps('ddim', settings.steps, settings.strength, constants);

  const backend = new Plain();
  await run(backend, 'noise');
  assert.deepEqual(backend.latents, start);
  assert.deepEqual(
    backend.maskedLatents,
    ofMasked.map((n) => round(factor) * n),
  );
  await run(backend, 'image');
  const mixed = start.map((n, i) => round(round(signal) * round(round(factor) * ofImage[i])) + round(round(sigma) * n));
  assert.deepEqual(backend.latents, mixed);
});

test('the second encoding sees grey in the hole, the first what is under it', async () => {
  const backend = new Plain();
  const { image } = await run(backend, 'image');
  const [all, masked] = backend.encoded;
  assert.ok(all.every((value) => value === 1));
  assert.ok(masked.every((value, i) => value === (i % (S * S) < (S * S) / 2 ? 0 : 1)));
  assert.deepEqual([...image.data.subarray(0, 4)], [0, 0, 0, 255]);
  assert.deepEqual([...image.data.subarray(-4)], [255, 255, 255, 255]);
});

test('from noise the picture itself is not encoded', async () => {
  const backend = new Plain();
  await run(backend, 'noise');
  assert.equal(backend.encoded.length, 1);
  assert.ok(backend.encoded[0].every((value, i) => value === (i % (S * S) < (S * S) / 2 ? 0 : 1)));
});

test('steps outside the interval are evaluated on one condition, with the numbers of their solver', async () => {
  const half = job('noise');
  Object.assign(half.settings, { solver: 'dpm++2m', steps: 6, guidance_interval: [0.5, 1] });
  const backend = new Plain();
  const progress = [];
  const stopped = async () => false;
  const { timings } = await inpaint(backend, half, constants, preview, (told) => progress.push(told), stopped);
  assert.deepEqual(
    backend.fed.map(({ conditions }) => conditions.dims[0]),
    [1, 1, 1, 2, 2, 2],
  );
  assert.deepEqual(
    backend.fed.map(({ timestep }) => timestep.data[0]),
    [999, 832, 666, 499, 332, 166],
  );
  assert.deepEqual(
    progress.map(({ pace }) => [pace.unguided > 0, pace.guided > 0]),
    [[false, false], ...[1, 2, 3].map(() => [true, false]), ...[4, 5, 6].map(() => [true, true])],
  );
  assert.ok(timings.guided > 0 && timings.unguided > 0 && timings.step > 0 && timings.decode > 0);
});

/** Whose steps are done when `finish` is called, one after another. */
class Queueing extends Plain {
  running = [];
  most = 0;

  async denoise(state, ...rest) {
    const step = (feeds) => {
      this.fed.push(feeds);
      return new Promise((resolve, reject) => {
        this.running.push({ resolve, reject });
        this.most = Math.max(this.most, this.running.length);
      });
    };
    return { ...(await super.denoise(state, ...rest)), step, queues: true };
  }

  /** Let `count` steps end, each when nothing else is left to do. */
  async finish(count, outcome = 'resolve') {
    for (let i = 0; i < count; i++) {
      while (!this.running.length) await nextTask();
      for (let turns = 0; turns < 3; turns++) await nextTask();
      this.running.shift()[outcome](new Error('the device is gone'));
    }
  }
}

test('quick steps are asked for one ahead, and told in their order', async () => {
  const many = job('noise');
  many.settings.steps = 6;
  const backend = new Queueing();
  const told = [];
  const report = ({ step }) => told.push([step, backend.fed?.length ?? 0]);
  const done = inpaint(backend, many, constants, preview, report, async () => false);
  await backend.finish(6);
  const { timings } = await done;
  assert.equal(backend.most, 2);
  assert.deepEqual(
    told.map(([step]) => step),
    [0, 1, 2, 3, 4, 5, 6],
  );
  assert.ok(
    told.slice(2, -1).every(([step, asked]) => asked === step + 1),
    'while a step is told, the next is computed',
  );
  assert.ok(timings.step > 0);
});

test('what goes wrong in a step, or a cancellation, is told once while another is under way', async () => {
  const many = job('noise');
  many.settings.steps = 6;
  const failing = new Queueing();
  const failed = assert.rejects(
    inpaint(
      failing,
      many,
      constants,
      preview,
      () => {},
      async () => false,
    ),
    /the device is gone/,
  );
  await failing.finish(2);
  await failing.finish(2, 'reject');
  await failed;
  assert.ok(failing.fed.length < 6);

  const cancelled = new Queueing();
  let stop = false;
  const run = inpaint(
    cancelled,
    many,
    constants,
    preview,
    ({ step }) => (stop ||= step === 3),
    async () => stop,
  );
  await Promise.all([cancelled.finish(4), assert.rejects(run, { code: 'cancelled' })]);
  assert.equal(cancelled.fed.length, 4);
});

test('what a run will cost is told before it computes anything', async () => {
  const backend = new Plain();
  const told = [];
  await inpaint(
    backend,
    job('noise'),
    constants,
    preview,
    (progress) => told.push([backend.encoded.length, progress]),
    async () => false,
  );
  const pace = { encode: 0, guided: 0, unguided: 0, decode: 0 };
  assert.deepEqual(told[0], [0, { window: 0, windows: 1, step: 0, steps: 2, msPerStep: 0, pace, plan: `1 window of ${S} px` }]);
  assert.deepEqual(
    told.slice(1).map(([, { step, plan }]) => [step, plan]),
    [1, 2].map((step) => [step, `1 window of ${S} px`]),
  );
});

test('a thin hole that misses the corners of its cells is told and replaced; as released it is neither', async () => {
  for (const [coverage, cells, left] of [
    ['whole', s, 0],
    ['as-released', 0, 192],
  ]) {
    const wire = job('noise');
    wire.mask.fill(0);
    for (let y = 0; y < S; y++) wire.mask.fill(255, y * S + 41, y * S + 43);
    wire.settings.coverage = coverage;
    const backend = new Plain();
    const { image } = await inpaint(
      backend,
      wire,
      constants,
      preview,
      () => {},
      async () => false,
    );
    assert.equal(
      backend.mask.reduce((sum, told) => sum + told, 0),
      cells,
      coverage,
    );
    const red = Array.from({ length: S }, (_, x) => image.data[4 * (60 * S + x)]); // the model's picture is black, the old one white
    assert.ok(Math.abs(red[41] - left) < 4 && red[41] === red[42], `${coverage}: ${red[41]}`);
    assert.ok(red.every((value, x) => value === 255 || (x > 41 - constants.feather_width && x < 42 + constants.feather_width)));
  }
});

test('a coverage that there is not is refused', async () => {
  const bad = job('noise');
  bad.settings.coverage = 'most';
  const running = inpaint(
    new Plain(),
    bad,
    constants,
    preview,
    () => {},
    async () => false,
  );
  await assert.rejects(running, { code: 'bad-input', message: /one of whole, as-released/ });
});

test('a run that is asked to stop begins no further step', async () => {
  for (const last of [0, 1, 4]) {
    const stopping = job('noise');
    stopping.settings.steps = 5;
    stopping.settings.strength = 1;
    let done = 0;
    const running = inpaint(
      new Plain(),
      stopping,
      constants,
      preview,
      ({ step }) => (done = step),
      async () => done === last,
    );
    await assert.rejects(running, { code: 'cancelled' });
    assert.equal(done, last);
  }
});

test('an encoding that fails is told once', async () => {
  const backend = new Plain();
  backend.encode = async () => {
    throw new Error('out of memory');
  };
  await assert.rejects(run(backend, 'image'), /out of memory/);
});

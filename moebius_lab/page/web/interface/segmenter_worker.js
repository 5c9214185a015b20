// Runs a segmentation model in a thread of its own, on the processor; which models, and the arithmetic around them, is segmenter.py's.

import { reason } from '../engine/errors.js';

const POINTS = ['batched_point_coords', 'point_coords', 'input_points'];
const OWN_SIZE = 'batched_images';
const MASKS = ['low_res_masks', 'pred_masks', 'output_masks', 'masks'];
const OF_SQUARE = 2; // of those, the first show the square and not the picture
const SCORES = ['iou_predictions', 'iou_scores'];
const SINGLE = 4;
const MASK_INPUT_SIDE = 256;
const [MEAN, DEVIATION] = [[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]]; // prettier-ignore

/** @import { Picture } from './types.js' */

/** @type {any} */
let ort = null;
/** @type {{encoder: any, decoder: any, image: any, masks: string, scores: string, side: number} | null} */
let model = null;
/** @type {Picture | null} */
let kept = null;
/** @type {Record<string, any> | null} what the decoder is given of that picture */
let encoded = null;

/** @param {{files: ArrayBuffer[], module: string, wasm: ArrayBuffer, side: number}} request */
async function open({ files, module, wasm, side }) {
  ort ??= await import(module);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary ??= wasm;
  const sessions = [];
  for (const file of files) {
    const options = { executionProviders: ['wasm'] };
    const session = await ort.InferenceSession.create(new Uint8Array(file), options).catch((/** @type {any} */ error) => {
      throw new Error(`this is not an ONNX model that can be run here (${error?.message ?? error})`);
    });
    sessions.push(session);
  }
  const decoders = sessions.filter(({ inputNames }) => POINTS.some((name) => inputNames.includes(name)));
  const encoders = sessions.filter((session) => !decoders.includes(session));
  const [[decoder], [encoder]] = [decoders, encoders];
  if (decoders.length !== 1 || encoders.length > 1)
    throw new Error('of a model in two files choose the encoder and the decoder together, of one in one file that alone');
  const [image] = (encoder ?? decoder).inputMetadata;
  const made = encoder ? [...encoder.outputNames, 'image_embeddings'] : [OWN_SIZE];
  const known = [...Object.keys(prompt(decoder, [0, 0], 1, 1)), ...made];
  const unknown = decoder.inputNames.filter((/** @type {string} */ name) => !known.includes(name));
  const [masks, scores] = [MASKS, SCORES].map((names) => names.find((name) => decoder.outputNames.includes(name)));
  if (unknown.length || !masks || !scores) {
    const lacking = [masks ? [] : MASKS, scores ? [] : SCORES].filter(({ length }) => length).map((names) => names.join(' or '));
    const asks = unknown.length ? `it asks for ${unknown.sort().join(', ')}` : `it has no ${lacking.join(', ')}`;
    throw new Error(`${asks}; a model in the form of EfficientSAM or SAM is needed`);
  }
  const fixed = image.shape.length === 4 && typeof image.shape[2] === 'number' && image.shape[2] > 0;
  model = { encoder, decoder, image, masks, scores, side: fixed ? image.shape[2] : side };
  encoded = null;
}

/** A click by every name that it may have. @param {any} decoder @param {[number, number]} at @param {number} w @param {number} h @returns {Record<string, any>} */
function prompt(decoder, at, w, h) {
  const tensor = (/** @type {any} */ values, /** @type {number[]} */ dims) =>
    new ort.Tensor(values instanceof BigInt64Array ? 'int64' : 'float32', values, dims);
  const sized = decoder.inputMetadata.find((/** @type {any} */ { name }) => name === 'orig_im_size');
  const point = tensor(Float32Array.from(at), [1, 1, 1, 2]);
  return {
    batched_point_coords: point,
    batched_point_labels: tensor(Float32Array.of(1), [1, 1, 1]),
    point_coords: tensor(Float32Array.of(...at, 0, 0), [1, 2, 2]),
    point_labels: tensor(Float32Array.of(1, -1), [1, 2]),
    mask_input: tensor(new Float32Array(MASK_INPUT_SIDE ** 2), [1, 1, MASK_INPUT_SIDE, MASK_INPUT_SIDE]),
    has_mask_input: tensor(new Float32Array(1), [1]),
    orig_im_size: tensor(sized?.type === 'int64' ? BigInt64Array.of(BigInt(h), BigInt(w)) : Float32Array.of(h, w), [2]),
    input_points: point,
    input_labels: tensor(BigInt64Array.of(1n), [1, 1, 1]),
  };
}

/** What the model sees: the mean of the pixels under each new one. @param {Picture} picture @param {number} w @param {number} h */
function pixels({ width, height, data }, w, h) {
  const { image, side } = /** @type {NonNullable<typeof model>} */ (model);
  const edges = (/** @type {number} */ count, /** @type {number} */ length) =>
    Int32Array.from({ length: count + 1 }, (_, i) => Math.floor((i * length) / count));
  const [columns, rows] = [edges(w, width), edges(h, height)];
  const [own, last] = [image.name === OWN_SIZE, image.shape.length === 3];
  const [across, down] = own || last ? [w, h] : [side, side];
  const values = new Float32Array(3 * across * down);
  for (let y = 0; y < h; y++) {
    const [top, bottom] = [rows[y], Math.max(rows[y + 1], rows[y] + 1)];
    for (let x = 0; x < w; x++) {
      const [left, right] = [columns[x], Math.max(columns[x + 1], columns[x] + 1)];
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let v = top; v < bottom; v++) for (let u = left; u < right; u++) sum += data[4 * (v * width + u) + c];
        const mean = sum / ((bottom - top) * (right - left));
        if (last) values[3 * (y * w + x) + c] = mean;
        else values[(c * down + y) * across + x] = own ? mean / 255 : (mean - MEAN[c]) / DEVIATION[c];
      }
    }
  }
  return new ort.Tensor('float32', values, last ? [h, w, 3] : [1, 3, down, across]);
}

/** For pixels along a share of an axis: which two lie beside each centre, and how far it is on the way. @param {number} count @param {number} length @param {number} share */
function between(count, length, share) {
  return Array.from({ length: count }, (_, i) => {
    const at = Math.min(Math.max(((i + 0.5) * (length * share)) / count - 0.5, 0), length - 1);
    const first = Math.floor(at);
    return { first, second: Math.min(first + 1, length - 1), on: at - first };
  });
}

/** @param {{picture: Picture | null, point: [number, number]}} request @returns {Promise<Uint8Array>} 1 for the object */
async function select({ picture, point: [x, y] }) {
  if (picture) [kept, encoded] = [picture, null];
  if (!kept || !model) throw new Error('no model or picture was given');
  const { encoder, decoder, image, masks: masksName, scores: scoresName, side } = model;
  const { width, height } = kept;
  const share = Math.min(image.name === OWN_SIZE ? 1 : Infinity, side / Math.max(width, height));
  const [w, h] = [width, height].map((px) => Math.max(1, Math.floor(px * share + 0.5)));
  if (!encoded) {
    encoded = { [image.name]: pixels(kept, w, h) };
    if (encoder) {
      const made = await encoder.run(encoded);
      encoded = { image_embeddings: made[encoder.outputNames[0]], ...made };
    }
  }
  const at = /** @type {[number, number]} */ ([((x + 0.5) * w) / width - 0.5, ((y + 0.5) * h) / height - 0.5]);
  const given = { ...prompt(decoder, at, w, h), ...encoded };
  const feeds = Object.fromEntries(decoder.inputNames.map((/** @type {string} */ name) => [name, given[name]]));
  const made = await decoder.run(feeds, [masksName, scoresName]);
  const [masks, scores] = [made[masksName], Array.from(made[scoresName].data, Number)];
  if (scores.length === SINGLE) scores[0] = -Infinity;
  const best = scores.indexOf(Math.max(...scores));
  const [rows, columns] = masks.dims.slice(-2);
  const logits = masks.data.subarray(best * rows * columns, (best + 1) * rows * columns);
  const square = MASKS.indexOf(masksName) < OF_SQUARE;
  const [down, across] = [between(height, rows, square ? h / side : 1), between(width, columns, square ? w / side : 1)];
  const selection = new Uint8Array(width * height);
  for (let v = 0, i = 0; v < height; v++) {
    const { first: top, second: low, on } = down[v];
    for (let u = 0; u < width; u++, i++) {
      const { first, second, on: part } = across[u];
      const row = (/** @type {number} */ r) => {
        const [a, b] = [logits[r * columns + first], logits[r * columns + second]];
        return a + (b - a) * part;
      };
      const [upper, lower] = [row(top), row(low)];
      selection[i] = upper + (lower - upper) * on >= 0 ? 1 : 0;
    }
  }
  return selection;
}

addEventListener('message', async ({ data: { id, what, ...request } }) => {
  try {
    const value = await (what === 'open' ? open(request) : select(request));
    /** @type {any} */ (globalThis).postMessage({ id, value }, value ? [value.buffer] : []);
  } catch (error) {
    postMessage({ id, error: reason(error) });
  }
});

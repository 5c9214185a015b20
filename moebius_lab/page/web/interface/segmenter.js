// A segmentation model that the person opens, in one ONNX file or two; see segmenter.py for which.

/** @import { Segmenter } from './types.js' */

/**
 * @param {Blob[]} blobs @param {import('./main.js').Desk} desk @returns {Promise<Segmenter>}
 * @throws {Error} it is no such model, or the runtime did not start
 */
export async function openSegmenter(blobs, { model }) {
  const { engine } = model;
  if (!engine) throw new Error('the page has no runtime for it; reload the page');
  const build = engine.manifest.runtime.builds.wasm;
  const files = await Promise.all(blobs.map((blob) => blob.arrayBuffer()));
  const module = new URL(build.module, engine.url).href;
  const wanted = { graph: 'runtime', precision: '', file: build.wasm, url: new URL(build.wasm.file, engine.url) };
  const kept = await engine.cache.provide([wanted], () => {}, new AbortController().signal);
  const { bytes: wasm } = await kept.file(build.wasm.sha256);
  const worker = new Worker(new URL('./segmenter_worker.js', import.meta.url), { type: 'module' });
  /** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */
  const waiting = new Map();
  let next = 1;
  worker.addEventListener('message', ({ data: { id, error, value } }) => {
    const call = waiting.get(id);
    waiting.delete(id);
    if (error) call?.reject(new Error(error));
    else call?.resolve(value);
  });
  /** @param {string} why */
  const giveUp = (why) => {
    for (const { reject } of waiting.values()) reject(new Error(why));
    waiting.clear();
  };
  worker.addEventListener('error', (event) => giveUp(event.message || 'its worker did not start'));
  /** @param {object} request @param {Transferable[]} handed */
  const ask = (request, handed) => {
    const id = next++;
    worker.postMessage({ ...request, id }, handed);
    return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
  };
  const { segmenter_side: side } = engine.manifest.constants;
  try {
    await ask({ what: 'open', files, module, wasm, side }, [...files, wasm]);
  } catch (error) {
    worker.terminate();
    throw error;
  }
  let shown = '';
  return {
    close() {
      worker.terminate();
      giveUp('another one was opened');
    },
    async select(picture, id, point) {
      const copy = shown === id ? null : { ...picture, data: picture.data.slice() };
      shown = id;
      return ask({ what: 'select', picture: copy, point }, copy ? [copy.data.buffer] : []);
    },
  };
}

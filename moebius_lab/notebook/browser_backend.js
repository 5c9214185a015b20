// The reader's own browser as a backend: the folder of the page's engine and a model's files come from the kernel, the
// engine runs here, and outputs go back. Served from nowhere: modules and files become blob URLs.

/** @import { Engine } from '../page/web/engine/engine.js' */
/** @import { Loaded, Manifest, StoredFile, ToLoad, Values } from '../page/web/engine/types.js' */
/** @typedef {{id: number, call: 'part'|'prepare'|'load'|'run'|'hello', to: string} & Record<string, any>} Call from the kernel, with what it is about */
/**
 * The widget's side of the kernel, as anywidget gives it.
 *
 * @typedef {object} Model
 * @property {(name: string) => any} get
 * @property {(content: object, callbacks?: undefined, buffers?: ArrayBuffer[]) => void} send
 * @property {(event: string, listen: (content: Call, views: DataView<ArrayBuffer>[]) => void) => void} on
 */

/** @type {Record<string, string>} */
const TYPES = { js: 'text/javascript', mjs: 'text/javascript', wasm: 'application/wasm' };

/** Files as they arrive, in parts below what a websocket message may hold. */
export class Files {
  constructor() {
    /** @type {Map<string, BlobPart[]>} */
    this.parts = new Map();
    /** @type {Map<string, string>} */
    this.urls = new Map();
  }

  /** @param {string} name @param {BlobPart} part */
  add(name, part) {
    const parts = this.parts.get(name);
    if (parts) parts.push(part);
    else this.parts.set(name, [part]);
  }

  /** @param {string} name */
  has(name) {
    return this.parts.has(name);
  }

  /** @param {string} name */
  url(name) {
    const known = this.urls.get(name);
    if (known) return known;
    const type = TYPES[name.split('.').pop() ?? ''] ?? 'application/octet-stream';
    const url = URL.createObjectURL(new Blob(this.parts.get(name), { type }));
    this.urls.set(name, url);
    this.parts.set(name, []);
    return url;
  }

  /**
   * A module whose imports of others, at its start or when they are needed, are theirs here.
   *
   * @param {string} name
   * @param {string[]} by modules that wait for this one: its address is made of its text, so none of them can be among its imports
   * @returns {Promise<string>} its address
   */
  async module(name, by = []) {
    const known = this.urls.get(name);
    if (known) return known;
    if (by.includes(name))
      throw new Error(`${[...by.slice(by.indexOf(name)), name].join(' imports ')}: a notebook cannot load a circle.`);
    if (!this.has(name)) throw new Error(`The kernel sent no ${name}: write the bundle again.`);
    let text = await new Blob(this.parts.get(name)).text();
    // what comments name are types, which are not sent
    for (const [words, before, other] of [...text.matchAll(/(^(?!\s*\/?\*).*\bfrom |\bawait import\()'(\.\.?\/[\w./]+)'/gm)]) {
      const path = new URL(other, `files:/${name}`).pathname.slice(1);
      text = text.replaceAll(words, `${before}'${await this.module(path, [...by, name])}'`);
    }
    this.parts.set(name, [text]);
    return this.url(name);
  }

  revoke() {
    for (const url of this.urls.values()) URL.revokeObjectURL(url);
  }
}

class Runner {
  constructor() {
    this.files = new Files();
    /** @type {Engine|null} */
    this.engine = null;
  }

  /** What the model is loaded by, once `prepare` was called. */
  get prepared() {
    if (!this.engine) throw new Error('The engine was not started.');
    return this.engine;
  }

  /** @param {{name: string}} job @param {ArrayBuffer[]} buffers */
  part({ name }, [bytes]) {
    this.files.add(name, bytes);
    return {};
  }

  /**
   * Start the engine's module; tell the provider, the runtime's module where that is needed, and the files that are not kept from an earlier
   * visit, each with whether it lies beside the manifest.
   *
   * @param {{manifest: Manifest, provider: 'auto'|'webgpu'|'wasm', recorded: boolean}} job
   */
  async prepare({ manifest, provider, recorded }) {
    /** @type {typeof import('../page/web/engine/engine.js')} */
    const { Engine } = await import(await this.files.module('engine/engine.js'));
    /** @type {typeof import('../page/web/engine/manifest.js')} */
    const { BESIDE, buildFor, checkManifest, filesOf, recordingFor } = await import(
      await this.files.module('engine/manifest.js')
    );
    this.engine?.close();
    checkManifest(manifest);
    // no such address is ever asked: it only names this model's files among those that the browser keeps
    const address = new URL(`/moebius-lab/${manifest.network}/manifest.json`, location.origin);
    const worker = await this.files.module('engine/worker.js');
    const helper = await this.files.module('engine/helper.js');
    this.engine = new Engine(address, manifest, worker, helper);
    const { choices, preferred } = await this.engine.detect();
    if (provider === 'auto' && !choices.length) throw new Error('This browser can run no precision that was sent: choose fp32.');
    const used = provider === 'auto' ? choices[preferred].provider : provider;
    const [precision] = Object.keys(manifest.precisions);
    const played = recorded && recordingFor(manifest, precision, used);
    const held = await this.engine.cache.held();
    const wanted = filesOf(manifest, precision, used, { recorded }).filter(({ file }) => !held.has(file.sha256));
    const missing = wanted.map(({ graph, file }) => [file.file, BESIDE.includes(graph)]);
    return { provider: used, module: played ? '' : manifest.runtime.builds[buildFor(used)].module, missing };
  }

  /** @param {{choice: ToLoad}} job @returns {Promise<Loaded>} */
  async load({ choice }) {
    const { manifest } = this.prepared;
    const here = (/** @type {StoredFile} */ file) => this.files.has(file.file) && (file.file = this.files.url(file.file));
    for (const { graphs, recording } of Object.values(manifest.precisions)) {
      Object.values(graphs).flat().forEach(here);
      if (recording) here(recording);
    }
    for (const build of Object.values(manifest.runtime.builds)) {
      here(build.wasm);
      if (this.files.has(build.module)) build.module = this.files.url(build.module);
    }
    return this.prepared.load(choice);
  }

  /** @param {{graph: string, dims: Record<string, number[]>, times: number}} job @param {ArrayBuffer[]} buffers of its inputs, in order */
  async run({ graph, dims, times }, buffers) {
    /** @type {Record<string, Values>} */
    const feeds = {};
    for (const [i, [name, shape]] of Object.entries(dims).entries())
      feeds[name] = { dims: shape, data: new Float32Array(buffers[i]) };
    const { outputs, milliseconds } = await this.prepared.run(graph, feeds, { times });
    const shapes = Object.entries(outputs).map(([name, { dims }]) => [name, dims]);
    return {
      result: { milliseconds, dims: Object.fromEntries(shapes) },
      buffers: Object.values(outputs).map(({ data }) => /** @type {ArrayBuffer} */ (data.slice().buffer)),
    };
  }

  close() {
    this.engine?.close();
    this.files.revoke();
  }
}

export default {
  /** @param {{model: Model}} widget */
  initialize({ model }) {
    const me = crypto.randomUUID(); // several pages may show one notebook; the kernel speaks with one of them
    const runner = new Runner();
    let last = Promise.resolve();

    /** @param {Call} content @param {ArrayBuffer[]} buffers */
    async function answer({ id, call, ...content }, buffers) {
      try {
        const done = await /** @type {any} */ (runner)[call](content, buffers);
        model.send({ id, from: me, result: done.result ?? done }, undefined, done.buffers ?? []);
      } catch (error) {
        model.send({ id, from: me, error: error instanceof Error ? error.message : String(error) });
      }
    }

    model.on('msg:custom', (content, views) => {
      if (content.to !== me && content.to !== '*') return;
      const buffers = views.map(({ buffer, byteOffset, byteLength }) => buffer.slice(byteOffset, byteOffset + byteLength));
      if (content.call === 'hello') model.send({ ready: me });
      else last = last.then(() => answer(content, buffers));
    });
    model.send({ ready: me });
    return () => runner.close();
  },

  /** @param {{model: Model, el: HTMLElement}} widget */
  render({ model, el }) {
    const say = () => (el.textContent = model.get('status'));
    el.classList.add('moebius-runner');
    el.setAttribute('role', 'status');
    model.on('change:status', say);
    model.on('comm_live_update', () => (el.textContent = model.get('gone'))); // once it is shown, only to say that the kernel is gone
    say();
  },
};

// The reader's own browser as a backend: the folder of the page's engine and a model's files come from the kernel, the
// engine runs here, and outputs go back. Served from nowhere: modules and files become blob URLs.

const TYPES = { js: 'text/javascript', mjs: 'text/javascript', wasm: 'application/wasm' };

/** Files as they arrive, in parts below what a websocket message may hold. */
export class Files {
  constructor() {
    this.parts = new Map();
    this.urls = new Map();
  }

  add(name, part) {
    if (!this.parts.has(name)) this.parts.set(name, []);
    this.parts.get(name).push(part);
  }

  has(name) {
    return this.parts.has(name);
  }

  url(name) {
    if (!this.urls.has(name)) {
      const type = TYPES[name.split('.').pop()] ?? 'application/octet-stream';
      this.urls.set(name, URL.createObjectURL(new Blob(this.parts.get(name), { type })));
      this.parts.set(name, []);
    }
    return this.urls.get(name);
  }

  /**
   * A module whose imports of others, at its start or when they are needed, are theirs here.
   *
   * @param {string} name
   * @param {string[]} by modules that wait for this one: its address is made of its text, so none of them can be among its imports
   */
  async module(name, by = []) {
    if (this.urls.has(name)) return this.urls.get(name);
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
    this.engine = null;
  }

  part({ name }, [bytes]) {
    this.files.add(name, bytes);
    return {};
  }

  /**
   * Start the engine's module; tell the provider, the runtime's module where that is needed, and the files that are not kept from an earlier
   * visit, each with whether it lies beside the manifest.
   */
  async prepare({ manifest, provider, recorded }) {
    const { Engine } = await import(await this.files.module('engine/engine.js'));
    const { BESIDE, buildFor, checkManifest, filesOf, recordingFor } = await import(
      await this.files.module('engine/manifest.js')
    );
    this.engine?.close();
    this.manifest = checkManifest(manifest);
    // no such address is ever asked: it only names this model's files among those that the browser keeps
    this.engine = new Engine(new URL(`/moebius-lab/${manifest.network}/manifest.json`, location.origin), this.manifest, [
      await this.files.module('engine/worker.js'),
      await this.files.module('engine/helper.js'),
      await this.files.module('engine/helper.js'),
    ]);
    const { choices, preferred } = await this.engine.detect();
    if (provider === 'auto' && !choices.length) throw new Error('This browser can run no precision that was sent: choose fp32.');
    const used = provider === 'auto' ? choices[preferred].provider : provider;
    const [precision] = Object.keys(this.manifest.precisions);
    const played = recorded && recordingFor(this.manifest, precision, used);
    const held = await this.engine.cache.held();
    const wanted = filesOf(this.manifest, precision, used, { recorded }).filter(({ file }) => !held.has(file.sha256));
    const missing = wanted.map(({ graph, file }) => [file.file, BESIDE.includes(graph)]);
    return { provider: used, module: played ? '' : this.manifest.runtime.builds[buildFor(used)].module, missing };
  }

  async load({ choice }) {
    const here = (file) => this.files.has(file.file) && (file.file = this.files.url(file.file));
    for (const { graphs, recording } of Object.values(this.manifest.precisions)) {
      Object.values(graphs).flat().forEach(here);
      if (recording) here(recording);
    }
    for (const build of Object.values(this.manifest.runtime.builds)) {
      here(build.wasm);
      if (this.files.has(build.module)) build.module = this.files.url(build.module);
    }
    return this.engine.load(choice);
  }

  async run({ graph, dims, times }, buffers) {
    const feeds = Object.entries(dims).map(([name, shape], i) => [name, { dims: shape, data: new Float32Array(buffers[i]) }]);
    const { outputs, milliseconds } = await this.engine.run(graph, Object.fromEntries(feeds), { times });
    const shapes = Object.entries(outputs).map(([name, { dims }]) => [name, dims]);
    return {
      result: { milliseconds, dims: Object.fromEntries(shapes) },
      buffers: Object.values(outputs).map(({ data }) => data.slice().buffer),
    };
  }

  close() {
    this.engine?.close();
    this.files.revoke();
  }
}

export default {
  initialize({ model }) {
    const me = crypto.randomUUID(); // several pages may show one notebook; the kernel speaks with one of them
    const runner = new Runner();
    let last = Promise.resolve();

    async function answer({ id, call, ...content }, buffers) {
      try {
        const done = await runner[call](content, buffers);
        model.send({ id, from: me, result: done.result ?? done }, undefined, done.buffers ?? []);
      } catch (error) {
        model.send({ id, from: me, error: String(error?.message ?? error) });
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

  render({ model, el }) {
    const say = () => (el.textContent = model.get('status'));
    el.classList.add('moebius-runner');
    el.setAttribute('role', 'status');
    model.on('change:status', say);
    model.on('comm_live_update', () => (el.textContent = model.get('gone'))); // once it is shown, only to say that the kernel is gone
    say();
  },
};

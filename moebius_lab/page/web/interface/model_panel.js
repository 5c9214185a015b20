// The panel of the model: what it runs on, loading it, and what is stored.

import { reason } from '../engine/errors.js';
import { Engine, outdated } from '../engine/engine.js';
import { instead } from '../engine/suited.js';
import { VERSION, add, button, dismiss, duration, element, isCancelled, fileSize, notice, onClick, say, write } from './page.js';

/** @import { Choice, LoadProgress } from '../engine/types.js' */

const PATIENCE = 45; // seconds that starting may take before the person is told that it can be tried again
const EXPERIMENTS = ['matrix', 'matrix exact']; // kernels that the page's address can ask for: docs/kernels.md
const RELOAD = { label: 'Reload the page', run: () => location.reload() };
const ANOTHER_WAY = ['no-webgpu', 'device-lost', 'out-of-memory', 'shader']; // errors after which another way of running may work
const TOO_HEAVY = ['device-lost', 'out-of-memory'];

/** Event: `change`, whenever the model is loaded, lost or chosen anew. */
export class ModelPanel extends EventTarget {
  /** @type {Engine | null} */
  engine = null;
  /** @type {import('../engine/types.js').Detected | null} */
  detected = null;
  /** @type {Promise<Engine> | null} a load that is under way */
  #loading = null;
  /** @type {AbortController | null} */
  #abort = null;
  /** What the settings are, where weights are for them alone. */
  #preset = '';
  /** Tells when starting takes too long; 0 while nothing is being started. */
  #timer = 0;
  #select = element('choice', HTMLSelectElement);
  #bar = element('load-bar', HTMLProgressElement);
  /** @type {Choice | undefined} what was last loaded, whatever is chosen now */
  #ran;

  constructor() {
    super();
    this.#select.addEventListener('change', () => this.#show());
    onClick('load', () => void this.load().catch(() => {})); // shown by load itself
    onClick('load-cancel', () => this.#stop());
    onClick('clear-old', () => void this.#clear(true));
    onClick('clear-all', () => void this.#clear(false));
    element('storage', HTMLDetailsElement).addEventListener('toggle', () => void this.#showStored());
    /** Settles when the manifest has been read, or could not be. */
    this.opened = this.open();
  }

  /** Read the manifest and look what this browser offers. */
  async open() {
    try {
      const engine = await Engine.open(new URL(`manifest.json?version=${VERSION}`, document.baseURI));
      if (engine.manifest.version !== VERSION) throw outdated();
      this.engine = engine;
      this.engine.addEventListener('lost', (event) => this.failed(/** @type {CustomEvent} */ (event).detail));
      this.detected = await this.engine.detect();
    } catch (error) {
      const actions = [{ label: 'Try again', run: () => void (this.opened = this.open()) }, RELOAD];
      notice('model', `${reason(error)} You can paint meanwhile; nothing gets lost.`, { actions });
      write('choice-note', 'The model could not be found.');
      return;
    }
    this.#list();
    this.#select.selectedIndex = this.detected.preferred;
    this.#select.disabled = false;
    this.#show();
    void this.#showStored();
  }

  #list() {
    const { choices = [] } = this.detected ?? {};
    this.#select.replaceChildren(...choices.map((choice, i) => new Option(label(choice), String(i))));
    const lacks = this.#lacks();
    write('withheld', lacks && `The graphics device here has not all that WebGPU could make use of: ${lacks}.`);
  }

  /** What the graphics device lacks for precisions that are not offered on it. */
  #lacks() {
    return (this.detected?.withheld ?? []).map(({ precision, lacks }) => `${precision} needs ${lacks.join(' and ')}`).join('; ');
  }

  /** @returns {Choice | undefined} what is chosen, loaded or not */
  get choice() {
    const { choices = [], distilled = [] } = this.detected ?? {};
    /** @type {Choice | undefined} */
    const named = choices[this.#select.selectedIndex];
    const own = distilled.find((choice) => choice.distilled?.preset === this.#preset && choice.provider === named?.provider);
    return own && own.seen !== 'failed' ? own : named;
  }

  /** Take the weights that are for a preset, where there are any; else the network's own. @param {string} preset */
  use(preset) {
    if (preset === this.#preset) return;
    this.#preset = preset;
    this.#show();
  }

  /** Whether what is chosen is loaded. */
  get ready() {
    const loaded = this.engine?.loaded;
    return Boolean(loaded && loaded.provider === this.choice?.provider && loaded.precision === this.choice.precision);
  }

  /** Bytes that loading would still have to fetch. */
  get missing() {
    return this.choice ? this.choice.bytes - this.choice.cachedBytes : 0;
  }

  /**
   * The engine with a model; asks before the first download.
   *
   * @param {AbortSignal} signal
   * @returns {Promise<Engine | null>} null where the person said no, or loading failed (which has been shown)
   */
  async prepare(signal) {
    await Promise.race([this.opened, new Promise((done) => signal.addEventListener('abort', done, { once: true }))]);
    if (signal.aborted) return null;
    if (!this.engine || !this.choice) {
      if (this.engine)
        this.#fail(new Error('This browser offers neither WebGPU nor WebAssembly for the model. Use a current one.'));
      else this.opened = this.open();
      return null;
    }
    if (this.ready) return this.engine;
    if (!this.#loading && (this.missing > 0 || this.choice.provider === 'wasm') && !(await this.#ask(this.choice))) return null;
    const stop = () => this.#stop();
    signal.addEventListener('abort', stop, { once: true });
    return this.load()
      .then((engine) => (this.ready ? engine : this.prepare(signal))) // what was under way was another choice
      .catch(() => null)
      .finally(() => signal.removeEventListener('abort', stop));
  }

  /** @param {Choice} choice */
  #ask(choice) {
    const dialog = element('prompt', HTMLDialogElement);
    const slow = choice.provider === 'wasm';
    const { missing } = this;
    const part = choice.cachedBytes
      ? `Of the model’s ${fileSize(choice.bytes)}, ${fileSize(choice.cachedBytes)} are here already. `
      : '';
    const where =
      'They are kept in this browser’s storage for this page until you remove them (Storage, in the panel), so the next visit needs no download.';
    write('prompt-title', missing ? 'Download the model?' : 'Start the model?');
    const size = `${part}${fileSize(missing)} will be downloaded. ${where}`;
    write(
      'prompt-text',
      `${missing ? size : 'The model is stored in this browser; nothing is downloaded.'} Your picture stays on this computer.`,
    );
    const warning = element('prompt-warning', HTMLElement);
    const processor = slow
      ? `${this.#whyNoGpu()}The model will run on the processor, which is slow: a picture takes from half a minute to many minutes.`
      : '';
    warning.textContent = `${processor}${experience(choice)}`;
    warning.hidden = !warning.textContent;
    write('prompt-yes', missing ? `Download ${fileSize(missing)}` : 'Start');
    dialog.returnValue = 'no';
    dialog.showModal();
    return new Promise((resolve) =>
      dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true }),
    );
  }

  #whyNoGpu() {
    const { webgpu, choices } = this.detected ?? {};
    if (!webgpu?.available) return webgpu ? `${webgpu.reason} ` : '';
    if (webgpu.adapter?.fallback) return 'The only graphics device here is imitated in software. ';
    return choices?.some(({ provider }) => provider === 'webgpu')
      ? ''
      : `The graphics device lacks what the model needs: ${this.#lacks()}. `;
  }

  /** Load what is chosen. @returns {Promise<Engine>} */
  load() {
    if (this.#loading) return this.#loading;
    const loading = (this.#loading = this.#load().finally(() => {
      this.#loading = null;
      this.#abort = null;
      this.#show();
    }));
    this.#show();
    return loading;
  }

  async #load() {
    const { engine, choice } = this;
    if (!engine || !choice) throw new Error('no model is known yet');
    const abort = (this.#abort = new AbortController());
    this.#ran = choice;
    dismiss('model');
    this.#bar.value = 0;
    write('load-text', 'Starting…');
    element('load-text', HTMLElement).classList.remove('error');
    say('Loading the model.');
    try {
      const onProgress = (/** @type {LoadProgress} */ progress) => this.#progress(progress);
      const kernels = EXPERIMENTS.find((name) => name === new URLSearchParams(location.search).get('kernels'));
      const asked = {
        ...choice,
        ...(kernels && { kernels: /** @type {import('../engine/kernels/replacement.js').Wanted} */ (kernels) }),
      };
      const { storage, device, evidence } = await engine.load(asked, { onProgress, signal: abort.signal });
      const kept =
        storage === 'cache' ? 'It is stored for the next visit.' : 'It could not be stored: the next visit downloads it again.';
      write('load-text', `Ready: ${device}, ${choice.precision}. ${kept}`);
      write('evidence', evidence);
      this.#bar.value = 1;
      say('The model is ready.');
      await this.#count();
    } catch (error) {
      await this.#count();
      this.#fail(error);
      throw error;
    } finally {
      clearTimeout(this.#timer);
      this.#timer = 0;
      button('load-cancel').textContent = 'Pause';
      if (!this.#bar.hasAttribute('value')) this.#bar.value = 0;
      void this.#showStored();
    }
    return engine;
  }

  /** Look again what each choice needs and how much of that is kept here: choices share files, and a recording may have been refused. */
  async #count() {
    const found = await this.engine?.detect();
    const now = found ? [...found.choices, ...found.distilled] : [];
    const { choices = [], distilled = [] } = this.detected ?? {};
    for (const [i, choice] of [...choices, ...distilled].entries()) {
      const same = now.find(({ provider, precision }) => provider === choice.provider && precision === choice.precision);
      const { bytes = choice.bytes, cachedBytes = 0, memory = choice.memory, tight = choice.tight } = same ?? {};
      Object.assign(choice, { bytes, cachedBytes, memory, tight });
      if (i < choices.length) this.#select.options[i].text = label(choice);
    }
  }

  /** Stop loading; a runtime that is being started does not listen, so its worker is ended. */
  #stop() {
    this.#abort?.abort();
    if (this.#timer) this.engine?.close();
  }

  /** @param {LoadProgress} progress */
  #progress({ phase, doneBytes, totalBytes, cachedBytes, rate, secondsLeft, storage, message: note, share = 1 }) {
    if (phase === 'kernels') {
      this.#bar.value = share;
      write('load-text', 'First start on this graphics device: choosing the fastest programs for it…');
      return;
    }
    if (phase === 'session') {
      const slow = 'Starting takes unusually long. Cancel, and start the model again: nothing has to be downloaded.';
      this.#timer ||= setTimeout(() => write('load-text', slow), PATIENCE * 1000);
      button('load-cancel').textContent = 'Cancel';
      this.#bar.value = 1;
      write('load-text', 'All there. Starting the model…');
      return;
    }
    this.#bar.value = totalBytes ? doneBytes / totalBytes : 0;
    const kept = cachedBytes ? ` ${fileSize(cachedBytes)} were stored already.` : '';
    const speed = rate ? `, ${fileSize(rate)}/s, ${duration(secondsLeft)} left` : '';
    const memory = storage === 'memory' ? ' The browser gives no storage: kept in memory, for this visit only.' : '';
    const state = `${fileSize(doneBytes)} of ${fileSize(totalBytes)}`;
    write(
      'load-text',
      `${phase === 'verify' ? `Checking stored files: ${state}.` : `${state}${speed}.${kept}`}${memory}${note ? ` ${note}` : ''}`,
    );
  }

  /** Show why loading or running failed, with the ways on. @param {unknown} error @param {() => void} [again] */
  #fail(error, again = () => void this.load().catch(() => {})) {
    const text = element('load-text', HTMLElement);
    if (isCancelled(error)) {
      text.textContent = 'Stopped. What has arrived is kept, and loading goes on from there.';
      say('Loading stopped.');
      return;
    }
    text.classList.add('error');
    text.textContent = reason(error);
    const code = error instanceof Error && 'code' in error ? String(error.code) : '';
    const actions = [code === 'outdated' ? RELOAD : { label: 'Try again', run: again }];
    const { detected } = this;
    const choice = this.#ran;
    if (ANOTHER_WAY.includes(code) && choice && detected) {
      if (choice.seen !== 'works' || !TOO_HEAVY.includes(code)) this.#note('failed'); // a device is lost by sleep as well
      const others = instead(detected.choices, choice, TOO_HEAVY.includes(code));
      actions.push(...others.map((other) => ({ label: offer(other), run: () => this.#use(other, again) })));
    }
    notice('model', reason(error), { actions });
  }

  /** Remember what came of the choice, for its place among the offers. @param {import('../engine/types.js').Verdict} verdict */
  #note(verdict) {
    if (!this.#ran) return;
    this.#ran.seen = verdict;
    this.engine?.seen.note(this.#ran, verdict);
  }

  /** @param {Choice} choice @param {() => void} then */
  #use(choice, then) {
    this.#select.selectedIndex = this.detected?.choices.indexOf(choice) ?? 0;
    this.#show();
    then();
  }

  /** The model has filled a hole in the way that is chosen. */
  worked() {
    this.#note('works');
  }

  /** Show why a run failed, or what was loaded is gone. @param {unknown} error @param {() => void} [again] */
  failed(error, again) {
    this.#show();
    this.#fail(error, again);
  }

  #show() {
    const { choice } = this;
    const note = element('choice-note', HTMLElement);
    const busy = this.#loading !== null;
    const slow = choice?.provider === 'wasm';
    note.className = slow ? 'fine warning' : 'fine';
    note.textContent = choice
      ? `${slow ? this.#whyNoGpu() : ''}${choice.note}${experience(choice)}`
      : 'Nothing that this browser can run.';
    this.#select.disabled = busy || !this.detected;
    const load = button('load');
    load.hidden = busy;
    button('load-cancel').hidden = !busy;
    load.disabled = !choice || this.ready;
    load.textContent = this.ready
      ? 'Loaded'
      : this.missing
        ? `${choice?.cachedBytes ? 'Resume' : 'Download'} (${fileSize(this.missing)})`
        : 'Start the model';
    if (!busy && !this.ready && !element('load-text', HTMLElement).classList.contains('error')) this.#bar.value = 0;
    this.dispatchEvent(new Event('change'));
  }

  async #showStored() {
    if (!this.engine) return;
    const list = element('stored', HTMLElement);
    try {
      const [files, usage] = await Promise.all([this.engine.stored(), this.engine.usage()]);
      const persisted = usage.persisted
        ? 'The browser keeps it until you remove it.'
        : 'The browser may remove it when space runs short.';
      write(
        'usage',
        `${fileSize(usage.used)} used of ${fileSize(usage.quota)} that this browser allows. ${files.length ? persisted : ''}`,
      );
      /** @type {Map<string, number>} */
      const groups = new Map();
      for (const { precision, graph, bytes, current } of files) {
        const name = `${graph === 'runtime' ? 'ONNX Runtime' : `Model, ${precision}`}${current ? '' : ' (old version)'}`;
        groups.set(name, (groups.get(name) ?? 0) + bytes);
      }
      list.replaceChildren();
      for (const [name, bytes] of groups) add(add(list, 'li', { textContent: name }), 'span', { textContent: fileSize(bytes) });
      button('clear-all').disabled = !files.length;
      button('clear-old').disabled = files.every((file) => file.current);
    } catch {
      write('usage', 'This browser gives the page no storage. The model works, but every visit downloads it again.');
      list.replaceChildren();
    }
  }

  /** @param {boolean} onlyOld */
  async #clear(onlyOld) {
    try {
      await this.engine?.clearStored({ onlyOld });
      await this.#count();
      say(onlyOld ? 'Old versions were removed.' : 'The stored model was removed; what is loaded keeps working until you leave.');
    } catch (error) {
      notice('storage', `The browser did not remove the files (${reason(error)}). Clear this site’s data in its settings.`);
    }
    this.#show();
    await this.#showStored();
  }
}

/** @param {Choice} choice */
function label({ provider, precision, bytes }) {
  return `${provider === 'webgpu' ? 'WebGPU' : 'Processor'} · ${precision} · ${Math.round(bytes / 1e6)} MB`;
}

/** What is known of a choice on this device. @param {Choice} choice */
function experience({ seen, tight, memory }) {
  const heavy = tight ? ` It takes about ${fileSize(memory)} of memory, which may be more than this device can give.` : '';
  return `${heavy}${seen === 'failed' ? ' It did not work here before.' : ''}`;
}

/** @param {Choice} choice */
function offer({ provider, precision, bytes, cachedBytes }) {
  const size = bytes > cachedBytes ? `${fileSize(bytes - cachedBytes)} to download` : 'nothing to download';
  return provider === 'wasm' ? `Use the processor (slow, ${size})` : `Use ${precision} (${size})`;
}

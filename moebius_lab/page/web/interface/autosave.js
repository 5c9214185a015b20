// Picture and mask of each tab, kept in IndexedDB, so that a reload or a crash loses nothing.
//
// A tab has a slot of its own. Its name outlives a reload in sessionStorage, and while the tab is open it holds a lock of that
// name. Where the lock is taken, this tab was duplicated from one that is open, and begins with a copy of its slot. A new
// tab takes over the slot that was written last among those that no tab holds.

import { pictureToPng } from './picture_files.js';

/** @import { Painting, Saved, SavedMask, SavedPicture, Saving } from './types.js' */

const TAB = 'moebius-tab'; // in sessionStorage, and before the slot's name in that of the lock
const HANDOVER = 400; // ms in which a page that is being reloaded gives its lock up
const KEPT = 8; // slots of closed tabs, the newest
const KEPT_DAYS = 30;

/** Event: `state`, whenever `state` has changed. */
export class Autosave extends EventTarget {
  /** @type {Saving} */
  state = 'nothing';
  /** @type {Promise<string>} name of this tab's slot */
  #slot = claim();
  /** @type {Painting | null} what is to be saved next */
  #next = null;
  /** @type {Promise<void> | null} the saving that is under way */
  #work = null;
  #pictureId = ''; // of the picture in the slot
  /** @type {WeakSet<Painting>} */
  #forgotten = new WeakSet();

  constructor() {
    super();
    this.#slot.catch(() => this.#tell('refused'));
  }

  /** What this tab showed last, or the tab that was closed last. @returns {Promise<Saved | null>} */
  async restore() {
    const slot = await this.#slot;
    const found = await inMemory(await transact('readonly', (store) => KINDS.map((kind) => store.get(key(kind, slot)))));
    const [picture, saved] = /** @type {[SavedPicture | undefined, SavedMask | undefined]} */ (found);
    if (!picture) return null;
    this.#pictureId = picture.id;
    if (saved?.id !== picture.id) return { picture, mask: null };
    const { width, height, blob, extension, grown } = saved;
    return { picture, mask: { width, height, data: await inflated(blob) }, extension, grown };
  }

  /** What `restore` returned is on the screen as it is in the slot. */
  restored() {
    this.#tell('saved');
  }

  /** Save a painting now, or as soon as the saving that is under way has ended. @param {Painting} painting */
  save(painting) {
    if (this.#forgotten.has(painting)) return;
    this.#next = painting;
    this.#tell('saving');
    this.#work ??= this.#saveAll();
  }

  async #saveAll() {
    for (let painting = this.#next; painting; painting = this.#next) {
      this.#next = null;
      const done = await this.#saveOne(painting).then(
        () => /** @type {const} */ ('saved'),
        () => /** @type {const} */ ('refused'),
      );
      if (!this.#next) this.#tell(done);
    }
    this.#work = null;
  }

  /** @param {Painting} painting */
  async #saveOne({ id, name, credit, picture, file, mask, extension, grown, source, place }) {
    const slot = await this.#slot;
    const { width, height, data } = mask;
    const saved = { id, width, height, blob: await deflated(data), saved: Date.now(), extension, grown: extension && grown };
    const pictureToo = this.#pictureId !== id && { id, name, credit, blob: file ?? (await pictureToPng(picture)), source, place };
    await transact('readwrite', (store) => [
      store.put(saved, key('mask', slot)),
      ...(pictureToo ? [store.put(pictureToo, key('picture', slot))] : []),
    ]);
    this.#pictureId = id;
  }

  /**
   * Remove what this tab and closed ones have saved, and save `painting` no more.
   *
   * @param {Painting | null} painting
   */
  async forget(painting) {
    if (painting) this.#forgotten.add(painting);
    this.#next = null;
    await this.#work;
    const slot = await this.#slot;
    await remove([slot, ...(await closedSlots())]);
    this.#pictureId = '';
    this.#tell('forgotten');
  }

  /** @param {Saving} state */
  #tell(state) {
    if (state === this.state) return;
    this.state = state;
    this.dispatchEvent(new Event('state'));
  }
}

/** @returns {Promise<string>} name of the slot that is this tab's from now on */
async function claim() {
  const before = sessionStorage.getItem(TAB);
  const wanted = before === null ? await closedSlots() : [before];
  let slot = crypto.randomUUID().toString();
  for (const name of [...wanted, slot]) {
    slot = name;
    if (await hold(name, name === before ? HANDOVER : 0)) break;
  }
  if (before !== null && slot !== before) await copy(before, slot);
  sessionStorage.setItem(TAB, slot);
  await remove(await closedSlots({ old: true }));
  return slot;
}

/** Hold a slot's lock until the page ends. @param {string} slot @param {number} [wait] ms @returns {Promise<boolean>} whether it was free */
function hold(slot, wait = 0) {
  return new Promise((resolve) => {
    const keep = (/** @type {Lock | null} */ lock) => (resolve(lock !== null), lock && new Promise(() => {}));
    const options = wait ? { signal: AbortSignal.timeout(wait) } : { ifAvailable: true };
    navigator.locks.request(`${TAB} ${slot}`, options, keep).catch(() => resolve(false));
  });
}

/**
 * Names of the slots that no tab holds, the one that was written last first.
 *
 * @param {{old?: boolean}} [options] only those that are not kept any more
 */
async function closedSlots({ old = false } = {}) {
  const [keys] = await transact('readonly', (store) => [store.getAllKeys()]);
  const names = [...new Set(/** @type {string[]} */ (keys).map((each) => each.split(' ')[1] ?? ''))];
  const { held = [] } = await navigator.locks.query();
  const open = new Set(held.map((lock) => lock.name));
  const closed = names.filter((name) => !open.has(`${TAB} ${name}`));
  /** @type {(SavedMask | undefined)[]} */
  const masks = await transact('readonly', (store) => closed.map((name) => store.get(key('mask', name))));
  const slots = closed.map((name, i) => ({ name, saved: masks[i]?.saved ?? 0 })).sort((a, b) => b.saved - a.saved);
  const limit = Date.now() - KEPT_DAYS * 86_400_000;
  return slots.filter(({ saved }, i) => !old || i >= KEPT || saved < limit).map(({ name }) => name);
}

/** @param {string} from @param {string} to */
async function copy(from, to) {
  for (const kind of KINDS) {
    const [value] = await transact('readonly', (store) => [store.get(key(kind, from))]);
    if (value) await transact('readwrite', (store) => [store.put(value, key(kind, to))]);
  }
}

/** @param {string[]} slots */
function remove(slots) {
  return transact('readwrite', (store) => slots.flatMap((slot) => KINDS.map((kind) => store.delete(key(kind, slot)))));
}

// -- the store ---------------------------------------------------------------------------------------------------------

const KINDS = /** @type {const} */ (['picture', 'mask']);

/** Pages from before there were slots wrote `picture` and `mask`. @param {'picture'|'mask'} kind @param {string} slot */
function key(kind, slot) {
  return slot ? `${kind} ${slot}` : kind;
}

function database() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open('moebius-painting', 1);
    request.onupgradeneeded = () => request.result.createObjectStore('painting');
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error('blocked by another tab'));
  });
}

/** @param {IDBTransactionMode} mode @param {(store: IDBObjectStore) => IDBRequest[]} act @returns {Promise<any[]>} what each request gave */
async function transact(mode, act) {
  const db = await database();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = db.transaction('painting', mode);
      const requests = act(transaction.objectStore('painting'));
      transaction.oncomplete = () => resolve(requests.map((request) => request.result));
      transaction.onabort = transaction.onerror = () => reject(transaction.error ?? new Error('storage was refused'));
    });
  } finally {
    db.close();
  }
}

/** A copy of what was saved, with its blobs: Firefox does not store again, nor always read, those of its own store. @param {any} value @returns {Promise<any>} */
async function inMemory(value) {
  if (value instanceof Blob) return new Blob([await value.arrayBuffer()], { type: value.type });
  if (Array.isArray(value)) return Promise.all(value.map(inMemory));
  if (typeof value !== 'object' || !value) return value;
  const entries = Object.entries(value).map(async ([name, each]) => [name, await inMemory(each)]);
  return Object.fromEntries(await Promise.all(entries));
}

/** A mask's values as they are saved. @param {Uint8Array} data */
export function deflated(data) {
  return through(new Blob([/** @type {Uint8Array<ArrayBuffer>} */ (data)]), new CompressionStream('deflate-raw'));
}

/** @param {Blob} blob of `deflated` */
export async function inflated(blob) {
  return new Uint8Array(await (await through(blob, new DecompressionStream('deflate-raw'))).arrayBuffer());
}

/** @param {Blob} blob @param {CompressionStream | DecompressionStream} stream */
function through(blob, stream) {
  return new Response(blob.stream().pipeThrough(stream)).blob();
}

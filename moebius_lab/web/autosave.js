// Picture and mask kept in IndexedDB, so that a reload or a crash loses nothing.

/** @typedef {{id: string, name: string, credit: string, blob: Blob}} SavedPicture */
/** @typedef {{id: string, width: number, height: number, blob: Blob}} SavedMask values, deflated; `id` is its picture's */

/** @returns {Promise<IDBDatabase>} */
function database() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open('moebius-painting', 1);
    request.onupgradeneeded = () => request.result.createObjectStore('painting');
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error('blocked by another tab'));
  });
}

/** @param {IDBTransactionMode} mode @param {(store: IDBObjectStore) => IDBRequest} act @returns {Promise<any>} */
async function transact(mode, act) {
  const db = await database();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = db.transaction('painting', mode);
      const request = act(transaction.objectStore('painting'));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error ?? new Error('storage was refused'));
    });
  } finally {
    db.close();
  }
}

/** @param {SavedPicture} picture */
export const savePicture = (picture) => transact('readwrite', (store) => store.put(picture, 'picture'));

/** @param {string} id @param {import('./mask.js').Mask} mask */
export async function saveMask(id, { width, height, data }) {
  const blob = await through(new Blob([/** @type {Uint8Array<ArrayBuffer>} */ (data)]), new CompressionStream('deflate-raw'));
  await transact('readwrite', (store) => store.put({ id, width, height, blob }, 'mask'));
}

/** @returns {Promise<{picture: SavedPicture, mask: {width: number, height: number, data: Uint8Array} | null} | null>} */
export async function restore() {
  /** @type {SavedPicture | undefined} */
  const picture = await transact('readonly', (store) => store.get('picture'));
  if (!picture) return null;
  /** @type {SavedMask | undefined} */
  const saved = await transact('readonly', (store) => store.get('mask'));
  if (saved?.id !== picture.id) return { picture, mask: null };
  const data = await through(saved.blob, new DecompressionStream('deflate-raw'));
  return { picture, mask: { width: saved.width, height: saved.height, data: new Uint8Array(await data.arrayBuffer()) } };
}

export const forget = () => transact('readwrite', (store) => store.clear());

/** @param {Blob} blob @param {CompressionStream | DecompressionStream} stream */
function through(blob, stream) {
  return new Response(blob.stream().pipeThrough(stream)).blob();
}

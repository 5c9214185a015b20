// Several pictures with one mask, or one each: filled one after another with the settings as they stand.

import { reason } from '../engine/errors.js';
import { looksLikeMask } from './dropped.js';
import { add, addButton, download, isCancelled, say } from './page.js';
import { readMask, readPicture } from './picture_files.js';

/** @import { Desk } from './main.js' */
/** @import { Named } from './types.js' */

const MASK_SUFFIXES = ['-mask', '_mask'];

/** @param {File} file */
function named(file) {
  return { file, stem: file.name.replace(/\.[^.]*$/, '') };
}

/**
 * Which file is the mask of which, by the rule of batch.py: NAME's mask is called NAME-mask or NAME_mask, or is named as the picture
 * is and black and white; a single mask that belongs to none of them is that of all.
 *
 * @param {Named[]} files @param {(named: Named) => boolean} isMask by what it holds
 * @returns {{picture: Named, mask: Named | null}[]}
 */
export function matched(files, isMask) {
  const stems = new Set(files.map(({ stem }) => stem));
  const masks = files.filter((each) => {
    const base = MASK_SUFFIXES.map((suffix) => each.stem.endsWith(suffix) && each.stem.slice(0, -suffix.length)).find(Boolean);
    return base ? stems.has(base) || isMask(each) : isMask(each);
  });
  const pictures = files.filter((each) => !masks.includes(each));
  const common = masks.length === 1 ? masks[0] : null;
  return pictures.map((picture) => {
    const names = ['', ...MASK_SUFFIXES].map((suffix) => picture.stem + suffix);
    return { picture, mask: names.map((name) => masks.find(({ stem }) => stem === name)).find(Boolean) ?? common };
  });
}

/** @param {Desk} desk @param {File[]} files */
export async function openBatch(desk, files) {
  const dialog = add(document.body, 'dialog', { id: 'batch' });
  dialog.setAttribute('aria-labelledby', 'batch-title');
  add(dialog, 'h2', { id: 'batch-title', textContent: 'Fill several pictures' });
  const told = add(dialog, 'p', { textContent: 'Looking at the files…', role: 'status' });
  const bar = add(dialog, 'progress', { max: 1, value: 0, ariaLabel: 'Pictures filled' });
  const list = add(dialog, 'ul', { id: 'batch-list' });
  const buttons = add(dialog, 'div', { className: 'pair' });
  /** @type {AbortController | null} */
  let working = null;
  const go = addButton(buttons, 'Fill them', () => void fill(), 'batch-go');
  go.className = 'primary';
  go.disabled = true;
  const saveAll = addButton(buttons, 'Save all', () => made.forEach(({ blob, name }) => download(blob, name)), 'batch-save');
  saveAll.disabled = true;
  const close = addButton(buttons, 'Close', () => (working ? working.abort() : dialog.close()), 'batch-close');
  dialog.addEventListener('cancel', (event) => {
    if (!working) return;
    event.preventDefault(); // Escape stops the work, and closes nothing that was not saved
    working.abort();
  });
  dialog.addEventListener('close', () => dialog.remove());
  dialog.showModal();

  /** @type {{blob: Blob, name: string}[]} */
  const made = [];
  const limit = await desk.largest();
  const masks = new Set();
  for (const file of files) {
    const picture = await readPicture(file, limit).catch(() => null); // filling it says why
    if (picture && looksLikeMask(picture)) masks.add(file);
  }
  const jobs = matched(files.map(named), ({ file }) => masks.has(file));
  const rows = jobs.map(({ picture, mask }) => {
    const words = mask ? `mask ${mask.file.name}` : `no mask; name it ${picture.stem}-mask`;
    return add(list, 'li', { className: 'fine', textContent: `${picture.file.name}: ${words}` });
  });
  const ready = jobs.filter(({ mask }) => mask).length;
  told.textContent = `${jobs.length} pictures, ${ready} of them with a mask.`;
  go.disabled = !ready;
  (ready ? go : close).focus();

  async function fill() {
    const input = desk.readSettings();
    if (!input) {
      told.textContent = 'The settings cannot be used. Close this, and see there.';
      return;
    }
    const abort = (working = new AbortController());
    made.length = 0;
    go.disabled = saveAll.disabled = true;
    close.textContent = 'Stop';
    close.focus();
    told.textContent = 'Loading the model…';
    let [done, failed] = [0, 0];
    const tell = () => {
      bar.value = (done + failed) / jobs.length;
      told.textContent = `${done} of ${jobs.length} filled${failed ? `, ${failed} failed` : ''}.`;
    };
    try {
      const engine = await desk.model.prepare(abort.signal);
      if (!engine || abort.signal.aborted) {
        const why = 'The model was not loaded. Close this to see why, and what can be done.';
        told.textContent = abort.signal.aborted ? 'Stopped.' : why;
        return;
      }
      tell();
      const { encode } = await import('./saving.js');
      for (const [i, { picture: named, mask: of }] of jobs.entries()) {
        if (abort.signal.aborted) break;
        rows[i].textContent = `${named.file.name}: filling…`;
        rows[i].className = 'fine';
        rows[i].scrollIntoView({ block: 'nearest' });
        try {
          if (!of) throw new Error(`no mask; name it ${named.stem}-mask`);
          const [image, mask] = await Promise.all([readPicture(named.file, limit), readMask(of.file, limit)]);
          if (mask.width !== image.width || mask.height !== image.height)
            throw new Error(`the mask is ${mask.width} × ${mask.height}, the picture ${image.width} × ${image.height} pixels`);
          const { settings } = input;
          const result = await engine.inpaint({ image, mask: mask.data, settings }, { signal: abort.signal });
          const { blob, ending } = await encode(result.image, { source: named.file, made: desk.madeNow(settings) });
          rows[i].textContent = `${named.file.name}: done`;
          const name = `${named.stem}-filled${ending}`;
          addButton(rows[i], 'Save', () => download(blob, name)).ariaLabel = `Save ${name}`;
          made.push({ blob, name });
          done++;
        } catch (error) {
          if (isCancelled(error)) {
            rows[i].textContent = `${named.file.name}: stopped`;
            break;
          }
          failed++;
          rows[i].textContent = `${named.file.name}: ${reason(error)}`;
          rows[i].className = 'fine error';
        }
        tell();
      }
    } catch (error) {
      told.textContent = `That did not work: ${reason(error)}`;
    } finally {
      working = null;
      saveAll.disabled = !made.length;
      go.disabled = false;
      close.textContent = 'Close';
      go.classList.toggle('primary', !made.length);
      saveAll.classList.toggle('primary', made.length > 0);
      if (made.length) saveAll.focus();
      say(told.textContent ?? '');
    }
  }
}

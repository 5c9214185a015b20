// Parts of the page that its modules share: its elements, notices, and numbers as a person reads them.

/** The version of the page that this module is part of, which is the name of the folder above; empty outside a bundle. */
export const VERSION = /\/page-(\w+)\/$/.exec(new URL('..', import.meta.url).pathname)?.[1] ?? '';

/** @template {Element} T @param {string} id @param {new () => T} type @returns {T} */
export function element(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new TypeError(`index.html has no ${type.name} #${id}`);
  return found;
}

/** @param {string} id */
export const button = (id) => element(id, HTMLButtonElement);

/** @param {string} id */
export const field = (id) => element(id, HTMLInputElement);

/** @param {string} id @param {string} text */
export function write(id, text) {
  const node = element(id, HTMLElement);
  if (node.textContent !== text) node.textContent = text;
}

/** @param {string} id @param {() => void} action */
export function onClick(id, action) {
  button(id).addEventListener('click', action);
}

/** Say something in the status line, which screen readers read out. @param {string} text */
export function say(text) {
  write('status', text);
}

/** @import { Action } from './types.js' */

/**
 * Put a message over the picture, in place of an earlier one on the same subject.
 *
 * @param {string} subject @param {string} text @param {{bad?: boolean, actions?: Action[]}} [options]
 */
export function notice(subject, text, { bad = true, actions = [] } = {}) {
  dismiss(subject);
  const box = document.createElement('div');
  box.className = bad ? 'notice bad' : 'notice';
  box.dataset.subject = subject;
  box.setAttribute('role', bad ? 'alert' : 'status');
  const words = box.appendChild(document.createElement('p'));
  const buttons = box.appendChild(document.createElement('div'));
  for (const { label, run } of [...actions, { label: 'Close', run: () => {} }]) {
    const each = buttons.appendChild(document.createElement('button'));
    each.type = 'button';
    each.textContent = label;
    each.addEventListener('click', () => {
      dismiss(subject);
      run();
    });
  }
  element('notices', HTMLElement).append(box);
  words.textContent = text;
}

/** @param {string} subject */
export function dismiss(subject) {
  document.querySelector(`.notice[data-subject="${subject}"]`)?.remove();
}

/** A number of bytes in the unit that suits it. @param {number} bytes */
export function fileSize(bytes) {
  if (bytes < 1e6) return `${Math.ceil(bytes / 1e3)} kB`;
  if (bytes >= 1e10) return `${(bytes / 1e9).toFixed(1)} GB`;
  return `${(bytes / 1e6).toFixed(bytes < 1e8 ? 1 : 0)} MB`;
}

/** @param {number} seconds */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return 'time unknown';
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** @param {unknown} error */
export function isCancelled(error) {
  return error instanceof Error && 'code' in error && error.code === 'cancelled';
}

/** Offer a file to keep. @param {Blob} blob @param {string} name */
export function download(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

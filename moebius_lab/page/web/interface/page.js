// Parts of the page that its modules share: its elements, controls of panels, notices, and numbers as a person reads them.

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

/** @template {keyof HTMLElementTagNameMap} K @param {Element} parent @param {K} name @param {Partial<HTMLElementTagNameMap[K]>} [values] @returns {HTMLElementTagNameMap[K]} */
export function add(parent, name, values) {
  const node = document.createElement(name);
  Object.assign(node, values);
  return parent.appendChild(node);
}

/** @param {Element} parent @param {string} label @param {() => void} action @param {string} [id] */
export function addButton(parent, label, action, id = '') {
  const button = add(parent, 'button', { type: 'button', textContent: label, ...(id && { id }) });
  button.addEventListener('click', action);
  return button;
}

/** A labelled number. @param {Element} parent @param {string} label @param {{id: string, value: number, min: number, max: number}} about */
export function addNumber(parent, label, { id, value, min, max }) {
  add(parent, 'label', { textContent: label, htmlFor: id });
  const input = add(parent, 'input', { type: 'number', id, inputMode: 'numeric', step: '1' });
  Object.assign(input, { min: String(min), max: String(max), value: String(value) });
  return input;
}

/** A labelled choice. @param {Element} parent @param {string} label @param {string} id @param {[string, string][]} options value, text */
export function addSelect(parent, label, id, options) {
  add(parent, 'label', { textContent: label, htmlFor: id });
  const select = add(parent, 'select', { id });
  for (const [value, text] of options) select.add(new Option(text, value));
  return select;
}

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
  const box = add(element('notices', HTMLElement), 'div', {
    className: bad ? 'notice bad' : 'notice',
    role: bad ? 'alert' : 'status',
  });
  box.dataset.subject = subject;
  const words = add(box, 'p');
  const buttons = add(box, 'div');
  for (const { label, run } of [...actions, { label: 'Close', run: () => {} }]) {
    addButton(buttons, label, () => {
      dismiss(subject);
      run();
    });
  }
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

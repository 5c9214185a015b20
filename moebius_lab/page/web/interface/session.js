// Pictures that were open before, with their masks and results: what the history has besides the picture that is open.

import { dismiss, element, notice } from './page.js';

/** @import { Desk } from './main.js' */
/** @import { Work } from './types.js' */

/** Bytes that they take together before the oldest go; the last one stays, whatever it takes. */
export const LIMIT = 400e6;

/** @type {readonly Work[]} the last one first */
let kept = [];

/** Those that are kept, the last one first; another list whenever it has changed. */
export function earlier() {
  return kept;
}

/** @param {Work} work */
function bytesOf({ picture, mask, history, results }) {
  const sizes = results.map(({ region }) => 2 * region.data.length); // its values, and the canvas that shows them
  return sizes.reduce((sum, size) => sum + size, picture.data.length + mask.data.length + history.bytes);
}

/** Whether there is anything in it that a person would miss. @param {Work | null} work */
const hasWork = (work) => Boolean(work?.mask.holes || work?.results.length);

/** @param {Work} work */
function keep(work) {
  const all = [work, ...kept.filter(({ history }) => history !== work.history)];
  let bytes = 0;
  kept = all.filter((each, i) => (bytes += bytesOf(each)) <= LIMIT || i === 0);
}

/** Keep a picture that was replaced by another, and offer to bring it back. @param {Desk} desk @param {Work} work */
export function retire(desk, work) {
  keep(work);
  desk.update();
  notice('previous', `“${work.name}” was replaced. It stays under “History and comparing” until you leave.`, {
    bad: false,
    actions: [{ label: 'Bring it back', run: () => bringBack(desk, work) }],
  });
}

/** Open an earlier picture again, as it was left. @param {Desk} desk @param {Work} work */
export function bringBack(desk, work) {
  const { work: now } = desk;
  kept = kept.filter((each) => each !== work);
  if (now && hasWork(now)) keep(now);
  dismiss('previous');
  desk.show(work);
  desk.keepSafe(work);
  element('mask', HTMLCanvasElement).focus(); // what was pressed may be gone
}

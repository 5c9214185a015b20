// Every result of this session with its settings: copied back into the controls, and any two compared.

import { add, addButton, addSelect, fileSize, notice, say } from './page.js';
import { canvasOf } from './picture_files.js';
import { put } from './regions.js';
import { LIMIT, bringBack, earlier } from './session.js';

/** @import { Desk } from './main.js' */
/** @import { Entry, Result, Work } from './types.js' */

/** What a result was made with, in a line. @param {Result} result */
function words({ made: { settings, model }, seed }) {
  const { solver, steps, guidance, strength, init, harmonize } = settings;
  const parts = [`seed ${seed}`, `${steps} steps of ${solver}`, `guidance ${guidance}`];
  if (strength < 1) parts.push(`strength ${strength}`);
  if (harmonize) parts.push('harmonized');
  return [...parts, `from ${init}`, [model.backend, model.precision].filter(Boolean).join(' ')].join(', ');
}

/** @param {Work} work */
const entriesOf = (work) => work.results.map((result, i) => ({ work, result, number: i + 1 }));

/** @param {Desk} desk @param {HTMLElement} panel */
export function build(desk, panel) {
  const { editor } = desk;
  const list = add(panel, 'ol', { id: 'made' });
  const none = add(panel, 'p', { textContent: 'No result of this picture yet.', className: 'fine' });
  const fields = add(panel, 'div', { className: 'fields compared' });
  const left = addSelect(fields, 'Left', 'compare-left', []);
  const right = addSelect(fields, 'Right', 'compare-right', []);
  const buttons = add(panel, 'div', { className: 'pair' });
  const compare = addButton(buttons, 'Compare', act, 'compare-both');
  const copy = addButton(buttons, 'Copy settings', () => void copySettings(), 'copy-settings');
  copy.title = 'Those of the result on the right';
  const past = add(panel, 'ul', { id: 'earlier' });
  add(panel, 'p', {
    className: 'fine',
    textContent: `Pictures that were open before stay here with their masks and results, up to ${fileSize(LIMIT)} together, the last one in any case; all of them go when you leave.`,
  });
  /** @type {Entry[]} */
  let entries = [];
  /** @type {unknown[]} what the panel was made from */
  let from = [];
  /** @type {Result | null} */
  let last = null;

  /** @param {Entry} entry */
  const name = ({ work, result, number }) =>
    `result ${number}${work === desk.work ? '' : ` of ${work.name}`}, seed ${result.seed}`;

  function refresh() {
    const { work, shown } = desk;
    const made = [work, work?.results, earlier()];
    if (made.some((each, i) => each !== from[i])) relist(made);
    if (shown && shown !== last) right.value = String(entries.findIndex(({ result }) => result === shown));
    last = shown;
    left.disabled = right.disabled = copy.disabled = !entries.length;
    compare.disabled = desk.busy || !entries.length;
    for (const button of past.querySelectorAll('button')) button.disabled = desk.busy;
  }

  /** @param {unknown[]} made */
  function relist(made) {
    from = made;
    const { work } = desk;
    const own = work ? entriesOf(work) : [];
    const others = earlier().filter((each) => each !== work);
    entries = [...own, ...others.flatMap(entriesOf)];
    list.replaceChildren();
    for (const { result } of own) add(list, 'li', { textContent: words(result), className: 'fine' });
    none.hidden = own.length > 0;
    past.replaceChildren();
    for (const each of others) addEarlier(each);
    const options = entries.map((entry, i) => new Option(name(entry), String(i)));
    left.replaceChildren(new Option('the picture', ''), ...options.map((option) => /** @type {Node} */ (option.cloneNode(true))));
    right.replaceChildren(...options);
    if (own.length) right.value = String(own.length - 1);
  }

  /** @param {Work} work */
  function addEarlier(work) {
    const { width, height } = work.picture;
    const item = add(past, 'li', { className: 'fine' });
    const head = add(item, 'div');
    add(head, 'span', { textContent: `${work.name}, ${width} × ${height} px` });
    addButton(head, 'Bring back', () => bringBack(desk, work)).ariaLabel = `Bring back ${work.name}`;
    const made = add(item, 'ol');
    for (const { result } of entriesOf(work)) add(made, 'li', { textContent: words(result) });
  }

  function act() {
    const [a, b] = [left, right].map(({ value }) => (value ? entries[Number(value)] : null));
    const { work } = desk;
    if (!b || !work || desk.busy) return;
    const { width, height } = work.picture;
    const other = [a, b].find((entry) => entry && (entry.work.picture.width !== width || entry.work.picture.height !== height));
    if (other) {
      const { name: called, picture } = other.work;
      const text = `“${called}” is ${picture.width} × ${picture.height} pixels, “${work.name}” ${width} × ${height}: only results of one size can be compared.`;
      notice('compare', text, { actions: [{ label: `Bring back ${called}`, run: () => bringBack(desk, other.work) }] });
      return;
    }
    const names = /** @type {[string, string]} */ ([a ? name(a) : 'the picture', name(b)]);
    desk.look(b.work === work ? b.result : null, names);
    editor.show(layer(b), 0.5, a && layer(a));
    editor.dispatchEvent(new Event('split'));
    say(`Left: ${names[0]}. Right: ${names[1]}.`);
  }

  /** What differs from the picture that is open; all of it where the result is another one's. @param {Entry} entry */
  function layer({ work, result: { region, canvas } }) {
    if (work === desk.work) return { left: region.left, top: region.top, canvas };
    const { width, height, data } = work.picture;
    const whole = { width, height, data: new Uint8ClampedArray(data) };
    put(whole, region);
    return { left: 0, top: 0, canvas: canvasOf(whole) };
  }

  async function copySettings() {
    const entry = entries[Number(right.value)];
    if (!entry) return;
    const { made } = entry.result;
    const used = desk.useSettings(made.settings);
    const copied = await navigator.clipboard.writeText(JSON.stringify(made)).then(
      () => true,
      () => false,
    );
    say(
      `${used ? `The settings of ${name(entry)} are in use` : 'These settings cannot be used here'}${copied ? ', and on the clipboard' : ''}.`,
    );
  }

  editor.addEventListener('update', refresh);
  refresh();
}

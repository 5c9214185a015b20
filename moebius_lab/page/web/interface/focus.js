// Where the focus goes when what has it hides, is disabled or is removed: browsers let it fall back to the document, and who works with
// keys or a screen reader has lost their place. Here the nearest control that can be used takes it over.

const CONTROLS = 'button, input, select, summary, [tabindex="0"]';

/** @type {Element | null} what was focused last, until the person goes elsewhere */
let focused = null;
/** @type {Element[]} what it was part of then, the nearest first */
let around = [];
let byKeys = false;

/** @param {Element} control */
const isUsable = (control) => !control.matches(':disabled') && control.checkVisibility({ visibilityProperty: true });

/** Begin to watch. */
export function watchFocus() {
  addEventListener('focusin', (event) => {
    focused = /** @type {Element} */ (event.target);
    byKeys = focused.matches(':focus-visible');
    around = [];
    for (let part = focused.parentElement; part; part = part.parentElement) around.push(part);
  });
  // Chromium tells it of what is being removed, too, while that is still there
  addEventListener('focusout', () => queueMicrotask(forget));
  const attributeFilter = ['disabled', 'hidden', 'open'];
  new MutationObserver(passOn).observe(document.body, { subtree: true, childList: true, attributeFilter });
}

/** Where the person has gone elsewhere, nothing is passed on. */
function forget() {
  if (focused && focused !== document.activeElement && isUsable(focused)) focused = null;
}

function passOn() {
  const { activeElement: now, body } = document;
  if (!focused || (now !== focused && now !== body) || isUsable(focused)) return;
  const controls = around.flatMap((part) => [.../** @type {NodeListOf<HTMLElement>} */ (part.querySelectorAll(CONTROLS))]);
  controls.find(isUsable)?.focus({ preventScroll: !byKeys });
}

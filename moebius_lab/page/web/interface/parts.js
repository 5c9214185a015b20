// Controls of panels that are built when they are first opened.

/** @template {keyof HTMLElementTagNameMap} K @param {Element} parent @param {K} name @param {Partial<HTMLElementTagNameMap[K]> & {class?: string}} [values] @returns {HTMLElementTagNameMap[K]} */
export function add(parent, name, { class: className = '', ...values } = {}) {
  const node = document.createElement(name);
  Object.assign(node, values);
  if (className) node.className = className;
  parent.append(node);
  return node;
}

/** @param {Element} parent @param {string} label @param {() => void} action @param {string} [id] */
export function addButton(parent, label, action, id = '') {
  const button = add(parent, 'button', { type: 'button', textContent: label, id });
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

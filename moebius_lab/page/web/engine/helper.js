// Helps the model's worker: hashes files, which Chromium does in the thread that asks, and computes weights.

import { examined } from './model_cache.js';

let before = Promise.resolve(); // one file is done before the next is begun

addEventListener('message', ({ ports: [port] }) => {
  port.onmessage = ({ data: [bytes, check, formulas], ports: [answer] }) => {
    before = before
      .then(async () => {
        const found = await examined(bytes, check, formulas);
        answer.postMessage(found, [...new Set([bytes, ...[...found.numbers.values()].map(({ words }) => words.buffer)])]);
      })
      .catch((error) => answer.postMessage(error));
  };
});

postMessage({ silent: -1 });

// Hashes a model's files beside the worker that runs it: Chromium does so in the thread that asks.

import { hashed } from './model_cache.js';

addEventListener('message', ({ ports: [port] }) => {
  port.onmessage = async ({ data: bytes, ports: [answer] }) => answer.postMessage(await hashed(bytes), [bytes]);
});

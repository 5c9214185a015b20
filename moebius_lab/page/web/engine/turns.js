// Long work in short tasks, so that a page or a worker answers in between.

const SLICE = 40; // ms that a task may take

/** Other tasks get their turn. Unlike a timer's, this one comes as soon in a tab that nobody sees. @returns {Promise<void>} */
export function nextTask() {
  return new Promise((done) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      done();
    };
    port2.postMessage(null);
  });
}

/**
 * Do work that yields wherever it may be interrupted: short work at once, long work in as many tasks as it takes.
 *
 * @template T @param {Generator<void, T>} work @param {(made: T) => void} done called with what it returns, at once where one task is enough
 */
export function inTurns(work, done) {
  const end = performance.now() + SLICE;
  let step = work.next();
  while (!step.done && performance.now() < end) step = work.next();
  if (step.done) done(step.value);
  else void nextTask().then(() => inTurns(work, done));
}

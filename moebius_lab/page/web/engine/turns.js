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

/** Work of which one piece is asked for while the one before is still being done, so that what does it never waits. */
export class OneAhead {
  /** @type {Promise<unknown>|null} */
  #before = null;

  /**
   * Wait for the piece before this one.
   *
   * @param {Promise<unknown>} piece that was asked for just now
   * @throws what the piece before was rejected with
   */
  async add(piece) {
    piece.catch(() => {}); // told when it is waited for
    const before = this.#before;
    this.#before = piece;
    await before;
  }

  /** Wait for all pieces. */
  async end() {
    const before = this.#before;
    this.#before = null;
    await before;
  }
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

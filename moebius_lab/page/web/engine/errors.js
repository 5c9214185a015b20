// The one kind of error that the page shows: a code for the program, a plain sentence for the person.

/** @import { ErrorCode } from './types.js' */

export class EngineError extends Error {
  /**
   * @param {ErrorCode} code
   * @param {string} message what is wrong and what to do about it
   * @param {unknown} [cause] the error underneath
   */
  constructor(code, message, cause) {
    super(message, { cause });
    this.name = 'EngineError';
    this.code = code;
  }
}

/** @param {unknown} error */
export function reason(error) {
  return error instanceof Error ? error.message : String(error);
}

export function cancelled() {
  return new EngineError('cancelled', 'Stopped.');
}

/** @param {unknown} cause */
export function deviceLost(cause) {
  return new EngineError(
    'device-lost',
    'The graphics device was lost. Load the model again; nothing you painted is gone.',
    cause,
  );
}

/**
 * An error as plain data, to cross from the worker to the page.
 *
 * @param {unknown} error
 * @returns {{code: ErrorCode, message: string, detail: string}}
 */
export function toMessage(error) {
  const known = error instanceof EngineError ? error : classify(error);
  const cause = known.cause === undefined ? '' : reason(known.cause);
  return { code: known.code, message: known.message, detail: cause };
}

/** @param {{code: ErrorCode, message: string, detail: string}} message @returns {EngineError} */
export function fromMessage({ code, message, detail }) {
  return new EngineError(code, message, detail ? new Error(detail) : undefined);
}

const TRAP = /memory access out of bounds|out of bounds memory access|index out of bounds/i; // of WebAssembly, in three engines' words

/**
 * Whether a load that failed so may succeed in a new worker: nothing says that device, file or choice is at fault.
 *
 * @param {EngineError} error
 */
export function mayPass({ code, cause }) {
  return ['stuck', 'unreadable', 'worker'].includes(code) || TRAP.test(reason(cause));
}

/**
 * What an exception of ONNX Runtime or the browser means for the person.
 *
 * @param {unknown} error
 * @returns {EngineError}
 */
export function classify(error) {
  if (error instanceof EngineError) return error;
  const text = reason(error);
  const is = (/** @type {RegExp} */ pattern) => pattern.test(text);
  if (error instanceof Error && error.name === 'AbortError') return cancelled();
  if (is(/device (is|was) lost|device.lost|lost.*device|GPUDevice.*destroyed/i)) {
    return deviceLost(error);
  }
  if (is(TRAP) || is(/out.of.memory|bad_alloc|allocation failed|cannot enlarge memory|exceeds the max buffer/i)) {
    const advice = 'Close other tabs, or choose a smaller one under Runs on.';
    return new EngineError('out-of-memory', `There is not enough memory to run the model here. ${advice}`, error);
  }
  if (is(/GPU adapter|no available backend|webgpu is not/i)) {
    return new EngineError('no-webgpu', 'WebGPU could not be started here. Under Runs on, choose the processor (wasm).', error);
  }
  if (is(/shader|pipeline|WGSL|validation/i)) {
    const advice = 'Update browser and driver; or, under Runs on, choose fp32 or the processor (wasm).';
    return new EngineError('shader', `The graphics device refused a program of the model. ${advice}`, error);
  }
  return new EngineError('worker', `The model stopped: ${text.split('\n')[0]}. Load it again.`, error);
}

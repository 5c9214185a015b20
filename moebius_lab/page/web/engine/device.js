// A device of WebGPU for a model.

/** @import { Wanted } from './kernels/replacement.js' */

const USED = ['subgroups', 'timestamp-query']; // in programs of single operators; in profiles and where kernels are tried
export const MATRIX_UNITS = 'chromium-experimental-subgroup-matrix'; // a feature that a browser gives behind a flag
/** @type {WeakMap<GPUDevice, GPUAdapterInfo>} what adapters say of themselves: of matrix units a device says nothing */
export const infos = new WeakMap();
const LARGEST_SLABS = 32768; // bytes of workgroup memory for products on matrix units

/**
 * A device with what a precision needs and no more, except what is made use of where it is there.
 *
 * @param {import('./types.js').Precision} form
 * @param {Wanted} kernels
 * @returns {Promise<GPUDevice>}
 */
export async function deviceFor({ requires, options_require, needs }, kernels) {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) throw new Error('Failed to get GPU adapter');
  const units = kernels.startsWith('matrix') && adapter.features.has(MATRIX_UNITS) ? [MATRIX_UNITS, 'shader-f16'] : [];
  const wanted = [...requires, ...options_require, ...USED, ...units].filter((feature) => adapter.features.has(feature));
  const slabs = Math.min(LARGEST_SLABS, adapter.limits.maxComputeWorkgroupStorageSize);
  const limits = { ...needs.limits, ...(units.length && { maxComputeWorkgroupStorageSize: slabs }) };
  const device = await adapter.requestDevice(
    /** @type {any} */ ({ requiredFeatures: [...new Set(wanted)], requiredLimits: limits }),
  );
  infos.set(device, adapter.info);
  return device;
}

/**
 * Settled when the memory of what was destroyed is given back: browsers do so when something that is submitted afterwards is done.
 *
 * @param {GPUDevice} device
 */
export async function memoryBack(device) {
  device.queue.submit([device.createCommandEncoder().finish()]);
  await device.queue.onSubmittedWorkDone();
}

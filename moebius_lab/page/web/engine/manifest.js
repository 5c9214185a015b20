// manifest.json, as bundle.py writes it: what the page runs, from where, and every constant.

import { EngineError, reason } from './errors.js';

/** The form of manifest.json that this page reads; bundle.py writes the same number. */
export const FORMAT = 6;

/** @import { Manifest, StoredFile } from './types.js' */

/** The graphs that the page needs; a bundle may hold others for measurements. */
export const GRAPHS = ['vae_encoder', 'step', 'vae_decoder'];

/**
 * Fetch and check a manifest.
 *
 * @param {URL} url
 * @returns {Promise<Manifest>}
 * @throws {EngineError} not there, not a manifest, or written for another version of the page
 */
export async function readManifest(url) {
  let response;
  try {
    response = await fetch(url, { cache: 'no-cache' });
  } catch (error) {
    throw new EngineError('network', `The page could not reach ${url.host || url.href}. Check the connection and reload.`, error);
  }
  if (!response.ok) {
    throw new EngineError('manifest', `${url.pathname} answered ${response.status}. Put the whole bundle folder on the server.`);
  }
  let manifest;
  try {
    manifest = await response.json();
  } catch (error) {
    throw new EngineError('manifest', `${url.pathname} is not a manifest (${reason(error)}). Build the bundle again.`, error);
  }
  return checkManifest(manifest);
}

/**
 * Whether the server by now has another version than this manifest's; false where it cannot be asked.
 *
 * @param {URL} url of manifest.json
 * @param {Manifest} manifest
 * @returns {Promise<boolean>}
 */
export async function isOutdated(url, manifest) {
  try {
    const response = await fetch(new URL(url.pathname, url), { cache: 'no-store' }); // without the version that it may name
    return response.ok && (await response.json()).version !== manifest.version;
  } catch {
    return false;
  }
}

/**
 * @param {any} manifest
 * @returns {Manifest}
 */
export function checkManifest(manifest) {
  if (typeof manifest !== 'object' || manifest === null || !('format' in manifest)) {
    throw new EngineError('manifest', 'manifest.json does not describe a bundle. Build the bundle again.');
  }
  if (manifest.format !== FORMAT) {
    const versions = `The model's manifest has form ${manifest.format}, this page reads form ${FORMAT}`;
    throw new EngineError('manifest-version', `${versions}. Reload the page; if that does not help, build the bundle again.`);
  }
  const missing = [
    'version',
    'page',
    'network',
    'weights_base',
    'constants',
    'presets',
    'solvers',
    'runs',
    'layouts',
    'preview',
    'precisions',
    'runtime',
  ].filter((key) => !(key in manifest));
  if (missing.length) {
    throw new EngineError('manifest', `manifest.json lacks ${missing.join(', ')}. Build the bundle again.`);
  }
  return manifest;
}

/** What files that belong to no graph are listed under: they lie beside the manifest, wherever the weights are. */
export const BESIDE = ['runtime', 'recording'];

/**
 * Every file that a choice has to have: the three graphs with their weights, and ONNX Runtime's wasm; or a recording, and the weights alone.
 *
 * @param {Manifest} manifest
 * @param {string} precision
 * @param {'webgpu'|'wasm'} provider
 * @param {{graphs?: string[], recorded?: boolean}} [options] `recorded`: from the recording, where there is one
 * @returns {{graph: string, file: StoredFile}[]}
 */
export function filesOf(manifest, precision, provider, { graphs = GRAPHS, recorded = true } = {}) {
  const form = manifest.precisions[precision];
  const played = recorded ? recordingFor(manifest, precision, provider) : undefined;
  const first = played
    ? { graph: 'recording', file: played }
    : { graph: 'runtime', file: manifest.runtime.builds[buildFor(provider)].wasm };
  const own = played ? 1 : 0; // a recording stands for the graph's own file
  const weights = graphs.flatMap((graph) => form.graphs[graph].slice(own).map((file) => ({ graph, file })));
  const seen = new Set();
  return [first, ...weights].filter(({ file }) => !seen.has(file.sha256) && seen.add(file.sha256));
}

/**
 * @param {Manifest} manifest
 * @param {string} precision
 * @param {'webgpu'|'wasm'} provider
 * @returns {StoredFile|undefined}
 */
export function recordingFor(manifest, precision, provider) {
  return provider === 'webgpu' ? manifest.precisions[precision].recording : undefined;
}

/**
 * The build of ONNX Runtime Web for a provider: JSPI where the browser can suspend WebAssembly, which is the smaller.
 *
 * @param {'webgpu'|'wasm'} provider
 * @returns {'jspi'|'asyncify'|'wasm'}
 */
export function buildFor(provider) {
  if (provider === 'wasm') return 'wasm';
  return 'Suspending' in WebAssembly ? 'jspi' : 'asyncify';
}

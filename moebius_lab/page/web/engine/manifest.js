// manifest.json, as bundle.py writes it: what the page runs, from where, and every constant.

import { EngineError, reason } from './errors.js';

/** The form of manifest.json that this page reads; bundle.py writes the same number. */
export const FORMAT = 5;

/**
 * @typedef {object} Constants constants of config.py; see there
 * @property {number} image_size
 * @property {number} latent_size
 * @property {number} latent_channels
 * @property {number} vae_factor
 * @property {number} scaling_factor
 * @property {number} train_timesteps
 * @property {number} beta_start
 * @property {number} beta_end
 * @property {number} unconditional what the step graph's input `conditions` calls each of the two
 * @property {number} conditional
 * @property {number} noise_offset
 * @property {('whole'|'as-released')[]} coverages the default first
 * @property {number} feather_width
 * @property {number} mask_blur_radius
 * @property {number} mask_threshold
 * @property {number} window_margin
 * @property {number} max_megapixels
 * @property {number} preview_share of a run's time that may go into decoding previews
 * @property {number} brush_share of a picture's shorter side: the brush's diameter at first
 */

/** @typedef {Omit<import('./settings.js').Settings, 'noise_offset'|'seed'|'coverage'> & {label: string, note: string}} Preset */
/** @typedef {{graph: string, sizes: Record<string, number>}} Run `sizes` of the dimensions that the graph leaves free */

/**
 * @typedef {object} StoredFile
 * @property {string} name what the graph calls it: the location of external data
 * @property {string} file its name below weights_base, which holds the first digits of its hash
 * @property {number} bytes
 * @property {string} sha256 hexadecimal
 */

/**
 * @typedef {object} Precision
 * @property {number} bytes of all graphs that the page loads
 * @property {string} note one plain sentence
 * @property {string[]} requires WebGPU features without which it is not offered
 * @property {string[]} providers
 * @property {Record<string, string>} options entries of ONNX Runtime's session configuration, by their full names
 * @property {string[]} options_require WebGPU features without which they are left out; the processor has all it needs
 * @property {Record<string, StoredFile[]>} graphs the graph's own file first, then its weights
 */

/**
 * @typedef {object} Build one build of ONNX Runtime Web
 * @property {string} module
 * @property {StoredFile} wasm
 */

/**
 * @typedef {object} Manifest
 * @property {number} format
 * @property {string} version hash of everything else
 * @property {string} page folder of this version's modules, relative to the manifest, ending in a slash
 * @property {string} network
 * @property {string} weights
 * @property {string} weights_base relative to the manifest, or on another origin
 * @property {Constants} constants
 * @property {Record<string, Preset>} presets the default first
 * @property {Record<string, string>} solvers a description of each, by the names of sampler.js
 * @property {Record<string, Run>} runs every way in which a picture runs a graph, by name
 * @property {Record<string, 'NCHW'|'NHWC'>} layouts in which a graph's convolutions run on WebGPU, by graph
 * @property {number[][]} preview colours of the latents; see `sketch` in inpaint.js
 * @property {Record<string, Precision>} precisions the preferred first
 * @property {{version: string, builds: Record<'jspi'|'asyncify'|'wasm', Build>}} runtime
 * @property {{name: string, image: string, mask: string, credit: string}[]} samples
 */

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

/**
 * Every file that a choice has to have: the three graphs with their weights, and ONNX Runtime's wasm.
 *
 * @param {Manifest} manifest
 * @param {string} precision
 * @param {'jspi'|'asyncify'|'wasm'} build
 * @param {string[]} [graphs]
 * @returns {{graph: string, file: StoredFile}[]}
 */
export function filesOf(manifest, precision, build, graphs = GRAPHS) {
  const wasm = manifest.runtime.builds[build].wasm;
  const weights = graphs.flatMap((graph) => manifest.precisions[precision].graphs[graph].map((file) => ({ graph, file })));
  const seen = new Set();
  return [{ graph: 'runtime', file: wasm }, ...weights].filter(({ file }) => !seen.has(file.sha256) && seen.add(file.sha256));
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

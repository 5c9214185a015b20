// Types of what the engine reads and tells. Nothing here is sent: the modules name them in comments, for whoever checks their types.

import type { Capture, Placeholder } from './capture.js';
import type { Wanted as WantedKernels } from './kernels/replacement.js';
import type { Formula, Numbers } from './recorded/weights.js';

/** Constants of config.py; see there */
export interface Constants {
  image_size: number;
  latent_size: number;
  latent_channels: number;
  vae_factor: number;
  scaling_factor: number;
  train_timesteps: number;
  beta_start: number;
  beta_end: number;
  /** what the step graph's input `conditions` calls each of the two */
  unconditional: number;
  conditional: number;
  noise_offset: number;
  /** the default first */
  coverages: ('whole' | 'as-released')[];
  feather_width: number;
  mask_blur_radius: number;
  mask_threshold: number;
  window_margin: number;
  max_megapixels: number;
  /** of a run's time that may go into decoding previews */
  preview_share: number;
  /** of a picture's shorter side: the brush's diameter at first */
  brush_share: number;
  /** share of the pixels around a hole, at either end of a colour difference, that do not count as its colours */
  rare_colours: number;
  /** px around a hole that a harmonized fill is compared with */
  harmony_ring: number;
  /** px on both sides of the hole's edge that count for neither */
  detail_seam: number;
  /** by which fine detail is multiplied or divided at most */
  most_detail: number;
  /** sixteenths of image_size: how deep a ring of new canvas is at most */
  extension_depth: number;
  /** sixteenths of image_size: how far a window reaches past the ring */
  extension_beyond: number;
  /** px over which new canvas takes over the colours that it is joined to */
  extension_reach: number;
  /** px by which a selection may grow, shrink or be feathered at once */
  most_growth: number;
  /** px around its two ends that a wire may use, besides a quarter of their distance */
  wire_margin: number;
  /** px, longer side of a picture as a segmentation model sees it */
  segmenter_side: number;
  /** 0..255: by how much each channel may differ for the magic wand, at first */
  tolerance: number;
}

export interface StoredFile {
  /** what the graph calls it: the location of external data */
  name: string;
  /** its name below weights_base, which holds the first digits of its hash */
  file: string;
  bytes: number;
  /** hexadecimal */
  sha256: string;
}

/** What a precision needs of its device, by the graphs' own shapes and types */
export interface Needs {
  /** of WebGPU, by its names for them */
  limits: Record<string, number>;
  /** bytes, as they are stored */
  weights: number;
  /** bytes of the weights where those of 16 bits are made 32 bits at load */
  widened: number;
  /** bytes that are alive at once, at most */
  activations: number;
}

export interface Precision {
  /** of all graphs that the page loads */
  bytes: number;
  /** one plain sentence */
  note: string;
  /** WebGPU features without which it is not offered */
  requires: string[];
  providers: string[];
  /** entries of ONNX Runtime's session configuration, by their full names */
  options: Record<string, string>;
  /** WebGPU features without which they are left out; the processor has all it needs */
  options_require: string[];
  needs: Needs;
  /** the graph's own file first, then its weights */
  graphs: Record<string, StoredFile[]>;
  /** what the runtime asks of any device for these graphs; its `file` is relative to the manifest. Left out where there is none */
  recording?: StoredFile;
  /** of a form with other weights than the manifest's: their name, the preset that they are for, and the precision whose form it is */
  distilled?: { weights: string; preset: string; like: string };
}

/** One build of ONNX Runtime Web */
export interface Build {
  module: string;
  wasm: StoredFile;
}

export interface Manifest {
  format: number;
  /** hash of everything else */
  version: string;
  /** folder of this version's modules, relative to the manifest, ending in a slash */
  page: string;
  network: string;
  weights: string;
  /** relative to the manifest, or on another origin */
  weights_base: string;
  constants: Constants;
  /** the default first */
  presets: Record<string, Preset>;
  /** a description of each, by the names of sampler.js */
  solvers: Record<string, string>;
  /** every way in which a picture runs a graph, by name */
  runs: Record<string, Run>;
  /** in which a graph's convolutions run on WebGPU, by graph */
  layouts: Record<string, 'NCHW' | 'NHWC'>;
  /** colours of the latents; see `sketch` in inpaint.js */
  preview: number[][];
  /** the preferred first */
  precisions: Record<string, Precision>;
  runtime: { version: string; builds: Record<'jspi' | 'asyncify' | 'wasm', Build> };
  samples: { name: string; image: string; mask: string; credit: string }[];
  /** a file, of which measuring/measuring.js makes use */
  reference: string;
}

/** Settings by a name */
export type Preset = Omit<Settings, 'noise_offset' | 'seed' | 'coverage'> & { label: string; note: string };

/** `sizes` of the dimensions that the graph leaves free */
export type Run = { graph: string; sizes: Record<string, number> };

export interface Choice {
  provider: 'webgpu' | 'wasm';
  precision: string;
  /** of all its files */
  bytes: number;
  /** of those that are kept here */
  cachedBytes: number;
  /** bytes that it is planned to take while it runs */
  memory: number;
  /** whether that is more than this device can be expected to give */
  tight: boolean;
  /** what came of it here before */
  seen: Verdict | '';
  note: string;
  /** of a form with other weights */
  distilled?: Precision['distilled'];
}

export interface Detected {
  webgpu: { available: boolean; reason: string; adapter: Adapter | null; features: string[]; limits: Record<string, number> };
  wasm: { threads: number; isolated: boolean };
  choices: Choice[];
  /** with weights that are for one preset, which nobody chooses by name */
  distilled: Choice[];
  /** what WebGPU could run on a device that has more, and what this one lacks */
  withheld: { precision: string; lacks: string[] }[];
  /** index into choices */
  preferred: number;
}

export interface LoadProgress {
  /** 'kernels': the fastest programs for this device are being chosen */
  phase: 'download' | 'verify' | 'session' | 'kernels';
  /** of totalBytes, those that were stored already included */
  doneBytes: number;
  totalBytes: number;
  cachedBytes: number;
  /** bytes a second over the network, of the last seconds */
  rate: number;
  /** Infinity while it is unknown */
  secondsLeft: number;
  /** where the files are kept */
  storage: 'cache' | 'memory';
  /** something the person should know */
  message?: string;
  /** in the phase 'kernels': how much of the choosing is done, from 0 to 1 */
  share?: number;
}

export interface Loaded {
  /** the one that really runs */
  provider: 'webgpu' | 'wasm';
  precision: string;
  /** the device's own words; null on wasm */
  adapter: Adapter | null;
  /** of the device */
  features: string[];
  /** of the device: those that the precision needs something of */
  limits: Record<string, number>;
  /** of wasm */
  threads: number;
  /** for each graph, how many nodes run on which provider */
  placed: Record<string, { nodes: Record<string, number> }>;
  /** whether the step is replayed from a capture */
  captured: boolean;
  /** whether that capture comes from the bundle's recording, without ONNX Runtime */
  recorded: boolean;
  /** bytes on the device for all that captured graphs compute */
  workspace: number;
  /**
   * commands of captured graphs, those that kernels of our own stand for, and why others do not; the way that was chosen, by form, and
   * the milliseconds of that: ways tried and compared with the runtime's (next to nothing where they were chosen before), and put together
   */
  kernels: {
    replaced: number;
    commands: number;
    /** shapes of operations that no visit has tried so far */
    left: number;
    note: string;
    choices: Record<string, string>;
    took: { trying: number; comparing: number; making: number };
  };
  /** what it runs on, in a few words: the adapter, or the processor */
  device: string;
  /** all of it in one sentence */
  evidence: string;
  storage: 'cache' | 'memory';
}

export interface StepProgress {
  /** from 0 */
  window: number;
  windows: number;
  /** done in this window, from 1; 0 when the windows are planned and nothing is computed yet */
  step: number;
  steps: number;
  /** median so far; 0 before the first step */
  msPerStep: number;
  /** so far */
  pace: Pace;
  /** how many windows of which size, in words */
  plan: string;
  /** a region of the picture with the prediction of this moment pasted in */
  preview?: { left: number; top: number; width: number; height: number; data: Uint8ClampedArray };
}

/** Of one tensor in a buffer */
export interface Lifetime {
  buffer: Placeholder;
  /** the command that writes it */
  from: number;
  /** the last that reads it */
  to: number;
  /** whether any does */
  read: boolean;
  /** the commands that have to do with it, and whether they write */
  uses: Map<number, boolean>;
}

export interface Program {
  label: string;
  /** WGSL */
  code: string;
  /** that the pipeline sets */
  constants: Record<string, number>;
  /** what it does with each buffer of group 0, by binding */
  uses: Map<number, Use>;
}

/** One denoising that is under way; its state stays where the backend keeps it. */
export interface Denoising {
  /** takes `stepFeeds`, and ends when the step has been computed */
  step: (feeds: Record<string, Values>) => Promise<void>;
  /** whether a step may be asked for while the one before is still being computed */
  queues: boolean;
  /** (3, 4, s, s) after all steps that were asked for */
  state: () => Promise<Float32Array>;
  close: () => void;
}

export interface Backend {
  provider: string;
  /** (1, 3, S, S) in [-1, 1] */
  encode: (image: Float32Array) => Promise<{ mean: Float32Array; std: Float32Array }>;
  denoise: (state: Float32Array, mask: Float32Array, maskedLatents: Float32Array) => Promise<Denoising>;
  /** (1, 4, s, s), unscaled */
  decode: (latent: Float32Array) => Promise<Float32Array>;
}

export interface Settings {
  solver: string;
  steps: number;
  strength: number;
  /** 1 is the conditional prediction alone, which takes half the arithmetic */
  guidance: number;
  /** shares of the run: step i of n is guided if from <= i/n < to */
  guidance_interval: number[];
  noise_offset: number;
  seed: number;
  init: 'image' | 'noise';
  coverage: 'whole' | 'as-released';
  /** bring the fill nearer to its surroundings in colour and texture; see harmonizing.js */
  harmonize: boolean;
}

/** RGBA, row by row, as ImageData */
export type Picture = { width: number; height: number; data: Uint8ClampedArray };

/** See COVERAGES in config.py */
export type Coverage = Settings['coverage'];

/** A square of a picture, possibly reaching past its edges, and the part of the hole that is filled through it. */
export interface Window {
  /** px, may be negative */
  left: number;
  /** px, may be negative */
  top: number;
  /** px */
  side: number;
  /** from 1 */
  number: number;
  /** shared by all windows: for each pixel of the picture, which of them fills it; 0 for none */
  owners: Uint32Array;
  /** where it fills new canvas: whether there is some left, top, right, bottom; see extending.js */
  newCanvas?: boolean[];
}

/** Of a graph, without memory for what it computes */
export interface GraphCapture {
  capture: Capture;
  inputs: Map<string, GPUBuffer>;
  outputs: Map<string, { buffer: Placeholder; dims: number[] }>;
  lifetimes: Lifetime[];
}

export type Dispatch = { pipeline: GPUComputePipeline; groups: GPUBindGroupDescriptor[]; workgroups: [number, number, number] };

export type Copy = { source: Place; sourceOffset: number; target: Place; targetOffset: number; size: number };

export type Clear = { cleared: Place; offset: number; size: number };

export type Command = Dispatch | Copy | Clear;

export type Place = GPUBuffer | Placeholder;

/** 'both' where what was there before may count */
export type Use = 'read' | 'write' | 'both';

/** In which buffer, from which byte */
export type Allocation = { index: number; offset: number };

export type Region = { buffer: GPUBuffer; offset: number };

export type Guest = { lifetime: Lifetime; capture: number; size: number; offset: number };

export type Adapter = { vendor: string; architecture: string; description: string; fallback: boolean };

/** A float32 tensor */
export type Values = { dims: number[]; data: Float32Array };

/** Milliseconds; `step` is the median of both kinds */
export type Result = { image: Picture; timings: Pace & { step: number; total: number }; provider: string };

export type CallOptions = { onProgress?: (progress: any) => void; signal?: AbortSignal };

/** A picture whose hole is filled; `extension`: how it was extended, where it was */
export type Job = { image: Picture; mask: Uint8Array; settings: Settings; extension?: Extension | null };

/** What the model sees of a picture through a window: (size, size, 3), and 1 in the hole */
export type Seen = { rgb: Uint8Array; hole: Uint8Array };

/** Right and bottom exclusive */
export type Box = { left: number; top: number; right: number; bottom: number; label: number };

/** Of a picture, px */
export type Area = { left: number; top: number; width: number; height: number };

/** Weights of the new picture in an area: 255 is all of it; none outside */
export type Paste = Area & { weights: Uint8Array; coverage: Coverage };

/** Bytes */
export type Blend = (made: number, old: number, weight: number) => number;

/** `support` in px of the coarser grid */
export type Filter = { support: number; weight: (x: number) => number };

/** `weights` in fixed point */
export type Taps = { first: number; weights: Int32Array }[];

/** Latents of a window; no image from noise */
export type Known = { mask: Float32Array; image: Float32Array | null; masked: Float32Array; noise: Float32Array };

export type Wanted = { graph: string; precision: string; file: StoredFile; url: URL };

/** How ONNX Runtime is started */
export interface RuntimeOptions {
  provider: 'webgpu' | 'wasm';
  manifest: Manifest;
  precision: string;
  /** the build of ONNX Runtime Web */
  module: URL;
  wasm: ArrayBuffer;
  threads: number;
  /** capture the graphs of which all runs on the device, and replay them without the runtime */
  capture: boolean;
  /** where kernels of our own stand for the runtime's commands in captured graphs */
  kernels: WantedKernels;
  /** seconds in which they are tried */
  trying?: number;
  /** the manifest's */
  page: URL;
  file: (sha256: string) => Promise<{ bytes: ArrayBuffer }>;
  /** of WebGPU; one with all that is made use of where none is given */
  device?: GPUDevice;
}

/** How a recording is played: as `RuntimeOptions`, and `runtime`, which fetches and starts ONNX Runtime on the same graphs, not captured */
export type PlayerOptions = Pick<RuntimeOptions, 'manifest' | 'precision' | 'kernels' | 'trying' | 'page'> & {
  file: Files['file'];
  runtime: () => Promise<import('./graph_backend.js').GraphBackend>;
};

/** How a model is loaded; what is left out is chosen. */
export type ToLoad = {
  provider: 'webgpu' | 'wasm';
  precision: string;
  /** Graphs are captured, where that is possible. */
  capture?: boolean;
  /** From the bundle's recording, where there is one that this device was not seen to refuse. */
  recorded?: boolean;
  /** Of our own in captured graphs: 'fastest', where they are faster on this device, unless another is named. */
  kernels?: WantedKernels;
  /** Seconds in which ways to compute are tried, those in which weights are read among them. */
  trying?: number;
};

export type StoredEntry = { url: string; bytes: number; graph: string; precision: string; current: boolean };

/** Its SHA-256, empty where it was known; and what formulas give, by their JSON, or nothing */
export type Examined = { bytes: ArrayBuffer; hash: string; numbers: Map<string, Numbers> };

/** `whole`: when all are there, which who reads one need not wait for */
export type Files = {
  file: (sha256: string, formulas?: Formula[]) => Promise<Examined>;
  whole: Promise<void>;
  storage: 'cache' | 'memory';
};

/** (3, 3) and (3): a row for each tensor of the next state */
export type Step = Level & { stateWeights: number[][]; noiseWeights: number[] };

/** Shares of picture and noise in the latent at a timestep */
export type Level = { timestep: number; signal: number; sigma: number };

/** Median ms of each; 0 while none was seen */
export type Pace = { encode: number; guided: number; unguided: number; decode: number };

export type ErrorCode =
  | 'manifest'
  | 'manifest-version'
  | 'outdated'
  | 'network'
  | 'not-found'
  | 'corrupt'
  | 'quota'
  | 'no-webgpu'
  | 'device-lost'
  | 'out-of-memory'
  | 'shader'
  | 'uncapturable'
  | 'unplayable'
  | 'cancelled'
  | 'bad-input'
  | 'worker'
  | 'stuck'
  | 'unreadable';

export type Verdict = 'works' | 'failed';

/** 'recording': the one that WebGPU has for a precision */
export type Way = { provider: Choice['provider'] | 'recording'; precision: string };

/** Px by which a canvas grew on each side of a picture */
export type Extension = { left: number; top: number; right: number; bottom: number };

/** A rectangle, right and bottom exclusive, and its window's corner */
export type Piece = Extension & { windowLeft: number; windowTop: number };

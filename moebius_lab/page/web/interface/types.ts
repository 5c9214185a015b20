// Types of what a person works on. Nothing here is sent: the modules name them in comments, for whoever checks their types.

import type { Extension, Settings } from '../engine/types.js';
import type { History, Mask } from './mask.js';

export type Bytes = Uint8Array<ArrayBuffer>;

/** RGBA, row by row, not premultiplied */
export type Picture = { width: number; height: number; data: Uint8ClampedArray; translucent?: boolean };

/** `exact`: with the file's very colours, also where they are translucent */
export type FilePicture = Picture & { exact: boolean };

export type Grey = { width: number; height: number; data: Uint8Array };

/** Puts a bitmap's RGBA into an array */
export type Reader = (bitmap: ImageBitmap, data: Uint8ClampedArray<ArrayBuffer>) => Promise<void>;

/** A rectangle of pixels; right and bottom are exclusive */
export type Rect = { left: number; top: number; right: number; bottom: number };

/** What a tile of a mask held: its values, or the one value that all of them have */
export type Tile = Uint8Array | number;

/** The tiles that one edit changed, as they are not in the mask now: `Mask.swap` exchanges the two */
export type MaskPatch = { tiles: Map<number, Tile>; bytes: number };

/** One step of the history: `swap` goes back, and called again forward */
export type Change = { label: string; bytes: number; swap: () => void };

/** What the page asks selection_worker.js for */
export interface SelectionRequest {
  id: number;
  what: 'picture' | 'wand' | 'wire' | 'object' | 'refine';
  /** to be kept */
  picture?: Picture;
  /** whole px: of the wand one, of a wire its two ends */
  points?: [number, number][];
  tolerance?: number;
  contiguous?: boolean;
  /** of the wire */
  room?: number;
  /** key of `REFINE` */
  how?: string;
  px?: number;
  /** made elsewhere */
  selection?: Uint8Array;
  /** as it is now */
  mask?: Uint8Array;
  /** the lowest value that is hole */
  level?: number;
  takesAway?: boolean;
}

/** The whole new mask, and what undoes it: the tiles of the old one that differ, for `Mask.adopt` */
export interface SelectionAnswer {
  id: number;
  mask?: Uint8Array;
  tiles?: Map<number, Tile>;
  holes?: number;
  way?: [number, number][];
  error?: string;
}

export interface Segmenter {
  select: (picture: Picture, id: string, point: [number, number]) => Promise<Uint8Array>;
  close: () => void;
}

/** What a file's bytes say, apart from its pixels. */
export interface Contents {
  /** what a browser is to decode: the file without EXIF, animation, and what is broken */
  parts: Bytes[];
  /** 1..8, as EXIF numbers them */
  orientation: number;
  /** more than 8 bits a channel, as far as that matters */
  depth: '' | 'hdr' | '16 bits';
}

/** What a picture was made with, as its PNG says it. */
export interface Made {
  format: 1;
  settings: Settings;
  model: { network: string; weights: string; precision: string; backend: string };
  /** version of the page or of the package's sources */
  code: string;
}

/** What the model made of the picture, where it differs, and how. */
export interface Result {
  seed: number;
  region: Region;
  canvas: OffscreenCanvas;
  made: Made;
}

/** Px of a picture, where the upper left corner of the file that was opened lies. */
export interface Place {
  left: number;
  top: number;
}

/** How a canvas grew, and what it had been: the other fields are those of `Painting` then. */
export interface Grown {
  by: Extension;
  /** its values, deflated */
  mask: Blob;
  extension: Extension | null;
  grown: Grown | null;
}

/** What is saved. */
export interface Painting {
  /** of the picture; another one as soon as a pixel of it has changed */
  id: string;
  name: string;
  credit: string;
  picture: Picture;
  /** that holds this very picture */
  file: Blob | null;
  mask: Mask;
  /** how its canvas was extended and not yet filled */
  extension: Extension | null;
  /** the last step of that, to be undone */
  grown: Grown | null;
  /** the file that was opened, whatever has become of the picture since */
  source: Blob;
  place: Place;
}

/** What the person works on; its name is the file's without ending. */
export interface Work extends Painting {
  history: History;
  /** made from this very picture */
  results: Result[];
}

/** How far saving of what is on the screen has got */
export type Saving = 'nothing' | 'saving' | 'saved' | 'refused' | 'forgotten';

interface Canvas {
  extension?: Extension | null;
  grown?: Grown | null;
}

export interface SavedPicture {
  id: string;
  name: string;
  credit: string;
  blob: Blob;
  source: Blob;
  place: Place;
}

/** `id` is its picture's. */
export interface SavedMask extends Canvas {
  id: string;
  width: number;
  height: number;
  /** its values, deflated */
  blob: Blob;
  /** ms since 1970 */
  saved: number;
}

export interface Saved extends Canvas {
  picture: SavedPicture;
  mask: { width: number; height: number; data: Uint8Array } | null;
}

/** The last three select, see select.js */
export type Tool = 'brush' | 'eraser' | 'rectangle' | 'lasso' | 'hand' | 'wand' | 'wire' | 'object';

/** Px of the picture, and whether it is to be taken from the mask */
export type Picked = { point: [number, number]; takesAway: boolean };

/** A piece that is shown in place of the picture's own */
export type Layer = { left: number; top: number; canvas: OffscreenCanvas };

/** CSS px a px of the picture, and where its upper left corner is, CSS px */
export type View = { scale: number; x: number; y: number };

export type Point = { x: number; y: number };

export type Size = { width: number; height: number };

/** RGBA of a part of a picture */
export type Region = { left: number; top: number; width: number; height: number; data: Uint8ClampedArray };

export type Coloured = { profile: Bytes | null; pixels: Picture | null; colours: string };

export type Action = { label: string; run: () => void };

export type Named = { file: File; stem: string };

/** Numbers count from 1 in each picture */
export type Entry = { work: Work; result: Result; number: number };

// Types of what is measured. Nothing here is sent: the module names them in comments, for whoever checks its types.

/** As page/reference.py describes one */
export type Input = { dims: number[]; seed?: number; scale?: number; hole?: number; data?: number[] };

export type Output = { size: number; every: number; values: number[]; range: number };

export type Reference = Record<string, { inputs: Record<string, Input>; outputs: Record<string, Output> }>;

export interface Row {
  what: string;
  backend: string;
  form: string;
  unit: string;
  median: number;
  q1: number;
  q3: number;
  repeats: number;
  steps: number;
}

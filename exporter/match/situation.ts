import {
  type Dim,
  type DTypeName,
  type Graph,
  isFloat,
  makeTensor,
  tensorBytes,
} from '../ir/index.js';
import type { RunTensor } from './runner.js';

/** A made-up call of a model: how many rows, new tokens and cached tokens, and which tokens are padding. */
export interface Situation {
  readonly batch: number;
  readonly tokens: number;
  readonly past: number;
  /** Values of [batch, past + tokens] mask inputs, row by row; default all 1. */
  readonly mask?: readonly (readonly number[])[];
  /** Only this mask input takes `mask`; the others stay 1. Default: all do. */
  readonly only?: string;
  /** Mask inputs get 1 for 0 and 0 for 1. */
  readonly onesHide?: boolean;
}

/** What an input of a language or vision model stands for, judged by its name, type and rank. */
export type Role = 'mask' | 'positions' | 'lengths' | 'tokens' | 'past' | 'data';

export function roleOf(graph: Graph, name: string): Role {
  const dtype = graph.dtype(name);
  const dims = graph.dims(name);
  const rank = dims?.length;
  if (/past|cache/i.test(name) && isFloat(dtype)) return 'past';
  if (/mask/i.test(name) && rank === 2) return 'mask';
  if (/(seq|total).*len|mask/i.test(name) && !isFloat(dtype) && (rank ?? 9) <= 1) return 'lengths';
  // Olive's graph surgery gives lengths of rows an axis more.
  if (rank === 2 && dims![1] === 1 && readAsLengths(graph, name)) return 'lengths';
  if (/write_ind/i.test(name) && !isFloat(dtype) && rank === 1) return 'lengths';
  if (/position/i.test(name) && !isFloat(dtype)) return 'positions';
  return rank === 2 && !isFloat(dtype) ? 'tokens' : 'data';
}

/** Is an input what com.microsoft.GroupQueryAttention calls seqlens_k, whatever its own name? */
function readAsLengths(graph: Graph, name: string): boolean {
  return graph.root
    .uses(name)
    .some((u) => u.index === 5 && u.node.is('GroupQueryAttention', 'com.microsoft'));
}

/** Elements of the largest tensor that a probe is fed with or compared with. */
export const LARGEST_PROBE = 2 ** 26;
/** Scores of a site that has more tokens than were asked for: as many as shortened speech and the windows of images have. */
export const LARGEST_STRETCHED = 2 ** 23;

/** Samples of sound for each token wanted: speech models make one of 320 (20 ms), the first of 400. */
const SAMPLES = 640;

/** The batch size that a model's inputs fix, or the one wanted. */
export function batchOf(graph: Graph, wanted = 2): number {
  const fixed = graph.root.inputs.flatMap(({ name }) => {
    const dims = graph.dims(name) ?? [];
    if (roleOf(graph, name) === 'lengths' && dims.length <= 1 && dims[0] === 1) return [];
    return [dims[batchAxisOf(roleOf(graph, name), dims.length)]];
  });
  const number = fixed.find((d) => typeof d === 'number' && d > 0);
  return (number as number | undefined) ?? wanted;
}

/** A cache of keys and values in one has the batch behind its first axis. */
function batchAxisOf(role: Role, rank: number): number {
  return role === 'past' && rank === 5 ? 1 : 0;
}

/** Shapes of all graph inputs in a situation; inputs without a declared shape are left out. */
export function inputShapes(graph: Graph, s: Situation): Record<string, number[]> {
  const shapes: Record<string, number[]> = {};
  for (const { name } of graph.root.inputs) {
    const dims = graph.root.isInput(name) ? graph.dims(name) : undefined;
    if (!dims) continue;
    const role = roleOf(graph, name);
    shapes[name] = dims.map((d, axis) => length(d, axis, dims.length, role, s));
  }
  return shapes;
}

function length(d: Dim, axis: number, rank: number, role: Role, s: Situation): number {
  if (typeof d === 'number' && d > 0) return d;
  if (axis === batchAxisOf(role, rank)) return s.batch;
  const name = typeof d === 'string' ? d : '';
  if (role === 'past') return axis === rank - 2 || /past/i.test(name) ? s.past : 4;
  if (role === 'mask' || /total|\+/i.test(name)) return s.past + s.tokens;
  if (/past/i.test(name)) return s.past;
  if (role === 'data' && rank === 2) return SAMPLES * s.tokens;
  return rank >= 4 ? 32 : s.tokens;
}

/** Values for inputs in a situation. */
export function feedsFor(
  graph: Graph,
  names: readonly string[],
  shapes: Readonly<Record<string, readonly number[]>>,
  s: Situation,
): Record<string, RunTensor> | string {
  const feeds: Record<string, RunTensor> = {};
  for (const name of names) {
    const dims = shapes[name];
    const dtype = graph.dtype(name);
    if (!dims || !dtype) return `graph input '${name}' has no declared shape`;
    const count = dims.reduce((a, b) => a * b, 1);
    if (!(count <= LARGEST_PROBE)) return `graph input '${name}' [${dims}] is too large`;
    const role = roleOf(graph, name);
    const values = new Float32Array(count);
    if (role === 'data' || role === 'past') {
      for (let i = 0; i < count; i++) values[i] = SINES[i % SINES.length]!;
    } else {
      const token = role === 'tokens' ? tokenOf(graph, name) : 0;
      for (let i = 0; i < count; i++) values[i] = valueAt(graph, name, role, dims, i, s, token);
    }
    feeds[name] = tensor(dtype, dims, values);
  }
  return feeds;
}

/** An id that every table it is looked up in has: tables of token types may have one row. */
function tokenOf(graph: Graph, name: string): number {
  const tables = graph.root
    .uses(name)
    .map(({ node, index }) => (/^Gather/.test(node.opType) && index === 1 ? node.inputs[0]! : ''));
  const rows = tables.map((table) => graph.root.dims(table)?.[0]);
  return Math.max(0, Math.min(5, ...rows.map((n) => (typeof n === 'number' ? n - 1 : 5))));
}

/** Values that are neither constant nor large; a prime number of them, so that rows and heads of a large input differ. */
const SINES = Float32Array.from({ length: 65521 }, (_, i) => Math.sin(i + 1));

function valueAt(
  graph: Graph,
  name: string,
  role: Exclude<Role, 'data' | 'past'>,
  dims: readonly number[],
  i: number,
  s: Situation,
  token: number,
): number {
  const width = dims.at(-1) ?? 1;
  const [row, column] = [Math.floor(i / width), i % width];
  switch (role) {
    case 'mask': {
      const given = s.mask?.[row];
      const seen = s.only && s.only !== name ? 1 : (given?.[given.length - width + column] ?? 1);
      return s.onesHide ? 1 - seen : seen;
    }
    case 'positions':
      return s.past + column;
    case 'lengths':
      return lengthAt(name, s, readAsLengths(graph, name));
    case 'tokens':
      return token;
  }
}

/** com.microsoft counts rows from 0 in seqlens_k, from 1 everywhere else. */
function lengthAt(name: string, { past, tokens }: Situation, read: boolean): number {
  if (read) return past + tokens - 1;
  if (/past|write/i.test(name)) return past;
  return /seqlens?_k/i.test(name) ? past + tokens - 1 : past + tokens;
}

const ARRAYS: Partial<Record<DTypeName, (b: ArrayBuffer) => RunTensor['data']>> = {
  float32: (b) => new Float32Array(b),
  float64: (b) => new Float64Array(b),
  float16: (b) => new Uint16Array(b),
  int64: (b) => new BigInt64Array(b),
  int32: (b) => new Int32Array(b),
  bool: (b) => new Uint8Array(b),
  uint8: (b) => new Uint8Array(b),
  int8: (b) => new Int8Array(b),
};

function tensor(dtype: DTypeName, dims: readonly number[], values: Float32Array): RunTensor {
  const bytes = tensorBytes(makeTensor('', dtype, dims, values));
  const array = ARRAYS[dtype];
  const data = array ? array(bytes.slice().buffer as ArrayBuffer) : bytes;
  return { type: dtype, dims, data };
}

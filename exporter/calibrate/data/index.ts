import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../../ops/error.js';
import { numberTensor, type TensorInput } from '../../compare/feeds.js';
import { loadOnnxRuntime } from '../../compare/session.js';
import { Random } from '../../random.js';
import type { NpyArray } from './npz.js';

/** Where a batch comes from: what is fitted, or what is only measured. */
export type Part = 'fit' | 'held-out';

/** Endless batches of inputs, all of one shape, each fixed by its number. */
export interface CalibrationData {
  readonly batch: number;
  /** Tokens of a sequence; 0 when the inputs are no tokens. */
  readonly tokens: number;
  /** Values of every input that is not carried from call to call. */
  inputs(part: Part, index: number): Promise<Readonly<Record<string, readonly number[]>>>;
  /** Shapes of those. */
  shape(input: string): readonly number[] | undefined;
  /** The part of the data that a batch is from, where examples differ in shape. */
  at?(part: Part, index: number): CalibrationData;
  /** Is the tail of a sequence, from this token on, a repetition? Null where that is not known. */
  repeats(part: Part, index: number): readonly (Repeat | null)[];
}

/** A segment that comes twice in a sequence: tokens `first`, and again `second`, to `length` behind it. */
export interface Repeat {
  readonly first: number;
  readonly second: number;
  readonly length: number;
}

export interface TokenDataOptions {
  /** Tokens of a sequence; default 1024, or as many as there are. */
  length?: number;
  batch?: number;
  seed?: number;
  /** In this share of the sequences, a segment comes a second time; default 0.25. */
  repeated?: number;
  /** How far a repeated segment lies from its first appearance at least; default 0. */
  distance?: number;
}

const HELD_OUT = 0.1;

/** Pieces of one long text. The last tenth is held out. */
export function tokenData(ids: readonly number[], options: TokenDataOptions = {}): CalibrationData {
  const { batch = 1, seed = 0, repeated = 0.25, distance = 0 } = options;
  const cut = Math.floor(ids.length * (1 - HELD_OUT));
  const tokens = options.length ?? Math.min(1024, ids.length - cut - 1);
  if (ids.length - cut < tokens + 1) {
    throw new FlaError(
      'invalid_argument',
      `text must have at least ${Math.ceil((tokens + 1) / HELD_OUT)} tokens for sequences of ${tokens}, received ${ids.length}`,
    );
  }
  const sequence = (part: Part, index: number, row: number) => {
    const random = new Random(seed, part === 'fit' ? 1 : 2, index, row);
    const [from, to] = part === 'fit' ? [0, cut] : [cut, ids.length];
    const start = from + random.below(to - from - tokens);
    const piece = ids.slice(start, start + tokens);
    const repeat = random.next() < repeated ? placeRepeat(random, tokens, distance) : null;
    if (repeat) {
      const { first, second, length } = repeat;
      for (let i = 0; i < length; i++) piece[second + i] = piece[first + i]!;
    }
    return { piece, repeat };
  };
  const rows = Array.from({ length: batch }, (_, r) => r);
  const dims = [batch, tokens];
  return {
    batch,
    tokens,
    async inputs(part, index) {
      return { ids: rows.flatMap((r) => sequence(part, index, r).piece) };
    },
    shape: (input) => (input === 'ids' ? dims : undefined),
    repeats: (part, index) => rows.map((r) => sequence(part, index, r).repeat),
  };
}

function placeRepeat(random: Random, tokens: number, distance: number): Repeat | null {
  const longest = Math.floor(Math.min(tokens / 3, (tokens - distance) / 2));
  const shortest = Math.min(16, longest);
  if (shortest < 4) return null;
  const length = shortest + random.below(longest - shortest + 1);
  const gap = Math.max(length, distance);
  const second = gap + random.below(tokens - length - gap + 1);
  const first = random.below(second - gap + 1);
  return { first, second, length };
}

/** Examples from arrays whose first axis counts them. The last tenth (at least one) is held out. */
export function arrayData(
  arrays: ReadonlyMap<string, NpyArray>,
  { batch = 1, seed = 0 }: Pick<TokenDataOptions, 'batch' | 'seed'> = {},
): CalibrationData {
  const counts = new Set([...arrays.values()].map((a) => a.dims[0] ?? 0));
  const [count] = counts;
  if (counts.size !== 1 || count === undefined || count < 2 * batch) {
    throw new FlaError(
      'invalid_argument',
      `arrays must all have one number of examples, at least ${2 * batch}, received ${[...counts].join(', ')}`,
    );
  }
  const held = Math.max(batch, Math.floor(count * HELD_OUT));
  const order = new Random(seed, 3).choose(batch, 0, batch);
  const examples = (part: Part, index: number) => {
    const random = new Random(seed, part === 'fit' ? 1 : 2, index);
    const [from, to] = part === 'fit' ? [0, count - held] : [count - held, count];
    return order.map(() => from + random.below(to - from));
  };
  const ids = [...arrays.values()].find((a) => a.dims.length === 2);
  const tokens = ids?.dims[1] ?? 0;
  return {
    batch,
    tokens,
    async inputs(part, index) {
      const chosen = examples(part, index);
      return Object.fromEntries(
        [...arrays].map(([name, { dims, data }]) => {
          const size = dims.slice(1).reduce((a, b) => a * b, 1);
          const parts = chosen.map((c) =>
            Array.prototype.slice.call(data, c * size, (c + 1) * size),
          );
          return [name, parts.flat() as number[]];
        }),
      );
    },
    shape: (input) => {
      const array = arrays.get(input);
      return array && [batch, ...array.dims.slice(1)];
    },
    repeats: (part, index) =>
      examples(part, index).map((c) => {
        if (!ids) return null;
        return findRepeat(Array.prototype.slice.call(ids.data, c * tokens, (c + 1) * tokens));
      }),
  };
}

/** Batches of several sources, which may differ in shape: each from one of them, by their numbers of examples. */
export function mixedData(
  sources: readonly { data: CalibrationData; examples: number }[],
  seed = 0,
): CalibrationData {
  const [first] = sources;
  if (!first) throw new FlaError('invalid_argument', 'data must have a source, received none');
  const total = sources.reduce((sum, s) => sum + s.examples, 0);
  const at = (part: Part, index: number): CalibrationData => {
    let pick = new Random(seed, part === 'fit' ? 4 : 5, index).next() * total;
    return (sources.find((s) => (pick -= s.examples) < 0) ?? first).data;
  };
  return {
    batch: first.data.batch,
    tokens: Math.min(...sources.map((s) => s.data.tokens)),
    at,
    inputs: (part, index) => at(part, index).inputs(part, index),
    shape: (input) => first.data.shape(input),
    repeats: (part, index) => at(part, index).repeats(part, index),
  };
}

/** The longest segment of at least 16 tokens that comes a second time, or null. */
export function findRepeat(ids: readonly number[]): Repeat | null {
  let best: Repeat | null = null;
  for (let gap = 1; gap < ids.length; gap++) {
    let run = 0;
    for (let t = gap; t <= ids.length; t++) {
      if (t < ids.length && ids[t] === ids[t - gap]) {
        run++;
        continue;
      }
      const length = Math.min(run, gap);
      if (length >= 16 && length > (best?.length ?? 0)) {
        best = { first: t - run - gap, second: t - run, length };
      }
      run = 0;
    }
  }
  return best;
}

/**
 * Feeds of a model for one batch. Inputs that the data does not name are filled in where their meaning is plain: masks of
 * ones, positions, empty caches, states of zeros.
 */
export async function makeBatch(
  inputs: readonly TensorInput[],
  data: CalibrationData,
  part: Part,
  index: number,
): Promise<Record<string, Ort.Tensor>> {
  const ort = await loadOnnxRuntime();
  const source = data.at?.(part, index) ?? data;
  const given = await source.inputs(part, index);
  const feeds: Record<string, Ort.Tensor> = {};
  for (const input of inputs) {
    const name = given[input.name] ? input.name : isTokens(input) && given.ids ? 'ids' : undefined;
    const [values, dims] = name ? [given[name]!, source.shape(name)!] : madeUp(input, source);
    feeds[input.name] = numberTensor(ort, input.type, values, dims);
  }
  return feeds;
}

function isTokens({ name, type, shape }: TensorInput): boolean {
  return /int/.test(type) && shape.length === 2 && !/mask|position|type|segment/i.test(name);
}

function madeUp(
  { name, type, shape }: TensorInput,
  { batch, tokens }: CalibrationData,
): [number[], number[]] {
  const fill = (dims: number[], value: (i: number) => number): [number[], number[]] => [
    Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, i) => value(i)),
    dims,
  ];
  if (/past|cache|state/i.test(name)) {
    const dims = shape.map((d, axis) => (typeof d === 'number' ? d : axis === 0 ? batch : 0));
    return fill(dims, () => 0);
  }
  const integers = /int|bool/.test(type) || /mask/i.test(name);
  if (!integers || shape.length !== 2 || tokens === 0) {
    throw new FlaError('invalid_argument', `data must hold an array '${name}' for that input`);
  }
  if (/mask/i.test(name)) return fill([batch, tokens], () => 1);
  if (/position/i.test(name)) return fill([batch, tokens], (i) => i % tokens);
  if (/type|segment/i.test(name)) return fill([batch, tokens], () => 0);
  throw new FlaError('invalid_argument', `data must hold an array '${name}' for that input`);
}

/**
 * The cases of WindowAttention that every backend runs, each against the float64 reference.
 *
 * As for LinearAttention, tensors are drawn on demand from a generator seeded with the case's name, and a backend rounds them to
 * its own dtypes before it gives them to the reference.
 */
import type { DType } from '../../ops/define.js';
import type { Tensor64 } from '../../ops/tensor64.js';
import {
  type WindowAttentionInputs,
  windowAttentionReference,
} from '../../ops/window_attention/reference.js';
import { Ring } from '../../ops/window_attention/ring.js';
import type { WindowAttentionAttributeInput } from '../../ops/window_attention/schema.js';
import { Random, rounded } from './tensors.js';

export interface WindowSizes {
  readonly B: number;
  readonly T: number;
  readonly HQ: number;
  readonly HV: number;
  readonly K: number;
  readonly V: number;
}

export type MaskKind = 'left' | 'right' | 'random' | 'none';

export interface WindowAttentionCase {
  readonly name: string;
  readonly attributes: WindowAttentionAttributeInput;
  readonly sizes: WindowSizes;
  /** Tokens before the first, of batch row 0; every further row has three more. No state when undefined. */
  readonly past?: number;
  /** Which tokens are visible. The others hold NaN. */
  readonly mask?: MaskKind;
  readonly slopes?: boolean;
  readonly bias?: boolean;
  /** Queries are this much larger than normal; default 1. Scores grow with them, and so does the error of exp. */
  readonly magnitude?: number;
  inputs(): WindowAttentionInputs;
}

/** The dtype of each type variable of the schema. */
export interface WindowTypes {
  readonly T: 'float32' | 'float16' | 'bfloat16';
  readonly R: DType;
  readonly M: 'bool' | 'float32';
  readonly W: DType;
}

/** The combinations of types that every case runs in. */
export const windowTypes: readonly WindowTypes[] = [
  { T: 'float32', R: 'float32', M: 'bool', W: 'float32' },
  ...(['float16', 'bfloat16'] as const).flatMap((T): WindowTypes[] => [
    { T, R: T, M: 'bool', W: T },
    { T, R: 'float32', M: 'float32', W: 'float32' },
  ]),
];

export const windowTypesText = ({ T, R }: WindowTypes) => (R === T ? T : `${T}, window ${R}`);

/** The types a case can run in: without past_window, present_window has the type of query. */
export function windowTypesOf({ past }: { readonly past?: number }): WindowTypes[] {
  return windowTypes.filter(({ T, R }) => past !== undefined || R === T);
}

/** The element type of an input of WindowAttention or HybridAttention. */
export function windowDtype(input: string, { T, R, M, W }: WindowTypes): DType {
  if (input === 'mask') return M;
  if (input === 'past_window') return R;
  if (input === 'past_state') return 'float32';
  return /^(query|key|value)(_features)?$/.test(input) ? T : W;
}

/** Inputs after rounding to `types`. */
export function windowRounded<Inputs extends object>(inputs: Inputs, types: WindowTypes): Inputs {
  const tensors = Object.entries(inputs as Record<string, Tensor64>);
  return Object.fromEntries(
    tensors.map(([name, tensor]) => [name, rounded(tensor, windowDtype(name, types))]),
  ) as Inputs;
}

export const windowExpected = (
  { attributes }: WindowAttentionCase,
  inputs: WindowAttentionInputs,
) => windowAttentionReference(attributes, inputs);

/**
 * Largest acceptable ||error|| / ||expected|| of an output stored as `dtype`. Sums of positive weights are well conditioned; a weight
 * exp(s) carries the rounding of s, |s| 2^-24 and as much again for the products in it. One rounding to `dtype` comes on top.
 */
export function windowTolerance(magnitude = 1, dtype: DType = 'float32'): number {
  const rounding = { float32: 0, float16: 2 ** -11, bfloat16: 2 ** -8 }[dtype as WindowTypes['T']];
  return 2e-6 * Math.max(1, magnitude) + rounding;
}

interface Spec extends Partial<WindowSizes>, Partial<WindowAttentionAttributeInput> {
  readonly past?: number;
  readonly mask?: MaskKind;
  readonly slopes?: boolean;
  readonly bias?: boolean;
  readonly magnitude?: number;
}

function makeCase(name: string, spec: Spec = {}): WindowAttentionCase {
  const { B = 1, T = 65, HQ = 2, K = 16, V = 16, past, mask, slopes, bias, magnitude } = spec;
  const { window = 16, sinks = 4, scale, softcap } = spec;
  const HV = spec.HV ?? HQ;
  const shell = {
    name,
    attributes: {
      q_num_heads: HQ,
      kv_num_heads: HV,
      window,
      sinks,
      ...(scale !== undefined && { scale }),
      ...(softcap !== undefined && { softcap }),
    },
    sizes: { B, T, HQ, HV, K, V },
    ...{ past, mask, slopes, bias, magnitude },
  };
  return { ...shell, inputs: () => drawInputs(shell) };
}

function drawInputs(testCase: Omit<WindowAttentionCase, 'inputs'>): WindowAttentionInputs {
  const { attributes, sizes, past, mask, slopes, bias, magnitude = 1 } = testCase;
  const { B, T, HQ, HV, K, V } = sizes;
  const { window, sinks = 0 } = attributes;
  const random = new Random(testCase.name);
  const visible = mask && drawMask(random, mask, B, T);
  const tokens = (width: number, size = 1) => drawTokens(random, [B, T, width], size, visible);
  return {
    query: tokens(HQ * K, magnitude),
    key: tokens(HV * K),
    value: tokens(HV * V),
    ...(visible && { mask: visible }),
    ...(slopes && { alibi_slopes: drawSlopes(random, HQ) }),
    ...(bias && { distance_bias: random.tensor([HQ, window + 1], () => random.normal()) }),
    ...(past !== undefined && {
      past_window: drawWindow(random, { B, HV, width: K + V, past, window, sinks }),
    }),
  };
}

export function drawTokens(
  random: Random,
  shape: readonly number[],
  magnitude: number,
  visible?: Tensor64,
): Tensor64 {
  const draw = (i: number) => {
    const x = magnitude * random.normal();
    return visible?.data[Math.floor(i / shape[2])] === 0 ? Number.NaN : x;
  };
  return random.tensor(shape, draw);
}

export function drawMask(random: Random, kind: MaskKind, B: number, T: number): Tensor64 {
  return random.tensor([B, T], (i) => {
    const [b, t] = [Math.floor(i / T), i % T];
    const padding = Math.min(T, Math.floor(T / 3) + b);
    const draw = random.uniform();
    if (kind === 'left') return Number(t >= padding);
    if (kind === 'right') return Number(t < T - padding);
    return Number(kind === 'random' && draw < 0.7);
  });
}

/** 2^-1, 2^-2, ...: ALiBi's for eight heads, twice as steep. */
export const drawSlopes = (random: Random, HQ: number) =>
  random.tensor([HQ], (h) => 2 ** -(1 + (h % 8)));

/** A state after `past` tokens: random rows where tokens have been, zeros elsewhere. */
export function drawWindow(
  random: Random,
  state: {
    B: number;
    HV: number;
    width: number;
    past: number;
    window: number;
    sinks: number;
    cache?: number;
  },
): Tensor64 {
  const { B, HV, width, past, window, sinks, cache = 0 } = state;
  const rows = sinks + window + cache + 1;
  const drawn = random.tensor([B, HV, rows, width], () => 0);
  for (let i = 0; i < B * HV; i += 1) {
    const head = drawn.data.subarray(i * rows * width, (i + 1) * rows * width);
    const ring = new Ring(head, width, window, sinks, cache);
    ring.count = past + 3 * Math.floor(i / HV);
    for (const { row } of ring.tokens()) for (const j of row.keys()) row[j] = random.normal();
  }
  return drawn;
}

const lengths = [0, 1, 2, 15, 16, 17, 63, 64, 130, 257].flatMap((T) => [
  makeCase(`T = ${T}`, { T, B: 2 }),
  makeCase(`T = ${T}, state`, { T, B: 2, past: 50 }),
  makeCase(`T = ${T}, window 64, state`, { T, window: 64, past: 3 }),
]);

const windows = [1, 2, 7, 16, 17, 31, 64, 100, 300].flatMap((window) => [
  makeCase(`window ${window}`, { window, T: 130 }),
  makeCase(`window ${window}, no sinks`, { window, sinks: 0, T: 130, past: 200 }),
  makeCase(`window ${window}, one token`, { window, T: 1, B: 2, past: 90 }),
]);

const sinks = [0, 1, 5, 16, 20, 100].flatMap((count) => [
  makeCase(`${count} sinks`, { sinks: count, window: 9, T: 70 }),
  makeCase(`${count} sinks, state`, { sinks: count, window: 9, T: 70, past: 12, B: 2 }),
  makeCase(`${count} sinks, one token`, { sinks: count, window: 9, T: 1, past: 18, B: 2 }),
]);

/** Around every border of an empty, filling and full state. */
const pasts = [0, 1, 3, 4, 5, 19, 20, 21, 36, 37].flatMap((past) => [
  makeCase(`after ${past} tokens, one token`, { past, T: 1, B: 2 }),
  makeCase(`after ${past} tokens, 5 tokens`, { past, T: 5 }),
  makeCase(`after ${past} tokens, 40 tokens`, { past, T: 40, window: 13 }),
]);

const headSizes = [
  ...[2, 15, 32, 60, 64, 100, 128, 256].flatMap((K) => [
    makeCase(`K = V = ${K}`, { K, V: K, T: 70, HQ: 1, past: 7 }),
    makeCase(`K = V = ${K}, one token`, { K, V: K, T: 1, HQ: 1, past: 60 }),
  ]),
  makeCase('K = 64, V = 128', { K: 64, V: 128 }),
  makeCase('K = 100, V = 15', { K: 100, V: 15, past: 30 }),
  makeCase('K = 3, V = 1', { K: 3, V: 1 }),
  makeCase('K = 1, V = 3, one token', { K: 1, V: 3, T: 1, past: 30 }),
];

const heads = [
  makeCase('queries share keys', { HQ: 6, HV: 2, B: 2, past: 10 }),
  makeCase('all queries share one key', { HQ: 5, HV: 1 }),
  makeCase('all queries share one key, state', { HQ: 5, HV: 1, T: 130, past: 40 }),
  makeCase('queries share keys, one token', { HQ: 6, HV: 2, B: 2, T: 1, past: 40 }),
  makeCase('many heads', { HQ: 16, K: 32, V: 32, T: 40, past: 30 }),
];

const biases = [
  makeCase('ALiBi', { slopes: true, HQ: 4 }),
  makeCase('ALiBi, groups, state', { slopes: true, HQ: 6, HV: 2, past: 50, B: 2 }),
  makeCase('ALiBi, one token', { slopes: true, HQ: 4, T: 1, past: 50, B: 2 }),
  makeCase('bias by distance', { bias: true, HQ: 4 }),
  makeCase('bias by distance, groups, state', { bias: true, HQ: 6, HV: 2, past: 50, B: 2 }),
  makeCase('bias by distance, window 50, state', { bias: true, window: 50, past: 9, T: 130 }),
  makeCase('bias by distance, one token', { bias: true, T: 1, past: 50, B: 2 }),
  makeCase('bias by distance, few tokens', { bias: true, T: 3, past: 10, B: 2 }),
  makeCase('both biases, no sinks', { bias: true, slopes: true, sinks: 0, past: 20 }),
];

const masked = [
  ...(['left', 'right', 'random', 'none'] as const).flatMap((mask) => [
    makeCase(`mask ${mask}`, { mask, B: 3 }),
    makeCase(`mask ${mask}, state`, { mask, B: 3, past: 11, bias: true }),
    makeCase(`mask ${mask}, few tokens`, { mask, B: 3, T: 4, past: 11 }),
  ]),
  makeCase('mask, T = 130', { mask: 'random', T: 130, B: 2, past: 2, slopes: true }),
  makeCase('mask none, one token', { mask: 'none', T: 1, past: 30 }),
];

const others = [
  makeCase('scale 0.5', { scale: 0.5 }),
  makeCase('softcap 2', { softcap: 2, past: 20 }),
  makeCase('softcap 2, one token', { softcap: 2, T: 1, past: 20 }),
  makeCase('softcap 30, large scores', { softcap: 30, magnitude: 40 }),
  makeCase('large scores', { magnitude: 40, past: 20 }),
  makeCase('large scores, one token', { magnitude: 40, past: 20, T: 1 }),
  makeCase('T = 130 in groups', { T: 130, HQ: 4, HV: 2, past: 2, B: 2, bias: true }),
  // The count passes 2^32 on the way.
  makeCase('after 2^32 tokens', { past: 2 ** 32 - 9, T: 40, window: 13, B: 2 }),
  makeCase('after 2^32 tokens, few tokens', { past: 2 ** 32 - 2, T: 4, window: 13, B: 2 }),
];

export const windowAttentionCases: readonly WindowAttentionCase[] = [
  ...lengths,
  ...windows,
  ...sinks,
  ...pasts,
  ...headSizes,
  ...heads,
  ...biases,
  ...masked,
  ...others,
];

export const emptyWindowBatches: readonly WindowAttentionCase[] = [
  makeCase('B = 0', { B: 0 }),
  makeCase('B = 0, state', { B: 0, past: 5, T: 1 }),
];

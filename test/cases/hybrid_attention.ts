/**
 * The cases of HybridAttention that every backend runs, each against the float64 reference.
 *
 * Types, tolerances and the drawing of states are those of WindowAttention's cases.
 */
import {
  type HybridAttentionInputs,
  hybridAttentionReference,
} from '../../ops/hybrid_attention/reference.js';
import type { HybridAttentionAttributeInput } from '../../ops/hybrid_attention/schema.js';
import type { Tensor64 } from '../../ops/tensor64.js';
import { Random } from './tensors.js';
import {
  drawMask,
  drawSlopes,
  drawTokens,
  drawWindow,
  type MaskKind,
  type WindowSizes,
} from './window_attention.js';

export interface HybridSizes extends WindowSizes {
  /** Size of the vectors that features are made of. */
  readonly D: number;
  /** Columns of the weights. */
  readonly M: number;
}

export interface HybridAttentionCase {
  readonly name: string;
  readonly attributes: HybridAttentionAttributeInput;
  readonly sizes: HybridSizes;
  /** Tokens before the first, of batch row 0; every further row has three more. No state when undefined. */
  readonly past?: number;
  /** Which tokens are visible. The others hold NaN. */
  readonly mask?: MaskKind;
  /** query_features and key_features are given. */
  readonly features?: boolean;
  readonly weights?: boolean;
  readonly biases?: boolean;
  /** The same for every head, or drawn from around 0. */
  readonly alpha?: number | 'drawn';
  readonly mean?: boolean;
  readonly slopes?: boolean;
  readonly bias?: boolean;
  /** The same for every head, or drawn from [-0.3, 0]. */
  readonly decay?: number | 'drawn';
  /** Queries are this much larger than normal; default 1. */
  readonly magnitude?: number;
  /** Weights are this much larger than those that make features of order 1; default 1. */
  readonly steepness?: number;
  inputs(): HybridAttentionInputs;
}

export const hybridExpected = (
  { attributes }: HybridAttentionCase,
  inputs: HybridAttentionInputs,
) => hybridAttentionReference(attributes, inputs);

/** The error of exponents grows with them: see windowTolerance. */
export const hybridMagnitude = ({ magnitude = 1, steepness = 1, alpha }: HybridAttentionCase) =>
  Math.max(magnitude, steepness, Number.isFinite(alpha) ? Math.abs(alpha as number) / 8 : 0);

interface Spec
  extends Partial<HybridSizes>,
    Partial<HybridAttentionAttributeInput>,
    Omit<Partial<HybridAttentionCase>, 'name' | 'attributes' | 'sizes' | 'inputs'> {}

function makeCase(name: string, spec: Spec = {}): HybridAttentionCase {
  const { B = 1, T = 65, HQ = 2, K = 16, V = 16, window = 16, sinks = 4 } = spec;
  const { cache, scale, softcap, feature_map, signs } = spec;
  const { past, mask, features, weights = true, biases, alpha, mean, slopes, bias, decay } = spec;
  const { magnitude, steepness } = spec;
  const HV = spec.HV ?? HQ;
  const D = spec.D ?? K;
  const shell = {
    name,
    attributes: {
      q_num_heads: HQ,
      kv_num_heads: HV,
      window,
      sinks,
      ...(cache !== undefined && { cache }),
      ...(scale !== undefined && { scale }),
      ...(softcap !== undefined && { softcap }),
      ...(feature_map !== undefined && { feature_map }),
      ...(signs !== undefined && { signs }),
    },
    sizes: { B, T, HQ, HV, K, V, D, M: weights ? (spec.M ?? D) : D },
    ...{ past, mask, features, weights, biases, alpha, mean, slopes, bias, decay },
    ...{ magnitude, steepness },
  };
  return { ...shell, inputs: () => drawInputs(shell) };
}

function drawInputs(testCase: Omit<HybridAttentionCase, 'inputs'>): HybridAttentionInputs {
  const { attributes, sizes, past, mask, magnitude = 1, steepness = 1 } = testCase;
  const { B, T, HQ, HV, K, V, D, M } = sizes;
  const { window, sinks = 0, cache = 0, signs = 2 } = attributes;
  const random = new Random(testCase.name);
  const normal = () => random.normal();
  const visible = mask && drawMask(random, mask, B, T);
  const tokens = (width: number, size = 1) => drawTokens(random, [B, T, width], size, visible);
  const weight = (heads: number) =>
    random.tensor([heads, D, M], () => (steepness * random.normal()) / Math.sqrt(D));
  const featureBias = (heads: number) =>
    random.tensor([heads, M * signs], () => random.normal() / 2);
  const perHead = (given: number | 'drawn', heads: number, draw: () => number) =>
    random.tensor([heads], () => (given === 'drawn' ? draw() : given));
  const width = K + V + (testCase.features ? D : 0);
  return {
    query: tokens(HQ * K, magnitude),
    key: tokens(HV * K),
    value: tokens(HV * V),
    ...(testCase.features && {
      query_features: tokens(HQ * D),
      key_features: tokens(HV * D),
    }),
    ...(visible && { mask: visible }),
    ...(testCase.weights && { query_weight: weight(HQ), key_weight: weight(HV) }),
    ...(testCase.biases && { query_bias: featureBias(HQ), key_bias: featureBias(HV) }),
    ...(testCase.alpha !== undefined && { alpha: perHead(testCase.alpha, HQ, normal) }),
    ...(testCase.mean && { key_mean: random.tensor([HV, K], normal) }),
    ...(testCase.slopes && { alibi_slopes: drawSlopes(random, HQ) }),
    ...(testCase.bias && { distance_bias: random.tensor([HQ, window + 1], normal) }),
    ...(testCase.decay !== undefined && {
      decay: perHead(testCase.decay, HV, () => -0.3 * random.uniform()),
    }),
    ...(past !== undefined && {
      past_window: drawWindow(random, { B, HV, width, past, window, sinks, cache }),
      past_state: drawState(random, [B, HV, M * signs, V + 1], (b) =>
        Math.max(0, past + 3 * b - window - sinks - cache),
      ),
    }),
  };
}

/** A state that `written(b)` tokens were written to: its normalizer is positive, as sums of features are, and zero without tokens. */
function drawState(
  random: Random,
  shape: readonly number[],
  written: (b: number) => number,
): Tensor64 {
  const [, HV, F, width] = shape;
  return random.tensor(shape, (i) => {
    const tokens = Math.min(written(Math.floor(i / (HV * F * width))), 100);
    const [weight, value] = [1 + random.uniform(), random.normal()];
    return i % width === width - 1 ? tokens * weight : Math.sqrt(tokens) * value;
  });
}

const lengths = [0, 1, 2, 15, 16, 17, 63, 64, 130, 257].flatMap((T) => [
  makeCase(`T = ${T}`, { T, B: 2 }),
  makeCase(`T = ${T}, state`, { T, B: 2, past: 50, biases: true }),
  makeCase(`T = ${T}, window 64, state`, { T, window: 64, past: 70 }),
]);

const windows = [1, 2, 7, 16, 17, 31, 64, 100, 300].flatMap((window) => [
  makeCase(`window ${window}`, { window, T: 130 }),
  makeCase(`window ${window}, no sinks`, { window, sinks: 0, T: 130, past: 200 }),
  makeCase(`window ${window}, one token`, { window, T: 1, B: 2, past: 330 }),
]);

const sinks = [0, 1, 5, 16, 20].flatMap((count) => [
  makeCase(`${count} sinks`, { sinks: count, window: 9, T: 70 }),
  makeCase(`${count} sinks, state`, { sinks: count, window: 9, T: 70, past: 12, B: 2 }),
  makeCase(`${count} sinks, one token`, { sinks: count, window: 9, T: 1, past: 18, B: 2 }),
]);

const pasts = [0, 3, 4, 5, 19, 20, 21, 36, 37].flatMap((past) => [
  makeCase(`after ${past} tokens, one token`, { past, T: 1, B: 2 }),
  makeCase(`after ${past} tokens, 5 tokens`, { past, T: 5, decay: 'drawn' }),
  makeCase(`after ${past} tokens, 40 tokens`, { past, T: 40, window: 13 }),
]);

const headSizes = [
  ...[2, 15, 32, 60, 64, 100, 128, 256].flatMap((K) => [
    makeCase(`K = V = ${K}`, { K, V: K, T: 70, HQ: 1, past: 60 }),
    makeCase(`K = V = ${K}, one token`, { K, V: K, T: 1, HQ: 1, past: 60 }),
  ]),
  makeCase('K = 64, V = 128', { K: 64, V: 128 }),
  makeCase('K = 100, V = 15', { K: 100, V: 15, past: 30 }),
  makeCase('K = 3, V = 1', { K: 3, V: 1 }),
  makeCase('K = 1, V = 3, one token', { K: 1, V: 3, T: 1, past: 30 }),
  ...[1, 7, 24, 32, 100].flatMap((M) => [
    makeCase(`M = ${M}`, { M, past: 25 }),
    makeCase(`M = ${M}, one sign`, { M, past: 25, signs: 1, biases: true }),
    makeCase(`M = ${M}, one token`, { M, past: 25, T: 1 }),
  ]),
];

const heads = [
  makeCase('queries share states', { HQ: 6, HV: 2, B: 2, past: 40, biases: true, alpha: 'drawn' }),
  makeCase('all queries share one state', { HQ: 5, HV: 1 }),
  makeCase('all queries share one state, state', { HQ: 5, HV: 1, T: 130, past: 40 }),
  makeCase('queries share states, one token', { HQ: 6, HV: 2, B: 2, T: 1, past: 40 }),
  makeCase('many heads', { HQ: 16, K: 32, V: 32, T: 40, past: 30 }),
];

const maps = (['identity', 'elu1', 'relu', 'exp', 'softmax'] as const).flatMap((feature_map) => {
  // Sums of identity features may be near 0: keep them small beside the near part.
  const alpha = feature_map === 'identity' ? -3 : 'drawn';
  return ([1, 2] as const).flatMap((signs) => [
    makeCase(`${feature_map}, ${signs} signs`, { feature_map, signs, alpha, biases: true }),
    makeCase(`${feature_map}, ${signs} signs, no weights`, {
      ...{ feature_map, signs, alpha, weights: false, K: 15, past: 30, T: 40 },
    }),
    makeCase(`${feature_map}, ${signs} signs, one token`, {
      ...{ feature_map, signs, alpha, T: 1, past: 40 },
    }),
  ]);
});

const features = [
  makeCase('features of their own', { features: true }),
  makeCase('features of their own, D = 7, M = 5', { features: true, D: 7, M: 5, past: 30, B: 2 }),
  makeCase('features of their own, D = 40, no weights', {
    ...{ features: true, D: 40, weights: false, past: 30, HQ: 4, HV: 2, signs: 1 },
  }),
  makeCase('features of their own, one token', { features: true, D: 24, T: 1, past: 50, B: 2 }),
];

const parameters = [
  ...[-Infinity, -60, -5, 5, 60, 200].flatMap((alpha) => [
    makeCase(`alpha ${alpha}`, { alpha, past: 10 }),
    makeCase(`alpha ${alpha}, one token`, { alpha, past: 40, T: 1 }),
    makeCase(`alpha ${alpha}, nothing far yet`, { alpha, T: 20 }),
  ]),
  makeCase('key mean', { mean: true, past: 20, B: 2 }),
  makeCase('key mean, one token', { mean: true, past: 40, T: 1 }),
  makeCase('key mean, queries share states', { mean: true, HQ: 4, HV: 2 }),
  ...(['drawn', -2, -1000, -Infinity] as const).flatMap((decay) => [
    makeCase(`decay ${decay}`, { decay, T: 130, past: 50 }),
    makeCase(`decay ${decay}, window 9`, { decay, window: 9, sinks: 0, past: 0 }),
    makeCase(`decay ${decay}, one token`, { decay, T: 1, past: 50, B: 2 }),
  ]),
  makeCase('decay, mask', { decay: 'drawn', mask: 'random', B: 3, T: 130, past: 7 }),
  makeCase('ALiBi with decay', { slopes: true, decay: 'drawn', HQ: 4, past: 30 }),
  makeCase('ALiBi with decay, one token', { slopes: true, decay: 'drawn', T: 1, past: 50 }),
  makeCase('bias by distance', { bias: true, HQ: 4, HV: 2, past: 30, B: 2 }),
  makeCase('bias by distance, one token', { bias: true, T: 1, past: 50, B: 2 }),
  makeCase('scale 0.5', { scale: 0.5 }),
  makeCase('softcap 2', { softcap: 2, past: 20 }),
  makeCase('softcap 2, one token', { softcap: 2, past: 20, T: 1 }),
];

const caches = [1, 4, 16, 33].flatMap((cache) => [
  makeCase(`cache ${cache}`, { cache, T: 130, B: 2 }),
  makeCase(`cache ${cache}, state`, { cache, T: 70, past: 40, B: 2 }),
  makeCase(`cache ${cache}, one token`, { cache, T: 1, past: 60, B: 2 }),
  makeCase(`cache ${cache}, filling`, { cache, T: 5, past: 19 + cache, B: 2, signs: 1 }),
]);

const cacheOthers = [
  makeCase('cache, queries share states', { cache: 5, HQ: 6, HV: 2, past: 30, alpha: 'drawn' }),
  makeCase('cache, bias by distance', { cache: 5, bias: true, mean: true, past: 20, B: 2 }),
  makeCase('cache, features of their own', { cache: 5, features: true, D: 7, past: 20, B: 2 }),
  makeCase('cache, mask', { cache: 5, mask: 'random', T: 130, B: 3, past: 20 }),
  makeCase('cache, elu1', { cache: 5, feature_map: 'elu1', signs: 1, T: 90, weights: false }),
  makeCase('cache, K = V = 64', { cache: 8, K: 64, V: 64, window: 64, T: 130, past: 30 }),
];

const masked = [
  ...(['left', 'right', 'random', 'none'] as const).flatMap((mask) => [
    makeCase(`mask ${mask}`, { mask, B: 3 }),
    makeCase(`mask ${mask}, state`, { mask, B: 3, past: 30, alpha: 'drawn' }),
    makeCase(`mask ${mask}, few tokens`, { mask, B: 3, T: 4, past: 30 }),
  ]),
  makeCase('mask, T = 130', { mask: 'random', T: 130, B: 2, past: 2, features: true }),
  makeCase('mask none, one token', { mask: 'none', T: 1, past: 30 }),
];

const others = [
  makeCase('large scores', { magnitude: 40, past: 40 }),
  makeCase('large scores, one token', { magnitude: 40, past: 40, T: 1 }),
  // Features up to the clamp and down to 0.
  makeCase('steep features', { steepness: 12, past: 40 }),
  makeCase('steep features, one token', { steepness: 12, past: 40, T: 1 }),
  makeCase('steep features, far part alone', { steepness: 12, alpha: 200 }),
  makeCase('T = 130, everything', {
    ...{ T: 130, HQ: 4, HV: 2, past: 22, B: 2, biases: true, alpha: 'drawn', mean: true },
    ...{ slopes: true, bias: true, decay: 'drawn', features: true, D: 20, M: 12, window: 21 },
  }),
  makeCase('T = 130, cache', { T: 130, HQ: 4, HV: 2, past: 22, B: 2, cache: 7, biases: true }),
  makeCase('after 2^32 tokens', { past: 2 ** 32 - 9, T: 40, window: 13, B: 2 }),
  makeCase('after 2^32 tokens, few tokens', { past: 2 ** 32 - 2, T: 4, window: 13, cache: 2 }),
];

export const hybridAttentionCases: readonly HybridAttentionCase[] = [
  ...lengths,
  ...windows,
  ...sinks,
  ...pasts,
  ...headSizes,
  ...heads,
  ...maps,
  ...features,
  ...parameters,
  ...caches,
  ...cacheOthers,
  ...masked,
  ...others,
];

export const emptyHybridBatches: readonly HybridAttentionCase[] = [
  makeCase('B = 0', { B: 0 }),
  makeCase('B = 0, state', { B: 0, past: 50, T: 1 }),
];

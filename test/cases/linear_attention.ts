/**
 * The cases of LinearAttention that every backend runs, each against the float64 reference.
 *
 * A case says what a call looks like (sizes, attributes, which inputs); its tensors are drawn on demand from a generator seeded with
 * the case's name, so they are the same everywhere. A backend rounds them to its own dtypes first (`inputsIn`) and gives the reference
 * the rounded values, so that only the backend's own arithmetic is measured.
 */
import type { DType } from '../../ops/define.js';
import {
  type LinearAttentionInputs,
  linearAttentionReference,
} from '../../ops/linear_attention/reference.js';
import type { LinearAttentionAttributeInput } from '../../ops/linear_attention/schema.js';
import type { Tensor64 } from '../../ops/tensor64.js';
import { Random, rounded } from './tensors.js';

export interface Sizes {
  readonly B: number;
  readonly T: number;
  readonly HQ: number;
  /** Key heads. */
  readonly HK: number;
  readonly HV: number;
  readonly K: number;
  readonly V: number;
}

export interface LinearAttentionCase {
  readonly name: string;
  readonly attributes: LinearAttentionAttributeInput;
  readonly sizes: Sizes;
  /** Log decays are drawn from [-strength, 0]; `off` are exactly 0. */
  readonly decay?: { readonly per: 'head' | 'key'; readonly strength: number | 'off' };
  readonly beta?: 'head' | 'shared';
  readonly state?: boolean;
  /** Which tokens are visible. */
  readonly mask?: 'left' | 'right' | 'random' | 'none';
  /** Given when read=bonus. */
  readonly bonus?: boolean;
  /** Queries and keys are this much larger than normal; default 1. */
  readonly magnitude?: number;
  inputs(): LinearAttentionInputs;
}

/** The dtype of each type variable of the schema. */
export interface CaseTypes {
  readonly T: 'float32' | 'float16' | 'bfloat16';
  readonly S: 'float32' | 'float16' | 'bfloat16';
  readonly TD: DType;
  readonly TB: DType;
  readonly M: 'bool' | 'float32';
  readonly TU: DType;
}

const halves = ['float16', 'bfloat16'] as const;

/** The combinations of types that every case runs in. */
export const caseTypes: readonly CaseTypes[] = [
  { T: 'float32', S: 'float32', TD: 'float32', TB: 'float32', M: 'bool', TU: 'float32' },
  ...halves.flatMap((T): CaseTypes[] => [
    { T, S: T, TD: T, TB: T, M: 'bool', TU: T },
    { T, S: 'float32', TD: 'float32', TB: 'float32', M: 'float32', TU: 'float32' },
  ]),
];

/** The types a case can run in: without past_state, present_state has the type of query. */
export function typesOf(testCase: LinearAttentionCase): CaseTypes[] {
  return caseTypes.filter(({ T, S }) => testCase.state || S === T);
}

export function typesText({ T, S, TD }: CaseTypes): string {
  return S === T && TD === T ? T : `${T}, state ${S}, decay ${TD}`;
}

const inputTypes: Record<keyof LinearAttentionInputs, keyof CaseTypes> = {
  query: 'T',
  key: 'T',
  value: 'T',
  past_state: 'S',
  decay: 'TD',
  beta: 'TB',
  mask: 'M',
  bonus: 'TU',
};

export const dtypeOf = (input: string, types: CaseTypes): DType =>
  types[inputTypes[input as keyof LinearAttentionInputs]];

/** The case's inputs after rounding to `types`. */
export function inputsIn(testCase: LinearAttentionCase, types: CaseTypes): LinearAttentionInputs {
  return roundedTo(testCase.inputs(), types);
}

export function roundedTo(inputs: LinearAttentionInputs, types: CaseTypes): LinearAttentionInputs {
  const tensors = Object.entries(inputs as unknown as Record<string, Tensor64>);
  return Object.fromEntries(
    tensors.map(([name, tensor]) => [name, rounded(tensor, dtypeOf(name, types))]),
  ) as unknown as LinearAttentionInputs;
}

/** The float64 answer for already rounded inputs. */
export function expectedOf(testCase: LinearAttentionCase, inputs: LinearAttentionInputs) {
  return linearAttentionReference(testCase.attributes, inputs);
}

/**
 * Largest acceptable ||error|| / ||expected|| of a result stored as `dtype` after float32 arithmetic: the arithmetic (the delta rules
 * solve a triangular system, so their errors are a condition number larger) plus one rounding to `dtype`, at most half a unit in
 * the last place (2^-11 for float16, 2^-8 for bfloat16).
 */
export function tolerance(
  { attributes }: Pick<LinearAttentionCase, 'attributes'>,
  dtype: DType,
): number {
  const rule = attributes.update_rule ?? 'gated_delta';
  const arithmetic = rule.endsWith('delta') ? 1e-5 : 3e-6;
  return arithmetic + { float32: 0, float16: 2 ** -11, bfloat16: 2 ** -8 }[dtype as CaseTypes['T']];
}

interface Spec extends Partial<Sizes> {
  readonly attributes?: Partial<LinearAttentionAttributeInput>;
  readonly decay?: LinearAttentionCase['decay'];
  readonly beta?: LinearAttentionCase['beta'];
  readonly state?: boolean;
  readonly mask?: LinearAttentionCase['mask'];
  readonly magnitude?: number;
}

const rules = ['linear', 'gated', 'delta', 'gated_delta'] as const;
type Rule = (typeof rules)[number];

const perHead = { per: 'head', strength: 0.5 } as const;
const perKey = { per: 'key', strength: 0.5 } as const;

/** What a rule needs at the least: decay per head, beta per head. */
function needs(rule: Rule): Spec {
  return {
    decay: rule.startsWith('gated') ? perHead : undefined,
    beta: rule.endsWith('delta') ? 'head' : undefined,
  };
}

function makeCase(name: string, rule: Rule, spec: Spec = {}): LinearAttentionCase {
  const { B = 1, T = 65, HQ = 2, K = 16, V = 16 } = spec;
  const HV = spec.HV ?? HQ;
  const sizes = { B, T, HQ, HK: spec.HK ?? HV, HV, K, V };
  const attributes = { q_num_heads: HQ, kv_num_heads: HV, update_rule: rule, ...spec.attributes };
  const { decay, beta } = { ...needs(rule), ...spec };
  const shell = {
    name: `${rule}: ${name}`,
    attributes,
    sizes,
    decay,
    beta,
    state: spec.state,
    mask: spec.mask,
    bonus: attributes.read === 'bonus',
    magnitude: spec.magnitude,
  };
  return { ...shell, inputs: () => drawInputs(shell) };
}

function drawInputs(testCase: Omit<LinearAttentionCase, 'inputs'>): LinearAttentionInputs {
  const { B, T, HQ, HK, HV, K, V } = testCase.sizes;
  const { attributes, decay, beta, state, mask, bonus, magnitude = 1 } = testCase;
  const random = new Random(testCase.name);
  const normal = () => random.normal();
  // Keys of about unit length keep the delta rules contracting, as their layers do with an L2 norm.
  const key = () => (magnitude * random.normal()) / Math.sqrt(K);
  const width = V + (attributes.normalize ?? 0);
  const strength = decay?.strength === 'off' ? 0 : (decay?.strength ?? 0);
  const tokens = Array.from({ length: B * T }, () => random.uniform());
  return {
    query: random.tensor([B, T, HQ * K], () => magnitude * random.normal()),
    key: random.tensor([B, T, HK * K], key),
    value: random.tensor([B, T, HV * V], normal),
    ...(state && { past_state: drawState(random, [B, HV, K, width], attributes.normalize === 1) }),
    ...(decay && {
      decay: random.tensor(
        [B, T, decay.per === 'key' ? HV * K : HV],
        () => -strength * random.uniform(),
      ),
    }),
    ...(beta && {
      beta: random.tensor([B, T, beta === 'shared' ? 1 : HV], () => random.uniform()),
    }),
    ...(mask && {
      mask: random.tensor([B, T], (i) =>
        Number(isVisible(mask, Math.floor(i / T), i % T, T, tokens[i])),
      ),
    }),
    ...(bonus && { bonus: random.tensor([HV * K], normal) }),
  };
}

/** A past state; its normalizer column is positive, as sums of positive features are. */
function drawState(random: Random, shape: readonly number[], hasNormalizer: boolean): Tensor64 {
  const width = shape[3];
  return random.tensor(shape, (i) =>
    hasNormalizer && i % width === width - 1 ? 1 + random.uniform() : random.normal(),
  );
}

function isVisible(
  mask: NonNullable<LinearAttentionCase['mask']>,
  b: number,
  t: number,
  T: number,
  draw: number,
): boolean {
  const padding = Math.min(T, Math.floor(T / 3) + b);
  if (mask === 'left') return t >= padding;
  if (mask === 'right') return t < T - padding;
  return mask === 'random' && draw < 0.7;
}

const everyRule = (name: string, spec: Spec = {}) =>
  rules.map((rule) => makeCase(name, rule, spec));
const gatedRules = (name: string, spec: Spec) =>
  (['gated', 'gated_delta'] as const).map((rule) => makeCase(name, rule, spec));
const deltaRules = (name: string, spec: Spec) =>
  (['delta', 'gated_delta'] as const).map((rule) => makeCase(name, rule, spec));

const lengths = [0, 1, 2, 17, 63, 64, 130, 257].flatMap((T) =>
  everyRule(`T = ${T}`, { T, B: 2, state: T !== 64 }),
);

const headSizes = [
  ...[1, 15, 32, 60, 64, 100, 128].flatMap((K) =>
    everyRule(`K = V = ${K}`, { K, V: K, T: 70, HQ: 1, state: true }),
  ),
  ...everyRule('K = V = 256', { K: 256, V: 256, T: 35, HQ: 1 }),
  ...everyRule('K = V = 512', { K: 512, V: 512, T: 9, HQ: 1, state: true }),
  ...everyRule('K = 64, V = 128', { K: 64, V: 128 }),
  ...everyRule('K = 100, V = 15', { K: 100, V: 15, state: true }),
  ...everyRule('one token, K = 128, V = 64', { T: 1, K: 128, V: 64, B: 2, state: true }),
  ...everyRule('V = 1', { V: 1 }),
];

const heads = [
  ...everyRule('queries share states', { HQ: 6, HV: 2, B: 2, state: true }),
  ...everyRule('all queries share one state', { HQ: 4, HV: 1 }),
  ...everyRule('more values than queries', { HQ: 2, HK: 2, HV: 6, state: true }),
  ...everyRule('queries share states, states share keys', { HQ: 8, HV: 4, HK: 2 }),
  ...everyRule('one key head', { HQ: 1, HK: 1, HV: 4, T: 1, state: true }),
  ...gatedRules('decay per key, more values than queries', { HQ: 2, HK: 2, HV: 4, decay: perKey }),
];

const decays = [
  ...gatedRules('decay per key', { decay: perKey, state: true, B: 2 }),
  ...gatedRules('decay per key, K = V = 64', { decay: perKey, K: 64, V: 64, T: 130 }),
  ...gatedRules('decay per key, K = 100, V = 60', { decay: perKey, K: 100, V: 60 }),
  ...gatedRules('decay per key, one token', { decay: perKey, T: 1, state: true }),
  ...(['head', 'key'] as const).flatMap((per) => [
    ...gatedRules(`no decay per ${per}`, { decay: { per, strength: 'off' } }),
    ...gatedRules(`strong decay per ${per}`, { decay: { per, strength: 30 }, T: 130, state: true }),
    ...gatedRules(`forgets everything, per ${per}`, { decay: { per, strength: 1e4 }, state: true }),
  ]),
];

const betas = [
  ...deltaRules('shared beta', { beta: 'shared', B: 2 }),
  ...deltaRules('one value head, beta [B,T,1]', { HQ: 2, HV: 1 }),
];

const featureMaps = (['elu1', 'relu', 'exp', 'silu', 'l2norm', 'softmax'] as const).flatMap(
  (feature_map) => [
    ...everyRule(`feature_map ${feature_map}`, {
      attributes: {
        feature_map,
        qk_l2norm: feature_map === 'exp' || feature_map === 'elu1' ? 1 : 0,
      },
    }),
    makeCase(`feature_map ${feature_map}, one token`, 'linear', {
      attributes: { feature_map },
      T: 1,
      state: true,
    }),
  ],
);

const positive = { feature_map: 'elu1', normalize: 1 } as const;
const normalized = [
  ...(['elu1', 'exp', 'softmax'] as const).flatMap((feature_map) => [
    makeCase(`normalize, ${feature_map}`, 'linear', {
      attributes: { feature_map, normalize: 1 },
      B: 2,
    }),
    makeCase(`normalize, ${feature_map}, state`, 'linear', {
      attributes: { feature_map, normalize: 1 },
      state: true,
    }),
  ]),
  ...gatedRules('normalize', { attributes: { ...positive, qk_l2norm: 1 }, state: true }).slice(
    0,
    1,
  ),
  makeCase('normalize, decay per key', 'gated', { attributes: positive, decay: perKey }),
  makeCase('normalize, one token', 'linear', {
    attributes: positive,
    T: 1,
    K: 64,
    V: 64,
    state: true,
  }),
  makeCase('normalize, groups', 'linear', { attributes: positive, HQ: 4, HV: 2, K: 15, V: 33 }),
  makeCase('normalize, T = 0', 'linear', { attributes: positive, T: 0, state: true }),
  makeCase('normalize, delta with beta', 'delta', {
    attributes: { ...positive, qk_l2norm: 1 },
    state: true,
    T: 20,
  }),
];

// So small that the epsilons decide.
const tiny = [
  ...everyRule('tiny vectors, qk_l2norm', { attributes: { qk_l2norm: 1 }, magnitude: 1e-3 }),
  makeCase('tiny vectors, feature_map l2norm', 'linear', {
    attributes: { feature_map: 'l2norm' },
    magnitude: 1e-3,
  }),
  makeCase('tiny weights, normalize', 'linear', {
    attributes: { feature_map: 'relu', normalize: 1 },
    magnitude: 1e-3,
  }),
];

// Features up to the clamp of exp, e^80, whose squares float32 cannot hold.
const huge = [
  ...everyRule('exp of large vectors, qk_l2norm', {
    attributes: { feature_map: 'exp', qk_l2norm: 1 },
    magnitude: 60,
  }),
  makeCase('exp of large vectors, qk_l2norm, one token', 'linear', {
    attributes: { feature_map: 'exp', qk_l2norm: 1 },
    magnitude: 60,
    T: 1,
    K: 15,
  }),
  makeCase('exp, qk_l2norm, T = 0', 'linear', {
    attributes: { feature_map: 'exp', qk_l2norm: 1 },
    T: 0,
  }),
];

const masked = [
  ...(['left', 'right', 'random', 'none'] as const).flatMap((mask) =>
    everyRule(`mask ${mask}`, { mask, B: 2, state: mask === 'random' }),
  ),
  makeCase('mask, normalize', 'linear', { mask: 'left', B: 2, attributes: positive }),
  makeCase('mask, softmax features', 'linear', {
    mask: 'random',
    attributes: { feature_map: 'softmax' },
  }),
  makeCase('mask, decay per key', 'gated', { mask: 'random', decay: perKey, state: true }),
  ...everyRule('mask, one token', { mask: 'none', T: 1, state: true }),
];

const long = [
  makeCase('normalize, mask', 'linear', {
    attributes: positive,
    mask: 'random',
    T: 130,
    state: true,
    B: 2,
  }),
  ...gatedRules('decay per key, groups, read before', {
    attributes: { read: 'before' },
    decay: perKey,
    HQ: 4,
    HV: 2,
    T: 130,
    state: true,
  }),
  makeCase('bonus, decay per key', 'gated', {
    attributes: { read: 'bonus' },
    decay: perKey,
    T: 130,
    state: true,
  }),
];

const bidirectional = [
  makeCase('causal 0', 'linear', { attributes: { causal: 0 }, B: 2 }),
  makeCase('causal 0, normalize', 'linear', {
    attributes: { causal: 0, ...positive },
    K: 15,
    V: 60,
    HQ: 8,
  }),
  makeCase('causal 0, mask', 'linear', {
    attributes: { causal: 0, ...positive },
    mask: 'right',
    B: 2,
  }),
  makeCase('causal 0, groups', 'linear', { attributes: { causal: 0 }, HQ: 4, HV: 2, T: 257 }),
  makeCase('causal 0, one token', 'linear', { attributes: { causal: 0 }, T: 1 }),
  makeCase('causal 0, T = 0', 'linear', { attributes: { causal: 0 }, T: 0 }),
];

const bonus = { read: 'bonus' } as const;
const bonusReads = [
  ...(['linear', 'gated'] as const).flatMap((rule) => [
    makeCase('bonus', rule, { attributes: bonus, state: true, B: 2 }),
    makeCase('bonus, one token', rule, { attributes: bonus, T: 1, state: true }),
    makeCase('bonus, mask', rule, { attributes: bonus, mask: 'left', K: 60, V: 64 }),
  ]),
  makeCase('bonus, decay per key, K = 64', 'gated', {
    attributes: bonus,
    decay: perKey,
    K: 64,
    V: 64,
  }),
  makeCase('bonus, queries share states', 'gated', {
    attributes: bonus,
    HQ: 4,
    HV: 2,
    decay: perKey,
  }),
  makeCase('bonus, more values than queries', 'gated', { attributes: bonus, HQ: 2, HK: 2, HV: 4 }),
];

const others = [
  ...everyRule('read before', { attributes: { read: 'before' }, state: true, B: 2 }),
  ...everyRule('read before, one token', { attributes: { read: 'before' }, T: 1, state: true }),
  ...gatedRules('read before, decay per key', { attributes: { read: 'before' }, decay: perKey }),
  makeCase('read before, normalize', 'linear', {
    attributes: { read: 'before', ...positive },
    state: true,
  }),
  ...everyRule('scale 0.25', { attributes: { scale: 0.25 } }),
  ...everyRule('qk_l2norm', { attributes: { qk_l2norm: 1 }, K: 60, V: 60 }),
  ...everyRule('silu, then qk_l2norm', {
    attributes: { feature_map: 'silu', qk_l2norm: 1 },
    K: 64,
    V: 64,
    T: 130,
  }),
  ...everyRule('chunk_size 16', { attributes: { chunk_size: 16 } }),
  ...everyRule('many heads', { HQ: 16, K: 32, V: 32, T: 40, state: true }),
];

export const linearAttentionCases: readonly LinearAttentionCase[] = [
  ...lengths,
  ...headSizes,
  ...heads,
  ...decays,
  ...betas,
  ...featureMaps,
  ...normalized,
  ...tiny,
  ...huge,
  ...masked,
  ...long,
  ...bidirectional,
  ...bonusReads,
  ...others,
];

/** Calls of no sequences at all. */
export const emptyBatches: readonly LinearAttentionCase[] = [
  ...everyRule('B = 0', { B: 0, state: true }),
  makeCase('B = 0, normalize', 'linear', { B: 0, attributes: positive }),
  makeCase('B = 0, causal 0', 'linear', { B: 0, attributes: { causal: 0 } }),
];

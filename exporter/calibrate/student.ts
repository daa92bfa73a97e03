import type { BodyEmitter } from '../../ops/function/emitter.js';

/** The form of a hybrid attention: what is exact, and what its features are made of. */
export interface HybridForm {
  /** Queries see all keys, every one through features. */
  readonly bidirectional?: boolean;
  readonly window: number;
  readonly sinks: number;
  readonly scale: number;
  readonly featureMap: 'exp' | 'softmax';
  readonly signs: 1 | 2;
  /** FAVOR+: exponents are less scale |x|^2 / 2. For a query that cancels out, and keeps its features small. */
  readonly favor?: boolean;
}

/** Sizes of one attention layer. */
export interface HeadSizes {
  readonly HQ: number;
  readonly HV: number;
  readonly K: number;
  readonly V: number;
  /** What features are made of. */
  readonly D: number;
  readonly M: number;
}

/** Names of the parameters, as HybridAttention has them. */
export const PARAMETER_NAMES = [
  'query_weight', // [HQ,D,M]
  'key_weight', // [HV,D,M]
  'query_bias', // [HQ,M*signs]
  'key_bias', // [HV,M*signs]
  'alpha', // [HQ]
  'key_mean', // [HV,K]
] as const;
export type ParameterName = (typeof PARAMETER_NAMES)[number];
export type ParameterValues = Readonly<Record<ParameterName, string>>;

export function parameterShapes(
  { HQ, HV, K, D, M }: HeadSizes,
  { signs }: Pick<HybridForm, 'signs'>,
): Record<ParameterName, readonly number[]> {
  return {
    query_weight: [HQ, D, M],
    key_weight: [HV, D, M],
    query_bias: [HQ, M * signs],
    key_bias: [HV, M * signs],
    alpha: [HQ],
    key_mean: [HV, K],
  };
}

/** Values of a call. */
export interface StudentInputs {
  readonly query: string; // [B,HQ,R,K]
  readonly key: string; // [B,HV,T,K]
  readonly queryFeatures: string; // [B,HQ,R,D]
  readonly keyFeatures: string; // [B,HV,T,D]
  /** int64 [R]: the positions of the queries among the keys. */
  readonly rows: string;
  /** int64 [T] = 0, 1, 2, ... */
  readonly columns: string;
}

/**
 * HybridAttention over all pairs, in operators that have gradients: the logarithms of its weights, [B,HV,G,R,T], those
 * of invisible keys -1e9. Their softmax is the weights, and so the output what the operator computes token by token.
 */
export function emitStudent(
  e: BodyEmitter,
  form: HybridForm,
  sizes: HeadSizes,
  inputs: StudentInputs,
  parameters: ParameterValues,
  distances?: { near: string; far: string },
): string {
  const { HQ, HV, K, D, M } = sizes;
  const G = HQ / HV;
  const F = M * form.signs;
  const grouped = (x: string, width: number) => e.op('Reshape', [x, e.ints(0, HV, G, -1, width)]);
  const single = (x: string) => e.unsqueeze(x, 2);
  const mean = e.op('Reshape', [parameters.key_mean, e.ints(1, HV, 1, 1, K)]);
  const centred = e.sub(single(inputs.key), mean);
  const scores = e.mul(
    e.matmul(grouped(inputs.query, K), e.transpose(centred, [0, 1, 2, 4, 3])),
    e.scalar(form.scale),
  );
  const features = (x: string, weight: string, bias: string, g: number) => {
    const u = e.matmul(x, e.op('Reshape', [weight, e.ints(HV, g, D, M)]));
    const both = form.signs === 2 ? e.op('Concat', [u, e.op('Neg', [u])], { axis: 4 }) : u;
    const biased = e.add(both, e.op('Reshape', [bias, e.ints(HV, g, 1, F)]));
    const square = () => e.mul(e.sum(e.mul(x, x), 4), e.scalar(form.scale / 2));
    const shifted = form.favor ? e.sub(biased, square()) : biased;
    return form.featureMap === 'softmax'
      ? e.op('Softmax', [shifted], { axis: 4 })
      : e.op('Exp', [e.op('Min', [shifted, e.scalar(40)])]);
  };
  const phiQ = features(
    grouped(inputs.queryFeatures, D),
    parameters.query_weight,
    parameters.query_bias,
    G,
  );
  const phiK = features(single(inputs.keyFeatures), parameters.key_weight, parameters.key_bias, 1);
  const product = e.matmul(phiQ, e.transpose(phiK, [0, 1, 2, 4, 3]));
  const alpha = e.op('Reshape', [parameters.alpha, e.ints(1, HV, G, 1, 1)]);
  const farScores = e.add(e.op('Log', [e.op('Max', [product, e.scalar(1e-30)])]), alpha);
  const { near, far } = distances ?? emitNearAndFar(e, form, inputs);
  return e.op('Where', [near, scores, e.op('Where', [far, farScores, e.scalar(-1e9)])]);
}

/** bool [R,T]: the keys that a query sees exactly, and those it sees through features. */
export function emitNearAndFar(
  e: BodyEmitter,
  { window, sinks }: Pick<HybridForm, 'window' | 'sinks'>,
  { rows, columns }: Pick<StudentInputs, 'rows' | 'columns'>,
): { near: string; far: string } {
  const distance = e.sub(e.unsqueeze(rows, 1), e.unsqueeze(columns, 0));
  const integer = (n: number) => e.constant('int64', [n], []);
  const past = e.op('Greater', [distance, integer(-1)]);
  const isNear = e.op('Or', [
    e.op('Less', [distance, integer(window)]),
    e.op('Less', [e.unsqueeze(columns, 0), integer(sinks)]),
  ]);
  return {
    near: e.op('And', [past, isNear]),
    far: e.op('And', [past, e.op('Not', [isNear])]),
  };
}

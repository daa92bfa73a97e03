import { linearAttentionFunction } from '../../ops/linear_attention/function.js';
import {
  type LinearAttentionAttributes,
  linearAttention,
  type UpdateRule,
} from '../../ops/linear_attention/schema.js';
import { declareFunction } from '../calls.js';
import type { AttributeValue } from '../ir/index.js';
import type { Sdpa } from '../match/sdpa.js';
import type { SiteEmitter } from './emit.js';
import { featureCount, featuresFor, fittedInputs } from './fitted.js';
import { type EmittedGate, emitGain, emitGates, scaledByStep } from './gates.js';
import type { FeatureMapName, LayerGates, LinearVariant, RewriteOptions } from './options.js';
import { floatType, stateType } from './types.js';

const { normalize_eps } = linearAttention.constants;

/** The recurrence of each variant, and what it does unless told otherwise. */
export const VARIANTS: Readonly<
  Record<LinearVariant, { rule: UpdateRule; featureMap: FeatureMapName; normalize: boolean }>
> = {
  linear: { rule: 'linear', featureMap: 'elu1', normalize: true },
  performer: { rule: 'linear', featureMap: 'exp', normalize: true },
  retention: { rule: 'gated', featureMap: 'identity', normalize: false },
  gla: { rule: 'gated', featureMap: 'identity', normalize: false },
  mamba2: { rule: 'gated', featureMap: 'identity', normalize: false },
  delta: { rule: 'delta', featureMap: 'identity', normalize: false },
  'gated-delta': { rule: 'gated_delta', featureMap: 'identity', normalize: false },
};

/** One site to be replaced, with what its surroundings supply. */
export interface LinearSite {
  readonly sdpa: Sdpa;
  readonly layer: number;
  readonly causal: boolean;
  /** bool [B,T] of the new tokens; '' when nothing is padded. */
  readonly mask: string;
  /** Names of the state's input and output; '' without a cache. */
  readonly pastState: string;
  readonly presentState: string;
  readonly gates?: LayerGates;
  /** ALiBi of the original. */
  readonly slopes?: readonly number[];
}

/** Replaces a site by com.fla.LinearAttention, with a function body for runtimes that lack the op. */
export function emitLinear(e: SiteEmitter, site: LinearSite, options: RewriteOptions): void {
  const { sdpa, layer } = site;
  const variant = options.variant as LinearVariant;
  const own = floatType(sdpa, layer);
  const fitted = featuresFor(sdpa, layer, options);
  const beside = sinkWeight(sdpa, layer, options);
  const dtype = inFloat32(sdpa, layer, options) ? 'float32' : own;
  const packed = [sdpa.q, sdpa.k, sdpa.v].map((h) => e.as(e.packed(h), own));
  const given = packed.map((x) => (dtype === own || fitted ? x : e.cast(x, dtype)));
  const [query, key, value] = fitted
    ? fittedInputs(e, sdpa, layer, packed as [string, string, string], own, fitted)
    : given;
  const { decay, beta, dt } = emitGates(e, site, options, query!);
  const stepped = dt ? scaledByStep(e, sdpa, value!, dt, dtype) : value!;
  const attributes: LinearAttentionAttributes = {
    ...attributesOf(site, options),
    ...(fitted && { feature_map: fitted.featureMap, scale: 1 }),
    // The sum is divided by outside.
    ...(beside > 0 && { normalize: 0 }),
  };
  const body = linearAttentionFunction(
    {
      attributes,
      present: {
        past_state: site.pastState !== '',
        decay: decay !== undefined,
        beta: beta !== undefined,
        mask: site.mask !== '',
      },
      ...(decay && { decayKind: decay.columns === sdpa.v.heads ? 'head' : 'key' }),
      ...(beta && { betaKind: beta.columns === sdpa.v.heads ? 'head' : 'shared' }),
      dtype,
      // Without past_state nothing but the inputs' own type decides that of present_state.
      stateDtype: site.pastState === '' ? dtype : stateType(dtype, options),
      opset: e.opset,
      headDimK: featureCount(sdpa, layer, options) ?? sdpa.k.dim,
      headDimV: sdpa.v.dim + (beside > 0 ? 1 : 0),
    },
    { target: options.body ?? 'auto' },
  );
  declareFunction(e.graph.model, body);
  const gate = (g?: EmittedGate) =>
    g === undefined ? '' : dtype === own ? g.value : e.cast(g.value, dtype);
  const inputs = [
    query!,
    key!,
    beside > 0 ? withOnes(e, sdpa, stepped) : stepped,
    site.pastState,
    gate(decay),
    gate(beta),
    site.mask,
  ];
  const { output } = sdpa;
  const finish: ((x: string, output?: string) => string)[] = [];
  if (beside > 0) finish.push((x, name) => besideSink(e, sdpa, x, beside, name));
  if (dtype !== own) finish.push((x, name) => e.cast(x, own, name));
  const gain = site.gates?.gain;
  if (gain) finish.push((x, name) => emitGain(e, sdpa, layer, gain, x, name));
  const named = (step: number) =>
    output.layout === 'packed' && step === finish.length ? output.value : undefined;
  const packedOutput = named(0) ?? e.graph.fresh(`${sdpa.anchor.name}/${variant}`);
  e.ops('LinearAttention', inputs, [packedOutput, site.presentState], written(attributes), {
    domain: 'com.fla',
    overload: body.overload,
  });
  const result = finish.reduce((x, step, i) => step(x, named(i + 1)), packedOutput);
  if (output.layout !== 'packed') {
    e.fromPacked(result, sdpa.q.heads, sdpa.v.dim, { ...output, layout: output.layout });
  }
}

/** phi(0)' phi(0) by head dim: what feature maps make of a key that scores 0. */
const AT_ZERO: Partial<Record<FeatureMapName, (dim: number) => number>> = {
  elu1: (dim) => dim,
  exp: (dim) => dim,
  softmax: (dim) => 1 / dim,
};

/**
 * The weight of a sink whose logit is 0, among the weights `scale phi(q)' phi(k)` that linear attention divides by their sum: that of
 * a key with the score 0, as in softmax. 0 where there is no such key, or no sum.
 */
export function sinkWeight(sdpa: Sdpa, layer: number, options: RewriteOptions): number {
  const { variant } = options;
  const known = variant in VARIANTS && sdpa.sink && !featureCount(sdpa, layer, options);
  if (!known || !normalizes(options)) return 0;
  return sdpa.scale * (AT_ZERO[featureMapOf(options)]?.(sdpa.k.dim) ?? 0);
}

/** Must a layer be computed in float32? Exponentials and sums that are not divided yet are too large for half precision. */
export function inFloat32(sdpa: Sdpa, layer: number, options: RewriteOptions): boolean {
  return featureCount(sdpa, layer, options) !== undefined || sinkWeight(sdpa, layer, options) > 0;
}

/** [v, 1] of every head, packed. */
function withOnes(e: SiteEmitter, { v }: Sdpa, value: string): string {
  const shape = e.shape([e.dim(value, 0), e.dim(value, 1), v.heads, 1]);
  const ones = e.op('Expand', [e.scalar(1), shape]);
  const apart = e.op('Concat', [e.reshape(value, [0, 0, v.heads, v.dim]), ones], { axis: 3 });
  return e.reshape(apart, [0, 0, v.heads * (v.dim + 1)]);
}

/** Sums [S' q, z' q] of every head to S' q / (z' q + 1e-6 + weight * exp(logit)), packed. */
function besideSink(
  e: SiteEmitter,
  { q, v, sink }: Sdpa,
  sums: string,
  weight: number,
  output?: string,
): string {
  const apart = e.reshape(sums, [0, 0, q.heads, v.dim + 1]);
  const logits = sink!.logits;
  const factor = logits
    ? e.reshape(e.op('Exp', [e.as(logits, 'float32')]), [1, 1, q.heads, 1])
    : e.scalar(1);
  const own = e.add(e.mul(factor, e.scalar(weight)), e.scalar(normalize_eps.value));
  const total = e.add(e.slice(apart, 3, v.dim), own);
  return e.reshape(e.div(e.slice(apart, 3, 0, v.dim), total), [0, 0, q.heads * v.dim], output);
}

/** Does the variant divide by the sum of weights (and carry it in the state)? */
export function normalizes(options: RewriteOptions): boolean {
  return options.normalize ?? VARIANTS[options.variant as LinearVariant].normalize;
}

/** The feature map that the options ask for. */
export function featureMapOf({ variant, featureMap }: RewriteOptions): FeatureMapName {
  return featureMap ?? VARIANTS[variant as LinearVariant].featureMap;
}

function attributesOf(
  { sdpa, causal, slopes }: LinearSite,
  options: RewriteOptions,
): LinearAttentionAttributes {
  const { rule } = VARIANTS[options.variant as LinearVariant];
  const delta = rule === 'delta' || rule === 'gated_delta';
  return {
    q_num_heads: sdpa.q.heads,
    kv_num_heads: sdpa.v.heads,
    update_rule: rule === 'linear' && slopes ? 'gated' : rule,
    scale: sdpa.scale,
    chunk_size: 64,
    feature_map: featureMapOf(options),
    normalize: normalizes(options) ? 1 : 0,
    causal: causal ? 1 : 0,
    // The delta rule needs keys of unit length, as its papers use it; a longer key makes the state grow without bound.
    qk_l2norm: delta ? 1 : 0,
    read: 'after',
  };
}

/** Attributes as they are written on a node: all of them, defaults too (function defaults never reach a kernel). */
function written(attributes: LinearAttentionAttributes): Record<string, AttributeValue> {
  return { ...attributes, scale: { float: attributes.scale } };
}

import { linearAttentionFunction } from '../../ops/linear_attention/function.js';
import {
  type LinearAttentionAttributes,
  linearAttention,
  type UpdateRule,
} from '../../ops/linear_attention/schema.js';
import { declareFunction } from '../calls.js';
import type { AttributeValue } from '../ir/index.js';
import type { Sdpa } from '../match/sdpa.js';
import { keySlopes } from './alibi.js';
import type { SiteEmitter } from './emit.js';
import { featureCount, fittedFor, fittedInputs } from './fitted.js';
import { constantGate, type EmittedGate, emitBeta, emitDecay } from './gates.js';
import type { FeatureMapName, LayerGates, LinearVariant, RewriteOptions } from './options.js';
import { floatType, stateType } from './types.js';

const { normalize_eps } = linearAttention.constants;

/** The recurrence of each variant, and what it does unless told otherwise. */
export const VARIANTS: Readonly<
  Record<LinearVariant, { rule: UpdateRule; featureMap: FeatureMapName; normalize: boolean }>
> = {
  linear: { rule: 'linear', featureMap: 'elu1', normalize: true },
  retention: { rule: 'gated', featureMap: 'identity', normalize: false },
  gla: { rule: 'gated', featureMap: 'identity', normalize: false },
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
  const fitted = fittedFor(layer, options);
  const beside = sinkWeight(sdpa, layer, options);
  const dtype = inFloat32(sdpa, layer, options) ? 'float32' : own;
  const packed = [sdpa.q, sdpa.k, sdpa.v].map((h) => e.as(e.packed(h), own));
  const given = packed.map((x) => (dtype === own || fitted ? x : e.cast(x, dtype)));
  const [query, key, value] = fitted
    ? fittedInputs(e, sdpa, layer, packed as [string, string, string], own, fitted)
    : given;
  const { decay, beta } = gatesOf(e, site, options, query!);
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
      headDimK: fitted ? featureCount(sdpa, fitted) : sdpa.k.dim,
      headDimV: sdpa.v.dim + (beside > 0 ? 1 : 0),
    },
    { target: options.body ?? 'auto' },
  );
  declareFunction(e.graph.model, body);
  const inputs = [
    query!,
    key!,
    beside > 0 ? withOnes(e, sdpa, value!) : value!,
    site.pastState,
    decay?.value ?? '',
    beta?.value ?? '',
    site.mask,
  ];
  const { output } = sdpa;
  const asIs = dtype === own && beside === 0;
  const packedOutput =
    output.layout === 'packed' && asIs
      ? output.value
      : e.graph.fresh(`${sdpa.anchor.name}/${variant}`);
  e.ops('LinearAttention', inputs, [packedOutput, site.presentState], written(attributes), {
    domain: 'com.fla',
    overload: body.overload,
  });
  if (output.layout === 'packed' && asIs) return;
  const result = beside > 0 ? besideSink(e, sdpa, packedOutput, beside) : packedOutput;
  if (output.layout === 'packed') {
    if (dtype !== own) e.cast(result, own, output.value);
    else e.op('Identity', [result], {}, { output: output.value });
  } else {
    const turned = dtype === own ? result : e.cast(result, own);
    e.fromPacked(turned, sdpa.q.heads, sdpa.v.dim, { ...output, layout: output.layout });
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
  const known = variant in VARIANTS && sdpa.sink && !fittedFor(layer, options);
  if (!known || !normalizes(options)) return 0;
  const atZero = AT_ZERO[featureMapOf(options)]?.(sdpa.k.dim) ?? 0;
  return VARIANTS[variant as LinearVariant].rule === 'gated_delta' ? 0 : sdpa.scale * atZero;
}

/** Must a layer be computed in float32? Exponentials and sums that are not divided yet are too large for half precision. */
export function inFloat32(sdpa: Sdpa, layer: number, options: RewriteOptions): boolean {
  return fittedFor(layer, options) !== undefined || sinkWeight(sdpa, layer, options) > 0;
}

/** [v, 1] of every head, packed. */
function withOnes(e: SiteEmitter, { v }: Sdpa, value: string): string {
  const shape = e.shape([e.dim(value, 0), e.dim(value, 1), v.heads, 1]);
  const ones = e.op('Expand', [e.scalar(1), shape]);
  const apart = e.op('Concat', [e.reshape(value, [0, 0, v.heads, v.dim]), ones], { axis: 3 });
  return e.reshape(apart, [0, 0, v.heads * (v.dim + 1)]);
}

/** Sums [S' q, z' q] of every head to S' q / (z' q + 1e-6 + weight * exp(logit)), packed. */
function besideSink(e: SiteEmitter, { q, v, sink }: Sdpa, sums: string, weight: number): string {
  const apart = e.reshape(sums, [0, 0, q.heads, v.dim + 1]);
  const logits = sink!.logits;
  const factor = logits
    ? e.reshape(e.op('Exp', [e.as(logits, 'float32')]), [1, 1, q.heads, 1])
    : e.scalar(1);
  const own = e.add(e.mul(factor, e.scalar(weight)), e.scalar(normalize_eps.value));
  const total = e.add(e.slice(apart, 3, v.dim), own);
  return e.reshape(e.div(e.slice(apart, 3, 0, v.dim), total), [0, 0, q.heads * v.dim]);
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
  const delta = rule === 'gated_delta';
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

function gatesOf(
  e: SiteEmitter,
  { sdpa, layer, gates, slopes }: LinearSite,
  options: RewriteOptions,
  query: string,
): { decay?: EmittedGate; beta?: EmittedGate } {
  const { heads } = sdpa.v;
  switch (options.variant) {
    case 'retention': {
      const decay = options.decay ?? retentionDecay(heads);
      return { decay: constantGate(e, decay, heads, query, layer, 'decay') };
    }
    case 'gla':
      return { decay: emitDecay(e, sdpa, layer, gates!, query, 'gla') };
    case 'gated-delta':
      return {
        decay: emitDecay(e, sdpa, layer, gates!, query, 'gated-delta'),
        beta: emitBeta(e, sdpa, layer, gates!.beta!, query),
      };
    default: {
      // exp(-slope (i - j)) is what is left of j's weight after i - j tokens.
      const decay = slopes && keySlopes(slopes, sdpa)!.map((s) => -s);
      return decay ? { decay: constantGate(e, decay, heads, query, layer, 'decay') } : {};
    }
  }
}

/** RetNet's log decay per head: log(1 - 2^(-5-h)). */
function retentionDecay(heads: number): number[] {
  return Array.from({ length: heads }, (_, h) => Math.log1p(-(2 ** (-5 - h))));
}

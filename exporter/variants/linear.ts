import { linearAttentionFunction } from '../../ops/linear_attention/function.js';
import type { LinearAttentionAttributes, UpdateRule } from '../../ops/linear_attention/schema.js';
import { declareFunction } from '../calls.js';
import type { AttributeValue } from '../ir/index.js';
import type { Sdpa } from '../match/sdpa.js';
import type { SiteEmitter } from './emit.js';
import { featureCount, featuresFor, fittedInputs } from './fitted.js';
import { emitGain, emitGates, scaledByStep } from './gates.js';
import type { FeatureMapName, LayerGates, LinearVariant, RewriteOptions } from './options.js';
import { floatType, stateType } from './types.js';

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
}

/** Replaces a site by com.fla.LinearAttention, with a function body for runtimes that lack the op. */
export function emitLinear(e: SiteEmitter, site: LinearSite, options: RewriteOptions): void {
  const { sdpa, layer } = site;
  const variant = options.variant as LinearVariant;
  const own = floatType(sdpa, layer);
  const fitted = featuresFor(sdpa, layer, options);
  // Features are exponentials: half precision holds too few of them.
  const dtype = fitted ? 'float32' : own;
  const packed = [sdpa.q, sdpa.k, sdpa.v].map((h) => e.as(e.packed(h), own));
  const [query, key, value] = fitted
    ? fittedInputs(e, sdpa, layer, packed as [string, string, string], own, fitted)
    : packed;
  const { decay, beta, dt } = emitGates(e, site, options, query!);
  const attributes = {
    ...attributesOf(sdpa, site.causal, options),
    ...(fitted && { feature_map: fitted.featureMap, scale: 1 }),
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
      headDimV: sdpa.v.dim,
    },
    { target: options.body ?? 'auto' },
  );
  declareFunction(e.graph.model, body);
  const inputs = [
    query!,
    key!,
    dt ? scaledByStep(e, sdpa, value!, dt) : value!,
    site.pastState,
    decay?.value ?? '',
    beta?.value ?? '',
    site.mask,
  ];
  const { output } = sdpa;
  const gain = site.gates?.gain;
  const last = output.layout === 'packed' && dtype === own && !gain;
  const packedOutput = last ? output.value : e.graph.fresh(`${sdpa.anchor.name}/${variant}`);
  e.ops('LinearAttention', inputs, [packedOutput, site.presentState], written(attributes), {
    domain: 'com.fla',
    overload: body.overload,
  });
  if (last) return;
  if (output.layout !== 'packed') {
    const scaled = gain ? emitGain(e, sdpa, layer, gain, packedOutput) : packedOutput;
    const result = dtype === own ? scaled : e.cast(scaled, own);
    e.fromPacked(result, sdpa.q.heads, sdpa.v.dim, { ...output, layout: output.layout });
  } else if (gain) emitGain(e, sdpa, layer, gain, packedOutput, output.value);
  else e.cast(packedOutput, own, output.value);
}

/** Does the variant divide by the sum of weights (and carry it in the state)? */
export function normalizes(options: RewriteOptions): boolean {
  return options.normalize ?? VARIANTS[options.variant as LinearVariant].normalize;
}

function attributesOf(
  sdpa: Sdpa,
  causal: boolean,
  options: RewriteOptions,
): LinearAttentionAttributes {
  const { rule, featureMap } = VARIANTS[options.variant as LinearVariant];
  const delta = rule === 'delta' || rule === 'gated_delta';
  return {
    q_num_heads: sdpa.q.heads,
    kv_num_heads: sdpa.v.heads,
    update_rule: rule,
    scale: sdpa.scale,
    chunk_size: 64,
    feature_map: options.featureMap ?? featureMap,
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

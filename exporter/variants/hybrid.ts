import { FlaError } from '../../ops/error.js';
import type { OpFunction } from '../../ops/function/define.js';
import {
  type HybridOptionalInput,
  hybridAttentionFunction,
} from '../../ops/hybrid_attention/function.js';
import { hybridAttention } from '../../ops/hybrid_attention/schema.js';
import { windowAttentionFunction } from '../../ops/window_attention/function.js';
import { declareFunction } from '../calls.js';
import { type AttributeValue, makeTensor } from '../ir/index.js';
import { beforeRotation } from '../match/rotation.js';
import type { Sdpa } from '../match/sdpa.js';
import type { StatePair } from '../states.js';
import { keySlopes, querySlopes } from './alibi.js';
import type { SiteEmitter } from './emit.js';
import type { HybridFeatureMap, HybridLayer, RewriteOptions, Variant } from './options.js';
import { type FloatDType, floatType } from './types.js';

/** What is exact unless told otherwise. */
const DEFAULTS = { window: 64, sinks: 4, cache: 0 } as const;

/** One site to be replaced by HybridAttention or WindowAttention. */
export interface HybridSite {
  readonly sdpa: Sdpa;
  readonly layer: number;
  /** bool [B,T] of the new tokens; '' when nothing is padded. */
  readonly mask: string;
  /** What is carried, when there was a cache. */
  readonly state?: StatePair;
  readonly window?: StatePair;
  /** ALiBi of the original. */
  readonly slopes?: readonly number[];
  /** What is added by distance, [HQ][window + 1]. */
  readonly distances?: readonly (readonly number[])[];
}

/** Is it a variant with an exact window? */
export function isWindowed(variant: Variant): variant is 'hybrid' | 'window' {
  return variant === 'hybrid' || variant === 'window';
}

/** How many of the last and of the first tokens are seen exactly. */
export function windowOf({ window = DEFAULTS.window, sinks = DEFAULTS.sinks }: RewriteOptions): {
  window: number;
  sinks: number;
} {
  return { window, sinks };
}

/** Sizes of one converted layer. */
export interface HybridShape {
  readonly window: number;
  readonly sinks: number;
  readonly cache: number;
  /** Features of a token, both signs counted. */
  readonly features: number;
  /** Elements of what features are made of, where that is not the key itself. */
  readonly extra: number;
  readonly featureMap: HybridFeatureMap;
  readonly signs: 1 | 2;
}

/** How one layer is converted. */
export function hybridShape(sdpa: Sdpa, layer: number, options: RewriteOptions): HybridShape {
  const { window, sinks } = windowOf(options);
  const fitted = options.hybrid?.[layer];
  const cache = options.variant === 'hybrid' ? (options.cache ?? DEFAULTS.cache) : 0;
  const featureMap = fitted?.featureMap ?? hybridMap(options);
  const signs = fitted?.signs ?? (featureMap === 'softmax' || featureMap === 'exp' ? 2 : 1);
  const columns = fitted?.queryWeight
    ? fitted.queryWeight.dims[2]!
    : (options.features ?? sdpa.k.dim * signs) / signs;
  if (!Number.isInteger(columns)) {
    throw new FlaError(
      'invalid_argument',
      `features must be a multiple of 2 for ${featureMap}, received ${options.features}`,
    );
  }
  const extra = fitted?.unrotated ? sdpa.k.dim : 0;
  return { window, sinks, cache, features: columns * signs, extra, featureMap, signs };
}

function hybridMap({ featureMap }: RewriteOptions): HybridFeatureMap {
  return (featureMap as HybridFeatureMap | undefined) ?? 'softmax';
}

/** Dimensions behind the batch of what a converted layer carries. */
export function carriedShapes(sdpa: Sdpa, shape: HybridShape, variant: Variant) {
  const rows = shape.sinks + shape.window + shape.cache + 1;
  const ring = [sdpa.v.heads, rows, sdpa.k.dim + sdpa.v.dim + shape.extra];
  return variant === 'window'
    ? { window: ring }
    : { window: ring, state: [sdpa.v.heads, shape.features, sdpa.v.dim + 1] };
}

/** Replaces a site by com.fla.WindowAttention or com.fla.HybridAttention. */
export function emitWindowed(e: SiteEmitter, site: HybridSite, options: RewriteOptions): void {
  const { sdpa, layer } = site;
  const dtype = floatType(sdpa, layer);
  const shape = hybridShape(sdpa, layer, options);
  const [query, key, value] = [sdpa.q, sdpa.k, sdpa.v].map((h) => e.as(e.packed(h), dtype));
  const { output, softcap = 0, sink } = sdpa;
  const packedOutput =
    output.layout === 'packed' && !sink
      ? output.value
      : e.graph.fresh(`${sdpa.anchor.name}/${options.variant}`);
  const common = {
    q_num_heads: sdpa.q.heads,
    kv_num_heads: sdpa.v.heads,
    window: shape.window,
    sinks: shape.sinks,
    scale: { float: sdpa.scale },
    softcap: { float: softcap },
  };
  const call = {
    dtype,
    windowDtype: dtype,
    opset: e.opset,
    headDimK: sdpa.k.dim,
    headDimV: sdpa.v.dim,
  };
  const past = [site.window?.past ?? '', site.state?.past ?? ''];
  const present = [site.window?.present ?? '', site.state?.present ?? ''];
  let result = packedOutput;
  if (options.variant === 'window') {
    const slopes = slopesOf(e, site);
    const distances = distancesOf(e, site);
    const inputs = [query!, key!, value!, site.mask, slopes, distances, past[0]!];
    const body = windowAttentionFunction({
      attributes: { ...common, scale: sdpa.scale, softcap },
      present: {
        mask: site.mask !== '',
        alibi_slopes: slopes !== '',
        distance_bias: distances !== '',
        past_window: past[0] !== '',
      },
      ...call,
    });
    const lse = sink ? e.graph.fresh(`${sdpa.anchor.name}/lse`) : '';
    write(e, 'WindowAttention', inputs, [packedOutput, lse, present[0]!], common, body);
    if (sink) result = besideSink(e, sdpa, packedOutput, lse, dtype);
  } else {
    const p = parameters(e, site, shape, options);
    const own = shape.extra > 0 ? unrotated(e, site) : ['', ''];
    const biases = [slopesOf(e, site), distancesOf(e, site), decayOf(e, site)];
    const inputs = [query!, key!, value!, ...own, site.mask, ...p, ...biases, ...past];
    const { cache, featureMap, signs } = shape;
    const attributes = { ...common, cache, feature_map: featureMap, signs };
    const given = Object.fromEntries(
      hybridAttention.inputs.map(({ name }, i) => [name, (inputs[i] ?? '') !== '']),
    ) as Record<HybridOptionalInput, boolean>;
    // What the cache keeps is decided token by token, which no function body can say.
    const body =
      cache > 0
        ? undefined
        : hybridAttentionFunction({
            attributes: { ...attributes, scale: sdpa.scale, softcap },
            present: given,
            ...call,
          });
    write(e, 'HybridAttention', inputs, [packedOutput, ...present], attributes, body);
  }
  if (output.layout !== 'packed') {
    e.fromPacked(result, sdpa.q.heads, sdpa.v.dim, { ...output, layout: output.layout });
  } else if (result !== output.value) {
    e.op('Identity', [result], {}, { output: output.value });
  }
}

/** Softmax without the sink, times the share of the keys beside it: exp(lse) / (exp(lse) + exp(logit)). */
function besideSink(
  e: SiteEmitter,
  { q, v, sink }: Sdpa,
  output: string,
  lse: string,
  dtype: FloatDType,
): string {
  const logits = sink!.logits ? e.reshape(e.as(sink!.logits, 'float32'), [1, 1, q.heads]) : '';
  const share = e.op('Sigmoid', [logits ? e.sub(lse, logits) : lse]);
  const factor = e.unsqueeze(dtype === 'float32' ? share : e.cast(share, dtype), 3);
  const scaled = e.mul(e.reshape(output, [0, 0, q.heads, v.dim]), factor);
  return e.reshape(scaled, [0, 0, q.heads * v.dim]);
}

/** ALiBi inside the window: alibi_slopes [HQ], or ''. */
function slopesOf(e: SiteEmitter, { sdpa, slopes }: HybridSite): string {
  if (!slopes) return '';
  return numbers(e, sdpa, 'alibi_slopes', [sdpa.q.heads], querySlopes(slopes, sdpa));
}

/** A bias by distance: distance_bias [HQ,window+1], or ''. */
function distancesOf(e: SiteEmitter, { sdpa, distances }: HybridSite): string {
  if (!distances) return '';
  const dims = [sdpa.q.heads, distances[0]!.length];
  return numbers(e, sdpa, 'distance_bias', dims, distances.flat());
}

/** ALiBi beyond it: decay [HV], or ''. */
function decayOf(e: SiteEmitter, { sdpa, slopes }: HybridSite): string {
  if (!slopes) return '';
  const decay = keySlopes(slopes, sdpa)!.map((s) => -s);
  return numbers(e, sdpa, 'decay', [decay.length], decay);
}

function numbers(
  e: SiteEmitter,
  { anchor }: Sdpa,
  name: string,
  dims: readonly number[],
  values: readonly number[],
): string {
  const stem = e.graph.fresh(`${anchor.name}/${name}`);
  return e.graph.addInitializer(makeTensor(stem, 'float32', dims, values));
}

/** Queries and keys before their rotary embedding, packed. */
function unrotated(e: SiteEmitter, { sdpa, layer }: HybridSite): string[] {
  return [sdpa.q, sdpa.k].map((heads) => {
    const before = beforeRotation(e.graph, heads);
    if (!before) {
      throw new FlaError('unsupported', `layer ${layer}: no rotary embedding was found`);
    }
    return e.as(e.packed(before), floatType(sdpa, layer));
  });
}

function write(
  e: SiteEmitter,
  op: 'HybridAttention' | 'WindowAttention',
  inputs: readonly string[],
  outputs: readonly string[],
  attributes: Record<string, AttributeValue>,
  body: OpFunction | undefined,
): void {
  if (body) declareFunction(e.graph.model, body);
  else e.graph.model.requireOpset('com.fla', 1);
  e.ops(op, inputs, outputs, attributes, { domain: 'com.fla', overload: body?.overload });
}

/** Initializers query_weight to key_mean; '' for what is absent. */
function parameters(
  e: SiteEmitter,
  { sdpa, layer, slopes, distances }: HybridSite,
  shape: HybridShape,
  options: RewriteOptions,
): string[] {
  const p = options.hybrid?.[layer] ?? uncalibrated(sdpa, shape, options);
  checkParameters(p, sdpa, shape, layer);
  // What leaves the window has lost as much as its age there says, and keeps what all larger distances add.
  const far = (h: number) =>
    distances ? distances[h]!.at(-1)! : slopes ? -querySlopes(slopes, sdpa)[h]! * shape.window : 0;
  const alpha = (slopes || distances) && {
    dims: [sdpa.q.heads],
    data: Float32Array.from({ length: sdpa.q.heads }, (_, h) => (p.alpha?.data[h] ?? 0) + far(h)),
  };
  const named = {
    query_weight: p.queryWeight,
    key_weight: p.keyWeight,
    query_bias: p.queryBias,
    key_bias: p.keyBias,
    alpha: alpha ?? p.alpha,
    key_mean: p.keyMean,
  };
  return Object.entries(named).map(([name, tensor]) => {
    if (!tensor) return '';
    const stem = e.graph.fresh(`${sdpa.anchor.name}/${name}`);
    return e.graph.addInitializer(makeTensor(stem, 'float32', tensor.dims, tensor.data));
  });
}

function checkParameters(p: HybridLayer, sdpa: Sdpa, shape: HybridShape, layer: number): void {
  const M = shape.features / shape.signs;
  const [HQ, HV, D, K] = [sdpa.q.heads, sdpa.v.heads, sdpa.k.dim, sdpa.k.dim];
  const expected = {
    queryWeight: [HQ, D, M],
    keyWeight: [HV, D, M],
    queryBias: [HQ, shape.features],
    keyBias: [HV, shape.features],
    alpha: [HQ],
    keyMean: [HV, K],
  };
  for (const [name, dims] of Object.entries(expected)) {
    const tensor = p[name as keyof typeof expected];
    if (tensor && `${tensor.dims}` !== `${dims}`) {
      throw new FlaError(
        'invalid_argument',
        `hybrid.${layer}.${name} must be [${dims}], received [${tensor.dims}]`,
      );
    }
  }
}

/** Features before any fit: the heads themselves, or as many random directions as were asked for. */
function uncalibrated(sdpa: Sdpa, shape: HybridShape, options: RewriteOptions): HybridLayer {
  const { featureMap, signs } = shape;
  if (options.features === undefined) return { featureMap, signs };
  const [HQ, HV, D, M] = [sdpa.q.heads, sdpa.v.heads, sdpa.k.dim, shape.features / signs];
  const next = normals(0x5eed);
  const one = Float32Array.from({ length: D * M }, () => next() * D ** -0.25);
  const repeated = (heads: number) => {
    const data = new Float32Array(heads * D * M);
    for (let h = 0; h < heads; h++) data.set(one, h * D * M);
    return { dims: [heads, D, M], data };
  };
  return { featureMap, signs, queryWeight: repeated(HQ), keyWeight: repeated(HV) };
}

/** Normally distributed numbers from a seed (mulberry32 and Box-Muller). */
export function normals(seed: number): () => number {
  let s = seed >>> 0;
  const uniform = () => {
    s = (s + 0x6d2b79f5) >>> 0;
    let t = Math.imul(s ^ (s >>> 15), s | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

import type { BodyEmitter } from '../function/emitter.js';
import type { LinearAttentionCall } from './function.js';
import { type FeatureMap, linearAttention } from './schema.js';

const { l2norm_eps, exp_clamp, normalize_eps } = linearAttention.constants;

/** Inputs of a call in float32, after feature map and mask; sizes are int64 vectors of one element. */
export interface Prepared {
  q: string; // [B,T,HQ,K]
  k: string; // [B,T,HK,K]
  v: string; // [B,T,HV,W], W = V, or V + 1 with a last column of ones when normalizing
  decay?: string; // [B,T,HV] or [B,T,HV*K]
  beta?: string; // [B,T,HV] or [B,T,1]
  B: string;
  T: string;
  K: string;
  HK: string;
  W: string;
}

/** What both bodies begin with: casts, heads split off, feature maps, mask, the normalizer's column. */
export function prepare(e: BodyEmitter, call: LinearAttentionCall): Prepared {
  const { q_num_heads: HQ, kv_num_heads: HV, normalize } = call.attributes;
  const B = e.dim('query', 0);
  const T = e.dim('query', 1);
  const K = call.headDimK ? e.ints(call.headDimK) : e.div(e.dim('query', 2), e.ints(HQ));
  const V = call.headDimV ? e.ints(call.headDimV) : e.div(e.dim('value', 2), e.ints(HV));
  const HK = e.div(e.dim('key', 2), K);
  const visible = call.present.mask ? e.cast('mask', 'bool') : undefined; // [B,T]
  const features = (name: string, heads: number | string) =>
    features4(e, e.reshape(e.cast(name, 'float32'), [0, 0, heads, K]), call);
  const gate = (name: 'decay' | 'beta') => {
    const x = call.present[name] ? e.cast(name, 'float32') : undefined;
    return x && visible ? masked(e, x, e.unsqueeze(visible, 2)) : x;
  };

  const q = features('query', HQ);
  let k = features('key', HK);
  if (visible) k = masked(e, k, e.unsqueeze(e.unsqueeze(visible, 2), 3));
  let v = e.reshape(e.cast('value', 'float32'), [0, 0, HV, V]);
  if (normalize) {
    const ones = e.add(e.zeros([B, T, HV, 1]), e.scalar(1));
    v = e.op('Concat', [v, ones], { axis: 3 });
  }
  const W = normalize ? e.add(V, e.ints(1)) : V;
  return { q, k, v, decay: gate('decay'), beta: gate('beta'), B, T, K, HK, W };
}

/** Writes `output` from o [B,T,HO,W] (already scaled): divides by the normalizer's column, packs, casts. */
export function finish(e: BodyEmitter, call: LinearAttentionCall, o: string): void {
  const { q_num_heads: HQ, kv_num_heads: HV, normalize } = call.attributes;
  let out = o;
  if (normalize) {
    const divisor = e.add(e.slice(o, 3, -1), e.scalar(normalize_eps.value));
    out = e.div(e.slice(o, 3, 0, -1), divisor);
  }
  const width = e.mul(e.dim(out, 3), e.ints(Math.max(HQ, HV)));
  e.cast(e.reshape(out, [0, 0, width]), call.dtype, 'output');
}

/** x where the token is visible, 0 elsewhere. */
function masked(e: BodyEmitter, x: string, visible: string): string {
  return e.op('Where', [visible, x, e.scalar(0)]);
}

function features4(e: BodyEmitter, x: string, { attributes }: LinearAttentionCall): string {
  const { feature_map, qk_l2norm } = attributes;
  if (!qk_l2norm) return FEATURE_MAPS[feature_map](e, x);
  return feature_map === 'exp' ? unitExp(e, x) : l2norm(e, FEATURE_MAPS[feature_map](e, x));
}

/** Each works on [B,T,H,K]. */
const FEATURE_MAPS: Record<FeatureMap, (e: BodyEmitter, x: string) => string> = {
  identity: (_e, x) => x,
  // exp(x) rather than Elu(x) + 1, which loses the digits of small features.
  elu1: (e, x) =>
    e.op('Where', [
      e.op('Greater', [x, e.scalar(0)]),
      e.add(x, e.scalar(1)),
      e.op('Exp', [e.op('Min', [x, e.scalar(0)])]),
    ]),
  relu: (e, x) => e.op('Relu', [x]),
  exp: (e, x) => e.op('Exp', [clamped(e, x)]),
  silu: (e, x) => e.mul(x, e.op('Sigmoid', [x])),
  l2norm,
  softmax: (e, x) => e.op('Softmax', [x], { axis: 3 }),
};

function clamped(e: BodyEmitter, x: string): string {
  return e.op('Min', [x, e.scalar(exp_clamp.value)]);
}

function l2norm(e: BodyEmitter, x: string, eps = e.scalar(l2norm_eps.value)): string {
  return e.div(x, e.op('Sqrt', [e.add(e.sum(e.mul(x, x), 3), eps)]));
}

/** l2norm(exp(x)), whose squares float32 cannot hold: of exp(x - m), m = max(x, 0), with eps exp(-2m) instead. */
function unitExp(e: BodyEmitter, x: string): string {
  const m = e.op('Max', [e.max(clamped(e, x), 3), e.scalar(0)]);
  const eps = e.mul(e.op('Exp', [e.mul(m, e.scalar(-2))]), e.scalar(l2norm_eps.value));
  return l2norm(e, e.op('Exp', [e.sub(clamped(e, x), m)]), eps);
}

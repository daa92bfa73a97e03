import type { BodyEmitter } from '../function/emitter.js';
import type { FarPart, Sizes, Step } from '../window_attention/function_ring.js';
import type { HybridAttentionCall } from './function.js';
import { type HybridFeatureMap, hybridAttention } from './schema.js';

const { exp_clamp } = hybridAttention.constants;

/** Log decays below this are raised to it: exp(-200) is 0 in float32 too, and -Infinity times a distance of 0 would be NaN. */
const LEAST_DECAY = -200;

interface Parameters {
  queryWeight?: string; // [HV,G,D,M]
  keyWeight?: string; // [HV,1,D,M]
  queryBias?: string; // [HV,G,1,F]
  keyBias?: string; // [HV,1,1,F]
  alpha?: string; // [HV,G,1,1]
  decay?: string; // [HV,1,1,1]
}

/** The far part of HybridAttention; S [B,HV,1,F,V+1] is the state, its last column the normalizer. */
export class FarBody implements FarPart {
  private parameters: Parameters = {};

  constructor(private readonly call: HybridAttentionCall) {}

  first(e: BodyEmitter, { B, W, K, D }: Sizes): string {
    const { present, attributes } = this.call;
    const { q_num_heads: HQ, kv_num_heads: HV, signs } = attributes;
    const size = D ?? K;
    const M = present.query_weight ? e.dim('query_weight', 2) : size;
    const F = e.mul(M, e.ints(signs));
    const of = (name: keyof HybridAttentionCall['present'], lengths: (number | string)[]) =>
      present[name] ? e.reshape(e.cast(name, 'float32'), lengths) : undefined;
    const group = HQ / HV;
    const decay = of('decay', [HV, 1, 1, 1]);
    this.parameters = {
      queryWeight: of('query_weight', [HV, group, size, M]),
      keyWeight: of('key_weight', [HV, 1, size, M]),
      queryBias: of('query_bias', [HV, group, 1, F]),
      keyBias: of('key_bias', [HV, 1, 1, F]),
      alpha: of('alpha', [HV, group, 1, 1]),
      decay: decay && e.op('Max', [decay, e.scalar(LEAST_DECAY)]),
    };
    return present.past_state ? e.unsqueeze('past_state', 2) : e.zeros([B, HV, 1, F, W]);
  }

  step(e: BodyEmitter, step: Step, S: string) {
    const { window } = this.call.attributes;
    const { queryWeight, keyWeight, queryBias, keyBias, alpha, decay } = this.parameters;
    const decayed = (x: string, tokens: string) =>
      decay ? e.mul(x, e.op('Exp', [e.mul(decay, tokens)])) : x;
    /** Tokens for which a token at this distance has been far. */
    const sinceLeft = (distance: string) =>
      e.op('Max', [e.sub(distance, e.scalar(window)), e.scalar(0)]);

    const exponents = this.exponents(e, step.queryFeatures ?? step.q, queryWeight, queryBias);
    const isExp = this.call.attributes.feature_map === 'exp';
    // exp(x - top) and not exp(x), which times the features of many keys could leave the range of float32.
    const clamped = isExp ? e.op('Min', [exponents, e.scalar(exp_clamp.value)]) : exponents;
    const top = isExp ? e.max(clamped, 4) : undefined; // [B,HV,G,c,1]
    const phiQ = top ? e.op('Exp', [e.sub(clamped, top)]) : this.map(e, exponents); // [B,HV,G,c,F]
    const keys = step.keyFeatures ?? step.keys;
    const phiK = this.map(e, this.exponents(e, keys, keyWeight, keyBias)); // [B,HV,1,N,F]

    const products = e.matmul(phiQ, e.transpose(phiK, [0, 1, 2, 4, 3])); // [B,HV,G,c,N]
    const weights = e.op('Where', [
      step.between,
      decayed(products, sinceLeft(step.ago)),
      e.scalar(0),
    ]);
    const sums = decayed(e.matmul(phiQ, S), step.gone);
    const written = decayed(e.mul(phiK, step.leaving), sinceLeft(step.age));
    const added = e.matmul(e.transpose(written, [0, 1, 2, 4, 3]), step.values);
    const next = e.add(decayed(S, step.count), added);
    const logFactor = top && alpha ? e.add(top, alpha) : (top ?? alpha);
    return { weights, sums, logFactor, next };
  }

  finish(e: BodyEmitter, S: string): void {
    e.cast(e.squeeze(S, 2), 'float32', 'present_state');
  }

  /** [x W; -x W] + b */
  private exponents(
    e: BodyEmitter,
    x: string,
    weight: string | undefined,
    bias: string | undefined,
  ): string {
    const u = weight ? e.matmul(x, weight) : x;
    const both =
      this.call.attributes.signs === 2 ? e.op('Concat', [u, e.op('Neg', [u])], { axis: 4 }) : u;
    return bias ? e.add(both, bias) : both;
  }

  private map(e: BodyEmitter, x: string): string {
    return FEATURE_MAPS[this.call.attributes.feature_map](e, x);
  }
}

/** Each works on the last axis of rank 5. */
const FEATURE_MAPS: Record<HybridFeatureMap, (e: BodyEmitter, x: string) => string> = {
  identity: (_e, x) => x,
  // exp(x) rather than Elu(x) + 1, which loses the digits of small features.
  elu1: (e, x) =>
    e.op('Where', [
      e.op('Less', [e.scalar(0), x]),
      e.add(x, e.scalar(1)),
      e.op('Exp', [e.op('Min', [x, e.scalar(0)])]),
    ]),
  relu: (e, x) => e.op('Relu', [x]),
  exp: (e, x) => e.op('Exp', [e.op('Min', [x, e.scalar(exp_clamp.value)])]),
  softmax: (e, x) => e.op('Softmax', [x], { axis: 4 }),
};

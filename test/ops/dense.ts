/** The definitions of WindowAttention and HybridAttention written with weights for all pairs of tokens: no ring, no state. */
import type {
  HybridAttentionAttributeInput,
  HybridAttentionInputs,
  Tensor64,
} from '../../ops/index.js';

type Sizes = { B: number; T: number; HQ: number; HV: number; K: number; V: number };

/** Output, and lse of the near part, of a call without a state. */
export function denseHybrid(
  attributes: HybridAttentionAttributeInput,
  inputs: HybridAttentionInputs,
  sizes: Sizes,
): { output: Tensor64; lse: Tensor64 } {
  const { B, T, HQ, V } = sizes;
  const output = { shape: [B, T, HQ * V], data: new Float64Array(B * T * HQ * V) };
  const lse = { shape: [B, T, HQ], data: new Float64Array(B * T * HQ).fill(-Infinity) };
  for (let b = 0; b < B; b += 1) {
    const visible = Array.from({ length: T }, (_, t) => b * T + t).filter(
      (token) => inputs.mask?.data[token] !== 0,
    );
    for (let h = 0; h < HQ; h += 1) {
      const head = new DenseHead(attributes, inputs, sizes, visible, h);
      for (const [t, token] of visible.entries()) {
        const weights = head.weights(t);
        const total = weights.reduce((sum, w) => sum + w, 0);
        for (let i = 0; i < V; i += 1) {
          const sum = weights.reduce((acc, w, j) => acc + w * head.value(j)[i], 0);
          output.data[(token * HQ + h) * V + i] = sum / total;
        }
        lse.data[token * HQ + h] = Math.log(
          weights.reduce((sum, w, j) => sum + (head.isNear(t, j) ? w : 0), 0),
        );
      }
    }
  }
  return { output, lse };
}

const dot = (x: ArrayLike<number>, y: ArrayLike<number>) =>
  Array.from(x).reduce((sum, e, i) => sum + e * y[i], 0);

/** One query head on the visible tokens of one batch row. */
class DenseHead {
  private readonly g: number;
  /** What the cache holds when token t has come. */
  private readonly cached: number[][] = [];

  constructor(
    private readonly attributes: HybridAttentionAttributeInput,
    private readonly inputs: HybridAttentionInputs,
    private readonly sizes: Sizes,
    private readonly visible: readonly number[],
    private readonly h: number,
  ) {
    this.g = Math.floor(h / (sizes.HQ / sizes.HV));
    this.fillCache();
  }

  isNear(t: number, j: number): boolean {
    const { window, sinks = 0 } = this.attributes;
    return j <= t && (j < sinks || j > t - window || this.cached[t].includes(j));
  }

  /** w_tj of every token j. */
  weights(t: number): number[] {
    return this.visible.map((_, j) => {
      if (j > t) return 0;
      return this.isNear(t, j) ? Math.exp(this.score(t, j)) : this.farWeight(t, j);
    });
  }

  value(j: number): Float64Array {
    return this.head(this.inputs.value, j, this.g, this.sizes.V);
  }

  private score(t: number, j: number): number {
    const { K } = this.sizes;
    const { window, scale, softcap } = this.attributes;
    const { key_mean, alibi_slopes, distance_bias } = this.inputs;
    const k = this.head(this.inputs.key, j, this.g, K).map(
      (x, i) => x - (key_mean?.data[this.g * K + i] ?? 0),
    );
    const product = dot(this.head(this.inputs.query, t, this.h, K), k) * (scale || K ** -0.5);
    const capped = softcap ? Math.tanh(product / softcap) * softcap : product;
    const slope = alibi_slopes?.data[this.h] ?? 0;
    const bias = distance_bias?.data[this.h * (window + 1) + Math.min(t - j, window)] ?? 0;
    return capped - slope * (t - j) + bias;
  }

  private farWeight(t: number, j: number): number {
    const { alpha, decay } = this.inputs;
    const lag = t - this.attributes.window - j;
    const exponent = (alpha?.data[this.h] ?? 0) + (decay?.data[this.g] ?? 0) * lag;
    const { query_features = this.inputs.query, query_weight, query_bias } = this.inputs;
    const x = this.head(query_features, t, this.h, query_features.shape[2] / this.sizes.HQ);
    const phi = this.phi(x, this.h, query_weight, query_bias);
    return Math.exp(exponent) * dot(phi, this.keyFeatures(j));
  }

  private keyFeatures(j: number): number[] {
    const { key_features = this.inputs.key, key_weight, key_bias } = this.inputs;
    const x = this.head(key_features, j, this.g, key_features.shape[2] / this.sizes.HV);
    return this.phi(x, this.g, key_weight, key_bias);
  }

  private phi(x: Float64Array, head: number, weight?: Tensor64, bias?: Tensor64): number[] {
    const { signs = 2, feature_map = 'exp' } = this.attributes;
    const M = weight ? weight.shape[2] : x.length;
    const D = x.length;
    const u = Array.from({ length: M }, (_, m) =>
      weight
        ? dot(
            x,
            x.map((_, d) => weight.data[(head * D + d) * M + m]),
          )
        : x[m],
    );
    const both = signs === 2 ? [...u, ...u.map((e) => -e)] : u;
    const shifted = both.map((e, f) => e + (bias?.data[head * M * signs + f] ?? 0));
    const weights = shifted.map((e) => Math.exp(Math.min(e, 40)));
    if (feature_map === 'exp') return weights;
    if (feature_map === 'softmax') {
      return weights.map((e) => e / weights.reduce((sum, other) => sum + other, 0));
    }
    if (feature_map === 'elu1') return shifted.map((e) => (e > 0 ? e + 1 : Math.exp(e)));
    return feature_map === 'relu' ? shifted.map((e) => Math.max(e, 0)) : shifted;
  }

  /** Replays what the cache took: predictions are weighted means over all tokens written so far. */
  private fillCache(): void {
    const { window, sinks = 0, cache = 0 } = this.attributes;
    const slots: number[] = [];
    const written: number[] = [];
    for (const t of this.visible.keys()) {
      const leaving = t - window;
      if (leaving >= sinks && slots.length < cache) {
        slots.push(leaving);
      } else if (leaving >= sinks) {
        const candidates = [...slots, leaving];
        const errors = candidates.map((j) => this.recallError(j, written));
        const best = errors.indexOf(Math.min(...errors));
        written.push(candidates[best]);
        if (best < cache) slots[best] = leaving;
      }
      this.cached.push([...slots]);
    }
  }

  private recallError(j: number, written: readonly number[]): number {
    const weights = written.map((i) => dot(this.keyFeatures(j), this.keyFeatures(i)));
    const total = weights.reduce((sum, w) => sum + w, 0);
    return this.value(j).reduce((error, v, i) => {
      const mean = weights.reduce((sum, w, n) => sum + w * this.value(written[n])[i], 0);
      return error + (v - (total === 0 ? 0 : mean / total)) ** 2;
    }, 0);
  }

  private head(x: Tensor64, t: number, head: number, width: number): Float64Array {
    const start = this.visible[t] * x.shape[2] + head * width;
    return x.data.subarray(start, start + width);
  }
}

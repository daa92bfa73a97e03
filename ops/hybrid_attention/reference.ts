import { checkCall, outputShape } from '../define.js';
import { type Tensor64, zeros } from '../tensor64.js';
import { headOf, nearScores, weighted } from '../window_attention/reference.js';
import { Ring } from '../window_attention/ring.js';
import {
  type HybridAttentionAttributeInput,
  type HybridAttentionAttributes,
  type HybridFeatureMap,
  hybridAttention,
} from './schema.js';

/** Shapes as in the schema; mask holds 0 or 1. */
export interface HybridAttentionInputs {
  readonly query: Tensor64; // [B,T,HQ*K]
  readonly key: Tensor64; // [B,T,HV*K]
  readonly value: Tensor64; // [B,T,HV*V]
  readonly query_features?: Tensor64; // [B,T,HQ*D]
  readonly key_features?: Tensor64; // [B,T,HV*D]
  readonly mask?: Tensor64; // [B,T]
  readonly query_weight?: Tensor64; // [HQ,D,M]
  readonly key_weight?: Tensor64; // [HV,D,M]
  readonly query_bias?: Tensor64; // [HQ,M*signs]
  readonly key_bias?: Tensor64; // [HV,M*signs]
  readonly alpha?: Tensor64; // [HQ]
  readonly key_mean?: Tensor64; // [HV,K]
  readonly alibi_slopes?: Tensor64; // [HQ]
  readonly distance_bias?: Tensor64; // [HQ,window+1]
  readonly decay?: Tensor64; // [HV], natural log
  readonly past_window?: Tensor64; // [B,HV,sinks+window+cache+1,K+V+E]
  readonly past_state?: Tensor64; // [B,HV,M*signs,V+1]
}

export interface HybridAttentionResult {
  readonly output: Tensor64; // [B,T,HQ*V]
  readonly presentWindow: Tensor64; // [B,HV,sinks+window+cache+1,K+V+E]
  readonly presentState: Tensor64; // [B,HV,M*signs,V+1]
}

/**
 * HybridAttention token by token in float64: the ground truth every backend is tested against.
 * Throws `FlaError` when the call breaks the schema.
 */
export function hybridAttentionReference(
  attributes: HybridAttentionAttributeInput,
  inputs: HybridAttentionInputs,
): HybridAttentionResult {
  const specs = Object.entries(inputs as unknown as Record<string, Tensor64 | undefined>).map(
    ([name, tensor]) => [name, tensor && { dtype: 'float32' as const, shape: tensor.shape }],
  );
  const call = checkCall(hybridAttention, attributes, Object.fromEntries(specs));
  const output = zeros(outputShape(hybridAttention, 'output', call.dims));
  const presentWindow = zeros(outputShape(hybridAttention, 'present_window', call.dims));
  const presentState = zeros(outputShape(hybridAttention, 'present_state', call.dims));
  if (inputs.past_window) presentWindow.data.set(inputs.past_window.data);
  if (inputs.past_state) presentState.data.set(inputs.past_state.data);
  for (let b = 0; b < call.dims.B; b += 1) {
    for (let g = 0; g < call.dims.HV; g += 1) {
      const head = new Head(inputs, call.attributes, call.dims, g);
      const n = b * call.dims.HV + g;
      head.run(b, part(presentWindow, n), part(presentState, n), output);
    }
  }
  return { output, presentWindow, presentState };
}

/** Item `n` of the first two axes of a [B,HV,...] tensor. */
function part({ shape, data }: Tensor64, n: number): Float64Array {
  const size = shape[2] * shape[3];
  return data.subarray(n * size, (n + 1) * size);
}

/** One key head with the query heads that share it. */
class Head {
  constructor(
    private readonly inputs: HybridAttentionInputs,
    private readonly attributes: HybridAttentionAttributes,
    private readonly dims: Readonly<Record<string, number>>,
    private readonly g: number,
  ) {}

  run(b: number, rows: Float64Array, S: Float64Array, output: Tensor64): void {
    const { T, HQ, HV, K, V, E } = this.dims;
    const { window, sinks, cache } = this.attributes;
    const ring = new Ring(rows, K + V + E, window, sinks, cache);
    for (let t = 0; t < T; t += 1) {
      const token = b * T + t;
      if (this.inputs.mask?.data[token] === 0) continue;
      this.advance(ring, S, this.rowOf(token));
      for (let h = (this.g * HQ) / HV; h < ((this.g + 1) * HQ) / HV; h += 1) {
        headOf(output, token, h, V).set(this.read(ring, S, token, h));
      }
    }
  }

  /** Key, value and key features of a token. */
  private rowOf(token: number): Float64Array {
    const { key, value, key_features } = this.inputs;
    const { K, V, E } = this.dims;
    const features = key_features ? headOf(key_features, token, this.g, E) : [];
    const own = [headOf(key, token, this.g, K), headOf(value, token, this.g, V), features];
    return Float64Array.from(own.flatMap((x) => [...x]));
  }

  /** One token comes, and another may leave the window. */
  private advance(ring: Ring, S: Float64Array, row: Float64Array): void {
    const factor = Math.exp(this.inputs.decay?.data[this.g] ?? 0);
    for (let i = 0; i < S.length; i += 1) S[i] *= factor;
    const leaving = ring.leaving();
    if (leaving) this.write(this.cached(ring, S, leaving), S);
    ring.push(row);
  }

  /** What is left for the state once the cache has had its choice. */
  private cached(ring: Ring, S: Float64Array, leaving: Float64Array): Float64Array | undefined {
    if (ring.departed < ring.cache) {
      ring.cacheRow(ring.departed).set(leaving);
      return undefined;
    }
    const candidates = Array.from({ length: ring.cache }, (_, slot) => ring.cacheRow(slot));
    candidates.push(leaving);
    const errors = candidates.map((row) => this.recallError(row, S));
    const best = errors.indexOf(Math.min(...errors));
    const written = candidates[best].slice();
    if (best < ring.cache) ring.cacheRow(best).set(leaving);
    return written;
  }

  /** |v - S' phi / z' phi|^2 */
  private recallError(row: Float64Array, S: Float64Array): number {
    const { K, V } = this.dims;
    const sums = this.readState(this.keyFeatures(row), S);
    const prediction = (i: number) => (sums[V] === 0 ? 0 : sums[i] / sums[V]);
    return row
      .subarray(K, K + V)
      .reduce((sum, v, i) => sum + (v - prediction(i)) * (v - prediction(i)), 0);
  }

  /** S += phi(k) [v, 1]' */
  private write(row: Float64Array | undefined, S: Float64Array): void {
    if (!row) return;
    const { K, V } = this.dims;
    for (const [f, phi] of this.keyFeatures(row).entries()) {
      for (let i = 0; i < V; i += 1) S[f * (V + 1) + i] += phi * row[K + i];
      S[f * (V + 1) + V] += phi;
    }
  }

  /** S' phi, the normalizer last. */
  private readState(phi: Float64Array, S: Float64Array): Float64Array {
    const width = this.dims.V + 1;
    const sums = new Float64Array(width);
    for (let f = 0; f < phi.length; f += 1) {
      for (let i = 0; i < width; i += 1) sums[i] += phi[f] * S[f * width + i];
    }
    return sums;
  }

  /** The output of query head h at the token that came last. */
  private read(ring: Ring, S: Float64Array, token: number, h: number): Float64Array {
    const { inputs, attributes, dims, g } = this;
    const { K, V, D } = dims;
    const q = headOf(inputs.query, token, h, K);
    const mean = inputs.key_mean?.data.subarray(g * K, (g + 1) * K);
    const scores = nearScores(ring, q, h, attributes, inputs, mean);
    const near = weighted(scores, K, V);
    const x = inputs.query_features ? headOf(inputs.query_features, token, h, D) : q;
    const far = this.readState(this.features(x, h, inputs.query_weight, inputs.query_bias), S);
    const alpha = inputs.alpha?.data[h] ?? 0;
    const largest = Math.max(near.largest, alpha + Math.log(Math.abs(far[V])));
    const [nearFactor, farFactor] = [
      Math.exp(near.largest - largest),
      far[V] === 0 ? 0 : Math.exp(alpha - largest),
    ];
    const total = nearFactor * near.total + farFactor * far[V];
    return near.sum.map((sum, i) => (nearFactor * sum + farFactor * far[i]) / total);
  }

  private keyFeatures(row: Float64Array): Float64Array {
    const { K, V, D, E } = this.dims;
    const x = E > 0 ? row.subarray(K + V) : row.subarray(0, D);
    return this.features(x, this.g, this.inputs.key_weight, this.inputs.key_bias);
  }

  /** map([u; -u] + b), u = x' W. */
  private features(
    x: Float64Array,
    head: number,
    weight: Tensor64 | undefined, // [heads,D,M]
    bias: Tensor64 | undefined, // [heads,M*signs]
  ): Float64Array {
    const { D, M } = this.dims;
    const { signs, feature_map } = this.attributes;
    const W = weight?.data.subarray(head * D * M, (head + 1) * D * M);
    const u = W
      ? Float64Array.from({ length: M }, (_, m) =>
          x.reduce((sum, e, d) => sum + e * W[d * M + m], 0),
        )
      : x;
    const shifted = Float64Array.from({ length: M * signs }, (_, f) => {
      const sign = f < M ? 1 : -1;
      return sign * u[f % M] + (bias?.data[head * M * signs + f] ?? 0);
    });
    return featureMaps[feature_map](shifted);
  }
}

const { exp_clamp } = hybridAttention.constants;

const featureMaps: Record<HybridFeatureMap, (x: Float64Array) => Float64Array> = {
  identity: (x) => x,
  elu1: (x) => x.map((e) => (e > 0 ? e + 1 : Math.exp(e))),
  relu: (x) => x.map((e) => Math.max(e, 0)),
  exp: (x) => x.map((e) => Math.exp(Math.min(e, exp_clamp.value))),
  softmax: (x) => {
    const largest = x.reduce((a, b) => Math.max(a, b), -Infinity);
    const weights = x.map((e) => Math.exp(e - largest));
    const total = weights.reduce((a, b) => a + b, 0);
    return weights.map((weight) => weight / total);
  },
};

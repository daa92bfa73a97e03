import { checkCall, outputShape } from '../define.js';
import { type Tensor64, zeros } from '../tensor64.js';
import {
  type FeatureMap,
  type LinearAttentionAttributeInput,
  type LinearAttentionAttributes,
  linearAttention,
} from './schema.js';

/** Shapes as in the schema; mask holds 0 or 1. */
export interface LinearAttentionInputs {
  readonly query: Tensor64; // [B,T,HQ*K]
  readonly key: Tensor64; // [B,T,HK*K]
  readonly value: Tensor64; // [B,T,HV*V]
  readonly past_state?: Tensor64; // [B,HV,K,V+normalize]
  readonly decay?: Tensor64; // [B,T,HV] or [B,T,HV*K], natural log
  readonly beta?: Tensor64; // [B,T,HV] or [B,T,1]
  readonly mask?: Tensor64; // [B,T]
  readonly bonus?: Tensor64; // [HV*K]
}

export interface LinearAttentionResult {
  readonly output: Tensor64; // [B,T,max(HQ,HV)*V]
  readonly presentState: Tensor64; // [B,HV,K,V+normalize]
}

const { normalize_eps, l2norm_eps, exp_clamp } = linearAttention.constants;

/**
 * LinearAttention token by token in float64: the ground truth every backend is tested against.
 * Throws `FlaError` when the call breaks the schema.
 */
export function linearAttentionReference(
  attributes: LinearAttentionAttributeInput,
  inputs: LinearAttentionInputs,
): LinearAttentionResult {
  const specs = Object.entries(inputs as unknown as Record<string, Tensor64 | undefined>).map(
    ([name, tensor]) => [name, tensor && { dtype: 'float32' as const, shape: tensor.shape }],
  );
  const call = checkCall(linearAttention, attributes, Object.fromEntries(specs));
  const { B, HV } = call.dims;
  const output = zeros(outputShape(linearAttention, 'output', call.dims));
  const presentState = zeros(outputShape(linearAttention, 'present_state', call.dims));
  if (inputs.past_state) presentState.data.set(inputs.past_state.data);
  for (let b = 0; b < B; b += 1) {
    for (let h = 0; h < HV; h += 1) {
      runHead(new Head(inputs, call.attributes, call.dims, b, h), presentState.data, output.data);
    }
  }
  return { output, presentState };
}

/** What one value head of one batch row reads, token by token. */
class Head {
  readonly T: number;
  readonly K: number;
  /** Width of the state's rows: V, plus one column for the normalizer. */
  readonly width: number;
  /** Where this head's state starts in [B,HV,K,width]. */
  readonly stateOffset: number;
  /** The query heads that read this state; each writes the output head of `outputHeads`. */
  readonly queryHeads: readonly number[];
  readonly outputHeads: readonly number[];

  constructor(
    readonly inputs: LinearAttentionInputs,
    readonly attributes: LinearAttentionAttributes,
    readonly dims: Readonly<Record<string, number>>,
    readonly b: number,
    readonly h: number,
  ) {
    const { T, K, V, HQ, HV } = dims;
    this.T = T;
    this.K = K;
    this.width = V + attributes.normalize;
    this.stateOffset = (b * HV + h) * K * this.width;
    const shared = Math.max(1, HQ / HV);
    this.outputHeads = Array.from({ length: shared }, (_, i) => h * shared + i);
    this.queryHeads = HQ >= HV ? this.outputHeads : [Math.floor(h / (HV / HQ))];
  }

  /** Element `i` of head `head` at token `t` of a packed tensor with `size` elements per head. */
  private packed(tensor: Tensor64, t: number, head: number, size: number): Float64Array {
    const start = (this.b * this.T + t) * tensor.shape[2] + head * size;
    return tensor.data.subarray(start, start + size);
  }

  visible(t: number): boolean {
    const { mask } = this.inputs;
    return mask?.data[this.b * this.T + t] !== 0;
  }

  query(t: number, head: number): Float64Array {
    return features(this.packed(this.inputs.query, t, head, this.K), this.attributes);
  }

  key(t: number): Float64Array {
    if (!this.visible(t)) return new Float64Array(this.K);
    const head = Math.floor(this.h / (this.dims.HV / this.dims.HK));
    return features(this.packed(this.inputs.key, t, head, this.K), this.attributes);
  }

  /** The value vector, followed by 1 when the normalizer is carried. */
  value(t: number): Float64Array {
    const value = this.packed(this.inputs.value, t, this.h, this.dims.V);
    return this.attributes.normalize ? Float64Array.of(...value, 1) : value;
  }

  /** Log decay of row `i` of the state. */
  decay(t: number, i: number): number {
    const { decay } = this.inputs;
    if (!decay || !this.visible(t)) return 0;
    const perHead = decay.shape[2] === this.dims.HV;
    return this.packed(decay, t, this.h, perHead ? 1 : this.K)[perHead ? 0 : i];
  }

  beta(t: number): number {
    const { beta } = this.inputs;
    if (!beta || !this.visible(t)) return 0;
    return this.packed(beta, t, beta.shape[2] === 1 ? 0 : this.h, 1)[0];
  }

  /** Weights of a token in its own output, or undefined unless read=bonus. */
  bonus(): Float64Array | undefined {
    return this.inputs.bonus?.data.subarray(this.h * this.K, (this.h + 1) * this.K);
  }
}

function runHead(head: Head, states: Float64Array, output: Float64Array): void {
  const { T, K, width, attributes } = head;
  const S = states.subarray(head.stateOffset, head.stateOffset + K * width); // [K,width]
  for (let t = 0; t < T; t += 1) {
    if (attributes.causal && attributes.read !== 'after') read(head, S, t, output);
    update(head, S, t);
    if (attributes.causal && attributes.read === 'after') read(head, S, t, output);
  }
  if (!attributes.causal) for (let t = 0; t < T; t += 1) read(head, S, t, output);
}

/** S = exp(g) S, then S += k v' or S += beta k (v - S'k)'. */
function update(head: Head, S: Float64Array, t: number): void {
  const { K, width } = head;
  const k = head.key(t);
  const v = head.value(t);
  for (let i = 0; i < K; i += 1) {
    const factor = Math.exp(head.decay(t, i));
    for (let j = 0; j < width; j += 1) S[i * width + j] *= factor;
  }
  const isDelta = head.attributes.update_rule.endsWith('delta');
  const beta = head.beta(t);
  for (let j = 0; j < width; j += 1) {
    let write = v[j];
    if (isDelta) {
      for (let i = 0; i < K; i += 1) write -= S[i * width + j] * k[i];
      write *= beta;
    }
    for (let i = 0; i < K; i += 1) S[i * width + j] += k[i] * write;
  }
}

/** o = scale S'q, with S + diag(u) k v' in place of S when there is a bonus; divided by scale z'q + eps when normalizing. */
function read(head: Head, S: Float64Array, t: number, output: Float64Array): void {
  const { K, width, b, T, attributes } = head;
  const { V, HO } = head.dims;
  const scale = attributes.scale || 1 / Math.sqrt(K);
  const u = head.bonus();
  const k = head.key(t);
  const v = head.value(t);
  for (const [n, outputHead] of head.outputHeads.entries()) {
    const q = head.query(t, head.queryHeads[n]);
    const sums = new Float64Array(width);
    for (let i = 0; i < K; i += 1) {
      for (let j = 0; j < width; j += 1) {
        const own = u ? u[i] * k[i] * v[j] : 0;
        sums[j] += scale * q[i] * (S[i * width + j] + own);
      }
    }
    const divisor = attributes.normalize ? sums[V] + normalize_eps.value : 1;
    const start = ((b * T + t) * HO + outputHead) * V;
    for (let j = 0; j < V; j += 1) output[start + j] = sums[j] / divisor;
  }
}

function features(x: Float64Array, attributes: LinearAttentionAttributes): Float64Array {
  const mapped = featureMaps[attributes.feature_map](x);
  return attributes.qk_l2norm ? l2norm(mapped) : mapped;
}

const featureMaps: Record<FeatureMap, (x: Float64Array) => Float64Array> = {
  identity: (x) => x,
  elu1: (x) => x.map((e) => (e > 0 ? e + 1 : Math.exp(e))),
  relu: (x) => x.map((e) => Math.max(e, 0)),
  exp: (x) => x.map((e) => Math.exp(Math.min(e, exp_clamp.value))),
  silu: (x) => x.map((e) => e / (1 + Math.exp(-e))),
  l2norm,
  softmax,
};

function l2norm(x: Float64Array): Float64Array {
  const length = Math.sqrt(x.reduce((sum, e) => sum + e * e, l2norm_eps.value));
  return x.map((e) => e / length);
}

function softmax(x: Float64Array): Float64Array {
  const largest = x.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = x.map((e) => Math.exp(e - largest));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / total);
}

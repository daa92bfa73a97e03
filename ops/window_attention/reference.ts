import { checkCall, outputShape } from '../define.js';
import { type Tensor64, zeros } from '../tensor64.js';
import { Ring, type RingToken } from './ring.js';
import {
  type WindowAttentionAttributeInput,
  type WindowAttentionAttributes,
  windowAttention,
} from './schema.js';

/** Shapes as in the schema; mask holds 0 or 1. */
export interface WindowAttentionInputs {
  readonly query: Tensor64; // [B,T,HQ*K]
  readonly key: Tensor64; // [B,T,HV*K]
  readonly value: Tensor64; // [B,T,HV*V]
  readonly mask?: Tensor64; // [B,T]
  readonly alibi_slopes?: Tensor64; // [HQ]
  readonly distance_bias?: Tensor64; // [HQ,window+1]
  readonly past_window?: Tensor64; // [B,HV,sinks+window+1,K+V]
}

export interface WindowAttentionResult {
  readonly output: Tensor64; // [B,T,HQ*V]
  readonly lse: Tensor64; // [B,T,HQ]
  readonly presentWindow: Tensor64; // [B,HV,sinks+window+1,K+V]
}

/**
 * WindowAttention token by token in float64: the ground truth every backend is tested against.
 * Throws `FlaError` when the call breaks the schema.
 */
export function windowAttentionReference(
  attributes: WindowAttentionAttributeInput,
  inputs: WindowAttentionInputs,
): WindowAttentionResult {
  const specs = Object.entries(inputs as unknown as Record<string, Tensor64 | undefined>).map(
    ([name, tensor]) => [name, tensor && { dtype: 'float32' as const, shape: tensor.shape }],
  );
  const call = checkCall(windowAttention, attributes, Object.fromEntries(specs));
  const { B, T, HQ, HV, K, V } = call.dims;
  const { window, sinks } = call.attributes;
  const output = zeros(outputShape(windowAttention, 'output', call.dims));
  const lse = zeros(outputShape(windowAttention, 'lse', call.dims));
  const presentWindow = zeros(outputShape(windowAttention, 'present_window', call.dims));
  if (inputs.past_window) presentWindow.data.set(inputs.past_window.data);
  lse.data.fill(-Infinity);
  const size = (sinks + window + 1) * (K + V);
  for (let b = 0; b < B; b += 1) {
    for (let g = 0; g < HV; g += 1) {
      const head = presentWindow.data.subarray((b * HV + g) * size, (b * HV + g + 1) * size);
      const ring = new Ring(head, K + V, window, sinks);
      for (let t = 0; t < T; t += 1) {
        const token = b * T + t;
        if (inputs.mask?.data[token] === 0) continue;
        const part = (x: Tensor64, head: number, width: number) => headOf(x, token, head, width);
        ring.push(Float64Array.of(...part(inputs.key, g, K), ...part(inputs.value, g, V)));
        for (let h = (g * HQ) / HV; h < ((g + 1) * HQ) / HV; h += 1) {
          const q = part(inputs.query, h, K);
          const scores = nearScores(ring, q, h, call.attributes, inputs);
          const { sum, total, largest } = weighted(scores, K, V);
          part(output, h, V).set(sum.map((x) => x / total));
          lse.data[token * HQ + h] = largest + Math.log(total);
        }
      }
    }
  }
  return { output, lse, presentWindow };
}

/** Head `head` of token number `token` of a packed [B,T,heads*width] tensor, as a view. */
export function headOf(x: Tensor64, token: number, head: number, width: number): Float64Array {
  const start = token * x.shape[2] + head * width;
  return x.data.subarray(start, start + width);
}

export interface Score {
  readonly token: RingToken;
  /** Logarithm of the weight. */
  readonly score: number;
}

/** s_tj of query head h at the last token of the ring, for every token that it sees exactly. */
export function nearScores(
  ring: Ring,
  q: Float64Array,
  h: number,
  { scale, softcap, window }: Pick<WindowAttentionAttributes, 'scale' | 'softcap' | 'window'>,
  { alibi_slopes, distance_bias }: Pick<WindowAttentionInputs, 'alibi_slopes' | 'distance_bias'>,
  mean?: Float64Array, // [K]
): Score[] {
  const factor = scale || 1 / Math.sqrt(q.length);
  return [...ring.tokens()].map((token) => {
    const product = q.reduce((sum, x, i) => sum + x * (token.row[i] - (mean?.[i] ?? 0)), 0);
    const capped = softcap ? softcap * Math.tanh((product * factor) / softcap) : product * factor;
    const distance = token.index === undefined ? window : ring.count - 1 - token.index;
    const slope = alibi_slopes ? alibi_slopes.data[h] * distance : 0;
    const bias = distance_bias?.data[h * (window + 1) + Math.min(distance, window)] ?? 0;
    return { token, score: capped - slope + bias };
  });
}

/** The sum of values under the weights exp(score - largest), and the sum of those weights. */
export function weighted(scores: readonly Score[], K: number, V: number) {
  const largest = scores.reduce((most, { score }) => Math.max(most, score), -Infinity);
  const sum = new Float64Array(V);
  let total = 0;
  for (const { token, score } of scores) {
    const weight = Math.exp(score - largest);
    total += weight;
    for (let i = 0; i < V; i += 1) sum[i] += weight * token.row[K + i];
  }
  return { sum, total, largest };
}

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type HybridAttentionInputs,
  hybridAttentionReference,
  linearAttentionReference,
  type Tensor64,
  windowAttentionReference,
} from '../../ops/index.js';
import { maxAbsError, Random, sliceTokens } from '../cases/tensors.js';
import {
  type RandomHybridCall,
  randomHybridCalls,
  tokensOf,
  windowCallOf,
} from '../support/hybrid_calls.js';
import { denseHybrid } from './dense.js';

const calls = randomHybridCalls({ B: 2, T: 24, size: 5, window: 7 });

const holds = (
  property: (call: RandomHybridCall) => void,
  arbitrary: fc.Arbitrary<RandomHybridCall> = calls,
) => fc.assert(fc.property(arbitrary, property), { numRuns: 200, seed: 20264 });

const run = ({ attributes, inputs }: Pick<RandomHybridCall, 'attributes' | 'inputs'>) =>
  hybridAttentionReference(attributes, inputs);

function expectSame(actual: Tensor64, expected: Tensor64, limit = 1e-10): void {
  expect(actual.shape).toEqual(expected.shape);
  expect(maxAbsError(actual.data, expected.data)).toBeLessThanOrEqual(limit);
}

const filled = (shape: number[], value: number): Tensor64 => ({
  shape,
  data: new Float64Array(shape.reduce((a, b) => a * b, 1)).fill(value),
});

describe('the HybridAttention reference', () => {
  it('is a weighted mean with near and far weights', () => {
    holds((call) => {
      const { output } = denseHybrid(call.attributes, call.inputs, call.sizes);
      expectSame(run(call).output, output);
    });
  });

  it('gives the same in two parts as in one', () => {
    const split = fc
      .tuple(calls, fc.nat())
      .map(([call, n]) => ({ call, at: n % (call.sizes.T + 1) }));
    fc.assert(
      fc.property(split, ({ call, at }) => {
        const { T } = call.sizes;
        const whole = run(call);
        const first = run({ ...call, inputs: tokensOf(call.inputs, 0, at) });
        const second = run({
          ...call,
          inputs: {
            ...tokensOf(call.inputs, at, T),
            past_window: first.presentWindow,
            past_state: first.presentState,
          },
        });
        expectSame(second.presentWindow, whole.presentWindow, 0);
        expectSame(second.presentState, whole.presentState, 0);
        expectSame(first.output, sliceTokens(whole.output, 0, at), 0);
        expectSame(second.output, sliceTokens(whole.output, at, T), 0);
      }),
      { numRuns: 200, seed: 20264 },
    );
  });

  it('without a far part is WindowAttention', () => {
    holds((call) => {
      const { key_mean: _, ...inputs } = call.inputs;
      const { HQ } = call.sizes;
      const actual = run({
        attributes: { ...call.attributes, cache: 0 },
        inputs: { ...inputs, alpha: filled([HQ], -Infinity) },
      });
      const window = windowCallOf(call);
      expectSame(actual.output, windowAttentionReference(window.attributes, window.inputs).output);
    });
  });

  it('is WindowAttention merged with LinearAttention on keys that come a window later', () => {
    holds(
      (call) => {
        const { B, T, HQ, V } = call.sizes;
        const window = windowCallOf(call);
        const near = windowAttentionReference(window.attributes, window.inputs);
        const far = delayedLinearAttention(call);
        const actual = run(call);
        const merged = filled([B, T, HQ * V], 0);
        for (let i = 0; i < B * T * HQ; i += 1) {
          const weight = Math.exp(near.lse.data[i]);
          const factor = Math.exp(call.inputs.alpha!.data[i % HQ]);
          const total = weight + factor * far.data[i * (V + 1) + V];
          for (let j = 0; j < V; j += 1) {
            const sum = weight * near.output.data[i * V + j] + factor * far.data[i * (V + 1) + j];
            merged.data[i * V + j] = sum / total;
          }
        }
        expectSame(actual.output, merged);
      },
      calls.filter(
        ({ attributes, inputs }) =>
          attributes.cache === 0 &&
          attributes.signs === 1 &&
          attributes.feature_map === 'elu1' &&
          !inputs.mask &&
          !inputs.key_mean &&
          !inputs.query_weight &&
          !inputs.query_bias,
      ),
    );
  });

  it('with a cache for everything is softmax attention', () => {
    holds((call) => {
      const { decay: _, alibi_slopes: __, distance_bias: ___, ...inputs } = call.inputs;
      const { T } = call.sizes;
      const all = run({ attributes: { ...call.attributes, cache: T }, inputs });
      const longest = { ...call.attributes, window: T + 1, cache: 0 };
      expectSame(all.output, run({ attributes: longest, inputs }).output);
      expect(all.presentState.data.every((x) => x === 0)).toBe(true);
    });
  });

  describe('on keys from a small vocabulary, whose softmax kernel features can express,', () => {
    // Keys are unit vectors, so exp(q' k) = sum_i exp(q_i) k_i. phi(q) = exp(q + b) picks exp(q_i), phi(k) = exp(100 k - 100) = k.
    const [T, K, V, HQ] = [300, 6, 5, 2];
    const random = new Random('one-hot');
    const tokens = (width: number) => random.tensor([1, T, width], () => random.normal());
    const keys = filled([1, T, HQ * K], 0);
    for (let i = 0; i < T * HQ; i += 1) {
      keys.data[i * K + Math.floor(K * random.uniform())] = 1;
    }
    const inputs = { query: tokens(HQ * K), key: keys, value: tokens(HQ * V) };
    const diagonal = (value: number) => {
      const x = filled([HQ, K, K], 0);
      for (let h = 0; h < HQ; h += 1) {
        for (let i = 0; i < K; i += 1) x.data[(h * K + i) * K + i] = value;
      }
      return x;
    };
    const exact: Partial<HybridAttentionInputs> = {
      query_weight: diagonal(1),
      key_weight: diagonal(100),
      query_bias: filled([HQ, K], 0),
      key_bias: filled([HQ, K], -100),
    };
    const attributes = {
      ...{ q_num_heads: HQ, kv_num_heads: HQ, window: 128, sinks: 2, scale: 1 },
      ...({ feature_map: 'exp', signs: 1 } as const),
    };

    /** Causal softmax attention with a bias by distance. */
    function softmax(bias: (head: number, distance: number) => number): Tensor64 {
      const all = { ...attributes, window: T };
      const distance_bias = {
        shape: [HQ, T + 1],
        data: Float64Array.from({ length: HQ * (T + 1) }, (_, i) =>
          bias(Math.floor(i / (T + 1)), i % (T + 1)),
        ),
      };
      const { scale, window, sinks, q_num_heads, kv_num_heads } = all;
      return windowAttentionReference(
        { scale, window, sinks, q_num_heads, kv_num_heads },
        { ...inputs, distance_bias },
      ).output;
    }

    it('it is softmax attention', () => {
      const actual = hybridAttentionReference(attributes, { ...inputs, ...exact });
      expectSame(
        actual.output,
        softmax(() => 0),
      );
    });

    it('it is softmax attention with ALiBi', () => {
      const slopes = [0.02, 0.3];
      const of = (values: number[]) => ({ shape: [HQ], data: Float64Array.from(values) });
      const actual = hybridAttentionReference(attributes, {
        ...inputs,
        ...exact,
        alibi_slopes: of(slopes),
        decay: of(slopes.map((s) => -s)),
        alpha: of(slopes.map((s) => -s * attributes.window)),
      });
      expectSame(
        actual.output,
        softmax((h, d) => -slopes[h] * d),
      );
    });

    it('it is softmax attention with the bias of a T5 decoder', () => {
      const last = [1.5, -2];
      // Buckets of four distances, all from 100 on in one.
      const bias = (h: number, d: number) => (d >= 100 ? last[h] : Math.sin(h + Math.floor(d / 4)));
      const size = attributes.window + 1;
      const actual = hybridAttentionReference(attributes, {
        ...inputs,
        ...exact,
        distance_bias: {
          shape: [HQ, size],
          data: Float64Array.from({ length: HQ * size }, (_, i) =>
            bias(Math.floor(i / size), i % size),
          ),
        },
        alpha: { shape: [HQ], data: Float64Array.from(last) },
      });
      expectSame(actual.output, softmax(bias));
    });

    it('a mean of the keys and what it does to the far part cancel', () => {
      const mean = random.tensor([HQ, K], () => random.normal());
      // q' (k - mean): the far weights must lose q' mean as well, which the bias of keys cannot do, but weights of queries can.
      const weight = diagonal(1);
      for (let h = 0; h < HQ; h += 1) {
        for (let d = 0; d < K; d += 1) {
          for (let i = 0; i < K; i += 1) {
            weight.data[(h * K + d) * K + i] -= mean.data[h * K + d];
          }
        }
      }
      const actual = hybridAttentionReference(attributes, {
        ...inputs,
        ...exact,
        query_weight: weight,
        key_mean: mean,
      });
      expectSame(
        actual.output,
        softmax(() => 0),
      );
    });
  });

  it('takes any alpha without overflow, and none of it while nothing is far', () => {
    const random = new Random('alpha');
    const tokens = () => random.tensor([1, 12, 8], () => random.normal());
    const inputs = { query: tokens(), key: tokens(), value: tokens() };
    const attributes = { q_num_heads: 1, kv_num_heads: 1, window: 8 };
    const at = (alpha: number) =>
      hybridAttentionReference(attributes, { ...inputs, alpha: filled([1], alpha) }).output;
    for (const alpha of [-1e6, -800, 800, 1e6]) {
      expectSame(sliceTokens(at(alpha), 0, 8), sliceTokens(at(0), 0, 8));
      expect(at(alpha).data.every(Number.isFinite)).toBe(true);
    }
    expectSame(at(800), at(1e6));
    expect(maxAbsError(at(800).data, at(0).data)).toBeGreaterThan(0.01);
  });
});

/** S' phi(q), normalizer last, by LinearAttention: [B,T,HQ*(V+1)]. For elu1 features without weights, of query and key or given. */
function delayedLinearAttention({ attributes, inputs, sizes }: RandomHybridCall): Tensor64 {
  const { B, T, HQ, HV, V } = sizes;
  const { window, sinks = 0 } = attributes;
  const { query_features = inputs.query, key_features = inputs.key, value, decay } = inputs;
  const D = key_features.shape[2] / HV;
  // Of a token that is not there, the value and the 1 beside it are 0: its features do not matter.
  const key = filled([B, T, HV * D], 0);
  const values = filled([B, T, HV * (V + 1)], 0);
  for (let b = 0; b < B; b += 1) {
    for (let t = window + sinks; t < T; t += 1) {
      const [to, from] = [b * T + t, b * T + t - window];
      key.data.set(key_features.data.subarray(from * HV * D, (from + 1) * HV * D), to * HV * D);
      for (let g = 0; g < HV; g += 1) {
        const at = (to * HV + g) * (V + 1);
        values.data.set(value.data.subarray((from * HV + g) * V, (from * HV + g + 1) * V), at);
        values.data[at + V] = 1;
      }
    }
  }
  const gates = decay && {
    shape: [B, T, HV],
    data: Float64Array.from({ length: B * T * HV }, (_, i) => decay.data[i % HV]),
  };
  return linearAttentionReference(
    {
      ...{ q_num_heads: HQ, kv_num_heads: HV, scale: 1, feature_map: 'elu1' as const },
      update_rule: gates ? 'gated' : 'linear',
    },
    { query: query_features, key, value: values, ...(gates && { decay: gates }) },
  ).output;
}

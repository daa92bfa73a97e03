/** Random calls of WindowAttention and HybridAttention for property tests. */
import fc from 'fast-check';
import type {
  HybridAttentionAttributeInput,
  HybridAttentionInputs,
  Tensor64,
  WindowAttentionAttributeInput,
  WindowAttentionInputs,
} from '../../ops/index.js';
import { Random, sliceTokens } from '../cases/tensors.js';

/** A call that is legal, without a state, and its sizes. */
export interface RandomHybridCall {
  attributes: HybridAttentionAttributeInput;
  inputs: HybridAttentionInputs;
  sizes: { B: number; T: number; HQ: number; HV: number; K: number; V: number };
}

/** Any call up to the given sizes. Weights of the far part are positive, and not so small that nothing is left of them. */
export const randomHybridCalls = (most: {
  B: number;
  T: number;
  size: number;
  window: number;
}): fc.Arbitrary<RandomHybridCall> =>
  fc
    .record({
      B: fc.integer({ min: 1, max: most.B }),
      T: fc.integer({ min: 0, max: most.T }),
      heads: fc.constantFrom([1, 1], [2, 2], [4, 2], [3, 1]),
      K: fc.integer({ min: 2, max: most.size }),
      V: fc.integer({ min: 2, max: most.size }),
      D: fc.integer({ min: 1, max: most.size }),
      M: fc.integer({ min: 1, max: most.size }),
      window: fc.integer({ min: 1, max: most.window }),
      sinks: fc.integer({ min: 0, max: 6 }),
      cache: fc.constantFrom(0, 0, 1, 5),
      softcap: fc.constantFrom(0, 3),
      feature_map: fc.constantFrom('elu1' as const, 'exp' as const, 'softmax' as const),
      signs: fc.constantFrom(1 as const, 2 as const),
      has: fc.record({
        features: fc.boolean(),
        weights: fc.boolean(),
        biases: fc.boolean(),
        mean: fc.boolean(),
        slopes: fc.boolean(),
        bias: fc.boolean(),
        decay: fc.boolean(),
        mask: fc.boolean(),
      }),
      seed: fc.nat(),
    })
    .map(({ B, T, heads: [HQ, HV], K, V, window, sinks, cache, has, seed, ...rest }) => {
      const { softcap, feature_map, signs } = rest;
      const random = new Random(`${seed}`);
      const tensor = (shape: number[], draw = () => random.normal()) => random.tensor(shape, draw);
      const D = has.features ? rest.D : K;
      const M = has.weights ? rest.M : D;
      const weight = () => random.normal() / Math.sqrt(D);
      return {
        sizes: { B, T, HQ, HV, K, V },
        attributes: {
          ...{ q_num_heads: HQ, kv_num_heads: HV, window, sinks, cache, softcap },
          ...{ feature_map, signs },
        },
        inputs: {
          query: tensor([B, T, HQ * K]),
          key: tensor([B, T, HV * K]),
          value: tensor([B, T, HV * V]),
          ...(has.features && {
            query_features: tensor([B, T, HQ * D]),
            key_features: tensor([B, T, HV * D]),
          }),
          ...(has.mask && { mask: tensor([B, T], () => Number(random.uniform() < 0.6)) }),
          ...(has.weights && {
            query_weight: tensor([HQ, D, M], weight),
            key_weight: tensor([HV, D, M], weight),
          }),
          ...(has.biases && {
            query_bias: tensor([HQ, M * signs]),
            key_bias: tensor([HV, M * signs]),
          }),
          alpha: tensor([HQ]),
          ...(has.mean && { key_mean: tensor([HV, K]) }),
          ...(has.slopes && cache === 0 && { alibi_slopes: tensor([HQ], () => random.uniform()) }),
          ...(has.bias && { distance_bias: tensor([HQ, window + 1]) }),
          ...(has.decay && cache === 0 && { decay: tensor([HV], () => -random.uniform()) }),
        },
      };
    });

/** The near part of such a call by itself. */
export function windowCallOf({ attributes, inputs }: RandomHybridCall): {
  attributes: WindowAttentionAttributeInput;
  inputs: WindowAttentionInputs;
} {
  const { q_num_heads, kv_num_heads, window, sinks, scale, softcap } = attributes;
  const { query, key, value, mask, alibi_slopes, distance_bias } = inputs;
  return {
    attributes: { q_num_heads, kv_num_heads, window, sinks, scale, softcap },
    inputs: { query, key, value, mask, alibi_slopes, distance_bias },
  };
}

const TOKENS = ['query', 'key', 'value', 'query_features', 'key_features', 'mask'];

/** Tokens from..to of every input that has tokens; the others as they are. */
export function tokensOf<Inputs extends object>(inputs: Inputs, from: number, to: number): Inputs {
  const parts = Object.entries(inputs as Record<string, Tensor64 | undefined>).map(([name, x]) => [
    name,
    x && TOKENS.includes(name) ? sliceTokens(x, from, to) : x,
  ]);
  return Object.fromEntries(parts) as Inputs;
}

/** The inputs that are given. */
export function given(inputs: object): Record<string, Tensor64> {
  return Object.fromEntries(Object.entries(inputs).filter(([, x]) => x !== undefined));
}

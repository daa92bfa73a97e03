/** Random calls of LinearAttention for property tests. */
import fc from 'fast-check';
import type { LinearAttentionAttributeInput, LinearAttentionInputs } from '../../ops/index.js';
import { Random } from '../cases/tensors.js';

const ruleNames = ['linear', 'gated', 'delta', 'gated_delta'] as const;
const features = ['identity', 'elu1', 'relu', 'exp', 'silu', 'l2norm', 'softmax'] as const;

/** A call that is legal, and its sizes. */
export interface RandomCall {
  attributes: LinearAttentionAttributeInput;
  inputs: LinearAttentionInputs;
  B: number;
  T: number;
  HQ: number;
  HV: number;
  K: number;
  V: number;
}

/** Any causal call with a state, up to the given sizes: every rule, grouping, decay and beta kind, feature map. */
export const randomCalls = (most: {
  B: number;
  T: number;
  K: number;
  V: number;
}): fc.Arbitrary<RandomCall> =>
  fc
    .record({
      B: fc.integer({ min: 1, max: most.B }),
      T: fc.integer({ min: 0, max: most.T }),
      heads: fc.constantFrom(
        [1, 1, 1],
        [2, 2, 2],
        [4, 2, 2],
        [4, 2, 1],
        [2, 4, 2],
        [1, 3, 1],
        [2, 4, 4],
      ),
      K: fc.integer({ min: 1, max: most.K }),
      V: fc.integer({ min: 1, max: most.V }),
      rule: fc.constantFrom(...ruleNames),
      perKey: fc.boolean(),
      sharedBeta: fc.boolean(),
      normalize: fc.constantFrom(0 as const, 1 as const),
      feature: fc.constantFrom(...features),
      read: fc.constantFrom('after' as const, 'before' as const),
      masked: fc.boolean(),
      seed: fc.nat(),
    })
    .map(({ B, T, heads: [HQ, HV, HK], K, V, rule, normalize, ...rest }) => {
      const random = new Random(`${rest.seed}`);
      const tensor = (shape: number[], draw = () => random.normal() / 2) =>
        random.tensor(shape, draw);
      const isPositive = normalize === 1;
      return {
        ...{ B, T, HQ, HV, K, V },
        attributes: {
          q_num_heads: HQ,
          kv_num_heads: HV,
          update_rule: rule,
          normalize,
          // Weights must be positive for their sum to be a divisor, and keys short for a delta rule to contract.
          feature_map: isPositive ? 'softmax' : rest.feature,
          qk_l2norm: 1 as const,
          read: rest.read,
        },
        inputs: {
          query: tensor([B, T, HQ * K]),
          key: tensor([B, T, HK * K]),
          value: tensor([B, T, HV * V]),
          past_state: tensor([B, HV, K, V + normalize], () => 1 + random.uniform()),
          ...(rule.startsWith('gated') && {
            decay: tensor([B, T, rest.perKey ? HV * K : HV], () => -3 * random.uniform()),
          }),
          ...(rule.endsWith('delta') && {
            beta: tensor([B, T, rest.sharedBeta ? 1 : HV], () => random.uniform()),
          }),
          ...(rest.masked && { mask: tensor([B, T], () => Number(random.uniform() < 0.6)) }),
        },
      };
    });

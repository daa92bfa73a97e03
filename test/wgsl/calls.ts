/** LinearAttention calls drawn from a few choices, for what the shared cases do not reach: odd lengths, large sizes, long sequences. */
import type { LinearAttentionInputs } from '../../ops/linear_attention/reference.js';
import type { LinearAttentionAttributeInput } from '../../ops/linear_attention/schema.js';
import { type CaseTypes, roundedTo } from '../cases/linear_attention.js';
import { Random } from '../cases/tensors.js';

export interface Draw {
  readonly rule: 'linear' | 'gated' | 'delta' | 'gated_delta';
  readonly B?: number;
  readonly T: number;
  readonly HQ?: number;
  readonly HK?: number;
  readonly HV?: number;
  readonly K: number;
  readonly V: number;
  /** Of the gated rules. */
  readonly decay?: 'head' | 'key';
  readonly beta?: 'head' | 'shared';
  readonly state?: boolean;
  readonly mask?: boolean;
  readonly attributes?: Partial<LinearAttentionAttributeInput>;
}

export interface DrawnCall {
  readonly attributes: LinearAttentionAttributeInput;
  readonly inputs: LinearAttentionInputs;
}

/** The call with random tensors, rounded to `types`. */
export function draw(call: Draw, types: CaseTypes): DrawnCall {
  const { rule, B = 1, T, HQ = 1, K, V, decay = 'head', beta = 'head', state, mask } = call;
  const HV = call.HV ?? HQ;
  const HK = call.HK ?? HV;
  const normalize = call.attributes?.normalize ?? 0;
  const random = new Random(JSON.stringify(call));
  const normal = () => random.normal();
  const inputs: LinearAttentionInputs = {
    query: random.tensor([B, T, HQ * K], normal),
    key: random.tensor([B, T, HK * K], () => random.normal() / Math.sqrt(K)),
    value: random.tensor([B, T, HV * V], normal),
    ...(state && {
      past_state: random.tensor([B, HV, K, V + normalize], (i) =>
        normalize && i % (V + 1) === V ? 1 + random.uniform() : random.normal(),
      ),
    }),
    ...(rule.startsWith('gated') && {
      decay: random.tensor([B, T, decay === 'key' ? HV * K : HV], () => -0.3 * random.uniform()),
    }),
    ...(rule.endsWith('delta') && {
      beta: random.tensor([B, T, beta === 'shared' ? 1 : HV], () => random.uniform()),
    }),
    ...(mask && { mask: random.tensor([B, T], () => Number(random.uniform() < 0.7)) }),
    ...(call.attributes?.read === 'bonus' && { bonus: random.tensor([HV * K], normal) }),
  };
  const attributes = { q_num_heads: HQ, kv_num_heads: HV, update_rule: rule, ...call.attributes };
  return { attributes, inputs: roundedTo(inputs, types) };
}

import {
  type LinearAttentionInputs,
  linearAttention,
  linearAttentionReference,
} from '../../../ops/index.js';
import { Random, relativeError, rounded } from '../../cases/tensors.js';
import { type KernelCall, openCall, runIn } from '../../support/kernels.js';

const rules = ['linear', 'gated', 'delta', 'gated_delta'] as const;

/** A call large enough to be cut up for several threads; rule and sizes follow from `seed`. */
export function attentionCall(seed: number): KernelCall {
  const random = new Random(`attention ${seed}`);
  const [H, T, K, V] = [
    1 + (seed % 3),
    150 + ((seed * 37) % 200),
    32 + (seed % 5),
    48 + (seed % 7),
  ];
  const update_rule = rules[seed % 4]!;
  const tensor = (shape: number[], draw = () => random.normal() / Math.sqrt(K)) =>
    rounded(random.tensor(shape, draw), 'float32');
  const inputs = {
    query: tensor([1, T, H * K]),
    key: tensor([1, T, H * K]),
    value: tensor([1, T, H * V]),
    past_state: tensor([1, H, K, V]),
    ...(update_rule.startsWith('gated') && { decay: tensor([1, T, H], () => -random.uniform()) }),
    ...(update_rule.endsWith('delta') && { beta: tensor([1, T, H], () => random.uniform()) }),
  };
  const names = Object.keys(inputs);
  return {
    op: linearAttention,
    attributes: { q_num_heads: H, kv_num_heads: H, update_rule },
    inputs,
    dtypes: Object.fromEntries(names.map((name) => [name, 'float32' as const])),
  };
}

/** Relative errors of the outputs of two calls that run at the same time in one session. */
export async function errorsOf(seed: number): Promise<number[]> {
  const call = attentionCall(seed);
  const expected = linearAttentionReference(
    call.attributes as never,
    call.inputs as unknown as LinearAttentionInputs,
  );
  const session = await openCall(call, { threads: 1 + (seed % 4) });
  const results = await Promise.all([runIn(session, call), runIn(session, call)]);
  session.dispose();
  return results.flatMap(({ output, present_state }) => [
    relativeError(output!.data, expected.output.data),
    relativeError(present_state!.data, expected.presentState.data),
  ]);
}

import type { BodyEmitter } from '../function/emitter.js';
import type { LinearAttentionCall } from './function.js';
import { finish, prepare } from './function_features.js';

/** Why com.microsoft.LinearAttention cannot express the call, or undefined when it can. */
export function microsoftMiss({ attributes }: LinearAttentionCall): string | undefined {
  if (!attributes.causal) return 'it has no causal=0';
  if (attributes.read !== 'after') return `it has no read=${attributes.read}`;
  return undefined;
}

/**
 * One com.microsoft.LinearAttention node, with feature maps, mask and normalizer around it.
 *
 * The node runs in float32 whatever the call's types are: its 16-bit kernels round more than our definition allows, and there is
 * none for bfloat16.
 */
export function microsoftBody(e: BodyEmitter, call: LinearAttentionCall): void {
  const { q_num_heads, kv_num_heads, update_rule, chunk_size, normalize } = call.attributes;
  const { q, k, v, decay, beta, K, HK, W } = prepare(e, call);
  const pack = (x: string, heads: number | string, size: string) =>
    e.reshape(x, [0, 0, e.mul(typeof heads === 'number' ? e.ints(heads) : heads, size)]);
  const past = call.present.past_state ? e.cast('past_state', 'float32') : '';
  const inputs = [
    pack(q, q_num_heads, K),
    pack(k, HK, K),
    pack(v, kv_num_heads, W),
    past,
    decay ?? '',
    beta ?? '',
  ];
  const [o, state] = e.ops(
    'LinearAttention',
    inputs,
    2,
    {
      q_num_heads,
      kv_num_heads,
      update_rule,
      chunk_size,
      scale: { float: call.attributes.scale },
    },
    { domain: 'com.microsoft' },
  );
  e.cast(state, call.stateDtype, 'present_state');
  if (!normalize) return void e.cast(o, call.dtype, 'output');
  finish(e, call, e.reshape(o, [0, 0, Math.max(q_num_heads, kv_num_heads), W]));
}

import type { Node } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import type { Cache } from '../match/sdpa.js';

/** Caches of fixed length that an Attention of opset 24 reads, and the keys and values that were written into them before. */
export interface ScatteredCache {
  readonly cache: Cache;
  /** Keys and values of the new tokens. */
  readonly updates: readonly [string, string];
}

/**
 * The caches behind an Attention of opset 24 that is told how much of them is filled:
 *
 *     present_key = TensorScatter(past_key, new_keys, write_indices)     (and so for values)
 *     Y = Attention(Q, present_key, present_value, , , , nonpad_kv_seqlen), is_causal = 1
 *
 * Query i of T sees key j when j <= i + nonpad_kv_seqlen - T: the new tokens are the last ones of what is filled.
 *
 * @returns undefined without nonpad_kv_seqlen, a reason when the caches are not understood
 */
export function scatteredCache(node: Node, facts: Facts): ScatteredCache | string | undefined {
  if (!node.inputs[6]) return undefined;
  if (node.inputs[3]) return 'nonpad_kv_seqlen beside attn_mask is not understood';
  if (node.int('is_causal') !== 1) {
    return 'nonpad_kv_seqlen needs is_causal 1, received 0: new tokens would see one another both ways';
  }
  const [key, value] = [1, 2].map((i) => scatterOf(node, i, facts));
  if (typeof key === 'string' || typeof value === 'string') {
    return typeof key === 'string' ? key : (value as string);
  }
  const [at, other] = [key!, value!].map((n) => n.inputs[2] ?? '');
  if (at !== other) {
    return `keys and values must be written at the same places, received '${at}' and '${other}'`;
  }
  const pastOf = (n: Node) => n.inputs[0]!;
  return {
    cache: {
      pastKey: pastOf(key!),
      pastValue: pastOf(value!),
      presentKey: key!.outputs[0]!,
      presentValue: value!.outputs[0]!,
    },
    updates: [key!.inputs[1]!, value!.inputs[1]!],
  };
}

/** The TensorScatter that input `i` of an Attention comes from, or why it cannot be one. */
function scatterOf(node: Node, i: number, facts: Facts): Node | string {
  const present = node.inputs[i]!;
  const scatter = facts.graph.producer(present);
  if (!scatter?.is('TensorScatter')) {
    return `nonpad_kv_seqlen: '${present}' must be a cache that TensorScatter writes, received ${scatter?.opType ?? 'none'}`;
  }
  const mode = scatter.string('mode') ?? 'linear';
  if (mode !== 'linear') return `a cache must be written linearly, received mode ${mode}`;
  const rank = facts.rank(present);
  const axis = scatter.int('axis') ?? -2;
  if (rank !== undefined && axis !== -2 && axis !== rank - 2) {
    return `a cache must be written along its tokens, axis ${rank - 2}, received ${axis}`;
  }
  const [past] = scatter.inputs;
  if (!facts.graph.isInput(past!)) return `cache '${past}' must be a graph input`;
  const others = facts.graph
    .uses(present)
    .filter((use) => use.node !== node && !use.node.is('Shape'));
  if (others[0]) {
    return `cache '${present}' is also read by ${others[0].node.opType} '${others[0].node.name}'`;
  }
  return scatter;
}

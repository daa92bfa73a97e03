import type { Node } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import { headMismatch, headsOf, shown } from '../match/heads.js';
import { type Rule, unsupported } from '../match/rule.js';
import type { Heads, Presents, RuleResult } from '../match/sdpa.js';
import { crossAttention } from '../match/sources.js';
import {
  cacheOf,
  type FusedInputs,
  fusedMasks,
  fusedSite,
  refusedSharing,
  usedOutput,
} from './fused.js';

/** Which input is which, after query, key and value. */
interface Inputs extends FusedInputs {
  readonly bias: number;
  readonly filled: number;
}

/**
 * com.microsoft.MultiHeadAttention:
 *
 *     output, present_key, present_value, qk = MultiHeadAttention(
 *         query, key, value, bias, key_padding_mask, attention_bias, past_key, past_value, past_sequence_length,
 *         cache_indirection)
 *
 * with query, key, value as [B,T,H*D]; or packed QKV as query [B,T,H,3,D]; or packed KV as key [B,T,H,2,D]; or keys and
 * values as [B,H,T,D]. With past_sequence_length the cache is a buffer [B,H,L,D], past and present in one.
 */
export const multiHeadAttention = multiHeadRule('com.microsoft.MultiHeadAttention', {
  bias: 3,
  mask: 4,
  added: 5,
  past: 6,
  filled: 8,
  indirection: 9,
  crosses: true,
});

/**
 * The same of one token after others, in decoders:
 *
 *     output, present_key, present_value, qk = DecoderMaskedMultiHeadAttention(
 *         query, key, value, mask_index, attention_bias, past_key, past_value, past_sequence_length, beam_width,
 *         cache_indirection, bias)
 */
export const decoderMaskedMultiHeadAttention = multiHeadRule(
  'com.microsoft.DecoderMaskedMultiHeadAttention',
  { bias: 10, mask: 3, added: 4, past: 5, filled: 7, beamWidth: 8, indirection: 9, crosses: true },
);

function multiHeadRule(name: string, at: Inputs): Rule {
  return {
    name,
    anchors: (node) => `${node.domain}.${node.opType}` === name,
    match(node, facts): RuleResult {
      const scores = node.outputs[3];
      if (usedOutput(node, 3, facts)) return unsupported(`its scores '${scores}' (qk) are used`);
      const refused = refusedSharing(node, at, facts);
      if (refused) return unsupported(refused);
      const inputs = headsOfInputs(node, at, facts);
      if (typeof inputs === 'string') return unsupported(inputs);
      const { q, k, v } = inputs;
      const presents = presentsOf(node, at, facts);
      const past = [at.past, at.past + 1] as const;
      const bare = presents ? undefined : cacheOf(node, { past, present: [1, 2] }, facts);
      const partial = { q_num_heads: q.heads, kv_num_heads: v.heads, head_dim: q.dim };
      if (typeof bare === 'string') return unsupported(bare, partial);
      const filled = node.inputs[at.filled];
      const cache = bare && filled ? { ...bare, filled } : bare;
      const wrong = headMismatch(q, k, v) ?? crossAttention(q, k, v, facts);
      if (wrong) return unsupported(wrong, { ...partial, cache: cache !== undefined });
      const padding = at.mask === 3 ? 'mask_index' : 'key_padding_mask';
      const masks = fusedMasks(node, at, facts, padding);
      if (typeof masks === 'string') return unsupported(masks, partial);
      return fusedSite(node, facts, { rule: name, q, k, v, masks, cache, presents });
    },
  };
}

/** Keys and values that the first call of a decoder gives out; the cache of nodes for one token is a buffer. */
function presentsOf(node: Node, { past, beamWidth }: Inputs, facts: Facts): Presents | undefined {
  const [key, value] = [1, 2].map((i) => (usedOutput(node, i, facts) ? node.outputs[i]! : ''));
  const bare =
    !node.inputs[past] && !node.inputs[past + 1] && node.int('past_present_share_buffer') !== 1;
  if (!bare || beamWidth !== undefined || (!key && !value)) return undefined;
  return { key: key!, value: value! };
}

function headsOfInputs(
  node: Node,
  at: Inputs,
  facts: Facts,
): { q: Heads; k: Heads; v: Heads } | string {
  const heads = node.int('num_heads') ?? 0;
  const [query, key, value, bias] = [0, 1, 2, at.bias].map((i) => node.inputs[i] || undefined);
  const dims = [query, key, value].map((x) => (x ? facts.dims(x) : undefined));
  const received = () => dims.map((d) => `[${shown(d)}]`).join(', ');
  const last = (d: (typeof dims)[number]) =>
    typeof d?.at(-1) === 'number' ? (d.at(-1) as number) : 0;
  const packed = (x: string, width: number): Heads => ({
    value: x,
    layout: 'packed',
    heads,
    dim: width / heads,
  });
  const stacked = (x: string, index: number, dim: number): Heads => ({
    value: x,
    layout: 'stacked',
    axis: 3,
    index,
    heads,
    dim,
  });
  const fits = (width: number) => width > 0 && heads > 0 && width % heads === 0;
  let found: (Heads | undefined)[];
  if (dims[0]?.length === 5 && query && last(dims[0])) {
    found = [0, 1, 2].map((i) => stacked(query, i, last(dims[0])));
  } else if (dims[0]?.length === 3 && query && fits(last(dims[0]))) {
    const q = packed(query, last(dims[0]));
    if (dims[1]?.length === 5 && key) {
      found = [q, stacked(key, 0, q.dim), stacked(key, 1, q.dim)];
    } else if (dims[1]?.length === 4 && key && value) {
      found = [q, headsOf(key, 'bhtd', facts), headsOf(value, 'bhtd', facts)];
    } else {
      const rest = [1, 2].map((i) => {
        const x = [query, key, value][i];
        return x && dims[i]?.length === 3 && fits(last(dims[i]))
          ? packed(x, last(dims[i]))
          : undefined;
      });
      found = [q, ...rest];
    }
  } else {
    found = [];
  }
  const [q, k, v] = found;
  if (!q || !k || !v) {
    for (const x of [query, key, value]) if (x) facts.wanted.add(x);
    return `query, key, value must have known widths that num_heads=${heads} divides, received ${received()}`;
  }
  return bias ? withBias(q, k, v, bias) : { q, k, v };
}

/** The bias vector holds the parts for query, key and value one after the other. */
function withBias(
  q: Heads,
  k: Heads,
  v: Heads,
  value: string,
): { q: Heads; k: Heads; v: Heads } | string {
  if (k.layout === 'bhtd') return 'a bias on keys and values [B,H,T,D] is not understood';
  const width = q.heads * q.dim;
  return {
    q: { ...q, bias: { value, from: 0 } },
    k: { ...k, bias: { value, from: width } },
    v: { ...v, bias: { value, from: 2 * width } },
  };
}

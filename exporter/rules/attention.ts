import { dtypeName, type Node } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import { headMismatch, headsOf, shown, siteOutput } from '../match/heads.js';
import { type Rule, unsupported } from '../match/rule.js';
import type { Cache, Heads, MaskStep, RuleResult, Sdpa } from '../match/sdpa.js';
import { crossAttention } from '../match/sources.js';
import { type KeysAndValues, keysAndValues } from './decomposed_keys.js';
import { cacheOf, lowest, usedOutput } from './fused.js';
import { scatteredCache } from './scattered_cache.js';

/**
 * ai.onnx Attention, opsets 23 and 24:
 *
 *     Y, present_key, present_value, qk = Attention(Q, K, V, attn_mask, past_key, past_value, nonpad_kv_seqlen)
 *
 * with Q, K, V as [B,T,H*D] and the head counts as attributes, or as [B,H,T,D]. With nonpad_kv_seqlen, K and V are caches into
 * which TensorScatter has written the new tokens (see `scattered_cache.ts`).
 */
export const attention: Rule = {
  name: 'ai.onnx.Attention',
  anchors: (node) => node.is('Attention'),
  match(node, facts): RuleResult {
    const refused = refusedFeature(node, facts);
    if (refused) return unsupported(refused);
    const written = scatteredCache(node, facts);
    if (typeof written === 'string') return unsupported(written);
    const sources = [node.inputs[0]!, ...(written?.updates ?? node.inputs.slice(1, 3))];
    const [q, key, value] = sources.map((value, i) => headsAt(node, i, value, facts));
    if (!q || !key || !value) {
      for (const value of sources) if (value) facts.wanted.add(value);
      const shapes = sources.map((value) => `[${shown(facts.dims(value))}]`);
      return unsupported(
        `Q, K, V must have known heads and head dims, received ${shapes.join(', ')}`,
      );
    }
    const kv = written ? { k: key, v: value } : withoutRepeats(node, key, value, facts);
    if ('reason' in kv) return unsupported(kv.reason, { q_num_heads: q.heads, head_dim: q.dim });
    const { k, v } = kv;
    const partial = { q_num_heads: q.heads, kv_num_heads: v.heads, head_dim: q.dim };
    const own = written?.cache ?? cacheOf(node, { past: [4, 5], present: [1, 2] }, facts);
    if (typeof own === 'string') return unsupported(own, partial);
    if (own && kv.cache) return unsupported('keys have two caches', partial);
    const cache = own ?? kv.cache;
    const wrong = headMismatch(q, k, v) ?? crossAttention(q, k, v, facts);
    if (wrong) return unsupported(wrong, { ...partial, cache: cache !== undefined });
    return describe(node, q, k, v, cache, facts);
  },
};

function describe(
  node: Node,
  q: Heads,
  k: Heads,
  v: Heads,
  cache: Cache | undefined,
  facts: Facts,
): RuleResult {
  const dtype = facts.dtype(node.inputs[0]!) ?? 'float32';
  const precision = dtypeName(node.int('softmax_precision') ?? 0);
  const given = node.float('scale');
  const softcap = node.float('softcap') ?? 0;
  const value = node.outputs[0]!;
  const output: Sdpa['output'] =
    facts.rank(node.inputs[0]!) === 3 ? { value, layout: 'packed' } : siteOutput(value, facts);
  return {
    sdpa: {
      rule: 'ai.onnx.Attention',
      anchor: node,
      q,
      k,
      v,
      scale: given !== undefined ? given : 1 / Math.sqrt(q.dim),
      // Before the masks, as corrected after the operator's release (onnx/onnx#7867) and as ONNX Runtime does it.
      ...(softcap > 0 && { softcap }),
      masks: masksOf(node, facts),
      ...(cache && { cache }),
      output,
      replaced: [...new Set([node, facts.graph.producer(output.value)!])],
      interior: [],
      dtype,
      scoreDtype: precision && precision !== 'undefined' ? precision : dtype,
    },
  };
}

function refusedFeature(node: Node, facts: Facts): string | undefined {
  const softcap = node.float('softcap') ?? 0;
  if (softcap < 0) return `softcap must not be negative, received ${softcap}`;
  if (usedOutput(node, 3, facts))
    return `its scores '${node.outputs[3]}' (qk_matmul_output) are used`;
  const [left, right] = [node.int('left_window_size') ?? -1, node.int('right_window_size') ?? -1];
  if (left !== -1 || right !== -1) {
    return `left_window_size and right_window_size must be -1, received ${left} and ${right}`;
  }
  return undefined;
}

function headsAt(node: Node, i: number, value: string, facts: Facts): Heads | undefined {
  const dims = facts.dims(value);
  if (dims?.length === 4) return headsOf(value, 'bhtd', facts);
  const heads = node.int(i === 0 ? 'q_num_heads' : 'kv_num_heads');
  const width = dims?.[2];
  if (dims?.length !== 3 || !heads || typeof width !== 'number' || width % heads !== 0)
    return undefined;
  return { value, layout: 'packed', heads, dim: width / heads };
}

/** PyTorch's dynamo exporter concatenates caches and repeats heads before it: K and V as [B,H,T,D] are followed to what they were. */
function withoutRepeats(node: Node, k: Heads, v: Heads, facts: Facts): KeysAndValues {
  const [, key, value] = node.inputs;
  if (facts.rank(key!) !== 4 || facts.rank(value!) !== 4) return { k, v };
  return keysAndValues({ value: key!, layout: 'bhtd' }, { value: value!, layout: 'bhtd' }, facts);
}

function masksOf(node: Node, facts: Facts): MaskStep[] {
  const masks: MaskStep[] = [];
  const mask = node.inputs[3];
  const dtype = facts.dtype(node.inputs[0]!);
  if (mask && facts.dtype(mask) === 'bool') {
    masks.push({ kind: 'where', cond: mask, keep: true, fill: lowest(dtype) });
  } else if (mask) {
    masks.push({ kind: 'add', value: mask });
  }
  const filled = node.inputs[6];
  if (filled) masks.push({ kind: 'filled', value: filled });
  else if (node.int('is_causal') === 1) masks.push({ kind: 'causal' });
  return masks;
}

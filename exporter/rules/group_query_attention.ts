import type { Node } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import { headMismatch, shown } from '../match/heads.js';
import { type Rule, unsupported } from '../match/rule.js';
import type { Heads, Lengths, MaskStep, Rope, RuleResult, Sink } from '../match/sdpa.js';
import { crossAttention } from '../match/sources.js';
import { cacheOf, fusedSite, usedOutput } from './fused.js';

const NAME = 'com.microsoft.GroupQueryAttention';

/**
 * com.microsoft.GroupQueryAttention, as onnxruntime-genai and Olive write it:
 *
 *     output, present_key, present_value, qk = GroupQueryAttention(
 *         query, key, value, past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache,
 *         position_ids, attention_bias, head_sink, k_scale, v_scale, q_norm_weight, k_norm_weight)
 *
 * with query, key, value as [B,T,H*D], or all of them in query. It counts positions from seqlens_k, normalises and rotates
 * queries and keys, and appends to the cache, which may be a buffer longer than its rows.
 */
export const groupQueryAttention: Rule = {
  name: NAME,
  anchors: (node) => node.is('GroupQueryAttention', 'com.microsoft'),
  match(node, facts): RuleResult {
    const refused = refusedFeature(node, facts);
    if (refused) return unsupported(refused);
    const lengths = lengthsOf(node);
    if (!lengths) return unsupported('seqlens_k and total_sequence_length must be given');
    const rope = ropeOf(node, lengths, facts);
    if (typeof rope === 'string') return unsupported(rope);
    const inputs = headsOfInputs(node, rope, facts);
    if (typeof inputs === 'string') return unsupported(inputs);
    const { q, k, v } = inputs;
    const partial = { q_num_heads: q.heads, kv_num_heads: v.heads, head_dim: q.dim };
    const cache = cacheOf(node, { past: [3, 4], present: [1, 2] }, facts);
    if (typeof cache === 'string') return unsupported(cache, partial);
    const wrong = headMismatch(q, k, v) ?? crossAttention(q, k, v, facts);
    if (wrong) return unsupported(wrong, { ...partial, cache: cache !== undefined });
    const sink = sinkOf(node);
    const softcap = node.float('softcap') ?? 0;
    const { sdpa } = fusedSite(node, facts, {
      ...{ rule: NAME, q, k, v, masks: masksOf(node, lengths) },
      ...(softcap > 0 && { softcap }),
      ...(sink && { sink }),
      cache: cache && { ...cache, lengths },
    });
    // Kernels multiply and add in float32 whatever the inputs are.
    return { sdpa: { ...sdpa, scoreDtype: 'float32' } };
  },
};

/** What the description of a site cannot say. */
function refusedFeature(node: Node, facts: Facts): string | undefined {
  const softcap = node.float('softcap') ?? 0;
  if (softcap < 0) return `softcap must not be negative, received ${softcap}`;
  if (usedOutput(node, 3, facts)) return `its scores '${node.outputs[3]}' (output_qk) are used`;
  if (node.int('causal') === 0) return 'causal must be 1, received 0';
  if (node.int('sliding_window_cache') === 1) {
    return 'sliding_window_cache must be 0, received 1: its cache forgets tokens';
  }
  for (const which of ['k_quant_type', 'v_quant_type']) {
    const type = node.string(which) ?? 'NONE';
    if (type !== 'NONE') return `${which} must be NONE, received ${type}: the cache is quantised`;
  }
  return undefined;
}

/** head_sink [H], or the score 0 of smooth_softmax. */
function sinkOf(node: Node): Sink | undefined {
  const logits = node.inputs[11];
  if (logits) return { logits };
  return node.int('smooth_softmax') === 1 ? {} : undefined;
}

function lengthsOf(node: Node): Lengths | undefined {
  const [seqlens, total] = [node.inputs[5], node.inputs[6]];
  return seqlens && total ? { seqlens, total } : undefined;
}

function ropeOf(node: Node, lengths: Lengths, facts: Facts): Rope | undefined | string {
  if (node.int('do_rotary') !== 1) return undefined;
  const [cos, sin, positions] = [node.inputs[7], node.inputs[8], node.inputs[9]];
  if (!cos || !sin) return 'do_rotary needs cos_cache and sin_cache';
  const half = facts.dims(cos)?.[1];
  if (typeof half !== 'number') {
    facts.wanted.add(cos);
    return `cos_cache '${cos}' must be [positions, R/2] with known R, received [${shown(facts.dims(cos))}]`;
  }
  return {
    cos,
    sin,
    interleaved: node.int('rotary_interleaved') === 1,
    rotary: 2 * half,
    positions: positions || lengths,
  };
}

/** How many heads a node has, how many its first input holds, and their size, which is no positive integer where it is not known. */
export function sizesOf(node: Node, facts: Facts) {
  const [heads, kvHeads] = [node.int('num_heads') ?? 0, node.int('kv_num_heads') ?? 0];
  const all = node.inputs[1] ? heads : heads + 2 * kvHeads;
  return { heads, kvHeads, all, dim: Number(facts.dims(node.inputs[0]!)?.[2] ?? 0) / all };
}

function headsOfInputs(
  node: Node,
  rope: Rope | undefined,
  facts: Facts,
): { q: Heads; k: Heads; v: Heads } | string {
  const [query, key, value] = [0, 1, 2].map((i) => node.inputs[i] ?? '');
  const { heads, kvHeads, all, dim } = sizesOf(node, facts);
  if (!Number.isInteger(dim) || dim <= 0 || heads <= 0 || kvHeads <= 0) {
    facts.wanted.add(query!);
    return `query must have a known width that ${all} heads divide, received [${shown(facts.dims(query!))}]`;
  }
  const norm = (weight: string | undefined) =>
    weight && { weight, epsilon: node.float('qk_norm_epsilon') ?? 1e-6 };
  const part = (x: string, from: number, count: number, norm?: Heads['norm'] | ''): Heads => ({
    value: key ? x : query!,
    layout: 'packed',
    ...(!key && { from: from * dim }),
    ...(norm && { norm }),
    heads: count,
    dim,
  });
  const rotated = (h: Heads): Heads =>
    rope ? { ...h, rope: { ...rope, rotary: rope.rotary === dim ? undefined : rope.rotary } } : h;
  return {
    q: rotated(part(query!, 0, heads, norm(node.inputs[14]))),
    k: rotated(part(key!, heads, kvHeads, norm(node.inputs[15]))),
    v: part(value!, heads + kvHeads, kvHeads),
  };
}

function masksOf(node: Node, lengths: Lengths): MaskStep[] {
  const bias = node.inputs[10];
  const window = node.int('local_window_size') ?? -1;
  return [
    ...(bias ? [{ kind: 'add', value: bias } as const] : []),
    { kind: 'rows', lengths, ...(window > 0 && { window }) },
  ];
}

import type { Node } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import { headMismatch, shown } from '../match/heads.js';
import { type Rule, unsupported } from '../match/rule.js';
import type { Cache, Heads, MaskStep, RuleResult } from '../match/sdpa.js';
import { fusedSite, IN_PLACE, maskIndex, usedOutput } from './fused.js';

const NAME = 'com.microsoft.Attention';

/**
 * com.microsoft.Attention, which ONNX Runtime's optimizers make of BERT and GPT-2:
 *
 *     output, present = Attention(input, weights, bias, mask_index, past, attention_bias, past_sequence_length)
 *
 * with weights [E, (Hq + Hk) * D + H * V] of the projections inside, and keys and values of earlier calls as one [2,B,H,T,D].
 */
export const packedAttention: Rule = {
  name: NAME,
  anchors: (node) => node.is('Attention', 'com.microsoft'),
  match(node, facts): RuleResult {
    const refused = refusedFeature(node);
    if (refused) return unsupported(refused);
    const heads = headsOfWeights(node, facts);
    if (typeof heads === 'string') return unsupported(heads);
    const [q, k, v] = heads;
    const partial = { q_num_heads: q.heads, kv_num_heads: v.heads, head_dim: q.dim };
    const cache = stackedCache(node, facts);
    if (typeof cache === 'string') return unsupported(cache, partial);
    const wrong = headMismatch(q, k, v);
    if (wrong) return unsupported(wrong, partial);
    const masks = masksOf(node, facts);
    if (typeof masks === 'string') return unsupported(masks, partial);
    return fusedSite(node, facts, { rule: NAME, q, k, v, masks, cache });
  },
};

function refusedFeature(node: Node): string | undefined {
  if (node.int('do_rotary') === 1) return 'do_rotary must be 0, received 1: it brings no tables';
  if (node.int('past_present_share_buffer') === 1 || node.inputs[6]) {
    return IN_PLACE;
  }
  return undefined;
}

function headsOfWeights(node: Node, facts: Facts): [Heads, Heads, Heads] | string {
  const heads = node.int('num_heads') ?? 0;
  const [x, weight, bias] = node.inputs.map((v) => v || undefined);
  const columns = weight ? facts.dims(weight)?.[1] : undefined;
  const third = typeof columns === 'number' ? columns / 3 : 0;
  const sizes = node.ints('qkv_hidden_sizes')?.length
    ? node.ints('qkv_hidden_sizes')!
    : [third, third, third];
  const fit = sizes.every((n) => n > 0 && heads > 0 && n % heads === 0);
  if (!x || !weight || !fit || sizes.reduce((a, b) => a + b) !== columns) {
    return `weights must be [E,N] with N made of three parts that num_heads=${heads} divides, received [${shown(weight ? facts.dims(weight) : undefined)}]`;
  }
  return sizes.map((size, i): Heads => {
    const from = sizes.slice(0, i).reduce((a, b) => a + b, 0);
    return {
      value: x,
      layout: 'packed',
      weight,
      from,
      ...(bias && { bias: { value: bias, from } }),
      heads,
      dim: size / heads,
    };
  }) as [Heads, Heads, Heads];
}

function stackedCache(node: Node, facts: Facts): Cache | string | undefined {
  const [past, present] = [node.inputs[4] ?? '', node.outputs[1] ?? ''];
  if (!past) {
    return usedOutput(node, 1, facts)
      ? `'${present}' is used although no past comes in`
      : undefined;
  }
  if (!facts.graph.isInput(past)) return `cache '${past}' must be a graph input`;
  const [use] = present ? facts.graph.uses(present) : [];
  if (use && !use.node.is('Shape')) {
    return `cache '${present}' is also read by ${use.node.opType} '${use.node.name}'`;
  }
  return {
    stacked: true,
    pastKey: past,
    pastValue: past,
    presentKey: present,
    presentValue: present,
  };
}

function masksOf(node: Node, facts: Facts): MaskStep[] | string {
  const masks: MaskStep[] = [];
  if (node.inputs[5]) masks.push({ kind: 'add', value: node.inputs[5] });
  if (node.inputs[3]) {
    const step = maskIndex('mask_index', node.inputs[3], node, facts);
    if (typeof step === 'string') return step;
    masks.push(step);
  }
  if (node.int('unidirectional') === 1) masks.push({ kind: 'causal' });
  return masks;
}

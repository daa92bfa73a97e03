import type { DTypeName, Node } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import { type Rule, unsupported } from '../match/rule.js';
import type { Cache } from '../match/sdpa.js';

const OTHERS = new Set([
  'Attention',
  'DecoderAttention',
  'DecoderMaskedMultiHeadAttention',
  'DecoderMaskedSelfAttention',
  'GroupQueryAttention',
  'LongformerAttention',
  'PackedAttention',
  'PackedMultiHeadAttention',
  'PagedAttention',
  'QAttention',
  'QOrderedAttention',
  'SparseAttention',
]);

/** Fused attention of com.microsoft that is listed but not understood in this version. */
export const otherFused: Rule = {
  name: 'com.microsoft',
  anchors: (node) => node.domain === 'com.microsoft' && OTHERS.has(node.opType),
  match: (node) => unsupported(`com.microsoft.${node.opType} is not understood in this version`),
};

/** Is output `i` of a node read by anything? */
export function usedOutput(node: Node, i: number, facts: Facts): boolean {
  const value = node.outputs[i];
  return !!value && (facts.graph.isOutput(value) || facts.graph.uses(value).length > 0);
}

/**
 * The KV cache of a fused node: past inputs must be graph inputs, present outputs graph outputs only.
 *
 * @returns undefined when there is none, a reason when it is not understood
 */
export function cacheOf(
  node: Node,
  at: { past: readonly [number, number]; present: readonly [number, number] },
  facts: Facts,
): Cache | string | undefined {
  const [pastKey, pastValue] = at.past.map((i) => node.inputs[i] ?? '');
  const used = at.present.filter((i) => usedOutput(node, i, facts));
  if (!pastKey && !pastValue) {
    return used.length > 0
      ? `'${node.outputs[used[0]!]}' is used although no past comes in`
      : undefined;
  }
  if (!pastKey || !pastValue) return 'past_key and past_value must come together';
  for (const past of [pastKey, pastValue]) {
    if (!facts.graph.isInput(past)) return `cache '${past}' must be a graph input`;
  }
  const [presentKey, presentValue] = at.present.map((i) => node.outputs[i] ?? '');
  for (const present of [presentKey!, presentValue!]) {
    const [use] = facts.graph.uses(present);
    if (use && !use.node.is('Shape')) {
      return `cache '${present}' is also read by ${use.node.opType} '${use.node.name}'`;
    }
  }
  return { pastKey, pastValue, presentKey: presentKey!, presentValue: presentValue! };
}

/** What a masked score becomes: the lowest number, so that a row without visible keys is no NaN. */
export function lowest(dtype: DTypeName | undefined): number {
  return dtype === 'float16' ? -65504 : -3.4028234663852886e38;
}

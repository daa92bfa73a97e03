import type { DTypeName, Node } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import { shown } from '../match/heads.js';
import { type Rule, unsupported } from '../match/rule.js';
import type { Cache, MaskStep, Sdpa } from '../match/sdpa.js';

/** Fused attention of com.microsoft that is listed and left alone, and why. */
const OTHERS: Readonly<Record<string, string>> = {
  DecoderAttention: 'decides by its inputs between self- and cross-attention',
  LongformerAttention: 'sees a window and some global tokens',
  PackedAttention: 'has the tokens of all rows in one',
  PackedMultiHeadAttention: 'has the tokens of all rows in one',
  PagedAttention: 'has its cache in pages',
  QOrderedAttention: 'quantises its input with the scales of 8-bit weights',
  SparseAttention: 'sees blocks of keys',
};

export const otherFused: Rule = {
  name: 'com.microsoft',
  anchors: (node) => node.domain === 'com.microsoft' && Object.hasOwn(OTHERS, node.opType),
  match: (node) => unsupported(`com.microsoft.${node.opType} ${OTHERS[node.opType]}`),
};

/** The site of a fused node of com.microsoft, whose output is [B,T,H*D] and whose scale, 0 or absent, is that of the head dim. */
export function fusedSite(
  node: Node,
  facts: Facts,
  found: Pick<Sdpa, 'rule' | 'q' | 'k' | 'v' | 'masks' | 'softcap' | 'sink' | 'presents'> & {
    readonly cache: Cache | undefined;
    /** Default: that of the first input. */
    readonly dtype?: DTypeName;
  },
): { readonly sdpa: Sdpa } {
  const { cache, dtype = facts.dtype(node.inputs[0]!) ?? 'float32', ...rest } = found;
  return {
    sdpa: {
      ...rest,
      anchor: node,
      scale: node.float('scale') || 1 / Math.sqrt(found.q.dim),
      ...(cache && { cache }),
      output: { value: node.outputs[0]!, layout: 'packed' },
      replaced: [node],
      interior: [],
      dtype,
      scoreDtype: dtype,
    },
  };
}

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

/** Why the inputs for beam search, beam_width and cache_indirection, are not understood; one beam is. */
export function beams(width: string, indirection: string, facts: Facts): string | undefined {
  if (indirection) return `cache_indirection '${indirection}': beams that share a cache`;
  const beams = width ? facts.scalar(width) : 1;
  return beams === 1 ? undefined : `beam_width must be 1, received ${beams ?? `'${width}'`}`;
}

/** The masks of com.microsoft's nodes: [B,Tk] or [B,Tq,Tk] with 0 for hidden keys, or the lengths [B] of rows. */
export function maskIndex(
  what: string,
  value: string,
  node: Node,
  facts: Facts,
): MaskStep | string {
  const fill = node.float('mask_filter_value') ?? -10000;
  const dims = facts.dims(value);
  if (dims?.length === 2 || dims?.length === 3) return { kind: 'keys', value, fill };
  if (!dims) facts.wanted.add(value);
  const batch = facts.dims(node.inputs[0]!)?.[0];
  if (dims?.length === 1 && dims[0] !== undefined && dims[0] === batch) {
    return { kind: 'length', value, fill };
  }
  return `${what} must be [B,T], [B,Tq,Tk] or [B], received [${shown(dims)}]`;
}

/** What a masked score becomes: the lowest number, so that a row without visible keys is no NaN. */
export function lowest(dtype: DTypeName | undefined): number {
  return dtype === 'float16' ? -65504 : -3.4028234663852886e38;
}

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
  const [presentKey, presentValue] = at.present.map((i) => node.outputs[i] ?? '');
  return (
    refusedCache([pastKey, pastValue], [presentKey!, presentValue!], facts) ?? {
      ...{ pastKey, pastValue },
      ...{ presentKey: presentKey!, presentValue: presentValue! },
    }
  );
}

/** Why these are not the two ends of a cache. */
export function refusedCache(
  pasts: readonly string[],
  presents: readonly string[],
  facts: Facts,
): string | undefined {
  for (const past of pasts) {
    if (!facts.graph.isInput(past)) return `cache '${past}' must be a graph input`;
  }
  for (const present of presents) {
    const [use] = present ? facts.graph.uses(present) : [];
    if (use && !use.node.is('Shape')) {
      return `cache '${present}' is also read by ${use.node.opType} '${use.node.name}'`;
    }
  }
  return undefined;
}

/** Which input is which of a node that Attention and MultiHeadAttention have in common. */
export interface FusedInputs {
  readonly mask: number;
  readonly added?: number;
  /** Of keys, or of all. */
  readonly past: number;
  readonly filled?: number;
  readonly beamWidth?: number;
  readonly indirection?: number;
  /** It does cross-attention too, where a shared buffer may be spoken of without any. */
  readonly crosses?: boolean;
}

/** Why beams, or the way past and present share memory, are not understood; one beam is. */
export function refusedSharing(node: Node, at: FusedInputs, facts: Facts): string | undefined {
  const input = (i: number | undefined) => (i === undefined ? '' : (node.inputs[i] ?? ''));
  const [width, indirection] = [input(at.beamWidth), input(at.indirection)];
  if (indirection) return `cache_indirection '${indirection}': beams that share a cache`;
  const beams = width ? facts.scalar(width) : 1;
  if (beams !== 1) return `beam_width must be 1, received ${beams ?? `'${width}'`}`;
  const shared = node.int('past_present_share_buffer') === 1 && (!at.crosses || input(at.past));
  return shared && !input(at.filled)
    ? 'past_sequence_length must be given where past and present share a buffer'
    : undefined;
}

/** What hides keys, or why that is not understood. */
export function fusedMasks(
  node: Node,
  at: FusedInputs,
  facts: Facts,
  maskName = 'mask_index',
): MaskStep[] | string {
  const masks: MaskStep[] = [];
  const added = at.added && node.inputs[at.added];
  if (added) masks.push({ kind: 'add', value: added });
  const mask = node.inputs[at.mask];
  if (mask) {
    const step = maskIndex(maskName, mask, node, facts);
    if (typeof step === 'string') return step;
    masks.push(step);
  }
  // Of one token, whether its length can be seen or not.
  const last = node.is('DecoderMaskedSelfAttention', 'com.microsoft');
  if (last || node.int('unidirectional') === 1) masks.push({ kind: 'causal' });
  return masks;
}

/** The masks of com.microsoft's nodes: [B,Tk] or [B,Tq,Tk] with 0 for hidden keys, or the lengths [B] of rows. */
function maskIndex(what: string, value: string, node: Node, facts: Facts): MaskStep | string {
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

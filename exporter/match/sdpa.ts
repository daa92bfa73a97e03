import type { DTypeName, Node } from '../ir/index.js';

/**
 * Where the head vectors of query, key or value lie, T tokens, H heads of D elements.
 *
 * - `bhtd`: [B,H,T,D]
 * - `bthd`: [B,T,H,D]
 * - `packed`: [B,T,H*D]
 * - `time-first`: [T,B,H*D]
 * - `stacked`: packed projections with an axis more, [B,T,N,H,D] or [B,T,H,N,D], of which entry `index` of axis `axis` is meant
 */
export interface Heads {
  readonly value: string;
  readonly layout: 'bhtd' | 'bthd' | 'packed' | 'time-first' | 'stacked';
  readonly index?: number;
  readonly axis?: 2 | 3;
  /** A vector to be added to the packed heads: elements `from` to `from + heads * dim` of `value`. */
  readonly bias?: { readonly value: string; readonly from: number };
  readonly heads: number;
  readonly dim: number;
}

/** The axis that counts tokens, and the one that counts rows of the batch. */
export function tokenAxis({ layout }: Heads): number {
  return layout === 'bhtd' ? 2 : layout === 'time-first' ? 0 : 1;
}
export function batchAxis({ layout }: Heads): number {
  return layout === 'time-first' ? 1 : 0;
}

/** One step between the scaled scores and Softmax. All values broadcast to [B,H,Tq,Tk]. */
export type MaskStep =
  /** Added to the scores. */
  | { readonly kind: 'add'; readonly value: string }
  /** Scores stay where the condition is `keep`, and become `fill` elsewhere. */
  | {
      readonly kind: 'where';
      readonly cond: string;
      readonly keep: boolean;
      /** A value, or a number. */
      readonly fill: string | number;
    }
  /** A [B,Tk] mask: scores stay where it is not 0, elsewhere `fill` is added. */
  | { readonly kind: 'keys'; readonly value: string; readonly fill: number }
  /** Key j is seen by query i when j <= i + the number of cached tokens. */
  | { readonly kind: 'causal' };

/** A KV cache: what comes in, what goes out, each [B,H,T,D]. */
export interface Cache {
  readonly pastKey: string;
  readonly pastValue: string;
  /** '' when the node has no such output. */
  readonly presentKey: string;
  readonly presentValue: string;
}

/** What every attention site is brought to: softmax(scale q k' + masks) v. */
export interface Sdpa {
  readonly rule: string;
  /** The Softmax or fused node. */
  readonly anchor: Node;
  readonly q: Heads;
  /** Keys and values of this call's tokens; heads shared by several query heads come once. */
  readonly k: Heads;
  readonly v: Heads;
  readonly scale: number;
  readonly masks: readonly MaskStep[];
  readonly cache?: Cache;
  /** What the site computes: [B,H,T,D], [B,T,H,D], [B,T,H*D] or (`tnd`) [T,B*H,D]. */
  readonly output: { readonly value: string; readonly layout: 'bhtd' | 'bthd' | 'packed' | 'tnd' };
  /** Nodes whose outputs the rewritten site replaces; they must have no other readers. */
  readonly replaced: readonly Node[];
  /** The nodes of the scores and weights, for nodes that are matched one by one. */
  readonly interior: readonly Node[];
  /** Type of the output, in which products are taken. */
  readonly dtype: DTypeName;
  /** Type in which masks are applied and Softmax runs. */
  readonly scoreDtype: DTypeName;
}

/** What a rule answers for an anchor: a site, or why it is none. */
export type RuleResult = { readonly sdpa: Sdpa } | Refusal;

export interface Refusal {
  readonly reason: string;
  /** It is attention, though not one that can be rewritten: it counts as a layer. */
  readonly attention: boolean;
  /** What is known of it nonetheless. */
  readonly partial?: Partial<
    Pick<Sdpa, 'rule'> & {
      q_num_heads: number;
      kv_num_heads: number;
      head_dim: number;
      cache: boolean;
    }
  >;
}

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
  /** Instead of `value` its Reshape or Transpose of another value is meant: the same without a factor. */
  readonly viewed?: { readonly node: Node; readonly value: string };
  readonly layout: 'bhtd' | 'bthd' | 'packed' | 'time-first' | 'stacked';
  readonly index?: number;
  readonly axis?: 2 | 3;
  /** `value` is to be multiplied with this weight [E,N] first. */
  readonly weight?: string;
  /** Both are integers of 8 bits. */
  readonly quantised?: Quantised;
  /** `packed` only: the first column of the heads, where the last axis holds more than them. */
  readonly from?: number;
  /** A vector to be added to the packed heads: elements `from` to `from + heads * dim` of `value`. */
  readonly bias?: { readonly value: string; readonly from: number };
  /** Each head is to be divided by its root mean square and multiplied with a vector [D]. */
  readonly norm?: { readonly weight: string; readonly epsilon: number };
  /** After that each head is to be rotated. */
  readonly rope?: Rope;
  readonly heads: number;
  readonly dim: number;
}

/** Scales and zero points of a value (one number) and of the weight that it is multiplied with (one, or N); '' is 0. */
export interface Quantised {
  readonly valueScale: string;
  readonly weightScale: string;
  readonly valueZero: string;
  readonly weightZero: string;
}

/** Rotary position embedding: tables [positions, R/2] of cosines and sines; of each head the first R elements are rotated. */
export interface Rope {
  readonly cos: string;
  readonly sin: string;
  /** Pairs are neighbours, not halves. */
  readonly interleaved: boolean;
  /** R, when it is not the whole head. */
  readonly rotary?: number;
  /** int64 [B,T], or the lengths that positions follow from. */
  readonly positions: string | Lengths;
}

/**
 * How long the rows of a batch are, as com.microsoft.GroupQueryAttention is told: a call in which `total` is the number of
 * new tokens starts a text, whose rows may be padded on the right; in later calls all tokens count.
 */
export interface Lengths {
  /** int32 [B]: tokens of each row, cached ones included, minus 1. */
  readonly seqlens: string;
  /** int32 with one element: the same of the longest row, without the minus 1. */
  readonly total: string;
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
  /** Added to the scores, after it was multiplied by `factor`; `flat`: [B*H,1|Tq,1|Tk]. */
  | {
      readonly kind: 'add';
      readonly value: string;
      readonly factor?: number;
      readonly flat?: boolean;
    }
  /** Scores stay where the condition is `keep`, and become `fill` elsewhere. */
  | {
      readonly kind: 'where';
      readonly cond: string;
      readonly keep: boolean;
      /** A value, or a number. */
      readonly fill: string | number;
    }
  /** A [B,Tk] or [B,Tq,Tk] mask: scores stay where it is not 0, elsewhere `fill` is added. */
  | { readonly kind: 'keys'; readonly value: string; readonly fill: number }
  /** int32 [B]: to keys at or beyond it `fill` is added. */
  | { readonly kind: 'length'; readonly value: string; readonly fill: number }
  /** Key j is seen by query i when j <= i + the number of cached tokens. */
  | { readonly kind: 'causal' }
  /** The same where keys are a buffer, of which the first `value` (int64 [B], new tokens included) hold something. */
  | { readonly kind: 'filled'; readonly value: string }
  /** The same by row; and if there is a window, no more than that many keys are seen. */
  | { readonly kind: 'rows'; readonly lengths: Lengths; readonly window?: number };

/**
 * A KV cache: what comes in, what goes out, each [B,H,T,D]; or, `stacked`, both in one value [2,B,H,T,D], whose name keys
 * and values share.
 */
export interface Cache {
  readonly stacked?: boolean;
  /** Rows are of different length, and the cache may be longer than they are. */
  readonly lengths?: Lengths;
  /** The cache is a buffer, of which so many tokens are filled (an integer with one element); new ones are written behind them. */
  readonly filled?: string;
  /** Keys lie in it in an order that only the node itself knows. */
  readonly opaque?: boolean;
  readonly pastKey: string;
  readonly pastValue: string;
  /** '' when the node has no such output. */
  readonly presentKey: string;
  readonly presentValue: string;
}

/**
 * A key more for every query, whose value is zero: `logits` holds its score in each head, H numbers of any shape; without them it
 * is 0. It takes weight and gives nothing (attention sinks of gpt-oss; smooth softmax).
 */
export interface Sink {
  readonly logits?: string;
}

/**
 * Keys and values that a fused node gives out where no earlier ones come in, as the first call of a decoder does: each [B,H,T,D], or both in
 * one value [2,B,H,T,D]. '' for what nothing reads.
 */
export type Presents =
  | { readonly stacked: string }
  | { readonly key: string; readonly value: string };

/** What every attention site is brought to: softmax(cap(scale q k') + masks) v, perhaps with a sink among the keys. */
export interface Sdpa {
  readonly rule: string;
  /** The Softmax or fused node. */
  readonly anchor: Node;
  readonly q: Heads;
  /** Keys and values of this call's tokens; heads shared by several query heads come once. */
  readonly k: Heads;
  readonly v: Heads;
  readonly scale: number;
  /** c > 0 where scores s become c tanh(s / c) before the masks (softcap of Gemma 2). */
  readonly softcap?: number;
  readonly masks: readonly MaskStep[];
  readonly sink?: Sink;
  readonly cache?: Cache;
  readonly presents?: Presents;
  /** What the site computes: [B,H,T,D], [B,T,H,D], [B,T,H*D] or (`tnd`) [T,B*H,D]. */
  readonly output: { readonly value: string; readonly layout: 'bhtd' | 'bthd' | 'packed' | 'tnd' };
  /** Nodes whose outputs the rewritten site replaces; they must have no other readers. */
  readonly replaced: readonly Node[];
  /** The nodes of the scores and weights, for nodes that are matched one by one. */
  readonly interior: readonly Node[];
  /** The product of weights and values, for the same: [B,H,T,D] or [B*H,T,D]; `output` is it or made of it. */
  readonly sum?: Node;
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

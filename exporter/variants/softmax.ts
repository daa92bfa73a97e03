import type { DTypeName } from '../ir/index.js';
import type { MaskStep, Sdpa } from '../match/sdpa.js';
import type { SiteEmitter } from './emit.js';

/**
 * Attention made worse on purpose:
 *
 * - `zeroed`: it yields zeros
 * - `window`: of the keys that the masks allow, a query sees the first `sinks` and those less than `window` tokens away
 */
export type Handicap =
  | { readonly control: 'zeroed' }
  | { readonly control: 'window'; readonly window: number; readonly sinks: number };

/**
 * Writes a site as softmax attention in plain operators, from nothing but its normalised description:
 *
 *     softmax(scale q k' + masks) v
 *
 * @returns the product q k' [B,H,Tq,Tk], of which a mask may want to know the shape
 */
export function emitSoftmax(e: SiteEmitter, sdpa: Sdpa, handicap?: Handicap): string {
  const q = e.as(e.bhtd(sdpa.q), sdpa.dtype);
  const k = repeatHeads(e, e.as(allTokens(e, sdpa, 'Key'), sdpa.dtype), sdpa.k.dim, sdpa);
  const v = repeatHeads(e, e.as(allTokens(e, sdpa, 'Value'), sdpa.dtype), sdpa.v.dim, sdpa);
  const precision = sdpa.scoreDtype;
  const product = e.matmul(q, e.transpose(k, [0, 1, 3, 2]));
  const scaled = sdpa.scale === 1 ? product : e.mul(product, e.scalar(sdpa.scale, sdpa.dtype));
  let scores = precision === sdpa.dtype ? scaled : e.cast(scaled, precision);
  for (const step of sdpa.masks) scores = applyMask(e, scores, step, precision);
  if (handicap?.control === 'window') scores = hideFar(e, scores, handicap, precision);
  const softmax = e.op('Softmax', [scores], { axis: 3 });
  let weights = precision === sdpa.dtype ? softmax : e.cast(softmax, sdpa.dtype);
  // Chosen, not multiplied: a row that sees nothing is not a number.
  if (handicap?.control === 'zeroed') {
    const zero = e.scalar(0, sdpa.dtype);
    weights = e.op('Where', [e.constant('bool', [0], []), weights, zero]);
  }
  finish(e, weights, v, sdpa);
  return product;
}

function finish(e: SiteEmitter, weights: string, v: string, sdpa: Sdpa): void {
  const { value: output, layout } = sdpa.output;
  if (layout === 'bhtd') {
    e.op('MatMul', [weights, v], {}, { output });
    return;
  }
  const perm = { perm: [0, 2, 1, 3] };
  const sum = e.matmul(weights, v);
  if (layout === 'tnd') e.reshape(e.transpose(sum, [2, 0, 1, 3]), [0, -1, sdpa.v.dim], output);
  else if (layout === 'bthd') e.op('Transpose', [sum], perm, { output });
  else e.reshape(e.op('Transpose', [sum], perm), [0, 0, sdpa.q.heads * sdpa.v.dim], output);
}

/** Keys or values of cached and new tokens, [B,H,T,D]. */
function allTokens(e: SiteEmitter, sdpa: Sdpa, what: 'Key' | 'Value'): string {
  const current = what === 'Key' ? sdpa.k : sdpa.v;
  if (!sdpa.cache) return e.bhtd(current);
  const past = sdpa.cache[`past${what}`];
  const present = sdpa.cache[`present${what}`];
  // Outside a fused node the concatenation is there already.
  const producer = e.graph.producer(present);
  if (producer && producer !== sdpa.anchor) return present;
  return e.op('Concat', [past, e.bhtd(current)], { axis: 2 }, { output: present || undefined });
}

/** [B,Hkv,T,D] to [B,Hq,T,D]: each head once for every query head of its group. */
function repeatHeads(e: SiteEmitter, x: string, dim: number, sdpa: Sdpa): string {
  const groups = sdpa.q.heads / sdpa.k.heads;
  if (groups === 1) return x;
  const apart = e.reshape(x, [0, sdpa.k.heads, 1, -1, dim]);
  const repeated = e.op('Expand', [apart, e.ints(1, 1, groups, 1, 1)]);
  return e.reshape(repeated, [0, sdpa.q.heads, -1, dim]);
}

function applyMask(e: SiteEmitter, scores: string, step: MaskStep, dtype: DTypeName): string {
  switch (step.kind) {
    case 'add':
      return e.add(scores, e.as(step.value, dtype));
    case 'where': {
      const fill =
        typeof step.fill === 'string' ? e.as(step.fill, dtype) : e.scalar(step.fill, dtype);
      return e.op('Where', [step.cond, ...(step.keep ? [scores, fill] : [fill, scores])]);
    }
    case 'keys': {
      const keys = e.unsqueeze(e.unsqueeze(e.cast(step.value, 'bool'), 1), 2);
      return e.add(scores, e.op('Where', [keys, e.scalar(0, dtype), e.scalar(step.fill, dtype)]));
    }
    case 'causal':
      return e.op('Where', [causal(e, scores), scores, e.scalar(Number.NEGATIVE_INFINITY, dtype)]);
  }
}

/** [Tq,Tk], true where key j is no later than query i; cached keys come first. */
function causal(e: SiteEmitter, scores: string): string {
  const [queries, keys] = [e.dim(scores, 2), e.dim(scores, 3)];
  const range = (from: string, to: string) =>
    e.op('Range', [e.squeeze(from, 0), e.squeeze(to, 0), e.constant('int64', [1], [])]);
  const rows = e.unsqueeze(range(e.sub(keys, queries), keys), 1);
  const columns = e.unsqueeze(range(e.ints(0), keys), 0);
  return e.op('Not', [e.op('Less', [rows, columns])]);
}

/** Scores with those of keys that are neither near nor sinks hidden. Bidirectional attention sees as far ahead as back. */
function hideFar(
  e: SiteEmitter,
  scores: string,
  { window, sinks }: { window: number; sinks: number },
  dtype: DTypeName,
): string {
  const [queries, keys] = [e.dim(scores, 2), e.dim(scores, 3)];
  const rows = e.unsqueeze(e.add(e.positions(queries), e.sub(keys, queries)), 1); // cached keys come first
  const columns = e.unsqueeze(e.positions(keys), 0);
  const less = (a: string, b: number) => e.op('Less', [a, e.ints(b)]);
  const near = less(e.op('Abs', [e.sub(rows, columns)]), window);
  const seen = sinks > 0 ? e.op('Or', [near, less(columns, sinks)]) : near;
  return e.op('Where', [seen, scores, e.scalar(Number.NEGATIVE_INFINITY, dtype)]);
}

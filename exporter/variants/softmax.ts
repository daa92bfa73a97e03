import type { DTypeName } from '../ir/index.js';
import type { Cache, Lengths, MaskStep, Sdpa } from '../match/sdpa.js';
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
 *     softmax(cap(scale q k') + masks) v
 *
 * @returns the product q k' [B,H,Tq,Tk], of which a mask may want to know the shape
 */
export function emitSoftmax(e: SiteEmitter, sdpa: Sdpa, handicap?: Handicap): string {
  const q = e.as(e.bhtd(sdpa.q), sdpa.dtype);
  const [keys, values] = sdpa.cache?.stacked
    ? stackedTokens(e, sdpa, sdpa.cache)
    : [allTokens(e, sdpa, 'Key'), allTokens(e, sdpa, 'Value')];
  const k = repeatHeads(e, e.as(keys, sdpa.dtype), sdpa.k.dim, sdpa);
  const v = repeatHeads(e, e.as(values, sdpa.dtype), sdpa.v.dim, sdpa);
  const precision = sdpa.scoreDtype;
  const product = e.matmul(q, e.transpose(k, [0, 1, 3, 2]));
  const scaled = sdpa.scale === 1 ? product : e.mul(product, e.scalar(sdpa.scale, sdpa.dtype));
  let scores = precision === sdpa.dtype ? scaled : e.cast(scaled, precision);
  if (sdpa.softcap !== undefined) scores = capped(e, scores, sdpa.softcap, precision);
  for (const step of sdpa.masks) scores = applyMask(e, scores, step, sdpa, precision);
  if (handicap?.control === 'window') scores = hideFar(e, sdpa, scores, handicap, precision);
  const softmax = sdpa.sink
    ? softmaxBesideSink(e, scores, sdpa, precision)
    : e.op('Softmax', [scores], { axis: 3 });
  let weights = precision === sdpa.dtype ? softmax : e.cast(softmax, sdpa.dtype);
  // Chosen, not multiplied: a row that sees nothing is not a number.
  if (handicap?.control === 'zeroed') {
    const zero = e.scalar(0, sdpa.dtype);
    weights = e.op('Where', [e.constant('bool', [0], []), weights, zero]);
  }
  finish(e, weights, v, sdpa);
  return product;
}

/** cap tanh(scores / cap) */
function capped(e: SiteEmitter, scores: string, cap: number, dtype: DTypeName): string {
  return e.mul(e.op('Tanh', [e.div(scores, e.scalar(cap, dtype))]), e.scalar(cap, dtype));
}

/** Weights of the keys, when they share a row with those of a sink. */
function softmaxBesideSink(e: SiteEmitter, scores: string, sdpa: Sdpa, dtype: DTypeName): string {
  const { heads } = sdpa.q;
  const logits = sdpa.sink!.logits;
  const column = logits ? e.reshape(e.as(logits, dtype), [1, heads, 1, 1]) : e.scalar(0, dtype);
  const shape = e.shape([e.dim(scores, 0), heads, e.dim(scores, 2), 1]);
  const all = e.op('Concat', [scores, e.op('Expand', [column, shape])], { axis: 3 });
  return e.slice(e.op('Softmax', [all], { axis: 3 }), 3, 0, -1);
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
  if (sdpa.cache.lengths) {
    return scattered(e, past, e.bhtd(current), sdpa.cache.lengths, current.dim, present);
  }
  if (sdpa.cache.filled) return behind(e, past, e.bhtd(current), sdpa.cache.filled, present);
  // Outside a fused node the concatenation is there already.
  const producer = e.graph.producer(present);
  if (producer && producer !== sdpa.anchor) {
    const { heads, dim } = current;
    return e.facts.rank(present) === 3
      ? e.bhtd({ value: present, layout: 'packed', heads, dim })
      : present;
  }
  return e.op('Concat', [past, e.bhtd(current)], { axis: 2 }, { output: present || undefined });
}

/** Keys and values of cached and new tokens, when the cache holds both in one value. */
function stackedTokens(e: SiteEmitter, sdpa: Sdpa, cache: Cache): [string, string] {
  const entry = (i: number) => e.squeeze(e.slice(cache.pastKey, 0, i, i + 1), 0);
  const whole: string[] = [];
  const both = [sdpa.k, sdpa.v].map((h, i) => {
    if (cache.filled === undefined) {
      whole.push(e.op('Concat', [entry(i), e.bhtd(h)], { axis: 2 }));
      return whole[i];
    }
    whole.push(cache.presentKey && e.graph.fresh(`${sdpa.anchor.name}/present`));
    return behind(e, entry(i), e.bhtd(h), cache.filled, whole[i]!);
  }) as [string, string];
  if (cache.presentKey) {
    const apart = whole.map((x) => e.unsqueeze(x, 0));
    e.op('Concat', apart, { axis: 0 }, { output: cache.presentKey });
  }
  return both;
}

/** The filled part of a buffer [B,H,L,D] and the new tokens; `present`, if that is a name, the whole buffer afterwards. */
function behind(
  e: SiteEmitter,
  buffer: string,
  current: string,
  filled: string,
  present: string,
): string {
  const before = e.reshape(e.cast(filled, 'int64'), [1]);
  const all = e.op('Concat', [e.window(buffer, 2, 0, before), current], { axis: 2 });
  if (present) {
    const after = e.add(before, e.dim(current, 2));
    const rest = e.window(buffer, 2, after, e.sub(e.dim(buffer, 2), after));
    e.op('Concat', [all, rest], { axis: 2 }, { output: present });
  }
  return all;
}

/**
 * Cached tokens of each row and the new ones behind them, [B,H,L,D], L being the cache's length or the longest row's,
 * whichever is larger. What lies beyond the end of a row is of no importance.
 */
function scattered(
  e: SiteEmitter,
  past: string,
  current: string,
  lengths: Lengths,
  dim: number,
  output: string,
): string {
  const all = e.op('Concat', [past, current], { axis: 2 });
  const [room, tokens] = [e.dim(past, 2), e.dim(current, 2)];
  const total = e.reshape(e.cast(lengths.total, 'int64'), [1]);
  const places = e.positions(e.larger(room, total)); // [L]
  const before = e.rows!.past(lengths); // [B,1]
  const last = e.sub(e.add(room, tokens), e.ints(1));
  const fresh = e.smaller(e.add(e.sub(places, before), room), last); // [B,L]
  const index = e.op('Where', [e.op('Less', [places, before]), places, fresh]);
  const wide = e.unsqueeze(e.unsqueeze(index, 1), 3);
  const target = e.op('Expand', [wide, e.shape([e.dim(current, 0), e.dim(current, 1), 1, dim])]);
  return e.op('GatherElements', [all, target], { axis: 2 }, { output: output || undefined });
}

/** [B,Hkv,T,D] to [B,Hq,T,D]: each head once for every query head of its group. */
function repeatHeads(e: SiteEmitter, x: string, dim: number, sdpa: Sdpa): string {
  const groups = sdpa.q.heads / sdpa.k.heads;
  if (groups === 1) return x;
  const apart = e.reshape(x, [0, sdpa.k.heads, 1, -1, dim]);
  const repeated = e.op('Expand', [apart, e.ints(1, 1, groups, 1, 1)]);
  return e.reshape(repeated, [0, sdpa.q.heads, -1, dim]);
}

function applyMask(
  e: SiteEmitter,
  scores: string,
  step: MaskStep,
  { q }: Sdpa,
  dtype: DTypeName,
): string {
  switch (step.kind) {
    case 'add': {
      const value = e.as(step.value, dtype);
      const apart = [-1, q.heads, e.dim(value, 1), e.dim(value, 2)];
      const bias = step.flat ? e.op('Reshape', [value, e.shape(apart)]) : value;
      const { factor = 1 } = step;
      return e.add(scores, factor === 1 ? bias : e.mul(bias, e.scalar(factor, dtype)));
    }
    case 'where': {
      const fill =
        typeof step.fill === 'string' ? e.as(step.fill, dtype) : e.scalar(step.fill, dtype);
      return e.op('Where', [step.cond, ...(step.keep ? [scores, fill] : [fill, scores])]);
    }
    case 'keys': {
      const seen = e.cast(step.value, 'bool');
      const apart = e.facts.rank(step.value) === 3 ? seen : e.unsqueeze(seen, 1);
      const keys = e.unsqueeze(apart, 1);
      return e.add(scores, e.op('Where', [keys, e.scalar(0, dtype), e.scalar(step.fill, dtype)]));
    }
    case 'length': {
      const places = e.positions(e.dim(scores, 3));
      const ends = e.reshape(e.cast(step.value, 'int64'), [-1, 1, 1, 1]);
      const seen = e.op('Less', [places, ends]);
      return e.add(scores, e.op('Where', [seen, e.scalar(0, dtype), e.scalar(step.fill, dtype)]));
    }
    case 'rows':
      return e.op('Where', [byRow(e, scores, step), scores, e.scalar(-Infinity, dtype)]);
    case 'filled':
      return e.op('Where', [filled(e, scores, step.value), scores, e.scalar(-Infinity, dtype)]);
    case 'causal':
      return e.op('Where', [causal(e, scores), scores, e.scalar(Number.NEGATIVE_INFINITY, dtype)]);
  }
}

/** [Tq,Tk], true where key j is no later than query i; cached keys come first. */
function causal(e: SiteEmitter, scores: string): string {
  const [queries, keys] = [e.dim(scores, 2), e.dim(scores, 3)];
  const columns = e.positions(keys);
  const rows = e.unsqueeze(e.add(e.positions(queries), e.sub(keys, queries)), 1);
  return e.op('Not', [e.op('Less', [rows, columns])]);
}

/** [B,1,Tq,Tk], true where key j is no later than query i, the new tokens being the last of `value` [B]. */
function filled(e: SiteEmitter, scores: string, value: string): string {
  const rows = placesBehind(e, scores, value);
  return e.op('Not', [e.op('Less', [rows, e.positions(e.dim(scores, 3))])]);
}

/** [B,1,Tq,1]: where the new tokens stand, the last of `value` [B]. */
function placesBehind(e: SiteEmitter, scores: string, value: string): string {
  const before = e.sub(e.reshape(value, [-1, 1, 1, 1]), e.dim(scores, 2));
  return e.add(e.unsqueeze(e.positions(e.dim(scores, 2)), 1), before);
}

/** Scores with those of keys that are neither near nor sinks hidden. Bidirectional attention sees as far ahead as back. */
function hideFar(
  e: SiteEmitter,
  sdpa: Sdpa,
  scores: string,
  { window, sinks }: { window: number; sinks: number },
  dtype: DTypeName,
): string {
  const [queries, keys] = [e.dim(scores, 2), e.dim(scores, 3)];
  const told = sdpa.masks.find((m) => m.kind === 'rows');
  const buffer = sdpa.masks.find((m) => m.kind === 'filled');
  const rows = told
    ? e.unsqueeze(e.unsqueeze(e.rows!.positions(told.lengths), 1), 3) // [B,1,T,1]
    : buffer
      ? placesBehind(e, scores, buffer.value)
      : e.unsqueeze(e.add(e.positions(queries), e.sub(keys, queries)), 1); // cached keys come first
  const columns = e.unsqueeze(e.positions(keys), 0);
  const less = (a: string, b: number) => e.op('Less', [a, e.ints(b)]);
  const near = less(e.op('Abs', [e.sub(rows, columns)]), window);
  const seen = sinks > 0 ? e.op('Or', [near, less(columns, sinks)]) : near;
  return e.op('Where', [seen, scores, e.scalar(Number.NEGATIVE_INFINITY, dtype)]);
}

/** [B,1,Tq,Tk], true where key j is no later than query i of the row, and not too early for the window. */
function byRow(
  e: SiteEmitter,
  scores: string,
  { lengths, window }: Extract<MaskStep, { kind: 'rows' }>,
): string {
  const rows = e.unsqueeze(e.unsqueeze(e.rows!.positions(lengths), 1), 3);
  const columns = e.positions(e.dim(scores, 3));
  const past = e.op('Not', [e.op('Less', [rows, columns])]);
  if (window === undefined) return past;
  return e.op('And', [past, e.op('Less', [e.sub(rows, columns), e.ints(window)])]);
}

import type { Graph, Node } from './ir/index.js';
import { Facts } from './match/facts.js';
import type { Prober } from './match/probe.js';
import type { Cache } from './match/sdpa.js';
import { batchOf, roleOf, type Situation } from './match/situation.js';
import { addState, batchOfCache, type StatePair } from './states.js';
import { SiteEmitter } from './variants/emit.js';

/**
 * Models with a KV cache read from the cache how many tokens came before, to number new ones. With the
 * caches gone, the count becomes a state of its own:
 *
 * - `visible`: positions skip padding: visible tokens before + cumulative sum of the new mask - 1, per row
 * - `absolute`: positions count every token: tokens before + 0, 1, 2, ...
 */
type Counting = 'visible' | 'absolute';

/** A value that holds the positions of the new tokens, plus a constant. */
interface Positions {
  readonly value: string;
  readonly counting: Counting;
  readonly offset: number;
  readonly rank: number;
  /** The same row for each of the batch. */
  readonly repeated: boolean;
}

/** What to put in place of the lengths of removed caches. */
export interface LengthContext {
  readonly graph: Graph;
  readonly prober: Prober;
  /** Caches of converted sites. */
  readonly removed: readonly Cache[];
  /** A cache that stays, if there is one. */
  readonly kept: Cache | undefined;
  /** The [B, total] padding mask input, if the model has one. */
  readonly maskInput: string | undefined;
  /** Number of new tokens, and the [B,T] mask of the new tokens (any type): values of the graph. */
  readonly tokens: string;
  readonly currentMask: string | undefined;
  /** Rows are padded on the right, if at all: positions may count padding on the left or not. */
  readonly rightPadded: boolean;
}

/** Replaces everything that reads the length of a removed cache. Returns the states it needed. */
export async function replaceLengths(ctx: LengthContext): Promise<StatePair[]> {
  const { graph } = ctx;
  graph.removeDead();
  if (ctx.kept) {
    redirectToKept(ctx, ctx.kept);
    return [];
  }
  const states: StatePair[] = [];
  const positions = await findPositions(ctx);
  for (const p of positions) {
    if (graph.uses(p.value).length > 0) replacePositions(ctx, p, states);
  }
  graph.removeDead();
  redirectShapes(ctx, states);
  return states;
}

/** The nodes that read a removed cache's shape are pointed at one that stays. */
function redirectToKept({ graph, removed }: LengthContext, kept: Cache): void {
  for (const past of removed.flatMap((c) => [c.pastKey, c.pastValue])) {
    graph.replaceUses(past, kept.pastKey, (use) => !use.node.is('Shape'));
  }
}

/** Integer values that turn out to be the positions of the new tokens, those nearest to their use first. */
async function findPositions(ctx: LengthContext): Promise<Positions[]> {
  const { graph } = ctx;
  graph.sort();
  const found: Positions[] = [];
  const covered = new Set<string>();
  for (const value of [...lengthDependent(ctx)].reverse()) {
    if (covered.has(value)) continue;
    const p = await classify(value, ctx);
    if (!p) continue;
    found.push(p);
    for (const behind of ancestors(graph, value)) covered.add(behind);
  }
  return found;
}

/** Integer values of rank 1 or 2 that depend on the length of a cache or on the padding mask, in graph order. */
function lengthDependent({ graph, removed, maskInput }: LengthContext): string[] {
  const facts = new Facts(graph);
  const reached = new Set<string>(removed.flatMap((c) => [c.pastKey, c.pastValue]));
  if (maskInput) reached.add(maskInput);
  const found: string[] = [];
  for (const node of graph.nodes) {
    if (!node.inputs.some((v) => reached.has(v))) continue;
    const value = node.outputs[0]!;
    const dtype = facts.dtype(value);
    // Positions are integers until they are embedded or rotated.
    if (dtype !== 'int64' && dtype !== 'int32') continue;
    reached.add(value);
    if ((facts.rank(value) ?? 2) <= 2) found.push(value);
  }
  return found;
}

function ancestors(graph: Graph, value: string): Set<string> {
  const seen = new Set<string>();
  const stack = [value];
  while (stack.length > 0) {
    const at = stack.pop()!;
    if (!at || seen.has(at)) continue;
    seen.add(at);
    stack.push(...(graph.producer(at)?.inputs ?? []));
  }
  return seen;
}

/** Runs a value in several situations and compares it with both ways of counting. */
async function classify(value: string, ctx: LengthContext): Promise<Positions | undefined> {
  let candidates: Counting[] = ['visible', 'absolute'];
  let offset: number | undefined;
  let rank = 0;
  let repeated = false;
  for (const s of situations(ctx)) {
    const run = await ctx.prober.run([value], s);
    if (typeof run === 'string') return undefined;
    const { dims, data } = run[0]!;
    rank = dims.length;
    const rows = rank === 2 ? dims[0]! : 1;
    if (rank < 1 || rank > 2 || dims.at(-1) !== s.tokens || (rows !== 1 && rows !== s.batch))
      return undefined;
    repeated = rows > 1;
    offset ??= data[0]! - s.past;
    const from = offset;
    candidates = candidates.filter((counting) => {
      if (counting === 'visible' && (rows !== s.batch || !ctx.maskInput)) return false;
      return agrees(data, rows, s, counting, from);
    });
    if (candidates.length === 0) return undefined;
  }
  return { value, counting: candidates[0]!, offset: offset!, rank, repeated };
}

function situations({ graph, rightPadded }: LengthContext): Situation[] {
  const batch = batchOf(graph);
  const padded = (width: number, past = 0) =>
    Array.from({ length: batch }, (_, b) => {
      const zeros = (b + 1) % 3;
      // On the right of the first call's tokens, which are the cache later.
      const from = rightPadded ? (past || width) - zeros : 0;
      return Array.from({ length: width }, (_, j) => (j >= from && j < from + zeros ? 0 : 1));
    });
  return [
    { batch, tokens: 5, past: 0 },
    { batch, tokens: 4, past: 3 },
    { batch, tokens: 1, past: 6 },
    { batch, tokens: 6, past: 0, mask: padded(6) },
    { batch, tokens: 3, past: 4, mask: padded(7, 4) },
    { batch, tokens: 1, past: 5, mask: padded(6, 5) },
  ];
}

function agrees(
  data: Float32Array,
  rows: number,
  s: Situation,
  counting: Counting,
  offset: number,
): boolean {
  for (let b = 0; b < rows; b++) {
    const mask = s.mask?.[b];
    let visible = mask ? mask.slice(0, s.past).filter((m) => m).length : s.past;
    for (let t = 0; t < s.tokens; t++) {
      const shown = mask?.[s.past + t] ?? 1;
      const expected = counting === 'visible' ? visible : s.past + t;
      visible += shown;
      // Where padding itself stands does not matter to anyone who sees no padding.
      if (shown === 0 && counting === 'visible') continue;
      if (data[b * s.tokens + t] !== expected + offset) return false;
    }
  }
  return true;
}

function replacePositions(ctx: LengthContext, p: Positions, states: StatePair[]): void {
  const { graph } = ctx;
  const facts = new Facts(graph);
  const e = new SiteEmitter(graph, facts, 'positions');
  const positions =
    p.counting === 'visible'
      ? visiblePositions(e, ctx, states)
      : absolutePositions(e, ctx, states, p);
  const shifted =
    p.offset === 0 ? positions : e.add(positions, e.constant('int64', [p.offset], []));
  const dtype = facts.dtype(p.value);
  const typed = dtype === 'int32' ? e.cast(shifted, 'int32') : shifted;
  const inside = new Set(e.nodes);
  graph.insert(e.nodes);
  graph.replaceUses(p.value, typed, (use) => inside.has(use.node.proto));
}

/** [B,T]: per row, visible tokens before + cumulative sum of the new mask - 1, and 0 before the first visible token. */
function visiblePositions(e: SiteEmitter, ctx: LengthContext, states: StatePair[]): string {
  const state = lengthState(ctx, states, 'visible');
  const mask = e.cast(ctx.currentMask!, 'int64');
  const seen = e.op('CumSum', [mask, e.constant('int64', [1], [])]);
  const total = e.add(seen, e.unsqueeze(state.past, 1));
  const last = e.sub(total, e.constant('int64', [1], []));
  if (state.isNew) advance(e, state.pair, e.squeeze(e.sum(mask, 1), 1));
  return e.op('Where', [e.op('Greater', [total, e.ints(0)]), last, e.ints(0)]);
}

/** [T], [1,T] or, repeated, [B,T]: tokens before + 0, 1, 2, ... */
function absolutePositions(
  e: SiteEmitter,
  ctx: LengthContext,
  states: StatePair[],
  { rank, repeated }: Positions,
): string {
  const state = lengthState(ctx, states, 'absolute');
  const number = (value: number) => e.constant('int64', [value], []);
  const range = e.op('Range', [number(0), e.squeeze(ctx.tokens, 0), number(1)]);
  const positions = e.add(range, state.past);
  if (state.isNew) advance(e, state.pair, ctx.tokens);
  if (rank === 1) return positions;
  const row = e.unsqueeze(positions, 0);
  const source = tokensInput(ctx.graph);
  return repeated && source ? e.op('Expand', [row, e.shape([e.dim(source, 0), 1])]) : row;
}

function tokensInput(graph: Graph): string | undefined {
  return graph.inputs.find((i) => roleOf(graph, i.name) === 'tokens')?.name;
}

function advance(e: SiteEmitter, pair: StatePair, count: string): void {
  e.op('Add', [pair.past, count], {}, { output: pair.present });
}

/** The state that counts tokens in that way, declared when first asked for. */
function lengthState(
  { graph, removed }: LengthContext,
  states: StatePair[],
  counting: Counting,
): { past: string; pair: StatePair; isNew: boolean } {
  const word = counting === 'visible' ? 'length' : 'position';
  const known = states.find((s) => s.past === `past_key_values.${word}`);
  if (known) return { past: known.past, pair: known, isNew: false };
  const batch = batchOfCache(graph, removed[0]!);
  const pair: StatePair = {
    past: graph.fresh(`past_key_values.${word}`),
    present: graph.fresh(`present.${word}`),
    shape: [counting === 'visible' ? batch : 1],
    dtype: 'int64',
    in_place: false,
  };
  addState(graph, pair);
  states.push(pair);
  return { past: pair.past, pair, isNew: true };
}

/** Whatever still reads the shape of a removed cache gets one made from the count of tokens. */
function redirectShapes(ctx: LengthContext, states: StatePair[]): void {
  const { graph } = ctx;
  for (const cache of ctx.removed)
    for (const past of new Set([cache.pastKey, cache.pastValue])) {
      const shapes = graph.uses(past).map((u) => u.node);
      if (shapes.length === 0 || !shapes.every((n) => n.is('Shape'))) continue;
      const dims = graph.dims(past)?.slice(-3);
      const [heads, dim] = [dims?.[0], dims?.[2]];
      if (typeof heads !== 'number' || typeof dim !== 'number') continue;
      const e = new SiteEmitter(graph, new Facts(graph), 'lengths');
      const state = lengthState(ctx, states, 'absolute');
      if (state.isNew) advance(e, state.pair, ctx.tokens);
      const source = tokensInput(graph);
      const batch = source ? e.dim(source, 0) : e.ints(1);
      const shape = e.shape([...(cache.stacked ? [2] : []), batch, heads, state.past, dim]);
      for (const node of shapes) {
        graph.replaceUses(node.outputs[0]!, partOfShape(e, shape, node));
      }
      graph.insert(e.nodes);
      graph.removeDead();
    }
}

/** What a Shape node answers, start and end minded, when the shape is `shape` [4]. */
export function partOfShape(e: SiteEmitter, shape: string, node: Node): string {
  const [start, end] = [node.int('start') ?? 0, node.int('end')];
  return start === 0 && end === undefined ? shape : e.slice(shape, 0, start, end);
}

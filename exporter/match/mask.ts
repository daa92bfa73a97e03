import {
  alibiSlopes,
  type Bias,
  distanceBias,
  sameDistances,
  sameSlopes,
  unevenRow,
} from './bias.js';
import type { Facts } from './facts.js';
import type { Probed, Prober } from './probe.js';
import { batchAxis, type Lengths, type MaskStep, type Sdpa, tokenAxis } from './sdpa.js';
import { batchOf, LARGEST_PROBE, LARGEST_STRETCHED, roleOf, type Situation } from './situation.js';

/** Which keys a query may see, found out from the mask's values. */
export interface MaskClass {
  readonly kind: 'bidirectional' | 'causal' | 'window' | 'other';
  /** For `window`: a query sees the last `window` keys, its own included. */
  readonly window?: number;
  /** The [B,Tk] graph input whose zeros hide keys; or whose ones do (`paddingHides`), as torch.nn has it. */
  readonly padding?: string;
  readonly paddingHides?: boolean;
  /** The lengths of rows that hide keys, where they are an input of the model: int32 [B], or as GroupQueryAttention has them. */
  readonly lengths?: string | Lengths;
  /** ALiBi: what a distance of one token takes from the scores of each query head, or of all of them. */
  readonly slopes?: readonly number[];
  /** Scores of keys that are seen get something else added, by position: what. */
  readonly bias?: string;
  /** That, where it depends on the distance alone: by query head (or for all of them), and by distance. */
  readonly distances?: readonly (readonly number[])[];
  /** For `other`: what it is. */
  readonly reason?: string;
}

/** How `inspect` writes a class. */
export function maskName(c: MaskClass): string {
  const base = c.kind === 'window' ? `window ${c.window}` : c.kind;
  const padded = c.padding !== undefined || c.lengths !== undefined;
  const alone = padded && base === 'bidirectional' ? 'padding' : base;
  const added = c.slopes ? '+ALiBi' : c.bias ? '+bias' : '';
  return `${alone}${padded && alone === base ? '+padding' : ''}${added}`;
}

const HIDDEN = -1000; // BERT adds -10000, others the smallest float or -infinity
const LONGEST_PROBE = 8192;
/** Lengths at which a bias must go on as it began: beyond the last bucket of T5 (128), or as far as a table goes. */
const LONG_BIAS = [300, 40];

/** Finds out the class of a site's mask, by proof where there is nothing to run, by probing otherwise. */
export async function classifyMask(sdpa: Sdpa, facts: Facts, prober: Prober): Promise<MaskClass> {
  const found = await classify(sdpa, facts, prober);
  if (found.reason !== HIDES_ALL || sdpa.cache) return found;
  const turned = await classify(sdpa, facts, prober.turned());
  if (turned.kind === 'other') return turned;
  return turned.padding ? { ...turned, paddingHides: true } : found;
}

async function classify(sdpa: Sdpa, facts: Facts, prober: Prober): Promise<MaskClass> {
  if (onlyRight(sdpa) && facts.graph.parent) {
    return other('the lengths of rows are told in a nested graph');
  }
  if (sdpa.masks.length === 0 && sdpa.cache && fixedTokens(sdpa, facts) !== 1) {
    return other(
      'there is no mask although keys are cached: new tokens would see one another both ways',
    );
  }
  // By the definition of nonpad_kv_seqlen, and as long as rows are not padded: with padding it would hide keys of its own tokens.
  if (sdpa.masks.some((m) => m.kind === 'filled')) return { kind: 'causal' };
  if (sdpa.masks.length === 0) return { kind: sdpa.cache ? 'causal' : 'bidirectional' };
  const values = sdpa.masks.flatMap(stepValues);
  const fixed = fixedTokens(sdpa, facts);
  const foreign = foreignInput(sdpa, values, fixed, prober);
  if (foreign) return other(foreign);
  let found: MaskClass | undefined;
  const added: Visibility[] = [];
  for (const s of situations(sdpa, fixed)) {
    const seen = await visibility(sdpa, values, s, prober);
    if (typeof seen === 'string') return other(seen);
    added.push(seen);
    const here = classOf(seen, s);
    if (here.kind === 'other') return here;
    // One query over few keys cannot tell causal from bidirectional, nor a window wider than the keys.
    found = found ? reconcile(found, here, s) : here;
    if (found.kind === 'other') return found;
  }
  found = await widen(found!, sdpa, values, fixed, prober);
  if (found.kind === 'other') return found;
  if (added.some((a) => a.uneven !== undefined) && !fixed)
    added.push(...(await farAway(sdpa, values, prober)));
  found = { ...found, ...biasOf(found, added) };
  return withPadding(found, sdpa, values, fixed, prober);
}

/** What a long text shows, as far as the mask exists there. */
async function farAway(
  sdpa: Sdpa,
  values: readonly string[],
  prober: Prober,
): Promise<Visibility[]> {
  for (const tokens of LONG_BIAS) {
    const s: Situation = { batch: batchOf(prober.graph, 1), tokens, past: 0 };
    const seen = await visibility(sdpa, values, s, prober);
    if (typeof seen !== 'string') return [seen];
  }
  return [];
}

/** What is added to scores that are seen: nothing, ALiBi, or something else. */
function biasOf(
  { kind }: MaskClass,
  seen: readonly Visibility[],
): Pick<MaskClass, 'slopes' | 'bias' | 'distances'> {
  const worst = Math.max(...seen.map((s) => s.uneven ?? 0));
  if (worst === 0) return {};
  const slopes = seen.filter((s) => s.dims[3] > 1).map((s) => s.slopes);
  const [first] = slopes;
  if (first && kind !== 'bidirectional' && slopes.every((s) => s && sameSlopes(first, s)))
    return { slopes: slopes.at(-1)! };
  const byDistance = seen.map((s) => s.distances);
  const longest = byDistance.at(-1);
  const alike = longest && byDistance.every((d) => d && sameDistances(d, longest));
  return {
    ...(alike && kind === 'causal' && { distances: longest }),
    bias: `it adds up to ${worst.toPrecision(3)} to keys that are seen: a bias (relative positions), not a mask`,
  };
}

function other(reason: string): MaskClass {
  return { kind: 'other', reason };
}

function stepValues(step: MaskStep): string[] {
  switch (step.kind) {
    case 'add':
    case 'keys':
      return [step.value];
    case 'where':
      return typeof step.fill === 'string' ? [step.cond, step.fill] : [step.cond];
    case 'length':
      return [step.value];
    case 'rows':
      return [step.lengths.seqlens, step.lengths.total];
    case 'causal':
    case 'filled':
      return [];
  }
}

/** Lengths can tell of padding on the right only, and in the first call only. */
function onlyRight(sdpa: Sdpa): boolean {
  return sdpa.masks.some((m) => m.kind === 'length' || m.kind === 'rows');
}

function fixedTokens(sdpa: Sdpa, facts: Facts): number | undefined {
  const d = facts.dims(sdpa.q.value)?.[tokenAxis(sdpa.q)];
  return typeof d === 'number' ? d : undefined;
}

function situations(sdpa: Sdpa, fixed: number | undefined): Situation[] {
  const batch = batchOf(sdpa.anchor.graph);
  const cached = sdpa.cache !== undefined;
  const at = (tokens: number, past = 0): Situation => ({ batch, tokens: fixed ?? tokens, past });
  if (!cached) return fixed ? [at(fixed)] : [at(5), at(7)];
  return fixed ? [at(fixed, 0), at(fixed, 3)] : [at(6), at(4, 3), at(1, 5)];
}

/** Visible keys: 1 or 0 for [B,H,Tq,Tk]. */
interface Visibility {
  readonly dims: readonly [number, number, number, number];
  readonly at: (b: number, h: number, i: number, j: number) => boolean;
  /** The largest difference between what keys of one query get added, when there is any; and the slopes, when it is ALiBi. */
  readonly uneven: number | undefined;
  readonly slopes: readonly number[] | undefined;
  /** The same by distance. */
  readonly distances: readonly (readonly number[])[] | undefined;
}

/** Rows and tokens that reach a site: convolutions shorten speech, images have as many tokens as patches, windows are rows. */
function queriesIn({ q }: Sdpa, s: Situation, prober: Prober): [rows: number, tokens: number] {
  const dims = prober.dims(q.value, s);
  const [rows, tokens] = [dims?.[batchAxis(q)], dims?.[tokenAxis(q)]];
  return [
    typeof rows === 'number' ? rows : s.batch,
    typeof tokens === 'number' ? tokens : s.tokens,
  ];
}

async function visibility(
  sdpa: Sdpa,
  values: readonly string[],
  s: Situation,
  prober: Prober,
): Promise<Visibility | string> {
  const probed = values.length > 0 ? await prober.run(values, s) : [];
  if (typeof probed === 'string') return `the mask cannot be probed: ${probed}`;
  const [batch, tokens] = queriesIn(sdpa, s, prober);
  const byName = new Map(values.map((v, i) => [v, apart(v, probed[i]!, sdpa, batch)]));
  const keys = s.past + tokens;
  const shapes = [...sdpa.masks].flatMap((m) =>
    m.kind === 'add' || m.kind === 'where' ? stepValues(m) : [],
  );
  const extent = (axis: number) =>
    Math.max(1, ...shapes.map((v) => byName.get(v)!.dims.at(axis - 4) ?? 1));
  const dims = [batch, extent(1), tokens, keys] as const;
  for (const v of shapes) {
    const d = byName.get(v)!.dims;
    const fits = d.length <= 4 && d.every((n, i) => n === 1 || n === dims[4 - d.length + i]);
    if (!fits)
      return `mask '${v}' [${d}] does not fit scores [${dims}] of ${tokens} tokens after ${s.past}`;
  }
  const total = dims[0] * dims[1] * dims[2] * dims[3];
  const limit = tokens > s.tokens ? LARGEST_STRETCHED : LARGEST_PROBE;
  if (total > limit) return `the mask cannot be probed: scores [${dims}] are too many`;
  const bias = new Float32Array(total);
  for (const step of sdpa.masks) apply(step, bias, dims, s, byName);
  const [, H, T, K] = dims;
  const whole: Bias = { data: bias, dims, seen: (value) => value > HIDDEN };
  const uneven = unevenRow(whole);
  return {
    dims,
    at: (b, h, i, j) => bias[((b * H + h) * T + i) * K + j]! > HIDDEN,
    uneven,
    slopes: uneven === undefined ? undefined : alibiSlopes(whole),
    distances: distanceBias(whole, s.past),
  };
}

/** A mask of [B*H,..] scores as [B,H,..]. */
function apart(value: string, p: Probed, sdpa: Sdpa, batch: number): Probed {
  const flat = sdpa.masks.some((m) => m.kind === 'add' && m.value === value && m.flat);
  const [rows, ...rest] = p.dims;
  return flat && rows === batch * sdpa.q.heads ? { ...p, dims: [batch, sdpa.q.heads, ...rest] } : p;
}

function apply(
  step: MaskStep,
  bias: Float32Array,
  dims: readonly [number, number, number, number],
  s: Situation,
  values: ReadonlyMap<string, Probed>,
): void {
  const [B, H, T, K] = dims;
  let n = 0;
  const read = (p: Probed) => reader(p, dims);
  const first = step.kind === 'add' ? read(values.get(step.value)!) : undefined;
  const cond = step.kind === 'where' ? read(values.get(step.cond)!) : undefined;
  const filled = step.kind === 'where' ? step.fill : undefined;
  const fill = typeof filled === 'string' ? read(values.get(filled)!) : () => filled ?? 0;
  const keys = step.kind === 'keys' ? values.get(step.value)! : undefined;
  const ends = step.kind === 'length' ? values.get(step.value)! : undefined;
  const past = step.kind === 'rows' ? pastOfRows(step.lengths, s, values) : undefined;
  const apart = keys?.dims.length === 3 ? K * T : K; // a row for each query, or one for all
  for (let b = 0; b < B; b++)
    for (let h = 0; h < H; h++)
      for (let i = 0; i < T; i++)
        for (let j = 0; j < K; j++, n++) {
          if (step.kind === 'add') bias[n]! += (step.factor ?? 1) * first!(b, h, i, j);
          else if (step.kind === 'where') {
            if ((cond!(b, h, i, j) !== 0) !== step.keep) bias[n] = fill(b, h, i, j);
          } else if (step.kind === 'keys') {
            if (keys!.data[b * apart + (apart > K ? i * K : 0) + j] === 0) bias[n]! += step.fill;
          } else if (step.kind === 'length') {
            if (j >= ends!.data[b]!) bias[n]! += step.fill;
          } else if (step.kind === 'rows') {
            const age = past!(b) + i - j;
            if (age < 0 || age >= (step.window ?? age + 1)) bias[n] = Number.NEGATIVE_INFINITY;
          } else if (j > i + s.past) bias[n] = Number.NEGATIVE_INFINITY;
        }
}

/** How many tokens of each row lie in the cache. */
function pastOfRows(
  { seqlens, total }: Lengths,
  s: Situation,
  values: ReadonlyMap<string, Probed>,
): (b: number) => number {
  if (values.get(total)!.data[0] === s.tokens) return () => 0;
  const last = values.get(seqlens)!.data;
  return (b) => last[b]! + 1 - s.tokens;
}

function reader(
  p: Probed,
  dims: readonly number[],
): (b: number, h: number, i: number, j: number) => number {
  const shape = [...Array(4 - p.dims.length).fill(1), ...p.dims];
  const stride = shape.map((d, a) =>
    d === 1 && dims[a] !== 1 ? 0 : shape.slice(a + 1).reduce((x, y) => x * y, 1),
  );
  return (b, h, i, j) => p.data[b * stride[0]! + h * stride[1]! + i * stride[2]! + j * stride[3]!]!;
}

const HIDES_ALL = 'it hides every key';

function classOf(seen: Visibility, s: Situation): MaskClass {
  const [B, H, T, K] = seen.dims;
  let all = true;
  let causal = true;
  let window = 0;
  let future = false;
  for (let b = 0; b < B; b++)
    for (let h = 0; h < H; h++)
      for (let i = 0; i < T; i++)
        for (let j = 0; j < K; j++) {
          const age = i + s.past - j; // 0 for the query's own key
          const visible = seen.at(b, h, i, j);
          if (!visible) all = false;
          if (visible !== age >= 0) causal = false;
          if (visible && age < 0) future = true;
          if (visible) window = Math.max(window, age + 1);
        }
  if (all && !(T === 1)) return { kind: 'bidirectional' };
  if (causal) return { kind: 'causal' };
  if (window === 0) return other(HIDES_ALL);
  if (future) return other('it is neither causal nor open to all keys');
  for (let b = 0; b < B; b++)
    for (let h = 0; h < H; h++)
      for (let i = 0; i < T; i++)
        for (let j = 0; j < K; j++) {
          const age = i + s.past - j;
          if (seen.at(b, h, i, j) !== (age >= 0 && age < window)) {
            return other('it hides keys in a way that is no causal mask and no window');
          }
        }
  return { kind: 'window', window };
}

/** Combines what two situations showed; `b` was seen in `s`. */
function reconcile(a: MaskClass, b: MaskClass, s: Situation): MaskClass {
  if (a.kind === b.kind && a.window === b.window) return a;
  const pair = [a, b];
  const window = pair.find((c) => c.kind === 'window');
  const causal = pair.find((c) => c.kind === 'causal');
  // Short texts do not reach the edge of the window.
  if (window && causal && window.window! <= s.past + s.tokens) return window;
  if (causal && s.tokens === 1) return a;
  return other(`it is ${a.kind} at one length and ${b.kind} at another`);
}

/** A window wider than the first probes shows up at a length just beyond a constant of the mask. */
async function widen(
  found: MaskClass,
  sdpa: Sdpa,
  values: readonly string[],
  fixed: number | undefined,
  prober: Prober,
): Promise<MaskClass> {
  if (found.kind !== 'causal' || fixed || values.length === 0) return found;
  const windows = sdpa.masks.flatMap((m) => (m.kind === 'rows' ? (m.window ?? []) : []));
  const suspects = [...constantsBehind(values, prober), ...windows].filter(
    (c) => c > 7 && c <= LONGEST_PROBE,
  );
  for (const suspect of suspects.sort((a, b) => b - a)) {
    const s: Situation = { batch: batchOf(prober.graph, 1), tokens: suspect + 2, past: 0 };
    const seen = await visibility(sdpa, values, s, prober);
    // Beyond the size of a table that it is cut from a mask does not exist: then a smaller one decides.
    if (typeof seen !== 'string') return classOf(seen, s);
  }
  return found;
}

function constantsBehind(values: readonly string[], prober: Prober): number[] {
  const { graph } = prober;
  const found = new Set<number>();
  const seen = new Set<string>();
  const stack = [...values];
  while (stack.length > 0 && seen.size < 5000) {
    const value = stack.pop()!;
    if (!value || seen.has(value)) continue;
    seen.add(value);
    const scalar = graph.scalar(value);
    if (scalar !== undefined) found.add(Math.abs(scalar));
    const node = graph.producer(value);
    if (node && !node.is('Shape')) for (const input of node.inputs) stack.push(input);
  }
  return [...found].filter(Number.isInteger);
}

/** A graph input whose values a mask must not depend on: all but padding masks and positions. */
function foreignInput(
  sdpa: Sdpa,
  values: readonly string[],
  fixed: number | undefined,
  prober: Prober,
): string | undefined {
  const inputs = values.length > 0 ? prober.inputs(values, situations(sdpa, fixed)[0]!) : [];
  if (typeof inputs === 'string') return `the mask cannot be probed: ${inputs}`;
  const roles = ['mask', 'positions', ...(onlyRight(sdpa) ? ['lengths'] : [])];
  const known = (name: string) => roles.includes(roleOf(prober.graph, name));
  const name = inputs.find((i) => !known(i));
  return name && `it depends on the values of graph input '${name}'`;
}

/** Hides some tokens in every mask input that the mask reads, and looks whether exactly those keys vanish. */
async function withPadding(
  found: MaskClass,
  sdpa: Sdpa,
  values: readonly string[],
  fixed: number | undefined,
  prober: Prober,
): Promise<MaskClass> {
  const all = situations(sdpa, fixed);
  const s = (onlyRight(sdpa) ? undefined : all[1]) ?? all[0]!;
  const inputs = values.length > 0 ? prober.inputs(values, s) : [];
  if (typeof inputs === 'string') return other(`the mask cannot be probed: ${inputs}`);
  let padding: string | undefined;
  const told = toldLengths(sdpa, prober, s);
  if (told) return { ...found, lengths: told };
  for (const name of inputs) {
    if (roleOf(prober.graph, name) !== 'mask') continue;
    const effect = await hides(name, found, sdpa, values, s, prober);
    if (typeof effect === 'string') return other(effect);
    if (!effect) continue;
    if (padding) return other(`both '${padding}' and '${name}' hide keys`);
    padding = name;
  }
  return padding ? { ...found, padding } : found;
}

/** The lengths of rows, when the model takes them as an input. */
function toldLengths(sdpa: Sdpa, prober: Prober, s: Situation): string | Lengths | undefined {
  for (const step of sdpa.masks) {
    if (step.kind !== 'length' && step.kind !== 'rows') continue;
    const value = step.kind === 'length' ? step.value : step.lengths.seqlens;
    const inputs = prober.inputs([value], s);
    const masked = (name: string) => roleOf(prober.graph, name) === 'mask';
    if (typeof inputs !== 'string' && !inputs.some(masked))
      return step.kind === 'length' ? value : step.lengths;
  }
  return undefined;
}

/** Do zeros of `name` hide just their keys (true), nothing (false), or something else (why)? */
async function hides(
  name: string,
  found: MaskClass,
  sdpa: Sdpa,
  values: readonly string[],
  base: Situation,
  prober: Prober,
): Promise<boolean | string> {
  const width = base.past + base.tokens;
  const left = Array.from({ length: width }, (_, j) =>
    (onlyRight(sdpa) ? j > width - 3 : j < 2) ? 0 : 1,
  );
  // The last token is a query, and the only one of some models.
  const right =
    base.tokens === 1 ? left : Array.from({ length: width }, (_, j) => (j === width - 1 ? 0 : 1));
  const mask = Array.from({ length: base.batch }, (_, b) => (b % 2 === 0 ? right : left));
  const s: Situation = { ...base, mask, only: name };
  const rows = sdpa.masks.find((m) => m.kind === 'rows');
  if (rows) {
    // Queries that are no padding see no padding on the right anyway: it matters to later calls.
    const probed = await prober.run([rows.lengths.seqlens], s);
    if (typeof probed === 'string') return probed;
    const ends = mask.map((row) => row.filter((m) => m).length - 1);
    return (
      ends.every((end, b) => probed[0]!.data[b] === end) ||
      `'${rows.lengths.seqlens}' is not the count of ones in graph input '${name}', minus 1`
    );
  }
  const seen = await visibility(sdpa, values, s, prober);
  if (typeof seen === 'string') return seen;
  if (found.slopes && !(seen.slopes && sameSlopes(found.slopes, seen.slopes)))
    return `what it adds to scores changes with zeros of graph input '${name}'`;
  const [B, H, T, K] = seen.dims;
  // Where tokens are no longer those of the input, or rows not its rows, they have no zeros of their own.
  const own = B === base.batch && K === width;
  let exact = own;
  let none = true;
  for (let b = 0; b < B; b++)
    for (let h = 0; h < H; h++)
      for (let i = 0; i < T; i++) {
        if (own && mask[b]![i + s.past] === 0) continue; // what padding itself sees is nobody's business
        for (let j = 0; j < K; j++) {
          const age = i + s.past - j;
          const open =
            found.kind === 'bidirectional' ||
            (age >= 0 && (found.kind === 'causal' || age < found.window!));
          const visible = seen.at(b, h, i, j);
          if (own && visible !== (open && mask[b]![j] === 1)) exact = false;
          if (visible !== open) none = false;
        }
      }
  if (none) return false;
  return exact ? true : `zeros of graph input '${name}' do not hide just their own keys`;
}

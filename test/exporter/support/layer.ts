import { random } from './run.js';

/** The numbers of one self-attention layer: y = attention(x Wq + bq, x Wk + bk, x Wv + bv) Wo. */
export interface Layer {
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  readonly wq: number[];
  readonly wk: number[];
  readonly wv: number[];
  readonly bq: number[];
  readonly bk: number[];
  readonly bv: number[];
  readonly wo: number[];
  /** What happens to each head's queries and keys before they are compared: norms, rotary embedding. */
  readonly turn?: (x: readonly number[], position: number, what: 'q' | 'k') => number[];
  /** Softmax scale; default 1/sqrt(dim). */
  readonly scale?: number;
  /** ALiBi, per query head: what a token of distance costs. */
  readonly slopes?: readonly number[];
  /** What is added to scores of query head h by distance. Features have no scores. */
  readonly bias?: (h: number, distance: number) => number;
  /** Scores s become softcap tanh(s / softcap). Features know no bound. */
  readonly softcap?: number;
  /** Score of a key more, whose value is 0, per query head. */
  readonly sinks?: readonly number[];
}

export function makeLayer(hidden = 12, heads = 4, kvHeads = heads, dim = 3, seed = 7): Layer {
  const next = random(seed);
  const many = (n: number) => Array.from({ length: n }, () => Math.fround(next() * 0.7));
  return {
    hidden,
    heads,
    kvHeads,
    dim,
    wq: many(hidden * heads * dim),
    wk: many(hidden * kvHeads * dim),
    wv: many(hidden * kvHeads * dim),
    bq: many(heads * dim),
    bk: many(kvHeads * dim),
    bv: many(kvHeads * dim),
    wo: many(heads * dim * hidden),
  };
}

export interface Call {
  readonly batch: number;
  readonly tokens: number;
  readonly x: ArrayLike<number>;
  /** May query i of row b see key j? */
  readonly sees: (b: number, i: number, j: number) => boolean;
  /** Keys less than so many tokens away are weighed by softmax, all others by features without a scale; one sum for both. */
  readonly near?: number;
}

/**
 * How queries weigh keys: softmax; non-negative features phi(q) phi(k) divided by their sum; for silu as they are; or weights of
 * the caller, divided by their sum.
 */
export type Weighing = 'softmax' | MapName | ((q: Float64Array, k: Float64Array) => number);
type MapName = 'elu1' | 'relu' | 'exp' | 'silu';

const FEATURES: Record<MapName, (x: number) => number> = {
  elu1: (x) => (x > 0 ? x + 1 : Math.exp(x)),
  relu: (x) => Math.max(x, 0),
  exp: (x) => Math.exp(x),
  silu: (x) => x / (1 + Math.exp(-x)),
};

/** The layer in float64, from the definition: every weight is written out, nothing is carried. */
export function evaluate(layer: Layer, call: Call, weighing: Weighing): Float64Array {
  const { heads, kvHeads, dim, hidden } = layer;
  const q = turned(project(call, layer.wq, layer.bq, hidden, heads * dim), 'q', layer, call);
  const k = turned(project(call, layer.wk, layer.bk, hidden, kvHeads * dim), 'k', layer, call);
  const v = project(call, layer.wv, layer.bv, hidden, kvHeads * dim);
  const out = new Float64Array(call.batch * call.tokens * heads * dim);
  for (let b = 0; b < call.batch; b++)
    for (let h = 0; h < heads; h++) {
      const shared = Math.floor(h / (heads / kvHeads));
      for (let i = 0; i < call.tokens; i++) {
        const keys = [...Array(call.tokens).keys()].filter((j) => call.sees(b, i, j));
        const row = (b * call.tokens + i) * heads + h;
        const at = (j: number) => (b * call.tokens + j) * kvHeads + shared;
        const distances = keys.map((j) => i - j);
        const { near = 0 } = call;
        const seen = { q, k, row, keys: keys.map(at), h, distances, near };
        const weights = weigh(layer, seen, weighing);
        for (let c = 0; c < dim; c++)
          out[row * dim + c] = keys.reduce(
            (sum, j, n) => sum + weights[n]! * v[at(j) * dim + c]!,
            0,
          );
      }
    }
  return matmul(out, layer.wo, call.batch * call.tokens, heads * dim, hidden);
}

function turned(x: Float64Array, what: 'q' | 'k', { turn, dim }: Layer, { batch, tokens }: Call) {
  if (!turn) return x;
  const heads = x.length / (batch * tokens * dim);
  return Float64Array.from({ length: x.length / dim }, (_, row) => row).reduce((out, row) => {
    const position = Math.floor(row / heads) % tokens;
    out.set(turn([...x.subarray(row * dim, (row + 1) * dim)], position, what), row * dim);
    return out;
  }, new Float64Array(x.length));
}

/** One query of head h and the keys that it sees. */
interface Row {
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly row: number;
  readonly keys: readonly number[];
  readonly h: number;
  readonly distances: readonly number[];
  readonly near: number;
}

function weigh(
  { dim, scale = 1 / Math.sqrt(dim), slopes, bias = () => 0, softcap, sinks }: Layer,
  { q, k, row, keys, h, distances, near }: Row,
  weighing: Weighing,
): number[] {
  const dot = (f: (x: number) => number, key: number) => {
    let sum = 0;
    for (let c = 0; c < dim; c++) sum += f(q[row * dim + c]!) * f(k[key * dim + c]!);
    return sum;
  };
  const decay = distances.map((n) => Math.exp(-(slopes?.[h] ?? 0) * n));
  if (typeof weighing === 'function') {
    const vector = (x: Float64Array, n: number) => x.subarray(n * dim, (n + 1) * dim);
    const raw = keys.map((key, n) => weighing(vector(q, row), vector(k, key)) * decay[n]!);
    const total = raw.reduce((a, b) => a + b, 0);
    return raw.map((w) => w / total);
  }
  const sink = sinks ? Math.exp(sinks[h]!) : 0;
  const cap = (s: number) => (softcap ? softcap * Math.tanh(s / softcap) : s);
  const exact = (key: number, n: number) =>
    Math.exp(cap(scale * dot((x) => x, key)) + bias(h, distances[n]!)) * decay[n]!;
  if (weighing !== 'softmax') {
    const f = FEATURES[weighing];
    const factor = near > 0 ? 1 : scale; // and nothing is added to the sum of both
    const raw = keys.map((key, n) =>
      near > 0 && distances[n]! < near
        ? exact(key, n)
        : factor * dot(f, key) * decay[n]! * (near > 0 ? Math.exp(bias(h, distances[n]!)) : 1),
    );
    // A sink weighs as much as a key that scores its logit would, were features exponentials: exp(logit) times that of a score of 0.
    const beside = sink * scale * dim * f(0) ** 2;
    const total =
      weighing === 'silu' ? 1 : raw.reduce((a, b) => a + b, near > 0 ? 0 : 1e-6) + beside;
    return raw.map((w) => w / total);
  }
  const raw = keys.map(exact);
  const total = raw.reduce((a, b) => a + b, 0) + sink;
  return raw.map((w) => w / total);
}

function project(call: Call, w: readonly number[], b: readonly number[], from: number, to: number) {
  const y = matmul(call.x, w, call.batch * call.tokens, from, to);
  return y.map((v, i) => v + b[i % to]!);
}

function matmul(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  rows: number,
  inner: number,
  columns: number,
): Float64Array {
  const out = new Float64Array(rows * columns);
  for (let r = 0; r < rows; r++)
    for (let i = 0; i < inner; i++)
      for (let c = 0; c < columns; c++)
        out[r * columns + c]! += a[r * inner + i]! * b[i * columns + c]!;
  return out;
}

/** Gates of a token: log decay of each state row, and the step size. */
export interface TokenGates {
  readonly decay: (b: number, t: number, h: number, k: number) => number;
  readonly beta?: (b: number, t: number, h: number) => number;
  /** Factor on the value; default 1. */
  readonly step?: (b: number, t: number, h: number) => number;
}

/**
 * The layer as a gated recurrence in float64, token by token: S = exp(g) S, then S += k v' or, with beta, the delta
 * step S += beta k (v - S' k)' on keys and queries of unit length; the output is scale S' q.
 */
export function recur(layer: Layer, call: Call, gates: TokenGates): Float64Array {
  const { heads, kvHeads, dim, hidden } = layer;
  const q = project(call, layer.wq, layer.bq, hidden, heads * dim);
  const k = project(call, layer.wk, layer.bk, hidden, kvHeads * dim);
  const v = project(call, layer.wv, layer.bv, hidden, kvHeads * dim);
  const out = new Float64Array(call.batch * call.tokens * heads * dim);
  const { scale = 1 / Math.sqrt(dim) } = layer;
  const vector = (m: Float64Array, row: number) => {
    const x = [...m.subarray(row * dim, (row + 1) * dim)];
    if (!gates.beta || m === v) return x;
    const length = Math.sqrt(x.reduce((sum, c) => sum + c * c, 0) + 1e-6);
    return x.map((c) => c / length);
  };
  for (let b = 0; b < call.batch; b++)
    for (let h = 0; h < kvHeads; h++) {
      const state = Array.from({ length: dim }, () => new Float64Array(dim));
      for (let t = 0; t < call.tokens; t++) {
        const row = (b * call.tokens + t) * kvHeads + h;
        if (call.sees(b, t, t)) {
          const step = gates.step?.(b, t, h) ?? 1;
          const [key, value] = [vector(k, row), vector(v, row).map((x) => step * x)];
          state.forEach((s, i) => {
            const factor = Math.exp(gates.decay(b, t, h, i));
            for (let c = 0; c < dim; c++) s[c]! *= factor;
          });
          const beta = gates.beta?.(b, t, h) ?? 1;
          const target = value.map((x, c) => {
            const known = state.reduce((sum, s, i) => sum + s[c]! * key[i]!, 0);
            return gates.beta ? beta * (x - known) : x;
          });
          state.forEach((s, i) => {
            for (let c = 0; c < dim; c++) s[c]! += key[i]! * target[c]!;
          });
        }
        const groups = heads / kvHeads;
        for (let g = h * groups; g < (h + 1) * groups; g++) {
          const at = (b * call.tokens + t) * heads + g;
          const query = vector(q, at);
          for (let c = 0; c < dim; c++)
            out[at * dim + c] = scale * state.reduce((sum, s, i) => sum + s[c]! * query[i]!, 0);
        }
      }
    }
  return matmul(out, layer.wo, call.batch * call.tokens, heads * dim, hidden);
}

/**
 * The named variants of the field as LinearAttention calls, each with its own definition written out independently: per head, in
 * float64, and in another form than the token loop of ops/linear_attention/reference.ts (sums over all pairs of tokens, or products of
 * full transition matrices).
 */
import type { LinearAttentionInputs } from '../../ops/linear_attention/reference.js';
import type { LinearAttentionAttributeInput } from '../../ops/linear_attention/schema.js';
import type { Tensor64 } from '../../ops/tensor64.js';
import { Random } from './tensors.js';

export interface Variant {
  readonly name: string;
  readonly paper: string;
  readonly attributes: LinearAttentionAttributeInput;
  readonly inputs: LinearAttentionInputs;
  /** [B,T,heads*V] as the paper defines it. */
  readonly expected: Tensor64;
}

const [B, T, H, K, V] = [2, 21, 4, 6, 5];

type Vector = readonly number[];
type Matrix = readonly Vector[];

/** One head's rows: a packed tensor's [T,size] slice. */
function headOf(tensor: Tensor64, b: number, head: number, size: number): Matrix {
  const width = tensor.shape[2];
  return Array.from({ length: T }, (_, t) => {
    const start = (b * T + t) * width + head * size;
    return [...tensor.data.subarray(start, start + size)];
  });
}

/** Puts one [T,V] result per batch row and head together. */
function packed(heads: number, head: (b: number, h: number) => Matrix): Tensor64 {
  const data = new Float64Array(B * T * heads * V);
  for (let b = 0; b < B; b += 1) {
    for (let h = 0; h < heads; h += 1) {
      head(b, h).forEach((row, t) => {
        data.set(row, ((b * T + t) * heads + h) * V);
      });
    }
  }
  return { shape: [B, T, heads * V], data };
}

const dot = (a: Vector, b: Vector) => a.reduce((sum, x, i) => sum + x * b[i], 0);
const sum = (terms: Vector) => terms.reduce((a, b) => a + b, 0);
const scaled = (a: Vector, factor: number) => a.map((x) => x * factor);
const added = (a: Vector, b: Vector) => a.map((x, i) => x + b[i]);

/** o_t = sum over s <= t of weight(t, s) v_s: every linear attention in its quadratic form. */
function quadratic(v: Matrix, weight: (t: number, s: number) => number): Matrix {
  return v.map((_, t) =>
    v.slice(0, t + 1).reduce<Vector>(
      (o, row, s) => added(o, scaled(row, weight(t, s))),
      v[0].map(() => 0),
    ),
  );
}

/** The same, divided by the sum of the weights; the 1e-6 is this op's, the papers have none or their own. */
function normalized(v: Matrix, weight: (t: number, s: number) => number): Matrix {
  return quadratic(v, weight).map((o, t) =>
    scaled(o, 1 / (1e-6 + sum(v.slice(0, t + 1).map((_, s) => weight(t, s))))),
  );
}

const times = (a: Matrix, b: Matrix): Matrix =>
  a.map((row) => b[0].map((_, j) => sum(row.map((x, i) => x * b[i][j]))));
const plus = (a: Matrix, b: Matrix): Matrix => a.map((row, i) => added(row, b[i]));
const outer = (a: Vector, b: Vector): Matrix => a.map((x) => scaled(b, x));
const diagonal = (d: Vector): Matrix => d.map((x, i) => d.map((_, j) => (i === j ? x : 0)));
const identity = (n: number) => diagonal(Array<number>(n).fill(1));

/**
 * The delta family as an affine map per token, S <- A_t S + beta_t k_t v_t' with A_t = (I - beta_t k_t k_t') diag(exp g_t), unrolled into
 * products of transition matrices: S_t = sum over s of A_t ... A_{s+1} beta_s k_s v_s'. o = q S / sqrt(K).
 */
function unrolledDelta(q: Matrix, k: Matrix, v: Matrix, beta: Vector, g: Matrix): Matrix {
  const transition = k.map((row, t) =>
    times(plus(identity(K), outer(row, scaled(row, -beta[t]))), diagonal(g[t].map(Math.exp))),
  );
  return q.map((query, t) => {
    let carry = identity(K); // A_t ... A_{s+1}
    let S: Matrix = Array.from({ length: K }, () => Array<number>(V).fill(0));
    for (let s = t; s >= 0; s -= 1) {
      S = plus(S, times(carry, outer(scaled(k[s], beta[s]), v[s])));
      carry = times(carry, transition[s]);
    }
    return scaled(times([query], S)[0], 1 / Math.sqrt(K));
  });
}

/** Sum of log decays of the tokens s+1..t. */
const between = (g: Vector, t: number, s: number) => sum(g.slice(s + 1, t + 1));

function qkv(seed: string, heads = { q: H, k: H, v: H }) {
  const random = new Random(seed);
  const normal = () => random.normal();
  return {
    random,
    query: random.tensor([B, T, heads.q * K], normal),
    key: random.tensor([B, T, heads.k * K], normal),
    value: random.tensor([B, T, heads.v * V], normal),
  };
}

const all = { q_num_heads: H, kv_num_heads: H } as const;

function katharopoulos(): Variant {
  const { query, key, value } = qkv('linear transformer');
  const elu1 = (x: number) => (x > 0 ? x : Math.exp(x) - 1) + 1;
  return {
    name: 'linear transformer',
    paper: 'Katharopoulos et al. 2020, equation 9',
    attributes: { ...all, update_rule: 'linear', feature_map: 'elu1', normalize: 1, scale: 1 },
    inputs: { query, key, value },
    expected: packed(H, (b, h) => {
      const q = headOf(query, b, h, K).map((row) => row.map(elu1));
      const k = headOf(key, b, h, K).map((row) => row.map(elu1));
      return normalized(headOf(value, b, h, V), (t, s) => dot(q[t], k[s]));
    }),
  };
}

/** Positive random features of the softmax kernel: phi(x) = exp(W x - |x|^2 / 2) / sqrt(m), computed before the op. */
function performer(): Variant {
  const { random, query, key, value } = qkv('performer');
  const features = Array.from({ length: K }, () =>
    Array.from({ length: K }, () => random.normal()),
  );
  const small = K ** -0.25;
  const phi = (x: Vector) =>
    features.map(
      (w) => Math.exp(dot(w, scaled(x, small)) - (dot(x, x) * small * small) / 2) / Math.sqrt(K),
    );
  const mapped = (tensor: Tensor64): Tensor64 => ({
    shape: tensor.shape,
    data: Float64Array.from({ length: tensor.data.length / K }).reduce<Float64Array>(
      (out, _, i) => {
        out.set(phi([...tensor.data.subarray(i * K, (i + 1) * K)]), i * K);
        return out;
      },
      new Float64Array(tensor.data.length),
    ),
  });
  return {
    name: 'Performer',
    paper: 'Choromanski et al. 2020, FAVOR+',
    attributes: { ...all, update_rule: 'linear', normalize: 1, scale: 1 },
    inputs: { query: mapped(query), key: mapped(key), value },
    expected: packed(H, (b, h) => {
      const q = headOf(query, b, h, K).map(phi);
      const k = headOf(key, b, h, K).map(phi);
      return normalized(headOf(value, b, h, V), (t, s) => dot(q[t], k[s]));
    }),
  };
}

function retnet(): Variant {
  const { random, query, key, value } = qkv('retnet');
  const gamma = (h: number) => 1 - 2 ** (-5 - h);
  return {
    name: 'RetNet',
    paper: 'Sun et al. 2023, equation 5',
    attributes: { ...all, update_rule: 'gated' },
    inputs: { query, key, value, decay: random.tensor([B, T, H], (i) => Math.log(gamma(i % H))) },
    expected: packed(H, (b, h) => {
      const [q, k] = [headOf(query, b, h, K), headOf(key, b, h, K)];
      return quadratic(
        headOf(value, b, h, V),
        (t, s) => (dot(q[t], k[s]) * gamma(h) ** (t - s)) / Math.sqrt(K),
      );
    }),
  };
}

function gla(): Variant {
  const { random, query, key, value } = qkv('gla');
  const decay = random.tensor([B, T, H * K], () => -random.uniform());
  return {
    name: 'GLA',
    paper: 'Yang et al. 2023, parallel form',
    attributes: { ...all, update_rule: 'gated' },
    inputs: { query, key, value, decay },
    expected: packed(H, (b, h) => {
      const [q, k, g] = [query, key, decay].map((tensor) => headOf(tensor, b, h, K));
      return quadratic(headOf(value, b, h, V), (t, s) =>
        sum(
          k[s].map((x, i) => {
            const column = g.map((row) => row[i]);
            return (q[t][i] * x * Math.exp(between(column, t, s))) / Math.sqrt(K);
          }),
        ),
      );
    }),
  };
}

/** y_t = sum over s <= t of C_t' B_s prod(exp(dt A)) dt_s x_s, with groups of heads sharing B and C. */
function mamba2(): Variant {
  const groups = 2;
  const { random, query: C, key: Bs, value: x } = qkv('mamba2', { q: groups, k: groups, v: H });
  const dt = random.tensor([B, T, H], () => Math.log1p(Math.exp(random.normal())));
  const A = Array.from({ length: H }, () => -0.1 - random.uniform());
  return {
    name: 'Mamba-2 SSD',
    paper: 'Dao and Gu 2024, equation 6',
    attributes: { q_num_heads: groups, kv_num_heads: H, update_rule: 'gated', scale: 1 },
    inputs: {
      query: C,
      key: Bs,
      value: { shape: x.shape, data: x.data.map((e, i) => e * dt.data[Math.floor(i / V)]) },
      decay: { shape: dt.shape, data: dt.data.map((e, i) => e * A[i % H]) },
    },
    expected: packed(H, (b, h) => {
      const group = Math.floor(h / (H / groups));
      const [c, k] = [headOf(C, b, group, K), headOf(Bs, b, group, K)];
      const step = headOf(dt, b, h, 1).map(([e]) => e);
      return quadratic(
        headOf(x, b, h, V),
        (t, s) => dot(c[t], k[s]) * Math.exp(A[h] * between(step, t, s)) * step[s],
      );
    }),
  };
}

const unit = (row: Vector) => scaled(row, 1 / Math.sqrt(dot(row, row) + 1e-6));

function deltaNet(): Variant {
  const { random, query, key, value } = qkv('deltanet');
  const beta = random.tensor([B, T, H], () => random.uniform());
  return {
    name: 'DeltaNet',
    paper: 'Yang et al. 2024, L2-normalized queries and keys',
    attributes: { ...all, update_rule: 'delta', qk_l2norm: 1 },
    inputs: { query, key, value, beta },
    expected: packed(H, (b, h) =>
      unrolledDelta(
        headOf(query, b, h, K).map(unit),
        headOf(key, b, h, K).map(unit),
        headOf(value, b, h, V),
        headOf(beta, b, h, 1).map(([e]) => e),
        Array.from({ length: T }, () => Array<number>(K).fill(0)),
      ),
    ),
  };
}

/** Value heads share query and key heads, as in Qwen3-Next. */
function gatedDeltaNet(): Variant {
  const shared = 2;
  const { random, query, key, value } = qkv('gated deltanet', { q: shared, k: shared, v: H });
  const beta = random.tensor([B, T, H], () => random.uniform());
  const decay = random.tensor([B, T, H], () => -random.uniform());
  return {
    name: 'Gated DeltaNet',
    paper: 'Yang et al. 2024, equation 10',
    attributes: { q_num_heads: shared, kv_num_heads: H, update_rule: 'gated_delta', qk_l2norm: 1 },
    inputs: { query, key, value, beta, decay },
    expected: packed(H, (b, h) => {
      const group = Math.floor(h / (H / shared));
      return unrolledDelta(
        headOf(query, b, group, K).map(unit),
        headOf(key, b, group, K).map(unit),
        headOf(value, b, h, V),
        headOf(beta, b, h, 1).map(([e]) => e),
        headOf(decay, b, h, 1).map(([g]) => Array<number>(K).fill(g)),
      );
    }),
  };
}

function kda(): Variant {
  const { random, query, key, value } = qkv('kda');
  const beta = random.tensor([B, T, H], () => random.uniform());
  const decay = random.tensor([B, T, H * K], () => -random.uniform());
  return {
    name: 'KDA',
    paper: 'Kimi Team 2025, equation 1',
    attributes: { ...all, update_rule: 'gated_delta', qk_l2norm: 1 },
    inputs: { query, key, value, beta, decay },
    expected: packed(H, (b, h) =>
      unrolledDelta(
        headOf(query, b, h, K).map(unit),
        headOf(key, b, h, K).map(unit),
        headOf(value, b, h, V),
        headOf(beta, b, h, 1).map(([e]) => e),
        headOf(decay, b, h, K),
      ),
    ),
  };
}

/** A token sees earlier ones through the decays strictly between them, and itself through the bonus u. */
function rwkv6(): Variant {
  const { random, query, key, value } = qkv('rwkv6');
  const decay = random.tensor([B, T, H * K], () => -random.uniform());
  const bonus = random.tensor([H * K], () => random.normal());
  return {
    name: 'RWKV-6',
    paper: 'Peng et al. 2024, equation 19',
    attributes: { ...all, update_rule: 'gated', read: 'bonus', scale: 1 },
    inputs: { query, key, value, decay, bonus },
    expected: packed(H, (b, h) => {
      const [r, k, g] = [query, key, decay].map((tensor) => headOf(tensor, b, h, K));
      return quadratic(headOf(value, b, h, V), (t, s) =>
        sum(
          k[s].map((x, i) => {
            const column = g.map((row) => row[i]);
            const weight = s === t ? bonus.data[h * K + i] : Math.exp(between(column, t - 1, s));
            return r[t][i] * x * weight;
          }),
        ),
      );
    }),
  };
}

/** Attention over all tokens at once, by multiplying the matrices out: phi(Q) (phi(K)' V) normalized. */
function bidirectional(): Variant {
  const { query, key, value } = qkv('bidirectional');
  const relu = (x: number) => Math.max(x, 0);
  return {
    name: 'bidirectional linear attention',
    paper: 'Katharopoulos et al. 2020, equation 5',
    attributes: { ...all, update_rule: 'linear', feature_map: 'relu', causal: 0 },
    inputs: { query, key, value },
    expected: packed(H, (b, h) => {
      const q = headOf(query, b, h, K).map((row) => row.map(relu));
      const k = headOf(key, b, h, K).map((row) => row.map(relu));
      const scores = q.map((row) => k.map((other) => dot(row, other) / Math.sqrt(K)));
      return times(scores, headOf(value, b, h, V));
    }),
  };
}

export const variants: readonly Variant[] = [
  katharopoulos(),
  performer(),
  retnet(),
  gla(),
  mamba2(),
  deltaNet(),
  gatedDeltaNet(),
  kda(),
  rwkv6(),
  bidirectional(),
];

import type { Random } from '../random.js';
import { orthogonalDirections } from '../variants/performer.js';
import { eigen, inverseRoot, type Matrix, product, solve, transposed } from './linear_algebra.js';
import type { HeadSizes, HybridForm } from './student.js';
import type { TappedHeads } from './taps.js';
import type { Values } from './training.js';

/**
 * Second moments of queries and the far keys that they look for, of one layer. A pair counts by the square of the row's
 * largest weights, so that what is looked up counts most, and diffuse attention little.
 */
export class PairMoments {
  private readonly qq: Matrix[];
  private readonly qk: Matrix[];
  private readonly kk: Matrix[];
  private readonly q: Float64Array[];
  private readonly kOfQ: Float64Array[];
  private readonly k: Float64Array[];
  private readonly queryWeight: Float64Array;
  private readonly keyWeight: Float64Array;

  constructor(
    private readonly sizes: HeadSizes,
    private readonly form: HybridForm,
  ) {
    const { HQ, HV, D } = sizes;
    const many = (n: number, size: number) =>
      Array.from({ length: n }, () => new Float64Array(size));
    this.qq = many(HQ, D * D);
    this.qk = many(HQ, D * D);
    this.kk = many(HV, D * D);
    this.q = many(HQ, D);
    this.kOfQ = many(HQ, D);
    this.k = many(HV, D);
    this.queryWeight = new Float64Array(HQ);
    this.keyWeight = new Float64Array(HV);
  }

  /** Adds `rows` queries a head and sequence. */
  add(heads: TappedHeads, random: Random, rows: number): void {
    const { HQ, HV, D } = this.sizes;
    for (const row of farRows(heads, this.sizes, this.form, random, rows)) {
      const { h, g, b, t, weights, from } = row;
      const squares = weights.reduce((sum, w) => sum + w * w, 0);
      if (squares < 1e-12) continue;
      let pick = random.next() * squares;
      let j = 0;
      while (j < weights.length - 1 && pick > weights[j]! ** 2) pick -= weights[j++]! ** 2;
      const x = vector(heads.queryFeatures, b * HQ + h, t, D);
      const y = vector(heads.keyFeatures, b * HV + g, from + j, D);
      const count = squares * squares;
      outer(this.qq[h]!, x, x, count);
      outer(this.qk[h]!, x, y, count);
      outer(this.kk[g]!, y, y, count);
      sum(this.q[h]!, x, count);
      sum(this.kOfQ[h]!, y, count);
      sum(this.k[g]!, y, count);
      this.queryWeight[h]! += count;
      this.keyWeight[g]! += count;
    }
  }

  /**
   * Where queries and their keys agree best: canonical directions of the keys of head g (columns), how well they agree
   * (0..1, best first), and the directions of each query head that predict them.
   */
  canonical(g: number) {
    const { HQ, HV, D } = this.sizes;
    const G = HQ / HV;
    const kk = centred(this.kk[g]!, this.k[g]!, this.k[g]!, this.keyWeight[g]!, D);
    const root = inverseRoot(kk, D, RIDGE);
    const heads = Array.from({ length: G }, (_, i) => g * G + i).map((h) => {
      const weight = Math.max(this.queryWeight[h]!, 1e-12);
      const qq = centred(this.qq[h]!, this.q[h]!, this.q[h]!, weight, D);
      const qk = centred(this.qk[h]!, this.q[h]!, this.kOfQ[h]!, weight, D);
      const trace = qq.reduce((s, x, i) => (i % (D + 1) === 0 ? s + x : s), 0);
      const map = solve(qq, product(qk, root, D, D, D), D, D, (RIDGE * trace) / D + 1e-9);
      return { h, share: weight / Math.max(this.keyWeight[g]!, 1e-12), map, qk };
    });
    const explained = new Float64Array(D * D);
    for (const { map, qk, share } of heads) {
      const part = product(transposed(product(qk, root, D, D, D), D, D), map, D, D, D);
      for (let i = 0; i < explained.length; i++) explained[i]! += share * part[i]!;
    }
    const { values, vectors } = eigen(symmetric(explained, D), D);
    const agreement = values.map((x) => Math.sqrt(Math.min(Math.max(x, 0), 1)));
    const keys = product(root, vectors, D, D, D);
    const queries = new Map(
      heads.map(({ h, map }) => {
        const m = product(map, vectors, D, D, D);
        for (let i = 0; i < m.length; i++) m[i]! /= Math.max(agreement[i % D]!, 0.05);
        return [h, m];
      }),
    );
    return { agreement, keys, queries };
  }

  mean(which: 'q' | 'k', head: number): Float64Array {
    const [sums, weight] =
      which === 'q'
        ? [this.q[head]!, this.queryWeight[head]!]
        : [this.k[head]!, this.keyWeight[head]!];
    return sums.map((x) => x / Math.max(weight, 1e-12));
  }
}

const RIDGE = 0.01;

/** How sharp features are, and how much directions count in which queries and keys agree little. */
export interface InitialOptions {
  readonly sharpness: number;
  readonly concentration: number;
}

/**
 * Random directions in the space where queries and the keys they look for agree: u_m = beta p_m' canonical(x). A query and its
 * key then get nearly the same features, and softmax or exp over them is a soft hash of the key.
 */
export function initialValues(
  moments: PairMoments,
  sizes: HeadSizes,
  form: HybridForm,
  random: Random,
  { sharpness, concentration }: InitialOptions,
): Values {
  const { HQ, HV, D, M, K } = sizes;
  const F = M * form.signs;
  const values: Values = {
    query_weight: new Float32Array(HQ * D * M),
    key_weight: new Float32Array(HV * D * M),
    query_bias: new Float32Array(HQ * F),
    key_bias: new Float32Array(HV * F),
    alpha: new Float32Array(HQ),
    key_mean: new Float32Array(HV * K),
  };
  for (let g = 0; g < HV; g++) {
    const { agreement, keys, queries } = moments.canonical(g);
    const directions = new Float64Array(D * M);
    for (let i = 0; i < directions.length; i++) {
      const weight = agreement[Math.floor(i / M)]! ** concentration;
      directions[i] = sharpness * weight * random.normal();
    }
    const place = (
      map: Matrix,
      mean: Float64Array,
      w: Float32Array,
      b: Float32Array,
      head: number,
    ) => {
      const columns = product(map, directions, D, D, M);
      w.set(columns, head * D * M);
      for (let m = 0; m < M; m++) {
        let shift = 0;
        for (let d = 0; d < D; d++) shift += mean[d]! * columns[d * M + m]!;
        b[head * F + m] = -shift;
        if (form.signs === 2) b[head * F + M + m] = shift;
      }
    };
    place(keys, moments.mean('k', g), values.key_weight, values.key_bias, g);
    for (const [h, map] of queries) {
      place(map, moments.mean('q', h), values.query_weight, values.query_bias, h);
    }
  }
  return values;
}

/**
 * The random features of variant `performer`, one draw for all heads, of x = sqrt(scale) q and y = sqrt(scale) (k - mean k): a vector
 * taken off all keys changes no attention weight, and shorter keys have features that vary less.
 *
 *     w y - |y|^2 / 2 = (sqrt(scale) w + scale m) k - sqrt(scale) w m - scale |m|^2 / 2 - scale |k|^2 / 2
 */
export function performerValues(
  samples: readonly TappedHeads[],
  { HQ, HV, D, M, K }: HeadSizes,
  { scale }: Pick<HybridForm, 'scale'>,
  seed: number,
  layer: number,
): Values {
  const one = orthogonalDirections(D, M, seed, layer).map((w) => Math.sqrt(scale) * w);
  const repeated = (heads: number) =>
    Float32Array.from({ length: heads * D * M }, (_, i) => one[i % (D * M)]!);
  const values: Values = {
    query_weight: repeated(HQ),
    key_weight: repeated(HV),
    query_bias: new Float32Array(HQ * M),
    key_bias: new Float32Array(HV * M),
    alpha: new Float32Array(HQ),
    key_mean: new Float32Array(HV * K),
  };
  for (let g = 0; g < HV; g++) {
    const mean = meanKey(samples, g, HV, D);
    const square = mean.reduce((sum, m) => sum + m * m, 0);
    for (let m = 0; m < M; m++) {
      let along = 0;
      for (let d = 0; d < D; d++) {
        along += one[d * M + m]! * mean[d]!;
        values.key_weight[(g * D + d) * M + m]! += scale * mean[d]!;
      }
      values.key_bias[g * M + m] = -along - (scale / 2) * square;
    }
  }
  return values;
}

function meanKey(samples: readonly TappedHeads[], g: number, HV: number, D: number): Float64Array {
  const mean = new Float64Array(D);
  let count = 0;
  for (const { keyFeatures } of samples) {
    const [B, , T] = keyFeatures.dims as [number, number, number];
    for (let b = 0; b < B; b++)
      for (let t = 0; t < T; t++, count++) sum(mean, vector(keyFeatures, b * HV + g, t, D), 1);
  }
  return mean.map((x) => x / Math.max(count, 1));
}

/**
 * Raises the bias of features that few keys have and lowers that of common ones, until all are used alike: features are places
 * where keys are kept, and a place that half the keys share tells little.
 */
export function balance(
  values: Values,
  samples: readonly TappedHeads[],
  { HQ, HV, D, M }: HeadSizes,
  { signs, featureMap }: HybridForm,
): void {
  if (featureMap !== 'softmax' || signs !== 1) return;
  for (let g = 0; g < HV; g++) {
    const products: Float64Array[] = [];
    for (const { keyFeatures } of samples) {
      const [B, , T] = keyFeatures.dims as [number, number, number];
      for (let b = 0; b < B; b++) {
        for (let t = 4; t < T; t += 4) {
          const x = vector(keyFeatures, b * HV + g, t, D);
          const u = new Float64Array(M);
          for (let d = 0; d < D; d++) {
            for (let m = 0; m < M; m++) u[m]! += x[d]! * values.key_weight[(g * D + d) * M + m]!;
          }
          products.push(u);
        }
      }
    }
    for (let round = 0; round < 20; round++) {
      const mean = new Float64Array(M);
      for (const u of products) {
        const phi = softmax(u.map((e, m) => e + values.key_bias[g * M + m]!));
        for (let m = 0; m < M; m++) mean[m]! += phi[m]! / products.length;
      }
      for (let m = 0; m < M; m++) {
        const step = -0.5 * Math.log(Math.max(mean[m]! * M, 0.05));
        values.key_bias[g * M + m]! += step;
        for (let h = (g * HQ) / HV; h < ((g + 1) * HQ) / HV; h++)
          values.query_bias[h * M + m]! += step;
      }
    }
  }
}

function softmax(u: Float64Array): Float64Array {
  const top = u.reduce((a, e) => Math.max(a, e), -Infinity);
  const exps = u.map((e) => Math.exp(e - top));
  const total = exps.reduce((a, e) => a + e, 0);
  return exps.map((e) => e / total);
}

/** Sets alpha so that the far part weighs what it weighs in the teacher, in the mean over rows of the logarithm. */
export function initialAlpha(
  values: Values,
  heads: TappedHeads,
  sizes: HeadSizes,
  form: HybridForm,
  random: Random,
): void {
  const { HQ, HV, D, M } = sizes;
  const F = M * form.signs;
  const sums = new Float64Array(HQ);
  const counts = new Float64Array(HQ);
  const cached = new Map<number, Float64Array[]>();
  const tokens = heads.key.dims[2]!;
  const features = (x: Float32Array, w: Float32Array, b: Float32Array, head: number) => {
    const u = new Float64Array(F);
    for (let d = 0; d < D; d++) {
      for (let m = 0; m < M; m++) u[m]! += x[d]! * w[(head * D + d) * M + m]!;
    }
    if (form.signs === 2) for (let m = 0; m < M; m++) u[M + m] = -u[m]!;
    for (let f = 0; f < F; f++) u[f]! += b[head * F + f]!;
    if (form.featureMap === 'exp') return u.map((e) => Math.exp(Math.min(e, 40)));
    return softmax(u);
  };
  for (const { h, g, b, t, from, weights, logFar } of farRows(heads, sizes, form, random, 24)) {
    const n = b * HV + g;
    let keys = cached.get(n);
    if (!keys) {
      keys = Array.from({ length: tokens }, (_, j) =>
        features(vector(heads.keyFeatures, n, j, D), values.key_weight, values.key_bias, g),
      );
      cached.set(n, keys);
    }
    const q = features(
      vector(heads.queryFeatures, b * HQ + h, t, D),
      values.query_weight,
      values.query_bias,
      h,
    );
    let total = 0;
    for (let j = 0; j < weights.length; j++) {
      const k = keys[from + j]!;
      for (let f = 0; f < F; f++) total += q[f]! * k[f]!;
    }
    sums[h]! += logFar - Math.log(Math.max(total, 1e-30));
    counts[h]! += 1;
  }
  for (let h = 0; h < HQ; h++) if (counts[h]! > 0) values.alpha[h] = sums[h]! / counts[h]!;
}

interface FarRow {
  readonly b: number;
  readonly h: number;
  readonly g: number;
  readonly t: number;
  /** The first far token. */
  readonly from: number;
  /** The teacher's weights of far tokens; those of all tokens sum to 1. */
  readonly weights: Float64Array;
  /** Logarithm of the sum of exponentiated far scores. */
  readonly logFar: number;
}

/** Random queries that have far keys, with the teacher's attention to these. */
function* farRows(
  heads: TappedHeads,
  { HQ, HV, K }: HeadSizes,
  { window, sinks, scale, bidirectional }: HybridForm,
  random: Random,
  rows: number,
): Generator<FarRow> {
  const [B, , T] = heads.query.dims as [number, number, number];
  const first = bidirectional ? 0 : window + sinks;
  const visible = heads.visible?.data as Float32Array | undefined;
  for (let b = 0; b < B; b++) {
    for (let h = 0; h < HQ; h++) {
      const g = Math.floor(h / (HQ / HV));
      for (let r = 0; r < rows && first < T; r++) {
        const t = first + random.below(T - first);
        if (visible && !visible[b * T + t]) continue;
        const q = vector(heads.query, b * HQ + h, t, K);
        const seen = bidirectional ? T : t + 1;
        const scores = new Float64Array(seen);
        for (let j = 0; j < seen; j++) {
          if (visible && !visible[b * T + j]) {
            scores[j] = -Infinity;
            continue;
          }
          const k = vector(heads.key, b * HV + g, j, K);
          for (let i = 0; i < K; i++) scores[j]! += scale * q[i]! * k[i]!;
        }
        const top = scores.reduce((a, s) => Math.max(a, s), -Infinity);
        const exps = scores.map((s) => Math.exp(s - top));
        const total = exps.reduce((a, e) => a + e, 0);
        const far = bidirectional ? exps : exps.subarray(sinks, t - window + 1);
        const sumFar = far.reduce((a, e) => a + e, 0);
        const logFar = Math.log(Math.max(sumFar, 1e-30)) + top;
        const from = bidirectional ? 0 : sinks;
        yield { b, h, g, t, from, weights: far.map((e) => e / total), logFar };
      }
    }
  }
}

function vector(tensor: TappedHeads['key'], head: number, t: number, dim: number): Float32Array {
  const at = (head * tensor.dims[2]! + t) * dim;
  return (tensor.data as Float32Array).subarray(at, at + dim);
}

function outer(into: Matrix, x: Float32Array, y: Float32Array, weight: number): void {
  const n = x.length;
  for (let i = 0; i < n; i++) {
    const f = weight * x[i]!;
    for (let j = 0; j < n; j++) into[i * n + j]! += f * y[j]!;
  }
}

function sum(into: Float64Array, x: Float32Array, weight: number): void {
  for (let i = 0; i < x.length; i++) into[i]! += weight * x[i]!;
}

/** Covariance from weighted sums. */
function centred(xy: Matrix, x: Float64Array, y: Float64Array, weight: number, n: number): Matrix {
  const w = Math.max(weight, 1e-12);
  return xy.map((e, i) => e / w - (x[Math.floor(i / n)]! / w) * (y[i % n]! / w));
}

function symmetric(a: Matrix, n: number): Matrix {
  return a.map((e, i) => (e + a[(i % n) * n + Math.floor(i / n)]!) / 2);
}

import type { Sdpa } from '../match/sdpa.js';
import { normal, seededRandom } from '../random.js';
import type { FittedFeatures, Parameter, RewriteOptions } from './options.js';

/** Largest exponent of a key feature: sums of many of them are still float32. */
export const LARGEST_FAVOR = 60;

/** Random features of a token in a head: as many as were asked for, or about d log d, in whole blocks of d. */
export function performerFeatureCount({ k }: Sdpa, { features }: RewriteOptions): number {
  return features ?? defaultFeatures(k.dim);
}

export function defaultFeatures(headDim: number): number {
  return headDim * Math.max(1, Math.round(Math.log(headDim)));
}

/**
 * Random features of the softmax kernel, FAVOR+ (Choromanski et al. 2021, https://arxiv.org/abs/2009.14794):
 *
 *     E_w [exp(w x - |x|^2 / 2) exp(w y - |y|^2 / 2)] = exp(x y),   w ~ N(0, I),  x = sqrt(scale) q,  y = sqrt(scale) k
 *
 * The directions are the same for all heads of a layer. A key's exponent is at most |w|^2 / 2, so one constant lifts all keys as
 * far above 0 as float32 allows: nothing depends on other tokens, and a text read in pieces is the text read at once. Like the
 * factor 1 / sqrt(m), the constant cancels out.
 */
export function performerFeatures(
  sdpa: Sdpa,
  layer: number,
  options: RewriteOptions,
): FittedFeatures {
  const K = sdpa.k.dim;
  const M = performerFeatureCount(sdpa, options);
  const directions = orthogonalDirections(K, M, options.seed ?? 0, layer);
  const root = Math.sqrt(sdpa.scale);
  const weight = { dims: [1, K, M], data: Float32Array.from(directions, (w) => root * w) };
  const keyBias = lifted(weight, { dims: [1, M], data: new Float32Array(M) }, sdpa.scale);
  return {
    featureMap: 'exp',
    signs: 1,
    favor: true,
    queryWeight: weight,
    keyWeight: weight,
    keyBias,
  };
}

/** Biases of keys, lifted so that the largest exponent a key can have is `LARGEST_FAVOR`; none is lowered. */
export function lifted(weight: Parameter, bias: Parameter, scale: number): Parameter {
  const [H, K, M] = weight.dims as [number, number, number];
  let largest = Number.NEGATIVE_INFINITY;
  for (let h = 0; h < H; h++) {
    for (let m = 0; m < M; m++) {
      let square = 0;
      for (let i = 0; i < K; i++) square += weight.data[(h * K + i) * M + m]! ** 2;
      largest = Math.max(largest, square / scale / 2 + bias.data[h * M + m]!);
    }
  }
  const lift = Math.max(0, LARGEST_FAVOR - largest);
  return { dims: bias.dims, data: bias.data.map((b) => b + lift) };
}

/**
 * Columns of N(0, I) that are orthogonal within every block of K.
 *
 * @returns row-major [K,M]
 */
export function orthogonalDirections(
  K: number,
  M: number,
  seed: number,
  layer: number,
): Float64Array {
  const random = seededRandom(Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(layer + 1, 0x85ebca6b));
  const vector = () => Float64Array.from({ length: K }, () => normal(random));
  const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, x, i) => sum + x * b[i]!, 0);
  const result = new Float64Array(K * M);
  let block: Float64Array[] = [];
  for (let m = 0; m < M; m++) {
    if (m % K === 0) block = [];
    const w = vector();
    // Gram-Schmidt; a second round takes away what rounding left.
    for (let round = 0; round < 2; round++) {
      for (const u of block) {
        const along = dot(u, w);
        for (let i = 0; i < K; i++) w[i]! -= along * u[i]!;
      }
    }
    const length = Math.sqrt(dot(w, w));
    const unit = w.map((x) => x / length);
    block.push(unit);
    // The length of a Gaussian vector that has nothing to do with the others.
    const g = vector();
    const norm = Math.sqrt(dot(g, g));
    for (let i = 0; i < K; i++) result[i * M + m] = norm * unit[i]!;
  }
  return result;
}

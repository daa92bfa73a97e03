import type { Runner } from '../match/runner.js';

/** Variants that become com.fla.LinearAttention. */
export type LinearVariant =
  | 'linear'
  | 'performer'
  | 'retention'
  | 'gla'
  | 'mamba2'
  | 'delta'
  | 'gated-delta';
export type Variant = 'none' | LinearVariant | 'hybrid' | 'window';
export type FeatureMapName = 'elu1' | 'relu' | 'exp' | 'silu' | 'softmax' | 'l2norm' | 'identity';

export type HybridFeatureMap = 'identity' | 'elu1' | 'relu' | 'exp' | 'softmax';

/** Numbers of a shape, row by row. */
export interface Parameter {
  readonly dims: readonly number[];
  readonly data: Float32Array;
}

/**
 * Feature maps of one layer, as calibration finds them: featureMap([x W, -x W] + b), without -x W for one sign. HQ query heads,
 * HV key heads, F = M * signs.
 */
export interface FittedFeatures {
  readonly featureMap: HybridFeatureMap;
  readonly signs: 1 | 2;
  /**
   * FAVOR+: weights are directions w of features exp(w x - |x|^2 / 2) of x = sqrt(scale) k, whose products estimate exp(scale q k).
   * Key features get the factor exp(-scale |k|^2 / 2); those of a query are divided by their largest, which cancels out. Then
   * weights and biases may be [1,K,M] and [1,F], one for all heads. Default false.
   */
  readonly favor?: boolean;
  readonly queryWeight?: Parameter; // [HQ,K,M]
  readonly keyWeight?: Parameter; // [HV,K,M]
  readonly queryBias?: Parameter; // [HQ,F]
  readonly keyBias?: Parameter; // [HV,F]
}

/** The far part of one layer's HybridAttention, as calibration finds it. */
export interface HybridLayer extends FittedFeatures {
  /** Features are made of queries and keys before their rotary embedding. */
  readonly unrotated?: boolean;
  readonly alpha?: Parameter; // [HQ]
  readonly keyMean?: Parameter; // [HV,K]
}

/** One value for all heads, or one per head. */
export interface ConstantGate {
  constant: number | readonly number[];
}

/** A projection of the layer's input. */
export interface ProjectedGate {
  /** Row-major [hidden, n], n = heads or, for decay per key dimension, heads * head dim; for beta also 1. */
  weight: Float32Array;
  /** The shape that `weight` came in, where it came in one; default as it must be. */
  dims?: readonly number[];
  /** [n]; default zeros. */
  bias?: Float32Array;
}

export type Gate = ConstantGate | ProjectedGate;

/** Gates of one layer; which ones a variant has: `GATES`. */
export interface LayerGates {
  /** Log decay, <= 0: log-sigmoid of a projection / `temperature`. */
  decay?: Gate;
  /** Step of the delta rule, in (0, 2]: sigmoid of a projection. */
  beta?: Gate;
  /** Step of a state space, > 0, per head: softplus of a projection. */
  dt?: Gate;
  /** Log decay of a whole step, <= 0, per head; that of a token is `a` times its dt. */
  a?: ConstantGate;
  /** Factor on the output, per query head; default 1. */
  gain?: ConstantGate;
  /** Divides the log-sigmoid of a projected decay; GLA uses 16. Default 16 for `gla`, 1 otherwise. */
  temperature?: number;
}

export interface RewriteOptions {
  /**
   * `none` re-emits the matched softmax attention; `hybrid` replaces it by com.fla.HybridAttention, `window` by
   * com.fla.WindowAttention (what far tokens say is lost then), the others by com.fla.LinearAttention.
   */
  variant: Variant;
  /** Default: elu1 for `linear`, softmax for `hybrid`, identity for the others; `performer` has its own. */
  featureMap?: FeatureMapName;
  /** Divide by the sum of weights. Default: true for `linear` (and always for `performer`), false for the others. */
  normalize?: boolean;
  /** `drop` leaves out what is added to scores by position, where a variant has no place for it; such layers are refused otherwise. */
  bias?: 'drop';
  /** Layers to convert; default: every rewritable one. */
  layers?: readonly number[];
  /** Layers to leave alone. */
  keepSoftmax?: readonly number[];
  /** Element type of the carried states: float32 (default), or the model's own type. */
  dtype?: 'float32' | 'same';
  /** For `gla`, `mamba2`, `delta` and `gated-delta`: by layer, with `default` for all others. */
  gates?: { readonly [layer: number]: LayerGates; readonly default?: LayerGates };
  /** For `retention`: log decay per head; default log(1 - 2^(-5-h)). */
  decay?: readonly number[];
  /** `hybrid` and `window`: how many of the last tokens are seen exactly; default 64. At most 2^17, as sinks and cache. */
  window?: number;
  /** `hybrid` and `window`: how many of the first tokens are seen exactly; default 4. */
  sinks?: number;
  /** `hybrid`: how many tokens in between are kept exact, because the state recalls them worst; default 0. */
  cache?: number;
  /**
   * `hybrid` without calibration: features of a token; default: those of the heads themselves. `performer`: random features of a
   * token; default: the head dimension times its logarithm, in whole blocks of orthogonal directions. At most 2^16.
   */
  features?: number;
  /** `performer`: what the directions of the random features are drawn from; default 0. */
  seed?: number;
  /** `hybrid`: fitted feature maps by layer; see `calibrateModel`. */
  hybrid?: { readonly [layer: number]: HybridLayer };
  /** `linear` and `performer`: fitted feature maps by layer, computed by nodes before the operator; see `calibrateModel`. */
  fitted?: { readonly [layer: number]: FittedFeatures };
  /** What the function body calls: com.microsoft.LinearAttention where it fits (`auto`, the default), or standard ops. */
  body?: 'com.microsoft' | 'standard' | 'auto';
  /** Report what would be done; the model is left as it is. */
  dryRun?: boolean;
  /** Runs the small models that masks and shapes are probed with; without one, models that need it are refused. */
  runner?: Runner;
  onProgress?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

import * as v from 'valibot';
import { FlaError } from '../../ops/error.js';
import { checkShape } from '../check_shape.js';
import { GATES } from './gates.js';
import { isWindowed } from './hybrid.js';
import { VARIANTS } from './linear.js';
import type { RewriteOptions, Variant } from './options.js';

const numbers = v.array(v.number());
const constantGate = v.object({ constant: v.union([v.number(), numbers]) });
const projectedGate = v.object({
  weight: v.instance(Float32Array),
  dims: v.optional(numbers),
  bias: v.optional(v.instance(Float32Array)),
});
const gate = v.optional(v.union([constantGate, projectedGate]));
const layerGates = v.object({
  decay: gate,
  beta: gate,
  dt: gate,
  a: v.optional(constantGate),
  gain: v.optional(constantGate),
  temperature: v.optional(v.number()),
});
const parameter = v.optional(
  v.pipe(
    v.object({ dims: numbers, data: v.instance(Float32Array) }),
    v.check(
      ({ dims, data }) => dims.reduce((a, b) => a * b, 1) === data.length,
      'as many numbers as its dims say',
    ),
  ),
);
const fittedFeatures = v.object({
  featureMap: v.picklist(['identity', 'elu1', 'relu', 'exp', 'softmax']),
  signs: v.picklist([1, 2]),
  favor: v.optional(v.boolean()),
  unrotated: v.optional(v.boolean()),
  queryWeight: parameter,
  keyWeight: parameter,
  queryBias: parameter,
  keyBias: parameter,
  alpha: parameter,
  keyMean: parameter,
});

/** What options are made of, for callers without types; what fits which variant is checked after it. */
const shape = v.object({
  featureMap: v.optional(
    v.picklist(['elu1', 'relu', 'exp', 'silu', 'softmax', 'l2norm', 'identity']),
  ),
  normalize: v.optional(v.boolean()),
  layers: v.optional(numbers),
  keepSoftmax: v.optional(numbers),
  dtype: v.optional(v.picklist(['float32', 'same'])),
  gates: v.optional(v.record(v.string(), layerGates)),
  decay: v.optional(numbers),
  hybrid: v.optional(v.record(v.string(), fittedFeatures)),
  fitted: v.optional(v.record(v.string(), fittedFeatures)),
  body: v.optional(v.picklist(['com.microsoft', 'standard', 'auto'])),
});

/** @throws FlaError `invalid_argument` for options that do not fit together, or are none */
export function checkOptions(options: RewriteOptions): void {
  checkShape(shape, options, 'options');
  const { variant, normalize, featureMap, decay, gates, bias } = options;
  if (bias !== undefined && (bias !== 'drop' || variant === 'none')) {
    const what = variant === 'none' ? 'absent for variant none' : "'drop' or absent";
    throw new FlaError('invalid_argument', `bias must be ${what}, received ${bias}`);
  }
  if (variant !== 'none' && !isWindowed(variant) && !(variant in VARIANTS)) {
    const known = ['none', ...Object.keys(VARIANTS), 'hybrid', 'window'].join(', ');
    throw new FlaError('invalid_argument', `variant must be one of ${known}, received ${variant}`);
  }
  if (variant === 'none' && (featureMap !== undefined || normalize !== undefined)) {
    throw new FlaError('invalid_argument', 'variant none takes no feature map and no normalize');
  }
  checkWindow(options);
  if (decay && variant !== 'retention') {
    throw new FlaError('invalid_argument', `decay is for variant retention, received ${variant}`);
  }
  if (gates && !(variant in GATES)) {
    const known = Object.keys(GATES).join(', ');
    throw new FlaError('invalid_argument', `gates are for variants ${known}, received ${variant}`);
  }
  if ((variant === 'delta' || variant === 'gated-delta') && normalize) {
    throw new FlaError(
      'invalid_argument',
      `normalize must be false for ${variant}: its weights have no sign`,
    );
  }
  if (variant === 'performer' && (featureMap !== undefined || normalize !== undefined)) {
    const what = normalize !== undefined ? 'normalize' : `feature map ${featureMap}`;
    throw new FlaError('invalid_argument', `variant performer takes no ${what}: it has its own`);
  }
  const { seed } = options;
  if (seed !== undefined && variant !== 'performer') {
    throw new FlaError('invalid_argument', `seed is for performer, received ${variant}`);
  }
  if (seed !== undefined && !(Number.isSafeInteger(seed) && seed >= 0)) {
    throw new FlaError('invalid_argument', `seed must be a whole number, received ${seed}`);
  }
}

const TAKERS: Readonly<Record<'window' | 'sinks' | 'cache' | 'features', readonly Variant[]>> = {
  window: ['hybrid', 'window'],
  sinks: ['hybrid', 'window'],
  cache: ['hybrid'],
  features: ['hybrid', 'performer'],
};

/** What is counted in tokens or features, with bounds: states are as long, and function bodies list the places in them. */
const RANGES = {
  window: [1, 2 ** 17],
  sinks: [0, 2 ** 17],
  cache: [0, 2 ** 17],
  features: [1, 2 ** 16],
} as const;

/** Options of the variants with an exact window or features of their own. */
function checkWindow(options: RewriteOptions): void {
  const { variant, featureMap, normalize } = options;
  for (const [name, [low, high]] of Object.entries(RANGES)) {
    const value = options[name as keyof typeof RANGES];
    if (value === undefined) continue;
    const takers = TAKERS[name as keyof typeof RANGES];
    if (!takers.includes(variant)) {
      const which = takers.join(' and ');
      throw new FlaError('invalid_argument', `${name} is for ${which}, received ${variant}`);
    }
    if (!Number.isSafeInteger(value) || value < low || value > high) {
      throw new FlaError(
        'invalid_argument',
        `${name} must be a whole number from ${low} to ${high}, received ${value}`,
      );
    }
  }
  if (options.hybrid && variant !== 'hybrid') {
    throw new FlaError('invalid_argument', `fitted features are for hybrid, received ${variant}`);
  }
  if (options.fitted && variant !== 'linear' && variant !== 'performer') {
    throw new FlaError(
      'invalid_argument',
      `fitted feature maps are for linear and performer, received ${variant}`,
    );
  }
  if (!isWindowed(variant)) return;
  const maps = variant === 'hybrid' ? ['identity', 'elu1', 'relu', 'exp', 'softmax'] : [];
  if (normalize !== undefined || (featureMap !== undefined && !maps.includes(featureMap))) {
    const what = normalize !== undefined ? 'normalize' : `feature map ${featureMap}`;
    throw new FlaError('invalid_argument', `variant ${variant} takes no ${what}`);
  }
}

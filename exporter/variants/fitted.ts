import { FlaError } from '../../ops/error.js';
import { type DTypeName, makeTensor } from '../ir/index.js';
import type { Sdpa } from '../match/sdpa.js';
import type { SiteEmitter } from './emit.js';
import type { FittedFeatures, Parameter, RewriteOptions } from './options.js';

/** Largest exponent of a feature: the product of two such features is still a float32. */
const LARGEST = 40;

/** The feature maps of a layer, where it is given some. */
export function fittedFor(layer: number, options: RewriteOptions): FittedFeatures | undefined {
  return options.variant === 'linear' ? options.fitted?.[layer] : undefined;
}

/** Features of a token in a head. */
export function featureCount({ k }: Sdpa, { keyWeight, signs }: FittedFeatures): number {
  return (keyWeight?.dims[2] ?? k.dim) * signs;
}

/**
 * What LinearAttention gets when feature maps were fitted, in float32: what its own feature map makes features of, [x W, -x W] + b
 * of every head, packed; and the values.
 */
export function fittedInputs(
  e: SiteEmitter,
  sdpa: Sdpa,
  layer: number,
  [query, key, value]: readonly [string, string, string],
  dtype: DTypeName,
  fitted: FittedFeatures,
): [string, string, string] {
  check(sdpa, layer, fitted);
  const as32 = (x: string) => (dtype === 'float32' ? x : e.cast(x, 'float32'));
  const { queryWeight, keyWeight, queryBias, keyBias } = fitted;
  const q = exponents(e, sdpa, as32(query), 'query', sdpa.q.heads, fitted, queryWeight, queryBias);
  const k = exponents(e, sdpa, as32(key), 'key', sdpa.k.heads, fitted, keyWeight, keyBias);
  return [q, k, as32(value)];
}

function exponents(
  e: SiteEmitter,
  sdpa: Sdpa,
  packed: string,
  of: 'query' | 'key',
  heads: number,
  fitted: FittedFeatures,
  weight: Parameter | undefined,
  bias: Parameter | undefined,
): string {
  const { anchor, k } = sdpa;
  const { featureMap, signs } = fitted;
  const F = featureCount(sdpa, fitted);
  const constant = (name: string, dims: readonly number[], data: Float32Array) =>
    e.graph.addInitializer(
      makeTensor(e.graph.fresh(`${anchor.name}/${of}_${name}`), 'float32', dims, data),
    );
  let x = e.transpose(e.reshape(packed, [0, 0, heads, k.dim]), [0, 2, 1, 3]);
  if (weight) x = e.matmul(x, constant('weight', weight.dims, weight.data));
  if (signs === 2) x = e.op('Concat', [x, e.op('Neg', [x])], { axis: 3 });
  if (bias) x = e.add(x, constant('bias', [heads, 1, F], bias.data));
  if (featureMap === 'exp') x = e.op('Min', [x, e.scalar(LARGEST)]);
  return e.reshape(e.transpose(x, [0, 2, 1, 3]), [0, 0, heads * F]);
}

function check({ q, k }: Sdpa, layer: number, fitted: FittedFeatures): void {
  const M = fitted.keyWeight?.dims[2] ?? k.dim;
  const expected = {
    queryWeight: [q.heads, k.dim, M],
    keyWeight: [k.heads, k.dim, M],
    queryBias: [q.heads, M * fitted.signs],
    keyBias: [k.heads, M * fitted.signs],
  };
  for (const [name, dims] of Object.entries(expected)) {
    const tensor = fitted[name as keyof typeof expected];
    const size = dims.reduce((a, b) => a * b, 1);
    if (tensor && (`${tensor.dims}` !== `${dims}` || tensor.data.length !== size)) {
      throw new FlaError(
        'invalid_argument',
        `fitted.${layer}.${name} must be [${dims}], received [${tensor.dims}]`,
      );
    }
  }
}

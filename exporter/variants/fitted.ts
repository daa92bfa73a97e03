import { FlaError } from '../../ops/error.js';
import { type DTypeName, makeTensor } from '../ir/index.js';
import type { Sdpa } from '../match/sdpa.js';
import type { SiteEmitter } from './emit.js';
import type { FittedFeatures, Parameter, RewriteOptions } from './options.js';
import { LARGEST_FAVOR, performerFeatureCount, performerFeatures } from './performer.js';

/** Largest exponent of a feature: the product of two such features is still a float32. */
const LARGEST = 40;

/** The feature maps of a layer, where they are computed before the operator. */
export function featuresFor(
  sdpa: Sdpa,
  layer: number,
  options: RewriteOptions,
): FittedFeatures | undefined {
  const { variant, fitted } = options;
  if (variant === 'performer') return fitted?.[layer] ?? performerFeatures(sdpa, layer, options);
  return variant === 'linear' ? fitted?.[layer] : undefined;
}

/** Features of a token in a head, where they are computed before the operator. */
export function featureCount(
  sdpa: Sdpa,
  layer: number,
  options: RewriteOptions,
): number | undefined {
  const fitted = options.fitted?.[layer];
  if (options.variant === 'performer' && !fitted) return performerFeatureCount(sdpa, options);
  return fitted && countOf(sdpa, fitted);
}

function countOf({ k }: Sdpa, { keyWeight, signs }: FittedFeatures): number {
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
  const initializer = (what: string, dims: readonly number[], p?: Parameter) =>
    p &&
    e.graph.addInitializer(
      makeTensor(e.graph.fresh(`${sdpa.anchor.name}/${what}`), 'float32', dims, p.data),
    );
  const bias = (of: string, p?: Parameter) =>
    p && initializer(`${of}_bias`, [p.dims[0]!, 1, p.dims[1]!], p);
  const qw = initializer('query_weight', queryWeight?.dims ?? [], queryWeight);
  const kw =
    keyWeight === queryWeight ? qw : initializer('key_weight', keyWeight?.dims ?? [], keyWeight);
  const q = exponents(e, sdpa, as32(query), 'query', fitted, qw, bias('query', queryBias));
  const k = exponents(e, sdpa, as32(key), 'key', fitted, kw, bias('key', keyBias));
  return [q, k, as32(value)];
}

function exponents(
  e: SiteEmitter,
  sdpa: Sdpa,
  packed: string,
  of: 'query' | 'key',
  fitted: FittedFeatures,
  weight: string | undefined,
  bias: string | undefined,
): string {
  const { k } = sdpa;
  const { heads } = of === 'query' ? sdpa.q : k;
  const { featureMap, signs, favor } = fitted;
  const F = countOf(sdpa, fitted);
  const bhtd = e.transpose(e.reshape(packed, [0, 0, heads, k.dim]), [0, 2, 1, 3]);
  let x = weight ? e.matmul(bhtd, weight) : bhtd;
  if (signs === 2) x = e.op('Concat', [x, e.op('Neg', [x])], { axis: 3 });
  if (bias) x = e.add(x, bias);
  if (favor && of === 'key') {
    const square = e.mul(e.sum(e.mul(bhtd, bhtd), 3), e.scalar(sdpa.scale / 2));
    x = e.op('Min', [e.sub(x, square), e.scalar(LARGEST_FAVOR)]);
  } else if (favor) x = e.sub(x, e.max(x, 3));
  else if (featureMap === 'exp') x = e.op('Min', [x, e.scalar(LARGEST)]);
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
    if (!tensor) continue;
    const shared = fitted.favor && `${tensor.dims}` === `${[1, ...dims.slice(1)]}`;
    const size = tensor.dims.reduce((a, b) => a * b, 1);
    if ((`${tensor.dims}` !== `${dims}` && !shared) || tensor.data.length !== size) {
      throw new FlaError(
        'invalid_argument',
        `fitted.${layer}.${name} must be [${dims}], received [${tensor.dims}]`,
      );
    }
  }
}

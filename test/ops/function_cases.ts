/** Cases of LinearAttention that are hard for chunked arithmetic, in addition to the shared ones. */
import type { LinearAttentionInputs } from '../../ops/linear_attention/reference.js';
import type { Tensor64 } from '../../ops/tensor64.js';
import { type LinearAttentionCase, linearAttentionCases } from '../cases/linear_attention.js';

export function sharedCase(name: string): LinearAttentionCase {
  const found = linearAttentionCases.find((testCase) => testCase.name === name);
  if (!found) throw new Error(`no shared case ${name}`);
  return found;
}

/** A shared case with its inputs edited in place. */
function edited(
  from: string,
  name: string,
  edit: (inputs: Record<string, Tensor64>) => void,
): LinearAttentionCase {
  const base = sharedCase(from);
  const inputs = () => {
    const drawn = base.inputs();
    edit(drawn as unknown as Record<string, Tensor64>);
    return drawn as LinearAttentionInputs;
  };
  return { ...base, name: `${base.attributes.update_rule}: ${name}`, inputs };
}

/** Some tokens forget everything, -Infinity among them, others next to nothing. */
function extremes({ decay: { data } }: Record<string, Tensor64>): void {
  for (let i = 0; i < data.length; i += 1) {
    data[i] = i % 7 === 0 ? (i % 3 === 0 ? Number.NEGATIVE_INFINITY : -150) : data[i] * 1e-3;
  }
}

/** One key over and over, always written in full: the triangular system that a power series cannot solve. */
function repeatedKey({ key, beta }: Record<string, Tensor64>): void {
  const width = key.shape[2];
  for (let i = width; i < key.data.length; i += 1) key.data[i] = key.data[i % width];
  beta.data.fill(1);
}

export const hardCases: readonly LinearAttentionCase[] = [
  edited('gated: T = 130', 'decays from none to complete', extremes),
  edited('gated_delta: T = 130', 'decays from none to complete', extremes),
  edited('gated: decay per key, K = V = 64', 'decays from none to complete per key', extremes),
  edited(
    'gated_delta: decay per key, K = V = 64',
    'decays from none to complete per key',
    extremes,
  ),
  edited('delta: qk_l2norm', 'one key over and over', repeatedKey),
  edited('linear: normalize, elu1', 'elu1 keeps small features', ({ query, key }) => {
    for (const { data } of [query, key]) {
      for (let i = 0; i < data.length; i += 1) data[i] -= 6;
    }
  }),
  edited('linear: feature_map exp, one token', 'exp is clamped', ({ query }) => {
    query.data.fill(200, 0, 3);
  }),
];

/** A few shared cases that between them take a body through each of its branches. */
export const branchCases: readonly LinearAttentionCase[] = [
  'linear: T = 17',
  'linear: normalize, groups',
  'linear: causal 0, mask',
  'linear: mask, softmax features',
  'linear: feature_map exp',
  'linear: exp of large vectors, qk_l2norm',
  'gated: T = 0',
  'gated: T = 1',
  'gated: feature_map silu',
  'gated: queries share states, states share keys',
  'gated: bonus, queries share states',
  'delta: shared beta',
  'delta: mask random',
  'delta: read before',
  'gated_delta: more values than queries',
  'gated_delta: decay per key',
].map(sharedCase);

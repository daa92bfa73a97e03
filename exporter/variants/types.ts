import { FlaError } from '../../ops/error.js';
import type { Sdpa } from '../match/sdpa.js';
import type { RewriteOptions } from './options.js';

export type FloatDType = 'float32' | 'float16' | 'bfloat16';

/** The state's element type for a model of that type. */
export function stateType(dtype: FloatDType, options: RewriteOptions): FloatDType {
  return options.dtype === 'same' ? dtype : 'float32';
}

export function floatType(sdpa: Sdpa, layer: number): FloatDType {
  const { dtype } = sdpa;
  if (dtype === 'float32' || dtype === 'float16' || dtype === 'bfloat16') return dtype;
  throw new FlaError(
    'unsupported',
    `layer ${layer}: attention must be in float32, float16 or bfloat16, received ${dtype}`,
  );
}

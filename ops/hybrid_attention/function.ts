import { FlaError } from '../error.js';
import {
  checkOpset,
  type FloatDType,
  type FunctionOptions,
  type OpFunction,
  opFunction,
  standardOnly,
} from '../function/define.js';
import { BodyEmitter } from '../function/emitter.js';
import { ringBody } from '../window_attention/function_ring.js';
import { FarBody } from './function_far.js';
import { type HybridAttentionAttributes, hybridAttention } from './schema.js';

/** The optional inputs of HybridAttention. */
export type HybridOptionalInput =
  | 'query_features'
  | 'key_features'
  | 'mask'
  | 'query_weight'
  | 'key_weight'
  | 'query_bias'
  | 'key_bias'
  | 'alpha'
  | 'key_mean'
  | 'alibi_slopes'
  | 'distance_bias'
  | 'decay'
  | 'past_window'
  | 'past_state';

/** One call site: everything that a function body may depend on. */
export interface HybridAttentionCall {
  /** All of them, as they are written on the node. */
  attributes: HybridAttentionAttributes;
  /** Which optional inputs are connected. */
  present: Record<HybridOptionalInput, boolean>;
  /** Type of query, key, value, their features and output. */
  dtype: FloatDType;
  /** Type of past_window and present_window. */
  windowDtype: FloatDType;
  /** The model's version of the default domain, 9..26 (bfloat16: 13..26). */
  opset: number;
  /** K, when it is known; bodies work without. */
  headDimK?: number;
  /** V, when it is known; bodies work without. */
  headDimV?: number;
}

/**
 * The function body of one HybridAttention call site; the node is written as for linearAttentionFunction.
 *
 * @throws FlaError `unsupported` for an opset that no body can be written for, a com.microsoft body, or a cache
 */
export function hybridAttentionFunction(
  call: HybridAttentionCall,
  options: FunctionOptions = {},
): OpFunction {
  checkOpset(hybridAttention, call.opset, call.dtype);
  standardOnly(hybridAttention, options);
  const { cache, ...attributes } = call.attributes;
  if (cache > 0) {
    throw new FlaError(
      'unsupported',
      `HybridAttention: no function body with a cache, which decides token by token what is written; cache must be 0, received ${cache}`,
    );
  }
  const e = new BodyEmitter(call.opset);
  ringBody(e, { ...call, attributes }, new FarBody(call));
  return opFunction(hybridAttention, 'standard', e.nodes, { '': call.opset });
}

import {
  checkOpset,
  type FloatDType,
  type FunctionOptions,
  type OpFunction,
  opFunction,
  standardOnly,
} from '../function/define.js';
import { BodyEmitter } from '../function/emitter.js';
import { ringBody } from './function_ring.js';
import { type WindowAttentionAttributes, windowAttention } from './schema.js';

/** One call site: everything that a function body may depend on. */
export interface WindowAttentionCall {
  /** All of them, as they are written on the node. */
  attributes: WindowAttentionAttributes;
  /** Which optional inputs are connected. */
  present: { mask: boolean; alibi_slopes: boolean; distance_bias: boolean; past_window: boolean };
  /** Type of query, key, value and output. */
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
 * The function body of one WindowAttention call site; the node is written as for linearAttentionFunction.
 *
 * @throws FlaError `unsupported` for an opset that no body can be written for, or for a com.microsoft body
 */
export function windowAttentionFunction(
  call: WindowAttentionCall,
  options: FunctionOptions = {},
): OpFunction {
  checkOpset(windowAttention, call.opset, call.dtype);
  standardOnly(windowAttention, options);
  const e = new BodyEmitter(call.opset);
  ringBody(e, call);
  return opFunction(windowAttention, 'standard', e.nodes, { '': call.opset });
}

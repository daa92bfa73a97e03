import { FlaError } from '../error.js';
import type { FunctionOptions, OpFunction } from '../linear_attention/function.js';
import type { CausalConvWithStateAttributes } from './schema.js';

/** One call site: everything that a function body may depend on. */
export interface CausalConvWithStateCall {
  /** All of them, as they are written on the node. */
  attributes: CausalConvWithStateAttributes;
  /** Which optional inputs are connected. */
  present: { bias: boolean; past_state: boolean };
  /** Type of every tensor. */
  dtype: 'float32' | 'float16' | 'bfloat16';
  /** The model's version of the default domain. */
  opset: number;
}

/** The function body of one CausalConvWithState call site; see linearAttentionFunction. */
export function causalConvWithStateFunction(
  call: CausalConvWithStateCall,
  options: FunctionOptions = {},
): OpFunction {
  throw new FlaError(
    'unsupported',
    `CausalConvWithState: body ${options.target} for opset ${call.opset} is not written yet`,
  );
}

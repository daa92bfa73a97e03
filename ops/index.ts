/** The operators of the com.fla domain: schemas, argument checks, float64 references. */
export * from './causal_conv_with_state/reference.js';
export * from './causal_conv_with_state/schema.js';
export * from './define.js';
export * from './error.js';
export * from './hybrid_attention/reference.js';
export * from './hybrid_attention/schema.js';
export * from './linear_attention/reference.js';
export * from './linear_attention/schema.js';
export * from './tensor64.js';
export {
  type WindowAttentionInputs,
  type WindowAttentionResult,
  windowAttentionReference,
} from './window_attention/reference.js';
export * from './window_attention/schema.js';

import { causalConvWithState } from './causal_conv_with_state/schema.js';
import type { OpSchema } from './define.js';
import { hybridAttention } from './hybrid_attention/schema.js';
import { linearAttention } from './linear_attention/schema.js';
import { windowAttention } from './window_attention/schema.js';

/** Every operator, by ONNX op type. */
export const ops: Readonly<Record<string, OpSchema>> = {
  LinearAttention: linearAttention,
  CausalConvWithState: causalConvWithState,
  WindowAttention: windowAttention,
  HybridAttention: hybridAttention,
};

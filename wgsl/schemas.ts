import { causalConvWithState } from '../ops/causal_conv_with_state/schema.js';
import type { OpSchema } from '../ops/define.js';
import { linearAttention } from '../ops/linear_attention/schema.js';

/** The operators of com.fla that have WebGPU kernels; others run by their function bodies. */
export const KERNEL_SCHEMAS = {
  LinearAttention: linearAttention,
  CausalConvWithState: causalConvWithState,
} as const satisfies Readonly<Record<string, OpSchema>>;

export type KernelOp = keyof typeof KERNEL_SCHEMAS;

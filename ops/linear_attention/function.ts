import type { FunctionProto } from '../../exporter/ir/index.js';
import { FlaError } from '../error.js';
import type { LinearAttentionAttributes } from './schema.js';

type FloatDType = 'float32' | 'float16' | 'bfloat16';

/** One call site: everything that a function body may depend on. */
export interface LinearAttentionCall {
  /** All of them, as they are written on the node. */
  attributes: LinearAttentionAttributes;
  /** Which optional inputs are connected. */
  present: { past_state: boolean; decay: boolean; beta: boolean; mask: boolean };
  /** `head`: decay is [B,T,HV]; `key`: [B,T,HV*K]. Needed when decay is present. */
  decayKind?: 'head' | 'key';
  /** `head`: beta is [B,T,HV]; `shared`: [B,T,1]. Needed when beta is present. */
  betaKind?: 'head' | 'shared';
  /** Type of query, key, value and output. */
  dtype: FloatDType;
  /** Type of past_state and present_state. */
  stateDtype: FloatDType;
  /** The model's version of the default domain. */
  opset: number;
  /** K, when it is known; bodies work without. */
  headDimK?: number;
  /** V, when it is known; bodies work without. */
  headDimV?: number;
}

/** `com.microsoft`: around one com.microsoft.LinearAttention node; `standard`: ai.onnx operators only. */
export type FunctionTarget = 'com.microsoft' | 'standard';

export interface FunctionOptions {
  /** Default `auto`: `com.microsoft` where it gives the same result, `standard` otherwise. */
  target?: FunctionTarget | 'auto';
}

/** A function to add to the model, and what its call site needs. */
export interface OpFunction {
  fn: FunctionProto;
  /** The node's `overload`; equal bodies have equal overloads, so call sites share them. */
  overload: string;
  /** Versions that the model must import, by domain: those of the body, and com.fla itself. */
  opsets: Record<string, number>;
}

/**
 * The function body of one LinearAttention call site, so that a runtime without our library runs the model too.
 *
 * The node must be written with this overload, every attribute, all seven inputs ('' for absent ones; trailing ones may be
 * left out) and both outputs ('' for an unused one).
 *
 * @throws FlaError `unsupported` when the body asked for cannot express the call
 */
export function linearAttentionFunction(
  call: LinearAttentionCall,
  options: FunctionOptions = {},
): OpFunction {
  throw new FlaError(
    'unsupported',
    `LinearAttention: body ${options.target} for opset ${call.opset} is not written yet`,
  );
}

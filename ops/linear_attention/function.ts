import { FlaError } from '../error.js';
import {
  checkOpset,
  type FloatDType,
  type FunctionOptions,
  type FunctionTarget,
  type OpFunction,
  opFunction,
} from '../function/define.js';
import { BodyEmitter } from '../function/emitter.js';
import { microsoftBody, microsoftMiss } from './function_microsoft.js';
import { standardBody } from './function_standard.js';
import { type LinearAttentionAttributes, linearAttention } from './schema.js';

export type { FunctionOptions, FunctionTarget, OpFunction } from '../function/define.js';

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
  /** The model's version of the default domain, 9..26 (bfloat16: 13..26). */
  opset: number;
  /** K, when it is known; bodies work without. */
  headDimK?: number;
  /** V, when it is known; bodies work without. */
  headDimV?: number;
}

/**
 * The function body of one LinearAttention call site, so that a runtime without our library runs the model too.
 *
 * The node must be written with this overload, every attribute, and both outputs ('' for an unused one); inputs that are
 * absent are ''. The model's IR version must be at least 10, where overloads came in.
 *
 * @throws FlaError `unsupported` when the body asked for cannot express the call, `invalid_argument` when the call
 * contradicts itself
 */
export function linearAttentionFunction(
  call: LinearAttentionCall,
  options: FunctionOptions = {},
): OpFunction {
  checkOpset(linearAttention, call.opset, call.dtype);
  checkKinds(call);
  const target = chooseTarget(call, options.target ?? 'auto');
  const e = new BodyEmitter(call.opset);
  const opsets: Record<string, number> = { '': call.opset };
  if (target === 'com.microsoft') {
    opsets['com.microsoft'] = 1;
    microsoftBody(e, call);
  } else {
    standardBody(e, call);
  }
  return opFunction(linearAttention, target, e.nodes, opsets);
}

function chooseTarget(call: LinearAttentionCall, wanted: FunctionTarget | 'auto'): FunctionTarget {
  if (wanted === 'standard') return wanted;
  const miss = microsoftMiss(call);
  if (!miss) return 'com.microsoft';
  if (wanted === 'auto') return 'standard';
  throw new FlaError('unsupported', `LinearAttention: no com.microsoft body: ${miss}`);
}

function checkKinds({ present, decayKind, betaKind }: LinearAttentionCall): void {
  const missing =
    present.decay && !decayKind ? 'decayKind' : present.beta && !betaKind && 'betaKind';
  if (!missing) return;
  throw new FlaError(
    'invalid_argument',
    `LinearAttention: ${missing} must be given when the input is present, received none`,
  );
}

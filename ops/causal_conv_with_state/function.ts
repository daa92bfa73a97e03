import { FlaError } from '../error.js';
import {
  checkOpset,
  type FloatDType,
  type FunctionOptions,
  type OpFunction,
  opFunction,
} from '../function/define.js';
import { BodyEmitter } from '../function/emitter.js';
import { type CausalConvWithStateAttributes, causalConvWithState } from './schema.js';

/** Taps that a standard body has nodes for; models have 4. */
const MOST_TAPS = 1024;

/** One call site: everything that a function body may depend on. */
export interface CausalConvWithStateCall {
  /** All of them, as they are written on the node. */
  attributes: CausalConvWithStateAttributes;
  /** Which optional inputs are connected. */
  present: { bias: boolean; past_state: boolean };
  /** Type of every tensor. */
  dtype: FloatDType;
  /** The model's version of the default domain, 9..26 (bfloat16: 13..26). */
  opset: number;
  /** W, the taps of a filter; the `standard` body needs it. */
  width?: number;
}

/**
 * The function body of one CausalConvWithState call site; the node is written as for linearAttentionFunction.
 *
 * @throws FlaError `unsupported` for an opset or a width that no body can be written for, `invalid_argument` when `width` is needed
 */
export function causalConvWithStateFunction(
  call: CausalConvWithStateCall,
  options: FunctionOptions = {},
): OpFunction {
  checkOpset(causalConvWithState, call.opset, call.dtype);
  const target = options.target === 'standard' ? 'standard' : 'com.microsoft';
  const e = new BodyEmitter(call.opset);
  const opsets: Record<string, number> = { '': call.opset };
  if (target === 'com.microsoft') {
    opsets['com.microsoft'] = 1;
    microsoftBody(e, call);
  } else {
    standardBody(e, call);
  }
  return opFunction(causalConvWithState, target, e.nodes, opsets);
}

/** In float32 for every type: com.microsoft has no bfloat16. */
function microsoftBody(
  e: BodyEmitter,
  { attributes, present, dtype }: CausalConvWithStateCall,
): void {
  const [y, state] = e.ops(
    'CausalConvWithState',
    [
      e.cast('input', 'float32'),
      e.cast('weight', 'float32'),
      present.bias ? e.cast('bias', 'float32') : '',
      present.past_state ? e.cast('past_state', 'float32') : '',
    ],
    2,
    { activation: attributes.activation },
    { domain: 'com.microsoft' },
  );
  e.cast(y, dtype, 'output');
  e.cast(state, dtype, 'present_state');
}

/** One product and sum per tap: Conv would need the number of channels, and refuses T = 0. */
function standardBody(e: BodyEmitter, call: CausalConvWithStateCall): void {
  const { attributes, present, dtype, width } = call;
  if (!width) {
    throw new FlaError(
      'invalid_argument',
      'CausalConvWithState: width must be known for a standard body, received none',
    );
  }
  if (width > MOST_TAPS) {
    throw new FlaError(
      'unsupported',
      `CausalConvWithState: width must be at most ${MOST_TAPS} for a standard body, received ${width}`,
    );
  }
  const carried = present.past_state
    ? e.cast('past_state', 'float32')
    : e.zeros([e.dim('input', 0), e.dim('input', 1), width - 1]);
  const x = e.op('Concat', [carried, e.cast('input', 'float32')], { axis: 2 }); // [B,D,W-1+T]
  const weight = e.squeeze(e.cast('weight', 'float32'), 1); // [D,W]
  const T = e.dim('input', 2);
  let y = present.bias ? e.unsqueeze(e.cast('bias', 'float32'), 1) : e.scalar(0); // [D,1]
  for (let w = 0; w < width; w += 1) {
    y = e.add(y, e.mul(e.window(x, 2, w, T), e.slice(weight, 1, w, w + 1)));
  }
  if (attributes.activation !== 'none') y = e.mul(y, e.op('Sigmoid', [y]));
  const state = width === 1 ? e.slice(x, 2, 0, 0) : e.slice(x, 2, 1 - width);
  e.cast(y, dtype, 'output');
  e.cast(state, dtype, 'present_state');
}

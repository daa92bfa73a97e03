/** The plan of a CausalConvWithState call: one dispatch for the output and one for the state, of a few million rows at a time. */

import { causalConvWithState } from '../ops/causal_conv_with_state/schema.js';
import { type CheckedCall, type DType, outputShape } from '../ops/define.js';
import { type Copy, type Dispatch, type Plan, Scratch, spread, type Traits, view } from './plan.js';

export interface CausalConvCall extends CheckedCall<typeof causalConvWithState> {
  readonly shapes: Readonly<Record<string, readonly number[] | undefined>>;
  /** Byte offset of every given tensor in its buffer. */
  readonly offsets: Readonly<Record<string, number>>;
  /** Whether past_state and present_state are the same memory. */
  readonly inPlace: boolean;
  readonly outputs: { readonly output: boolean; readonly present_state: boolean };
}

const sizeOf = (dtype: DType) => (dtype === 'float16' ? 2 : 4);

export function planCausalConvWithState(call: CausalConvCall, traits: Traits): Plan {
  const { B, D, T, W } = call.dims;
  const { offsets, outputs, shapes } = call;
  const scratch = new Scratch();
  const steps: (Dispatch | Copy)[] = [];
  const size = sizeOf(call.types.T);
  const rows = B * D; // [b,d] pairs
  const room = traits.maxBinding - traits.alignment;
  const most = Math.max(1, Math.floor(room / (Math.max(T, W - 1, 1) * size)));
  const offset = (name: string) => offsets[name] ?? 0;
  const whole = (name: string, elements: number) =>
    shapes[name] ? view(name, offset(name), elements * size, size, traits) : undefined;
  const weight = whole('weight', D * W)!;
  const bias = whole('bias', D);
  const constants = {
    HALF: Number(call.types.T === 'float16'),
    PAST: Number(shapes.past_state !== undefined && W > 1),
    BIAS: Number(bias !== undefined),
    SILU: Number(call.attributes.activation !== 'none'),
  };
  for (let r0 = 0; r0 < rows; r0 += most) {
    const n = Math.min(most, rows - r0);
    const part = (name: string, width: number) =>
      view(name, offset(name) + r0 * width * size, n * width * size, size, traits);
    const input = part('input', T);
    let past = part('past_state', W - 1);
    if (constants.PAST && call.inPlace && outputs.present_state) {
      // The state moves along its row: an invocation would read what another has already written.
      const target = scratch.take('past', past.range.bytes);
      steps.push({ source: past.range, target: { ...target, bytes: past.range.bytes } });
      past = { range: target, base: past.base };
    }
    const push = (name: 'output' | 'present_state', width: number) => {
      const count = n * width;
      if (!outputs[name] || count === 0) return;
      const result = part(name, width);
      steps.push({
        shader: 'causal_conv_with_state',
        constants: { ...constants, STATE: Number(name === 'present_state') },
        params: {
          tokens: T,
          D,
          W,
          count,
          row_base: r0 % D,
          x_base: input.base,
          weight_base: weight.base,
          bias_base: bias?.base ?? 0,
          past_base: past.base,
          y_base: result.base,
        },
        bindings: [
          T > 0 ? input.range : 'none',
          weight.range,
          bias?.range ?? 'none',
          constants.PAST ? past.range : 'none',
          result.range,
        ],
        groups: spread(Math.ceil((count + 1) / 2), traits),
      });
    };
    push('output', T);
    push('present_state', W - 1);
  }
  return { steps, scratch: scratch.sizes };
}

/** Shapes of the outputs of a checked call. */
export function causalConvShapes({ dims }: Pick<CausalConvCall, 'dims'>) {
  return {
    output: outputShape(causalConvWithState, 'output', dims),
    present_state: outputShape(causalConvWithState, 'present_state', dims),
  };
}

import { checkCall, outputShape } from '../define.js';
import { type Tensor64, zeros } from '../tensor64.js';
import { type CausalConvWithStateAttributeInput, causalConvWithState } from './schema.js';

export interface CausalConvWithStateInputs {
  readonly input: Tensor64; // [B,D,T]
  readonly weight: Tensor64; // [D,1,W]
  readonly bias?: Tensor64; // [D]
  readonly past_state?: Tensor64; // [B,D,W-1]
}

export interface CausalConvWithStateResult {
  readonly output: Tensor64; // [B,D,T]
  readonly presentState: Tensor64; // [B,D,W-1]
}

/**
 * CausalConvWithState as a plain loop in float64. Throws `FlaError` when the call breaks the
 * schema.
 */
export function causalConvWithStateReference(
  attributes: CausalConvWithStateAttributeInput,
  inputs: CausalConvWithStateInputs,
): CausalConvWithStateResult {
  const specs = Object.entries(inputs as unknown as Record<string, Tensor64 | undefined>).map(
    ([name, tensor]) => [name, tensor && { dtype: 'float32' as const, shape: tensor.shape }],
  );
  const call = checkCall(causalConvWithState, attributes, Object.fromEntries(specs));
  const { B, D, T, W } = call.dims;
  const activate = call.attributes.activation === 'none' ? (y: number) => y : silu;
  const output = zeros(outputShape(causalConvWithState, 'output', call.dims));
  const presentState = zeros(outputShape(causalConvWithState, 'present_state', call.dims));
  for (let row = 0; row < B * D; row += 1) {
    const x = new Float64Array(W - 1 + T); // carried inputs, then new ones
    const past = inputs.past_state?.data.subarray(row * (W - 1), (row + 1) * (W - 1));
    if (past) x.set(past);
    x.set(inputs.input.data.subarray(row * T, (row + 1) * T), W - 1);
    const d = row % D;
    for (let t = 0; t < T; t += 1) {
      let sum = inputs.bias?.data[d] ?? 0;
      for (let w = 0; w < W; w += 1) sum += inputs.weight.data[d * W + w] * x[t + w];
      output.data[row * T + t] = activate(sum);
    }
    presentState.data.set(x.subarray(T), row * (W - 1));
  }
  return { output, presentState };
}

const silu = (y: number) => y / (1 + Math.exp(-y));

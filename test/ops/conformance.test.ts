import { describe, expect, it } from 'vitest';
import {
  causalConvWithStateReference,
  type LinearAttentionInputs,
  linearAttentionReference,
} from '../../ops/index.js';
import { conformanceCases } from '../cases/conformance.js';
import { relativeError } from '../cases/tensors.js';

describe('the float64 references pass the ONNX opset-27 node cases', () => {
  it('has all 27', () => expect(conformanceCases.length).toBe(27));

  it.each(conformanceCases)('$name', ({ opType, attributes, inputs, outputs, dtype }) => {
    const run =
      opType === 'LinearAttention' ? linearAttentionReference : causalConvWithStateReference;
    const result = (run as typeof linearAttentionReference)(
      attributes as Parameters<typeof linearAttentionReference>[0],
      inputs as unknown as LinearAttentionInputs,
    );
    // The stored outputs were computed in float32 and, for fp16 cases, rounded once more.
    const tolerance = dtype === 'float16' ? 2 ** -11 : 2e-6;
    for (const [actual, expected] of [
      [result.output, outputs.output],
      [result.presentState, outputs.present_state],
    ]) {
      expect(actual.shape).toEqual(expected.shape);
      expect(relativeError(actual.data, expected.data)).toBeLessThanOrEqual(tolerance);
    }
  });
});

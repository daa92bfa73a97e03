import { describe, expect, it } from 'vitest';
import { linearAttention, linearAttentionReference, type Tensor64 } from '../../ops/index.js';
import { relativeError, rounded } from '../cases/tensors.js';
import { variants } from '../cases/variants.js';
import { runCall } from '../support/kernels.js';

describe.each(variants)('$name ($paper)', ({ attributes, inputs, expected }) => {
  it('the reference is its definition', () => {
    const { output } = linearAttentionReference(attributes, inputs);
    expect(output.shape).toEqual(expected.shape);
    expect(relativeError(output.data, expected.data)).toBeLessThanOrEqual(1e-13);
  });

  it('so are the CPU kernels in float32', async () => {
    const tensors = Object.entries(inputs as unknown as Record<string, Tensor64>);
    const output = await runCall({
      op: linearAttention,
      attributes,
      inputs: Object.fromEntries(
        tensors.map(([name, tensor]) => [name, rounded(tensor, 'float32')]),
      ),
      dtypes: Object.fromEntries(tensors.map(([name]) => [name, 'float32'])),
    });
    expect(relativeError(output.output.data, expected.data)).toBeLessThanOrEqual(2e-6);
  });
});

/** Every case of CausalConvWithState on a software GPU against float64. */
import { beforeAll, describe, expect, it } from 'vitest';
import { causalConvWithStateReference } from '../../ops/causal_conv_with_state/reference.js';
import { sizeOf, type Tensor64 } from '../../ops/tensor64.js';
import { type KernelOptions, Kernels } from '../../wgsl/kernels.js';
import { type CausalConvCase, causalConvCases } from '../cases/causal_conv_with_state.js';
import { relativeError, rounded } from '../cases/tensors.js';
import { missingSoftwareGpu, openDevice, softwareGpu } from '../support/webgpu.js';
import { Runner, type RunOptions } from './run.js';

type HalfOrSingle = 'float32' | 'float16';

describe.skipIf(missingSoftwareGpu())('CausalConvWithState in WGSL', () => {
  let device: GPUDevice;
  let errors: string[];

  beforeAll(async () => {
    ({ device, errors } = await openDevice(softwareGpu()));
  });

  async function check(
    { attributes, inputs }: CausalConvCase,
    dtype: HalfOrSingle,
    runOptions: RunOptions,
    options: KernelOptions = {},
  ) {
    const given = Object.entries(inputs() as unknown as Record<string, Tensor64>);
    const tensors = Object.fromEntries(given.map(([name, t]) => [name, rounded(t, dtype)]));
    const expected = causalConvWithStateReference(attributes, tensors as never);
    const typed = Object.entries(tensors).map(([name, tensor]) => [name, { tensor, dtype }]);
    const kernels = new Kernels(device, options);
    const results = await new Runner(device, kernels).run(
      'CausalConvWithState',
      attributes as Record<string, string>,
      Object.fromEntries(typed),
      dtype,
      runOptions,
    );
    expect(errors.splice(0)).toEqual([]);
    // Sums of at most 18 products in float32, then one rounding.
    const most = 1e-6 + (dtype === 'float16' ? 2 ** -11 : 0);
    expect(relativeError(results.output.data, expected.output.data)).toBeLessThanOrEqual(most);
    expect(results.present_state.data).toEqual(expected.presentState.data);
    kernels.dispose();
  }

  describe.each(['float32', 'float16'] as const)('%s', (dtype) => {
    it.each(causalConvCases)('$name', async (testCase) => {
      await check(testCase, dtype, {});
      await check(testCase, dtype, { inPlace: true, offset: 260 });
    });
  });

  it.each(['float32', 'float16'] as const)('%s in pieces of few rows', async (dtype) => {
    for (const testCase of causalConvCases) {
      const { input, weight } = testCase.inputs();
      // The filters are bound whole.
      if (4 * sizeOf(weight.shape) > 2048 || 4 * input.shape[2] > 2048) continue;
      await check(testCase, dtype, { inPlace: true }, { maxBinding: 2048 });
    }
  });
});

import * as ort from 'onnxruntime-node';
import * as web from 'onnxruntime-web';
import { describe, expect, it } from 'vitest';
import { causalConvWithStateFunction } from '../../ops/causal_conv_with_state/function.js';
import {
  type CausalConvWithStateInputs,
  causalConvWithStateReference,
} from '../../ops/causal_conv_with_state/reference.js';
import { causalConvWithState } from '../../ops/causal_conv_with_state/schema.js';
import { checkAttributes } from '../../ops/define.js';
import type { FloatDType, FunctionTarget } from '../../ops/function/define.js';
import type { Tensor64 } from '../../ops/tensor64.js';
import { type CausalConvCase, causalConvCases } from '../cases/causal_conv_with_state.js';
import { relativeError, rounded } from '../cases/tensors.js';
import { type Ort, runOnce, type Site, siteModel } from './function_support.js';

// Sums of W products in float32, then one rounding to the type.
const TOLERANCE = { float32: 1e-6, float16: 1e-6 + 2 ** -11, bfloat16: 1e-6 + 2 ** -8 } as const;

function makeSite({ attributes, inputs }: CausalConvCase, dtype: FloatDType) {
  const drawn = Object.entries(inputs() as unknown as Record<string, Tensor64>);
  return {
    op: causalConvWithState,
    attributes: checkAttributes(causalConvWithState, attributes),
    types: Object.fromEntries(drawn.map(([name]) => [name, dtype])),
    inputs: Object.fromEntries(drawn.map(([name, x]) => [name, rounded(x, dtype)])),
  } satisfies Site;
}

async function check(
  runtime: Ort,
  testCase: CausalConvCase,
  target: FunctionTarget,
  opset = 17,
  dtype: FloatDType = 'float32',
) {
  const site = makeSite(testCase, dtype);
  const { attributes, inputs } = site;
  const present = { bias: Boolean(inputs.bias), past_state: Boolean(inputs.past_state) };
  const call = { attributes, present, dtype, opset, width: inputs.weight.shape[2] };
  const model = siteModel(site, causalConvWithStateFunction(call, { target }));
  const actual = await runOnce(runtime, model, site);
  const expected = causalConvWithStateReference(
    attributes,
    inputs as unknown as CausalConvWithStateInputs,
  );
  expect(actual.output.shape).toEqual(expected.output.shape);
  expect(relativeError(actual.output.data, expected.output.data)).toBeLessThan(TOLERANCE[dtype]);
  // The state is carried, not computed.
  expect(actual.present_state).toEqual(expected.presentState);
}

/** The shared cases that are not long. */
const few = causalConvCases.filter(({ name }) => !/31|64|257|1000/.test(name));

describe.each(['standard', 'com.microsoft'] as const)('CausalConvWithState, %s body', (target) => {
  it.each(causalConvCases)('$name', (testCase) => check(ort, testCase, target));

  it.each(['float16', 'bfloat16'] as const)('%s', async (dtype) => {
    for (const testCase of few) await check(ort, testCase, target, 17, dtype);
  });

  it.each([9, 10, 11, 12, 13, 18, 21, 26])('opset %i', async (opset) => {
    for (const testCase of few) await check(ort, testCase, target, opset);
  });

  it('onnxruntime-web', async () => {
    web.env.wasm.numThreads = 1;
    for (const testCase of few) await check(web, testCase, target);
  });
});

describe('CausalConvWithState body', () => {
  const call = {
    attributes: { activation: 'silu' },
    present: { bias: false, past_state: true },
    dtype: 'float32',
    opset: 17,
  } as const;

  it('is com.microsoft unless asked otherwise', () => {
    expect(causalConvWithStateFunction(call).overload).toMatch(/^com_microsoft_/);
  });

  it('needs the width in standard operators', () => {
    expect(() => causalConvWithStateFunction(call, { target: 'standard' })).toThrow(
      'CausalConvWithState: width must be known for a standard body, received none',
    );
  });
});

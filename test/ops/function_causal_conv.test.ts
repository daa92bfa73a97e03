import * as ort from 'onnxruntime-node';
import * as web from 'onnxruntime-web';
import { describe, expect, it } from 'vitest';
import { causalConvWithStateFunction } from '../../ops/causal_conv_with_state/function.js';
import {
  type CausalConvWithStateInputs,
  causalConvWithStateReference,
} from '../../ops/causal_conv_with_state/reference.js';
import {
  type CausalConvWithStateAttributes,
  causalConvWithState,
} from '../../ops/causal_conv_with_state/schema.js';
import type { FloatDType, FunctionTarget } from '../../ops/function/define.js';
import type { Tensor64 } from '../../ops/tensor64.js';
import { Random, relativeError, rounded } from '../cases/tensors.js';
import { type Ort, runOnce, type Site, siteModel } from './function_support.js';

interface Spec {
  T: number;
  W: number;
  B?: number;
  bias?: boolean;
  past?: boolean;
  activation?: CausalConvWithStateAttributes['activation'];
}

const SPECS: readonly Spec[] = [
  { T: 17, W: 4, bias: true, past: true, activation: 'silu' },
  { T: 17, W: 4, activation: 'swish' },
  { T: 1, W: 4, past: true, bias: true },
  { T: 2, W: 4, past: true },
  { T: 2, W: 4 },
  { T: 0, W: 4, past: true, activation: 'silu' },
  { T: 0, W: 3 },
  { T: 5, W: 1, past: true, bias: true },
  { T: 5, W: 1 },
  { T: 30, W: 9, past: true },
  { T: 3, W: 4, B: 0, past: true },
];

// Sums of W products in float32, then one rounding to the type.
const TOLERANCE = { float32: 1e-6, float16: 1e-6 + 2 ** -11, bfloat16: 1e-6 + 2 ** -8 } as const;

function makeSite({ T, W, B = 2, bias, past, activation = 'none' }: Spec, dtype: FloatDType) {
  const random = new Random(`${T} ${W} ${dtype}`);
  const draw = (...shape: number[]) =>
    rounded(
      random.tensor(shape, () => random.normal()),
      dtype,
    );
  const D = 5;
  const inputs: Record<string, Tensor64> = {
    input: draw(B, D, T),
    weight: draw(D, 1, W),
    ...(bias && { bias: draw(D) }),
    ...(past && { past_state: draw(B, D, W - 1) }),
  };
  const types = Object.fromEntries(Object.keys(inputs).map((name) => [name, dtype]));
  return { op: causalConvWithState, attributes: { activation }, types, inputs } satisfies Site;
}

async function check(
  runtime: Ort,
  spec: Spec,
  target: FunctionTarget,
  opset = 17,
  dtype: FloatDType = 'float32',
) {
  const site = makeSite(spec, dtype);
  const { attributes, inputs } = site;
  const present = { bias: Boolean(inputs.bias), past_state: Boolean(inputs.past_state) };
  const call = { attributes, present, dtype, opset, width: spec.W };
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

describe.each(['standard', 'com.microsoft'] as const)('CausalConvWithState, %s body', (target) => {
  it.each(SPECS)('%o', (spec) => check(ort, spec, target));

  it.each(['float16', 'bfloat16'] as const)('%s', async (dtype) => {
    for (const spec of SPECS) await check(ort, spec, target, 17, dtype);
  });

  it.each([9, 10, 11, 12, 13, 18, 21, 26])('opset %i', async (opset) => {
    for (const spec of SPECS) await check(ort, spec, target, opset);
  });

  it('onnxruntime-web', async () => {
    web.env.wasm.numThreads = 1;
    for (const spec of SPECS) await check(web, spec, target);
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

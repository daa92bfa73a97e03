import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type CausalConvWithStateInputs,
  causalConvWithState,
  causalConvWithStateReference,
  type LinearAttentionAttributeInput,
  type LinearAttentionInputs,
  linearAttention,
  linearAttentionReference,
  type Tensor64,
} from '../../../ops/index.js';
import { nativeInfo } from '../../../runtime/node/addon.js';
import { causalConvCases, causalConvTypes } from '../../cases/causal_conv_with_state.js';
import { conformanceCases } from '../../cases/conformance.js';
import {
  type CaseTypes,
  caseTypes,
  dtypeOf,
  emptyBatches,
  expectedOf,
  inputsIn,
  linearAttentionCases,
  roundedTo,
  tolerance,
  typesOf,
  typesText,
} from '../../cases/linear_attention.js';
import { relativeError, rounded, sliceTokens } from '../../cases/tensors.js';
import { randomCalls } from '../../support/calls.js';
import { type KernelCall, openCall, runCall, runIn } from '../../support/kernels.js';

const isas = ['portable', 'avx2', 'avx512'];

/** Every case in every dtype through the kernels of one instruction set (the best one when `isa` is not given). */
export function kernelSuite(isa?: string): void {
  // The library reads it once, when it is loaded; every test file is a process of its own.
  if (isa) process.env.FLA_CPU_ISA = isa;

  it('runs the instruction set asked for', () => {
    const actual = isas.indexOf(nativeInfo().ops.isa as string);
    expect(actual).toBeGreaterThanOrEqual(0);
    if (isa) expect(actual).toBeLessThanOrEqual(isas.indexOf(isa));
  });

  // Lower instruction sets run each conversion once; the best one runs every combination.
  const types = isa ? [caseTypes[0], caseTypes[1], caseTypes[4]] : caseTypes;
  describe.each(types.map((types) => [typesText(types), types] as const))(
    'LinearAttention, %s',
    (_, types) => {
      const cases = linearAttentionCases.filter((testCase) => typesOf(testCase).includes(types));
      it.each(cases)('$name', async (testCase) => {
        const inputs = inputsIn(testCase, types);
        const expected = expectedOf(testCase, inputs);
        const call = callOf(testCase.attributes, inputs, types);
        const session = await openCall(call);
        const actual = await runIn(session, call);
        // With past_state and present_state in the same memory the results are the same bits.
        if (testCase.state) expect(await runIn(session, call, { inPlace: true })).toEqual(actual);
        session.dispose();
        expectClose(actual.output, expected.output, tolerance(testCase, types.T));
        expectClose(actual.present_state, expected.presentState, tolerance(testCase, types.S));
      });
    },
  );

  it('LinearAttention takes any call with a state', async () => {
    await fc.assert(
      fc.asyncProperty(randomCalls({ T: 40, K: 40, V: 90, B: 3 }), async (call) => {
        const inputs = roundedTo(call.inputs, caseTypes[0]);
        const expected = linearAttentionReference(call.attributes, inputs);
        const actual = await runCall(callOf(call.attributes, inputs, caseTypes[0]));
        const limit = tolerance(call, 'float32');
        expectClose(actual.output, expected.output, limit);
        expectClose(actual.present_state, expected.presentState, limit);
      }),
      { numRuns: isa ? 60 : 200, seed: 20262 },
    );
  });

  it.each(emptyBatches)('LinearAttention of no sequences: $name', async (testCase) => {
    const inputs = inputsIn(testCase, caseTypes[0]);
    const { output, present_state } = await runCall(
      callOf(testCase.attributes, inputs, caseTypes[0]),
    );
    expect([output.data.length, present_state.data.length]).toEqual([0, 0]);
    expect([output.shape[0], present_state.shape[0]]).toEqual([0, 0]);
  });

  describe('LinearAttention in parts is LinearAttention in one', () => {
    // Splits on and off chunk borders, with a last part of one token.
    const borders = [0, 64, 93, 129, 130];
    const long = linearAttentionCases.filter(
      ({ sizes, state, attributes }) => sizes.T === 130 && state && attributes.causal !== 0,
    );
    it.each(long)('$name', async (testCase) => {
      const [float32] = caseTypes;
      const whole = inputsIn(testCase, float32);
      const call = (inputs: LinearAttentionInputs) =>
        runCall(callOf(testCase.attributes, inputs, float32));
      const expected = await call(whole);
      let state = whole.past_state;
      for (const [i, from] of borders.slice(0, -1).entries()) {
        const to = borders[i + 1];
        const part = await call({ ...tokensOf(whole, from, to), past_state: state });
        expectClose(
          part.output,
          sliceTokens(expected.output, from, to),
          tolerance(testCase, 'float32'),
        );
        state = part.present_state;
      }
      expectClose(state!, expected.present_state, tolerance(testCase, 'float32'));
    });
  });

  describe.each(causalConvTypes)('CausalConvWithState, %s', (dtype) => {
    it.each(causalConvCases)('$name', async ({ attributes, inputs: draw }) => {
      const inputs = Object.fromEntries(
        Object.entries(draw()).map(([name, tensor]) => [name, rounded(tensor as Tensor64, dtype)]),
      );
      const reference = inputs as unknown as CausalConvWithStateInputs;
      const expected = causalConvWithStateReference(attributes, reference);
      const dtypes = Object.fromEntries(Object.keys(inputs).map((name) => [name, dtype]));
      const call = { op: causalConvWithState, attributes, inputs, dtypes };
      const session = await openCall(call);
      const actual = await runIn(session, call);
      expect(await runIn(session, call, { inPlace: true })).toEqual(actual);
      session.dispose();
      const rounding = { float32: 0, float16: 2 ** -11, bfloat16: 2 ** -8 }[dtype];
      expectClose(actual.output, expected.output, 1e-6 + rounding);
      expect(actual.present_state).toEqual(expected.presentState);
    });
  });

  describe('ONNX opset-27 node cases', () => {
    it.each(conformanceCases)('$name', async ({ opType, attributes, dtype, inputs, outputs }) => {
      const op = opType === 'LinearAttention' ? linearAttention : causalConvWithState;
      const dtypes = Object.fromEntries(Object.keys(inputs).map((name) => [name, dtype]));
      const actual = await runCall({ op, attributes, inputs, dtypes });
      for (const [name, expected] of Object.entries(outputs)) {
        // Two float16 results, each rounded once.
        expectClose(actual[name], expected, dtype === 'float16' ? 2 ** -10 : 1e-5);
      }
    });
  });
}

/** Tokens from..to of every input that has tokens. */
function tokensOf(inputs: LinearAttentionInputs, from: number, to: number): LinearAttentionInputs {
  const { past_state, bonus, ...sequences } = inputs;
  const parts = Object.entries(sequences).map(([name, tensor]) => [
    name,
    sliceTokens(tensor, from, to),
  ]);
  return {
    ...Object.fromEntries(parts),
    ...(bonus && { bonus }),
    ...(past_state && { past_state }),
  };
}

function callOf(
  attributes: LinearAttentionAttributeInput,
  inputs: LinearAttentionInputs,
  types: CaseTypes,
): KernelCall {
  const names = Object.keys(inputs);
  return {
    op: linearAttention,
    attributes: attributes as KernelCall['attributes'],
    inputs: inputs as unknown as KernelCall['inputs'],
    dtypes: Object.fromEntries(names.map((name) => [name, dtypeOf(name, types)])),
  };
}

function expectClose(actual: Tensor64, expected: Tensor64, limit: number): void {
  expect(actual.shape).toEqual(expected.shape);
  expect(relativeError(actual.data, expected.data)).toBeLessThanOrEqual(limit);
}

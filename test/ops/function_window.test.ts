/** Function bodies of WindowAttention and HybridAttention on stock runtimes, against the float64 references. */
import * as ort from 'onnxruntime-node';
import * as web from 'onnxruntime-web';
import { beforeAll, describe, expect, it } from 'vitest';
import { checkAttributes, type OpSchema } from '../../ops/define.js';
import type { FloatDType, OpFunction } from '../../ops/function/define.js';
import {
  type HybridAttentionCall,
  hybridAttentionFunction,
} from '../../ops/hybrid_attention/function.js';
import type { HybridAttentionInputs } from '../../ops/hybrid_attention/reference.js';
import { hybridAttention } from '../../ops/hybrid_attention/schema.js';
import type { Tensor64 } from '../../ops/tensor64.js';
import {
  type WindowAttentionCall,
  windowAttentionFunction,
} from '../../ops/window_attention/function.js';
import { windowAttention } from '../../ops/window_attention/schema.js';
import {
  type HybridAttentionCase,
  hybridAttentionCases,
  hybridExpected,
  hybridMagnitude,
} from '../cases/hybrid_attention.js';
import { relativeError, sliceTokens } from '../cases/tensors.js';
import {
  type WindowAttentionCase,
  type WindowTypes,
  windowAttentionCases,
  windowDtype,
  windowExpected,
  windowRounded,
  windowTolerance,
  windowTypes,
  windowTypesOf,
  windowTypesText,
} from '../cases/window_attention.js';
import { tokensOf } from '../support/hybrid_calls.js';
import { type Ort, runOnce, type Site, siteModel } from './function_support.js';

const [FLOAT32] = windowTypes;
const isHybrid = (testCase: WindowAttentionCase): testCase is HybridAttentionCase =>
  'D' in testCase.sizes;

/** A call of either op in some types, with its body. */
interface BodySite extends Site {
  readonly body: OpFunction;
}

function siteOf(
  testCase: WindowAttentionCase,
  inputs: object,
  types: WindowTypes,
  opset: number,
): BodySite {
  const op: OpSchema = isHybrid(testCase) ? hybridAttention : windowAttention;
  const attributes = checkAttributes(op, testCase.attributes as Site['attributes']);
  const optional = op.inputs.filter((input) => input.optional).map(({ name }) => name);
  const call = {
    attributes,
    present: Object.fromEntries(optional.map((name) => [name, name in inputs])),
    dtype: types.T,
    windowDtype: types.R as FloatDType,
    opset,
  };
  const body = isHybrid(testCase)
    ? hybridAttentionFunction(call as unknown as HybridAttentionCall)
    : windowAttentionFunction(call as unknown as WindowAttentionCall);
  const names = Object.keys(inputs);
  return {
    op,
    attributes: attributes as Site['attributes'],
    types: Object.fromEntries(names.map((name) => [name, windowDtype(name, types)])),
    inputs: inputs as Site['inputs'],
    body,
  };
}

async function check(runtime: Ort, testCase: WindowAttentionCase, opset = 17, types = FLOAT32) {
  const inputs = windowRounded(testCase.inputs(), types);
  const site = siteOf(testCase, inputs, types, opset);
  const actual = await runOnce(runtime, siteModel(site, site.body), site);
  compare(testCase, inputs, types, actual);
}

function compare(
  testCase: WindowAttentionCase,
  inputs: object,
  types: WindowTypes,
  actual: Record<string, Tensor64>,
): void {
  if (isHybrid(testCase)) {
    const expected = hybridExpected(testCase, inputs as HybridAttentionInputs);
    const magnitude = hybridMagnitude(testCase);
    expectClose(actual.output, expected.output, windowTolerance(magnitude, types.T));
    expectClose(actual.present_state, expected.presentState, windowTolerance(magnitude));
    expect(actual.present_window).toEqual(expected.presentWindow);
  } else {
    const expected = windowExpected(testCase, inputs as HybridAttentionInputs);
    const { magnitude } = testCase;
    expectClose(actual.output, expected.output, windowTolerance(magnitude, types.T));
    expectClose(finite(actual.lse), finite(expected.lse), windowTolerance(magnitude));
    expect(actual.present_window).toEqual(expected.presentWindow);
  }
}

function expectClose(actual: Tensor64, expected: Tensor64, limit: number): void {
  expect(actual.shape).toEqual(expected.shape);
  expect(relativeError(actual.data, expected.data)).toBeLessThanOrEqual(limit);
}

const finite = ({ shape, data }: Tensor64): Tensor64 => ({
  shape,
  data: data.map((x) => (x === -Infinity ? -1e6 : x)),
});

const hybridCases = hybridAttentionCases.filter(({ attributes }) => !attributes.cache);

/** Cases that between them take a body through each of its branches. */
const named = <Case extends { name: string }>(cases: readonly Case[], names: string[]) =>
  names.map((name) => cases.find((testCase) => testCase.name === name)!);
const windowBranches = named(windowAttentionCases, [
  'T = 0',
  'T = 1, state',
  'T = 130, window 64, state',
  'bias by distance, groups, state',
  'ALiBi, groups, state',
  'mask random, state',
  'softcap 2',
  'after 2^32 tokens',
]);
const hybridBranches = named(hybridCases, [
  'T = 0',
  'T = 1, state',
  'T = 130, state',
  'T = 130, everything',
  'queries share states',
  'features of their own, D = 7, M = 5',
  'softmax, 2 signs, no weights',
  'elu1, 1 signs',
  'alpha 60, nothing far yet',
  'decay, mask',
  'decay -Infinity',
  'steep features',
]);
const branches: WindowAttentionCase[] = [...windowBranches, ...hybridBranches];

it.each(windowAttentionCases)('WindowAttention, $name', (testCase) => check(ort, testCase));
it.each(hybridCases)('HybridAttention, $name', (testCase) => check(ort, testCase));

// Every body computes in float32, so the types only meet the casts around it.
it.each(windowTypes.map((types) => [windowTypesText(types), types] as const))(
  'in %s',
  async (_, types) => {
    for (const testCase of branches) {
      if (windowTypesOf(testCase).includes(types)) await check(ort, testCase, 17, types);
    }
  },
);

// Both sides of every version in which an operator of the bodies changed.
it.each([9, 10, 11, 12, 13, 14, 16, 18, 20, 21, 23, 24, 26])('opset %i', async (opset) => {
  for (const testCase of branches) await check(ort, testCase, opset);
});

describe('onnxruntime-web', () => {
  beforeAll(() => {
    web.env.wasm.numThreads = 1;
  });
  it.each(branches)('$name', (testCase) => check(web, testCase));
});

describe('in parts is in one', () => {
  const long = [...windowBranches, ...hybridBranches].filter(
    ({ sizes, past }) => sizes.T > 39 && past !== undefined,
  );
  it.each(long)('$name', async (testCase) => {
    const inputs = windowRounded(testCase.inputs(), FLOAT32) as HybridAttentionInputs;
    const site = siteOf(testCase, inputs, FLOAT32, 17);
    const model = siteModel(site, site.body);
    const { T } = testCase.sizes;
    const whole = await runOnce(ort, model, site);
    const magnitude = isHybrid(testCase) ? hybridMagnitude(testCase) : testCase.magnitude;
    const borders = [0, 7, 8, 9, 33, T];
    let { past_window, past_state } = inputs;
    for (const [i, from] of borders.slice(0, -1).entries()) {
      const to = borders[i + 1];
      const part = await runOnce(ort, model, {
        types: site.types,
        inputs: {
          ...(tokensOf(inputs, from, to) as unknown as Site['inputs']),
          past_window: past_window!,
          ...(past_state && { past_state }),
        },
      });
      expectClose(part.output, sliceTokens(whole.output, from, to), windowTolerance(magnitude));
      past_window = part.present_window;
      past_state = part.present_state;
    }
    expect(past_window).toEqual(whole.present_window);
    if (past_state) expectClose(past_state, whole.present_state, windowTolerance(magnitude));
  });
});

describe('a body is refused', () => {
  const of = (attributes: object, more: object = {}) => ({
    attributes: { q_num_heads: 2, kv_num_heads: 2, window: 8, ...attributes },
    present: {},
    ...{ dtype: 'float32', windowDtype: 'float32', opset: 17 },
    ...more,
  });
  it('with a cache', () => {
    expect(() => hybridAttentionFunction(of({ cache: 4 }) as never)).toThrow(
      'HybridAttention: no function body with a cache, which decides token by token what is written; cache must be 0, received 4',
    );
  });
  it('around com.microsoft operators', () => {
    expect(() => windowAttentionFunction(of({}) as never, { target: 'com.microsoft' })).toThrow(
      'WindowAttention: no com.microsoft body: target must be standard',
    );
  });
  it('in opset 27', () => {
    expect(() => windowAttentionFunction(of({}, { opset: 27 }) as never)).toThrow(
      "WindowAttention: the model's opset must be 9..26 for a float32 function body, received 27",
    );
  });
});

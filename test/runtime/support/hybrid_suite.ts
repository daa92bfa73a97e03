import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type HybridAttentionInputs,
  hybridAttention,
  hybridAttentionReference,
  type OpSchema,
  type Tensor64,
  windowAttention,
} from '../../../ops/index.js';
import {
  emptyHybridBatches,
  hybridAttentionCases,
  hybridExpected,
  hybridMagnitude,
} from '../../cases/hybrid_attention.js';
import { relativeError, sliceTokens } from '../../cases/tensors.js';
import {
  emptyWindowBatches,
  type WindowTypes,
  windowAttentionCases,
  windowDtype,
  windowExpected,
  windowRounded,
  windowTolerance,
  windowTypes,
  windowTypesOf,
  windowTypesText,
} from '../../cases/window_attention.js';
import { given, randomHybridCalls, tokensOf } from '../../support/hybrid_calls.js';
import { type KernelCall, openCall, runCall, runIn } from '../../support/kernels.js';

const [FLOAT32] = windowTypes;

/** Every case of WindowAttention and HybridAttention through the kernels; `best`: in every combination of types. */
export function hybridSuite(best: boolean): void {
  // One of each conversion elsewhere.
  const types = best ? windowTypes : [windowTypes[0], windowTypes[1], windowTypes[4]];
  const tables = types.map((types) => [windowTypesText(types), types] as const);

  describe.each(tables)('WindowAttention, %s', (_, types) => {
    it.each(windowAttentionCases.filter((testCase) => windowTypesOf(testCase).includes(types)))(
      '$name',
      async (testCase) => {
        const inputs = windowRounded(testCase.inputs(), types);
        const expected = windowExpected(testCase, inputs);
        const actual = await runBothWays(
          callOf(windowAttention, testCase.attributes, inputs, types),
        );
        const { magnitude } = testCase;
        expectClose(actual.output, expected.output, windowTolerance(magnitude, types.T));
        expectClose(finite(actual.lse), finite(expected.lse), windowTolerance(magnitude));
        // Keys and values are carried, not computed.
        expect(actual.present_window).toEqual(expected.presentWindow);
      },
    );
  });

  describe.each(tables)('HybridAttention, %s', (_, types) => {
    it.each(hybridAttentionCases.filter((testCase) => windowTypesOf(testCase).includes(types)))(
      '$name',
      async (testCase) => {
        const inputs = windowRounded(testCase.inputs(), types);
        const expected = hybridExpected(testCase, inputs);
        const actual = await runBothWays(
          callOf(hybridAttention, testCase.attributes, inputs, types),
        );
        const magnitude = hybridMagnitude(testCase);
        expectClose(actual.output, expected.output, windowTolerance(magnitude, types.T));
        expectClose(actual.present_state, expected.presentState, windowTolerance(magnitude));
        expect(actual.present_window).toEqual(expected.presentWindow);
      },
    );
  });

  it('HybridAttention takes any call', async () => {
    const calls = randomHybridCalls({ B: 3, T: 90, size: 40, window: 70 });
    await fc.assert(
      fc.asyncProperty(calls, async ({ attributes, inputs: drawn }) => {
        const inputs = windowRounded(given(drawn) as unknown as HybridAttentionInputs, FLOAT32);
        const expected = hybridAttentionReference(attributes, inputs);
        const actual = await runCall(callOf(hybridAttention, attributes, inputs, FLOAT32));
        // Scores reach 40 or so.
        expectClose(actual.output, expected.output, windowTolerance(5));
        // Which token the cache gives up may hang on the last digit.
        if (!attributes.cache) {
          expectClose(actual.present_state, expected.presentState, windowTolerance(5));
        }
      }),
      { numRuns: best ? 150 : 40, seed: 20265 },
    );
  });

  it.each(emptyWindowBatches)('WindowAttention of no sequences: $name', async (testCase) => {
    const call = callOf(windowAttention, testCase.attributes, testCase.inputs(), FLOAT32);
    for (const { shape, data } of Object.values(await runCall(call))) {
      expect([shape[0], data.length]).toEqual([0, 0]);
    }
  });

  it.each(emptyHybridBatches)('HybridAttention of no sequences: $name', async (testCase) => {
    const call = callOf(hybridAttention, testCase.attributes, testCase.inputs(), FLOAT32);
    for (const { shape, data } of Object.values(await runCall(call))) {
      expect([shape[0], data.length]).toEqual([0, 0]);
    }
  });

  describe('in parts is in one', () => {
    const isLong = ({ sizes }: { sizes: { T: number } }) => sizes.T === 130;
    // On and off the kernels' tiles, and calls so short that they go token by token.
    const parts = [
      [0, 64, 93, 129, 130],
      [0, 5, 12, 13, 44, 130],
    ];

    const tokens = Array.from({ length: 131 }, (_, t) => t);

    it.each(windowAttentionCases.filter(isLong))('WindowAttention, $name', async (testCase) => {
      const inputs = windowRounded(testCase.inputs(), FLOAT32);
      const session = await openAnyLength(windowAttention, testCase.attributes, {
        past_window: windowExpected(testCase, inputs).presentWindow,
        ...inputs,
      });
      const limit = windowTolerance(testCase.magnitude);
      const { whole, past: first, run } = await session.start(inputs, ['past_window']);
      for (const borders of [...parts, tokens]) {
        let past: Record<string, Tensor64> = first;
        for (const [i, from] of borders.slice(0, -1).entries()) {
          const to = borders[i + 1];
          const part = await run({ ...tokensOf(inputs, from, to), ...past });
          expectClose(part.output, sliceTokens(whole.output, from, to), limit);
          past = { past_window: part.present_window };
        }
        expect(past.past_window).toEqual(whole.present_window);
      }
      session.dispose();
    });

    it.each(hybridAttentionCases.filter(isLong))('HybridAttention, $name', async (testCase) => {
      const inputs = windowRounded(testCase.inputs(), FLOAT32);
      const { presentWindow, presentState } = hybridExpected(testCase, inputs);
      const session = await openAnyLength(hybridAttention, testCase.attributes, {
        past_window: presentWindow,
        past_state: presentState,
        ...inputs,
      });
      const limit = windowTolerance(hybridMagnitude(testCase));
      const {
        whole,
        past: first,
        run,
      } = await session.start(inputs, ['past_window', 'past_state']);
      for (const borders of [...parts, tokens]) {
        let past: Record<string, Tensor64> = first;
        for (const [i, from] of borders.slice(0, -1).entries()) {
          const to = borders[i + 1];
          const part = await run({ ...tokensOf(inputs, from, to), ...past });
          expectClose(part.output, sliceTokens(whole.output, from, to), limit);
          past = { past_window: part.present_window, past_state: part.present_state };
        }
        expect(past.past_window).toEqual(whole.present_window);
        expectClose(past.past_state, whole.present_state, limit);
      }
      session.dispose();
    });
  });
}

/** A session that takes any number of tokens. `like` has every input that will be given, the states among them. */
async function openAnyLength(op: OpSchema, attributes: object, like: Record<string, Tensor64>) {
  const declared = Object.fromEntries(
    Object.entries(like).map(([name, { shape }]) => [name, shape.map((_, i) => `${name}_${i}`)]),
  );
  const call = (inputs: object) => callOf(op, attributes, inputs, FLOAT32);
  const session = await openCall({ ...call(like), declared });
  const run = (inputs: object) => runIn(session, call(inputs));
  /** The call in one; without states it starts from zeros, which is the same. */
  const start = async (inputs: object, states: readonly string[]) => {
    const past = Object.fromEntries(
      states.map((name) => {
        const zeros = { ...like[name], data: new Float64Array(like[name].data.length) };
        return [name, (inputs as Record<string, Tensor64>)[name] ?? zeros];
      }),
    );
    return { whole: await run({ ...inputs, ...past }), past, run };
  };
  return { start, dispose: () => session.dispose() };
}

/** With past and present states in the same memory the results are the same bits. */
async function runBothWays(call: KernelCall): Promise<Record<string, Tensor64>> {
  const session = await openCall(call);
  try {
    const actual = await runIn(session, call);
    if (call.inputs.past_window) {
      expect(await runIn(session, call, { inPlace: true })).toEqual(actual);
    }
    return actual;
  } finally {
    session.dispose();
  }
}

function callOf(op: OpSchema, attributes: object, inputs: object, types: WindowTypes): KernelCall {
  return {
    op,
    attributes: attributes as KernelCall['attributes'],
    inputs: inputs as KernelCall['inputs'],
    dtypes: Object.fromEntries(Object.keys(inputs).map((name) => [name, windowDtype(name, types)])),
  };
}

/** The lse of invisible tokens, -Infinity, as a number that no other can be confused with. */
const finite = ({ shape, data }: Tensor64): Tensor64 => ({
  shape,
  data: data.map((x) => (x === -Infinity ? -1e6 : x)),
});

function expectClose(actual: Tensor64, expected: Tensor64, limit: number): void {
  expect(actual.shape).toEqual(expected.shape);
  expect(relativeError(actual.data, expected.data)).toBeLessThanOrEqual(limit);
}

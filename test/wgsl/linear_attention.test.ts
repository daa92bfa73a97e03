/** Every case of LinearAttention on a software GPU against float64, and what the cases do not reach. */
import fc from 'fast-check';
import { beforeAll, describe, expect, it } from 'vitest';
import {
  type LinearAttentionInputs,
  linearAttentionReference,
} from '../../ops/linear_attention/reference.js';
import { linearAttention } from '../../ops/linear_attention/schema.js';
import type { Tensor64 } from '../../ops/tensor64.js';
import { type KernelOptions, Kernels } from '../../wgsl/kernels.js';
import {
  type CaseTypes,
  caseTypes,
  dtypeOf,
  emptyBatches,
  expectedOf,
  inputsIn,
  linearAttentionCases,
  tolerance,
  typesOf,
  typesText,
} from '../cases/linear_attention.js';
import { relativeError, sliceTokens } from '../cases/tensors.js';
import { variants } from '../cases/variants.js';
import { missingSoftwareGpu, openDevice, softwareGpu } from '../support/webgpu.js';
import { type Draw, draw } from './calls.js';
import { Runner, type RunOptions } from './run.js';

/** Whether two results are the same, bit by bit; toEqual takes its time over large arrays. */
function sameBits(a: Record<string, Tensor64>, b: Record<string, Tensor64>): boolean {
  const bytes = ({ data }: Tensor64) =>
    new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return Object.keys(a).every((name) => Buffer.compare(bytes(a[name]), bytes(b[name])) === 0);
}

const types = caseTypes.filter(({ T }) => T !== 'bfloat16');
const [single, half, mixed] = types;

describe.skipIf(missingSoftwareGpu())('LinearAttention in WGSL', () => {
  let device: GPUDevice;
  let errors: string[];
  /** Planned for software, as this device is, and for a device that runs many workgroups at a time. */
  let runner: Runner;
  let wide: Runner;

  beforeAll(async () => {
    ({ device, errors } = await openDevice(softwareGpu()));
    runner = new Runner(device, new Kernels(device));
    wide = new Runner(device, new Kernels(device, { parallel: 512 }));
  });

  const runWith = (options: KernelOptions) => new Runner(device, new Kernels(device, options));

  async function run(
    attributes: Readonly<Record<string, number | string | undefined>>,
    inputs: LinearAttentionInputs,
    dtypes: CaseTypes,
    options: RunOptions = {},
    on = runner,
  ) {
    const typed = Object.entries(inputs as unknown as Record<string, Tensor64>).map(
      ([name, tensor]) => [name, { tensor, dtype: dtypeOf(name, dtypes) }],
    );
    const results = await on.run(
      'LinearAttention',
      attributes as Record<string, number | string>,
      Object.fromEntries(typed),
      dtypes.S,
      options,
    );
    expect(errors.splice(0)).toEqual([]);
    return results;
  }

  function expectClose(
    results: Record<string, Tensor64>,
    expected: { output: Tensor64; presentState: Tensor64 },
    attributes: Parameters<typeof tolerance>[0]['attributes'],
    { T, S }: CaseTypes,
    factor = 1,
  ) {
    const { output, present_state } = results;
    const error = relativeError(output.data, expected.output.data);
    expect(error, 'output').toBeLessThanOrEqual(factor * tolerance({ attributes }, T));
    const stateError = relativeError(present_state.data, expected.presentState.data);
    expect(stateError, 'present_state').toBeLessThanOrEqual(factor * tolerance({ attributes }, S));
  }

  describe.each(types)('cases, %s', (wanted) => {
    it.each([...linearAttentionCases, ...emptyBatches].filter((c) => typesOf(c).includes(wanted)))(
      `$name, ${typesText(wanted)}`,
      async (testCase) => {
        const inputs = inputsIn(testCase, wanted);
        const expected = expectedOf(testCase, inputs);
        const on = wanted === single ? runner : wide;
        const first = await run(testCase.attributes, inputs, wanted, {}, on);
        expectClose(first, expected, testCase.attributes, wanted);
        if (wanted !== single) return;
        // Again, with the state in place and tensors that start within their buffers: the same bits, but for a few masked tokens, which
        // go another way when the past is elsewhere.
        const again = await run(testCase.attributes, inputs, wanted, {
          inPlace: true,
          offset: 272,
        });
        if (testCase.mask && testCase.sizes.T === 1) {
          expectClose(again, expected, testCase.attributes, wanted);
        } else {
          expect(sameBits(again, first)).toBe(true);
        }
      },
    );
  });

  it.each(variants)('$name', async ({ attributes, inputs, expected }) => {
    const { output } = await run(attributes, inputs, single);
    expect(relativeError(output.data, expected.data)).toBeLessThan(1e-5);
  });

  const rules = ['linear', 'gated', 'delta', 'gated_delta'] as const;
  const ways: [string, KernelOptions][] = [
    ['in segments', { parallel: 512 }],
    ['in pieces, scratch memory bounded', { scratchBytes: 300_000 }],
    ['in pieces, bindings of 64 KiB', { maxBinding: 1 << 16 }],
    ['in pieces and segments', { scratchBytes: 1_500_000, parallel: 4096 }],
  ];
  const longCalls: Draw[] = [
    ...rules.map((rule): Draw => ({ rule, T: 707, K: 24, V: 20, HQ: 2, B: 2, state: true })),
    ...(['gated', 'gated_delta'] as const).map(
      (rule): Draw => ({ rule, T: 450, K: 20, V: 24, HQ: 2, HV: 1, decay: 'key', mask: true }),
    ),
    {
      rule: 'delta',
      T: 400,
      K: 16,
      V: 16,
      B: 2,
      attributes: { feature_map: 'elu1', normalize: 1, qk_l2norm: 1 },
      state: true,
    },
    ...([0, 1] as const).map(
      (causal): Draw => ({
        rule: 'linear',
        T: 450,
        K: 15,
        V: 17,
        HQ: 4,
        HV: 2,
        B: 2,
        attributes: { feature_map: 'elu1', normalize: 1, causal },
      }),
    ),
    { rule: 'gated', T: 333, K: 12, V: 9, HQ: 1, HV: 2, attributes: { read: 'bonus' } },
    { rule: 'gated_delta', T: 450, K: 12, V: 12, attributes: { read: 'before' } },
  ];

  describe.each(ways)('%s', (_, options) => {
    it('every rule', async () => {
      const other = runWith(options);
      for (const call of longCalls) {
        const { attributes, inputs } = draw(call, single);
        const expected = linearAttentionReference(attributes, inputs);
        const results = await run(attributes, inputs, single, {}, other);
        expectClose(results, expected, attributes, single);
      }
      if (options.scratchBytes) {
        expect(other.kernels.memory.scratchBytes).toBeLessThan(3 * options.scratchBytes);
      }
      other.kernels.dispose();
    });
  });

  it.each(rules)('%s: 20,000 tokens', async (rule) => {
    const { attributes, inputs } = draw({ rule, T: 20_000, K: 16, V: 16, state: true }, single);
    const expected = linearAttentionReference(attributes, inputs);
    const segments = runWith({ parallel: 512, scratchBytes: 4e6 });
    for (const on of [runner, segments]) {
      // The tolerance is for sums over some hundred tokens; where nothing decays, this one is over as many as there are.
      const results = await run(attributes, inputs, single, {}, on);
      expectClose(results, expected, attributes, single, rule === 'linear' ? 2 : 1);
    }
    segments.kernels.dispose();
  });

  it.each(rules)('%s: in two calls as in one', async (rule) => {
    for (const [T, cut] of [
      [150, 64],
      [150, 3],
      [70, 69],
      [5, 2],
    ]) {
      const { attributes, inputs } = draw({ rule, T, K: 20, V: 12, HQ: 2, state: true }, single);
      const expected = linearAttentionReference(attributes, inputs);
      const part = (from: number, to: number) =>
        Object.fromEntries(
          Object.entries(inputs).map(([name, tensor]) => [
            name,
            name === 'past_state' ? tensor : sliceTokens(tensor, from, to),
          ]),
        ) as unknown as LinearAttentionInputs;
      const first = await run(attributes, part(0, cut), single);
      const second = await run(
        attributes,
        { ...part(cut, T), past_state: first.present_state },
        single,
        { inPlace: true },
      );
      for (const [results, [from, to]] of [
        [first, [0, cut]],
        [second, [cut, T]],
      ] as const) {
        const output = sliceTokens(expected.output, from, to);
        const state = to === T ? expected.presentState : results.present_state;
        expectClose(results, { output, presentState: state }, attributes, single);
      }
    }
  });

  it('outputs that nobody wants are left out', async () => {
    for (const T of [2, 70]) {
      for (const rule of rules) {
        const { attributes, inputs } = draw({ rule, T, K: 8, V: 8, state: true }, single);
        const both = await run(attributes, inputs, single);
        for (const name of ['output', 'present_state']) {
          const one = await run(attributes, inputs, single, { without: [name] });
          expect(one).toEqual({ ...both, [name]: undefined });
        }
      }
    }
  });

  /** A random call that the schema allows. */
  const calls = fc
    .record({
      rule: fc.constantFrom(...rules),
      T: fc.oneof(fc.nat(9), fc.integer({ min: 10, max: 200 })),
      B: fc.integer({ min: 1, max: 3 }),
      heads: fc.constantFrom([1, 1, 1], [2, 2, 2], [4, 2, 2], [6, 1, 2], [2, 2, 6], [1, 1, 3]),
      K: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constantFrom(64, 72, 129, 256)),
      V: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constantFrom(64, 65, 132, 256)),
      decay: fc.constantFrom('head', 'key'),
      beta: fc.constantFrom('head', 'shared'),
      state: fc.boolean(),
      mask: fc.boolean(),
      read: fc.constantFrom('after', 'before', 'bonus'),
      map: fc.constantFrom(...linearAttention.attributes.feature_map.allowed),
      qk_l2norm: fc.constantFrom(0, 1),
      normalize: fc.constantFrom(0, 1),
      causal: fc.constantFrom(1, 1, 1, 0),
      types: fc.constantFrom(single, single, half, mixed),
      offset: fc.constantFrom(0, 4, 16, 260),
      inPlace: fc.boolean(),
    })
    .map(({ heads: [HQ, HK, HV], read, map, qk_l2norm, normalize, causal, ...rest }) => {
      const delta = rest.rule.endsWith('delta');
      const bidirectional = causal === 0 && rest.rule === 'linear';
      const positive = ['elu1', 'exp', 'softmax'].includes(map);
      const call = {
        ...rest,
        ...{ HQ, HK, HV },
        // Without past_state, present_state has the type of query.
        state: !bidirectional && (rest.state || rest.types === mixed),
        types: bidirectional && rest.types === mixed ? half : rest.types,
        attributes: {
          feature_map: map,
          // Keys longer than 1 make the delta rules diverge.
          qk_l2norm: delta ? (1 as const) : (qk_l2norm as 0 | 1),
          normalize: (positive ? normalize : 0) as 0 | 1,
          causal: (bidirectional ? 0 : 1) as 0 | 1,
          read:
            bidirectional || (delta && read === 'bonus') ? ('after' as const) : (read as 'after'),
        },
      };
      return call;
    });

  it('random calls', async () => {
    await fc.assert(
      fc.asyncProperty(calls, async ({ types: dtypes, offset, inPlace, ...call }) => {
        const { attributes, inputs } = draw(call as Draw, dtypes);
        const expected = linearAttentionReference(attributes, inputs);
        const results = await run(attributes, inputs, dtypes, { offset, inPlace });
        expectClose(results, expected, attributes, dtypes);
      }),
      { numRuns: 60, seed: 7, interruptAfterTimeLimit: 25_000 },
    );
  });
});

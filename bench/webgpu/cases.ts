/** `main.js cases`: every case of test/cases in float32 and float16 on the adapter at hand, and some long calls; prints what is wrong. */
import Table from 'cli-table3';
import {
  causalConvWithStateReference,
  linearAttentionReference,
  type Tensor64,
} from '../../ops/index.js';
import { causalConvCases } from '../../test/cases/causal_conv_with_state.js';
import {
  type CaseTypes,
  caseTypes,
  dtypeOf,
  expectedOf,
  inputsIn,
  linearAttentionCases,
  tolerance,
  typesOf,
} from '../../test/cases/linear_attention.js';
import { relativeError, rounded } from '../../test/cases/tensors.js';
import { type Draw, draw } from '../../test/wgsl/calls.js';
import { Runner } from '../../test/wgsl/run.js';
import { Kernels } from '../../wgsl/kernels.js';
import type { Gpu } from './gpu.js';

interface Group {
  cases: number;
  failed: number;
  /** Largest error, over its tolerance and by itself. */
  worst: number;
  error: number;
  where: string;
}

const long: Draw[] = (['linear', 'gated', 'delta', 'gated_delta'] as const).flatMap((rule) => [
  { rule, T: 5000, K: 64, V: 64, HQ: 2, state: true },
  { rule, T: 1000, K: 128, V: 128, HQ: 2, state: true },
  ...(rule.startsWith('gated')
    ? [{ rule, T: 1000, K: 64, V: 64, HQ: 2, decay: 'key' as const }]
    : []),
]);

/** Returns the number of failures. */
export async function runCases({ device, errors }: Gpu): Promise<number> {
  const runner = new Runner(device, new Kernels(device));
  const groups = new Map<string, Group>();
  const types = caseTypes.filter(({ T }) => T !== 'bfloat16');

  const note = (key: string, name: string, pairs: [Tensor64, Tensor64, number][]) => {
    const fresh = { cases: 0, failed: 0, worst: 0, error: 0, where: '' };
    const group = groups.get(key) ?? fresh;
    groups.set(key, group);
    group.cases += 1;
    let failed = errors.length > 0;
    for (const [actual, expected, most] of pairs) {
      const error = relativeError(actual.data, expected.data);
      if (!(error <= most)) failed = true;
      if (!(error / most <= group.worst)) {
        Object.assign(group, { worst: error / most, error, where: name });
      }
    }
    if (!failed) return;
    group.failed += 1;
    const numbers = pairs.map(([a, b]) => relativeError(a.data, b.data).toExponential(2));
    console.log(`FAILED ${key}: ${name}: errors ${numbers.join(', ')}`);
    for (const message of errors.splice(0).slice(0, 3)) console.log(`  ${message.slice(0, 500)}`);
  };

  const attention = async (
    name: string,
    attributes: Parameters<typeof linearAttentionReference>[0],
    inputs: Parameters<typeof linearAttentionReference>[1],
    expected: ReturnType<typeof linearAttentionReference>,
    dtypes: CaseTypes,
  ) => {
    const typed = Object.entries(inputs as unknown as Record<string, Tensor64>).map(
      ([input, tensor]) => [input, { tensor, dtype: dtypeOf(input, dtypes) }],
    );
    const values = attributes as unknown as Record<string, number | string>;
    const results = await runner.run(
      'LinearAttention',
      values,
      Object.fromEntries(typed),
      dtypes.S,
    );
    note(`${attributes.update_rule} ${dtypes.T}, state ${dtypes.S}`, name, [
      [results.output, expected.output, tolerance({ attributes }, dtypes.T)],
      [results.present_state, expected.presentState, tolerance({ attributes }, dtypes.S)],
    ]);
  };

  for (const dtypes of types) {
    for (const testCase of linearAttentionCases) {
      if (!typesOf(testCase).includes(dtypes)) continue;
      const inputs = inputsIn(testCase, dtypes);
      const expected = expectedOf(testCase, inputs);
      await attention(testCase.name, testCase.attributes, inputs, expected, dtypes);
    }
    for (const call of long) {
      if (!call.state && dtypes.S !== dtypes.T) continue;
      const { attributes, inputs } = draw(call, dtypes);
      const expected = linearAttentionReference(attributes, inputs);
      await attention(JSON.stringify(call), attributes, inputs, expected, dtypes);
    }
  }
  for (const dtype of ['float32', 'float16'] as const) {
    for (const { name, attributes, inputs } of causalConvCases) {
      const tensors = Object.entries(inputs() as unknown as Record<string, Tensor64>).map(
        ([input, tensor]) => [input, rounded(tensor, dtype)] as const,
      );
      const expected = causalConvWithStateReference(
        attributes,
        Object.fromEntries(tensors) as never,
      );
      const typed = tensors.map(([input, tensor]) => [input, { tensor, dtype }]);
      const results = await runner.run(
        'CausalConvWithState',
        attributes as Record<string, string>,
        Object.fromEntries(typed),
        dtype,
      );
      const most = 1e-6 + (dtype === 'float16' ? 2 ** -11 : 0);
      note(`CausalConvWithState ${dtype}`, name, [
        [results.output, expected.output, most],
        [results.present_state, expected.presentState, most],
      ]);
    }
  }

  const table = new Table({
    head: ['cases of', 'run', 'failed', 'worst error', 'of tolerance', 'at'],
  });
  for (const [key, { cases, failed, worst, error, where }] of groups) {
    table.push([key, cases, failed, error.toExponential(2), worst.toFixed(2), where.slice(0, 60)]);
  }
  console.log(table.toString());
  return [...groups.values()].reduce((n, { failed }) => n + failed, 0);
}

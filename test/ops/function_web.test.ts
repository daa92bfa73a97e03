/** The same bodies on onnxruntime-web: its WebAssembly build runs in Node too. */
import * as ort from 'onnxruntime-web';
import { beforeAll, describe, it } from 'vitest';
import { branchCases, hardCases } from './function_cases.js';
import { checkBody, linearAttentionSite } from './function_support.js';

beforeAll(() => {
  ort.env.wasm.numThreads = 1;
});

const cases = [...branchCases, ...hardCases];

describe('onnxruntime-web', () => {
  it.each(cases)('$name, standard body', (testCase) =>
    checkBody(ort, linearAttentionSite(testCase), 17, { target: 'standard' }),
  );

  const microsoft = cases.filter(({ attributes }) => attributes.causal !== 0 && !attributes.read);
  it.each(microsoft)('$name, com.microsoft body', (testCase) =>
    checkBody(ort, linearAttentionSite(testCase), 17, { target: 'com.microsoft' }),
  );

  it.each([9, 13, 26])('opset %i', async (opset) => {
    for (const testCase of branchCases) {
      await checkBody(ort, linearAttentionSite(testCase), opset, {});
    }
  });

  it.each(['float16', 'bfloat16'] as const)('%s', async (T) => {
    const types = { T, S: T, TD: T, TB: T, TU: T, M: 'bool' } as const;
    for (const testCase of branchCases) {
      await checkBody(ort, linearAttentionSite(testCase, types), 17, { target: 'standard' });
    }
  });
});

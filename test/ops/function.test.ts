import * as ort from 'onnxruntime-node';
import { describe, it } from 'vitest';
import {
  caseTypes,
  type LinearAttentionCase,
  linearAttentionCases,
  typesOf,
  typesText,
} from '../cases/linear_attention.js';
import { branchCases, hardCases, sharedCase } from './function_cases.js';
import {
  bodyOf,
  checkBody,
  compare,
  FLOAT32,
  linearAttentionSite,
  runOnce,
  siteModel,
} from './function_support.js';

const hasMicrosoft = ({ attributes }: LinearAttentionCase) =>
  attributes.causal !== 0 && (attributes.read ?? 'after') === 'after';

describe.each(['standard', 'com.microsoft'] as const)('LinearAttention, %s body', (target) => {
  const usable = (testCase: LinearAttentionCase) => target === 'standard' || hasMicrosoft(testCase);
  const check = (testCase: LinearAttentionCase, opset: number, types = FLOAT32) =>
    checkBody(ort, linearAttentionSite(testCase, types), opset, { target });

  it.each([...linearAttentionCases, ...hardCases].filter(usable))('$name', (testCase) =>
    check(testCase, 17),
  );

  // Every body computes in float32, so the types only meet the casts around it.
  it.each(caseTypes.map((types) => ({ types, name: typesText(types) })))(
    'in $name',
    async ({ types }) => {
      const typed = branchCases.filter((testCase) => typesOf(testCase).includes(types));
      for (const testCase of typed.filter(usable)) await check(testCase, 17, types);
    },
  );

  // Both sides of every version in which an operator of the bodies changed.
  it.each([9, 10, 11, 12, 13, 14, 16, 18, 20, 21, 23, 24, 26])('opset %i', async (opset) => {
    for (const testCase of branchCases.filter(usable)) await check(testCase, opset);
  });
});

describe('LinearAttention body', () => {
  it('takes every length with one session', async () => {
    const sites = [0, 1, 2, 17, 63, 130, 257].map((T) =>
      linearAttentionSite(sharedCase(`gated_delta: T = ${T}`)),
    );
    const model = siteModel(sites[0], bodyOf(sites[0], 17, { target: 'standard' }));
    for (const site of sites) compare(site, await runOnce(ort, model, site));
  });
});

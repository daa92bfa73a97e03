/** What makes a model with function bodies load and run on a runtime that knows nothing of com.fla. */
import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import { type Model, modelBytes, parseModel } from '../../exporter/ir/index.js';
import { checkAttributes } from '../../ops/define.js';
import {
  type LinearAttentionCall,
  linearAttentionFunction,
} from '../../ops/linear_attention/function.js';
import { linearAttention } from '../../ops/linear_attention/schema.js';
import { branchCases, sharedCase } from './function_cases.js';
import {
  bodyOf,
  compare,
  linearAttentionSite,
  runOnce,
  siteModel,
  siteNode,
} from './function_support.js';

const TARGETS = ['standard', 'com.microsoft'] as const;
const site = linearAttentionSite(sharedCase('gated: T = 17'));

const load = (model: Model) =>
  ort.InferenceSession.create(modelBytes(model), { logSeverityLevel: 4 });

function call(changes: Partial<LinearAttentionCall> = {}): LinearAttentionCall {
  return {
    attributes: checkAttributes(linearAttention, {
      q_num_heads: 2,
      kv_num_heads: 2,
      update_rule: 'linear',
    }),
    present: { past_state: false, decay: false, beta: false, mask: false },
    dtype: 'float32',
    stateDtype: 'float32',
    opset: 17,
    ...changes,
  };
}

const withAttributes = (changes: object, more: Partial<LinearAttentionCall> = {}) =>
  call({ attributes: { ...call().attributes, ...changes }, ...more });

describe.each(TARGETS)('%s body', (target) => {
  const body = bodyOf(site, 17, { target });
  const node = siteNode(site, body.overload);

  it('runs with an unused output written as an empty name', async () => {
    for (const unused of [0, 1]) {
      const outputs = node.output.map((name, i) => (i === unused ? '' : name));
      const results = await runOnce(ort, siteModel(site, body, { ...node, output: outputs }), site);
      expect(Object.keys(results)).toEqual([unused === 0 ? 'present_state' : 'output']);
    }
  });

  it('runs with absent trailing inputs left out', async () => {
    const input = node.input.slice(0, node.input.findLastIndex(Boolean) + 1);
    expect(input.length).toBeLessThan(body.fn.input.length);
    compare(site, await runOnce(ort, siteModel(site, body, { ...node, input }), site));
  });

  it('needs the full output list: onnxruntime refuses a shorter one', async () => {
    const model = siteModel(site, body, { ...node, output: node.output.slice(0, 1) });
    await expect(load(model)).rejects.toThrow();
  });

  it('declares every attribute of the op, none with a default', () => {
    expect(body.fn.attribute).toEqual(Object.keys(linearAttention.attributes));
    expect(body.fn.attributeProto ?? []).toEqual([]);
    expect(body.fn.input).toEqual(linearAttention.inputs.map(({ name }) => name));
    expect(body.fn.output).toEqual(linearAttention.outputs.map(({ name }) => name));
  });

  it('survives a round trip through the file format', async () => {
    const read = parseModel(modelBytes(siteModel(site, body)));
    expect(read.functions[0].overload).toBe(body.overload);
    compare(site, await runOnce(ort, read, site));
  });

  it.each(['disabled', 'basic', 'extended', 'all'] as const)(
    'runs with graph optimization %s',
    async (graphOptimizationLevel) => {
      for (const testCase of branchCases) {
        const each = linearAttentionSite(testCase);
        const isPlain = each.attributes.causal === 1 && each.attributes.read === 'after';
        if (target === 'com.microsoft' && !isPlain) continue;
        const model = siteModel(each, bodyOf(each, 17, { target }));
        compare(each, await runOnce(ort, model, each, { graphOptimizationLevel }));
      }
    },
  );

  it('is read under the opset of the model, not its own', async () => {
    // A body for opset 26 gives axes as inputs, which opset 9 has as attributes.
    const newer = bodyOf(linearAttentionSite(sharedCase('gated: mask left')), 26, { target });
    const masked = linearAttentionSite(sharedCase('gated: mask left'));
    const model = siteModel(masked, { ...newer, opsets: { ...newer.opsets, '': 9 } });
    await expect(load(model)).rejects.toThrow(/has input size/);
  });
});

describe('overload', () => {
  const overload = (c: LinearAttentionCall, target: (typeof TARGETS)[number] = 'standard') =>
    linearAttentionFunction(c, { target }).overload;

  it('is the same for equal calls and names its target', () => {
    expect(overload(call())).toBe(overload(call()));
    expect(overload(call())).toMatch(/^standard_[0-9a-f]{16}$/);
    expect(overload(call(), 'com.microsoft')).toMatch(/^com_microsoft_[0-9a-f]{16}$/);
  });

  it('differs with whatever changes the body', () => {
    const calls = [
      call(),
      call({ opset: 18 }),
      call({ dtype: 'float16' }),
      call({ dtype: 'float16', stateDtype: 'float16' }),
      call({ headDimK: 64 }),
      call({ present: { ...call().present, past_state: true } }),
      call({ present: { ...call().present, mask: true } }),
      withAttributes({ scale: 0.5 }),
      withAttributes({ q_num_heads: 4 }),
      withAttributes({ feature_map: 'elu1' }),
      withAttributes({ normalize: 1 }),
      withAttributes({ causal: 0 }),
      withAttributes({ read: 'before' }),
    ];
    expect(new Set(calls.map((c) => overload(c))).size).toBe(calls.length);
  });

  it('does not differ with a hint that the body has no use for', () => {
    expect(overload(withAttributes({ chunk_size: 16 }))).toBe(overload(call()));
  });

  it('lets call sites with different optional inputs live in one model', async () => {
    const names = ['gated: T = 17', 'linear: T = 17', 'gated: bonus, queries share states'];
    const sites = names.map((name) => linearAttentionSite(sharedCase(name)));
    const bodies = sites.map((each) => bodyOf(each, 17));
    expect(new Set(bodies.map((each) => each.overload)).size).toBe(names.length);
    for (const [i, each] of sites.entries()) {
      const model = siteModel(each, bodies[i]);
      model.proto.functions = bodies.map(({ fn }) => fn);
      model.requireOpset('com.microsoft', 1);
      compare(each, await runOnce(ort, model, each));
    }
  });
});

describe('target auto', () => {
  const target = (c: LinearAttentionCall) => linearAttentionFunction(c).overload.split('_')[0];

  it('takes com.microsoft where that op has the same semantics', () => {
    expect(target(call())).toBe('com');
    expect(target(call({ dtype: 'bfloat16', stateDtype: 'bfloat16' }))).toBe('com');
    expect(target(withAttributes({ feature_map: 'elu1', normalize: 1, qk_l2norm: 1 }))).toBe('com');
  });

  it('takes standard operators elsewhere', () => {
    expect(target(withAttributes({ causal: 0 }))).toBe('standard');
    expect(target(withAttributes({ read: 'before' }))).toBe('standard');
    expect(target(withAttributes({ read: 'bonus' }))).toBe('standard');
  });
});

describe('refusals', () => {
  const refused = (c: LinearAttentionCall, target: (typeof TARGETS)[number] = 'standard') => {
    try {
      linearAttentionFunction(c, { target });
    } catch (error) {
      return `${(error as { code: string }).code}: ${(error as Error).message}`;
    }
    return 'accepted';
  };

  it('say what is wrong', () => {
    expect(refused(call({ opset: 8 }))).toBe(
      "unsupported: LinearAttention: the model's opset must be 9..26 for a float32 function body, received 8",
    );
    expect(refused(call({ opset: 27 }))).toMatch(/9\.\.26 .*, received 27/);
    expect(refused(call({ opset: 12, dtype: 'bfloat16' }))).toMatch(/13\.\.26 .*, received 12/);
    expect(refused(withAttributes({ causal: 0 }), 'com.microsoft')).toBe(
      'unsupported: LinearAttention: no com.microsoft body: it has no causal=0',
    );
    expect(refused(call({ present: { ...call().present, decay: true } }))).toBe(
      'invalid_argument: LinearAttention: decayKind must be given when the input is present, received none',
    );
  });
});

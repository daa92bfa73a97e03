import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import {
  DATA_TYPE,
  inspectModel,
  type Model,
  makeNode,
  modelBytes,
  type RewriteOptions,
  rewriteModel,
} from '../../exporter/index.js';
import { reread } from './support/forms.js';
import { conditional, functions, loop, masked, plain } from './support/nested.js';
import { distance, type Feeds, floats, ints, random, run } from './support/run.js';

const BATCH = 2;
const TOKENS = 7;
const next = random(3);
const values = floats([BATCH, TOKENS, 12], () => next());
const feeds: Feeds = { x: values };

async function compare(build: () => Model, inputs: Feeds, options: RewriteOptions) {
  const before = await run(reread(build()), inputs);
  const model = build();
  const report = await rewriteModel(model, options);
  const after = await run(reread(model), inputs);
  return {
    model,
    report,
    error: distance(before.z!.data as Float32Array, after.z!.data as Float32Array),
  };
}

describe('attention in the branches of If', () => {
  const mask = ints([BATCH, TOKENS], Array(BATCH * TOKENS).fill(1));
  const cases = [
    { name: 'without a mask', build: () => conditional(plain(), plain(8)), mask: 'bidirectional' },
    {
      name: 'with a mask from outside',
      build: () => conditional(masked(), masked(8)),
      mask: 'padding',
    },
  ];
  it.each(cases)('is rewritten, $name', async ({ build, mask: kind }) => {
    const sites = (await inspectModel(build())).sites;
    expect(sites).toMatchObject([
      { layer: 0, mask: kind, rewritable: true },
      { layer: 1, mask: kind, rewritable: true },
    ]);
    const inputs = (c: number): Feeds => ({
      x: values,
      c: new ort.Tensor('bool', [c === 1], []),
      ...(kind === 'padding' && { attention_mask: mask }),
    });
    const linear: Float32Array[] = [];
    for (const c of [0, 1]) {
      const { error } = await compare(build, inputs(c), { variant: 'none' });
      expect(error).toBeLessThan(2e-6);
      const model = build();
      const report = await rewriteModel(model, { variant: 'linear', layers: [0] });
      expect(report.sites.map((s) => s.rewritten)).toEqual([true, false]);
      linear.push((await run(reread(model), inputs(c))).z!.data as Float32Array);
    }
    // The other branch is as it was, this one is what it is by itself.
    const alone = kind === 'padding' ? masked() : plain();
    await rewriteModel(alone, { variant: 'linear' });
    const { c: _c, ...rest } = inputs(1);
    const { y } = await run(reread(alone), rest);
    expect(distance(linear[1]!, y!.data as Float32Array)).toBeLessThan(2e-6);
    const original = await run(reread(build()), inputs(0));
    expect(distance(linear[0]!, original.z!.data as Float32Array)).toBeLessThan(2e-6);
  });
});

describe('attention in the body of Loop', () => {
  it('is rewritten', async () => {
    expect((await inspectModel(loop())).sites).toMatchObject([
      { layer: 0, mask: 'bidirectional', rewritable: true },
    ]);
    const { error } = await compare(loop, { start: values }, { variant: 'none' });
    expect(error).toBeLessThan(2e-6);
    const model = loop();
    await rewriteModel(model, { variant: 'linear' });
    const { z } = await run(reread(model), { start: values });
    const once = plain();
    await rewriteModel(once, { variant: 'linear' });
    let x = values;
    for (let i = 0; i < 3; i++) x = (await run(once, { x })).y!;
    expect(distance(z!.data as Float32Array, x.data as Float32Array)).toBeLessThan(2e-6);
  });

  it('is refused where a mask is made of what the loop carries', async () => {
    const model = loop();
    const graph = model.graph.nodes.find((n) => n.is('Loop'))!.subgraphs[0]!;
    const softmax = graph.nodes.find((n) => n.is('Softmax'))!;
    graph.insert([
      makeNode('Cast', ['i'], ['step'], { to: DATA_TYPE.float32 }),
      makeNode('Add', [softmax.inputs[0]!, 'step'], ['moved']),
    ]);
    graph.setInput(softmax, 0, 'moved');
    const { sites } = await inspectModel(model);
    expect(sites).toMatchObject([{ layer: 0, rewritable: false }]);
    expect(sites[0]!.reason).toMatch(/'i' has no declared (type|shape)|graph input 'i'/);
  });
});

describe('attention in model-local functions', () => {
  it('is found once for each call, and the model is not changed by looking', async () => {
    const model = functions();
    const before = modelBytes(model);
    const { sites } = await inspectModel(model);
    expect(sites).toMatchObject([
      { node: expect.stringContaining('layers.0'), layer: 0, q_num_heads: 4, rewritable: true },
      { node: expect.stringContaining('layers.1'), layer: 1, q_num_heads: 4, rewritable: true },
    ]);
    expect(modelBytes(model)).toEqual(before);
  });

  it('is written into the main graph, other functions staying as they are', async () => {
    const { error, model } = await compare(functions, feeds, { variant: 'none' });
    expect(error).toBeLessThan(4e-6);
    expect(model.functions.map((f) => f.name)).toEqual(['Twice']);
    const linear = await compare(functions, feeds, { variant: 'linear', layers: [1] });
    expect(linear.report.sites.map((s) => s.rewritten)).toEqual([false, true]);
    expect(linear.error).toBeGreaterThan(1e-3);
  });

  it('is only listed where the function is of another opset', async () => {
    const model = functions(18);
    const { sites } = await inspectModel(model);
    expect(sites).toMatchObject([
      { layer: null, reason: 'it lies in the model-local function pkg.torch.Attention' },
    ]);
  });

  it('is refused where a function calls itself', async () => {
    const model = functions();
    const outer = model.functions.find((f) => f.name === 'Layer')!;
    outer.node.push(makeNode('Layer', ['sum'], ['again'], {}, { domain: 'pkg.torch' }));
    await expect(inspectModel(model)).rejects.toMatchObject({
      code: 'invalid_model',
      message: 'model: its functions cannot be written out: a function calls itself',
    });
  });
});

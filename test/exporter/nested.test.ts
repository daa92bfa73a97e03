import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import {
  buildModel,
  DATA_TYPE,
  type FunctionProto,
  inspectModel,
  type Model,
  makeNode,
  makeTensor,
  makeValueInfo,
  modelBytes,
  type RewriteOptions,
  rewriteModel,
} from '../../exporter/index.js';
import { FAMILIES, Writer } from './support/families.js';
import { reread } from './support/forms.js';
import { makeLayer } from './support/layer.js';
import { distance, type Feeds, floats, ints, random, run } from './support/run.js';

const BATCH = 2;
const TOKENS = 7;
const SHAPE = ['batch', 'sequence', 12] as const;
const family = (start: string) => FAMILIES.find((f) => f.name.startsWith(start))!;
const plain = (seed = 7) => family('ViT: separate').build(new Writer(makeLayer(12, 4, 4, 3, seed)));
const masked = (seed = 7) => family('BERT: Div').build(new Writer(makeLayer(12, 4, 4, 3, seed)));

/** A model's graph as the body of If: it reads x (and its mask) from outside. */
function branch({ graph }: Model) {
  const { node, initializer } = graph.proto;
  return {
    graph: { name: 'branch', node, initializer, input: [], output: [{ name: 'y' }], valueInfo: [] },
  };
}

function conditional(one: Model, other: Model): Model {
  return buildModel({
    inputs: {
      x: ['float32', SHAPE],
      c: ['bool', []],
      ...(one.graph.isInput('attention_mask') && { attention_mask: ['int64', SHAPE.slice(0, 2)] }),
    },
    outputs: { z: ['float32', SHAPE] },
    nodes: [makeNode('If', ['c'], ['z'], { then_branch: branch(one), else_branch: branch(other) })],
  });
}

/** x -> attention(x), three times, as the body of Loop. */
function loop(): Model {
  const { node, initializer } = plain().graph.proto;
  const info = (name: string, type: number) => makeValueInfo(name, type, []);
  const input = [
    info('i', DATA_TYPE.int64),
    info('go', DATA_TYPE.bool),
    makeValueInfo('x', DATA_TYPE.float32, SHAPE),
  ];
  const body = {
    name: 'body',
    node: [...node, makeNode('Identity', ['go'], ['go_on'])],
    initializer,
    input,
    output: [info('go_on', DATA_TYPE.bool), makeValueInfo('y', DATA_TYPE.float32, SHAPE)],
    valueInfo: [],
  };
  return buildModel({
    inputs: { start: ['float32', SHAPE] },
    outputs: { z: ['float32', SHAPE] },
    nodes: [makeNode('Loop', ['count', '', 'start'], ['z'], { body: { graph: body } })],
    initializers: [makeTensor('count', 'int64', [], [3])],
  });
}

/** Attention as a function of the module, called by another, with the weights as inputs. */
function functions(opset = 17): Model {
  const { graph } = plain();
  const weights = graph.proto.initializer.map((t) => t.name!);
  const scale = { ref: 'scale', type: 'float' } as const;
  const inner: FunctionProto = {
    name: 'Attention',
    domain: 'pkg.torch',
    input: ['x', ...weights],
    output: ['scaled'],
    attribute: ['scale'],
    node: [
      ...graph.proto.node,
      makeNode('Constant', [], ['factor'], { value_float: scale }),
      makeNode('Mul', ['y', 'factor'], ['scaled']),
    ],
    opsetImport: [{ domain: '', version: opset }],
  };
  const outer: FunctionProto = {
    name: 'Layer',
    domain: 'pkg.torch',
    input: ['x', ...weights],
    output: ['sum'],
    attribute: [],
    node: [
      makeNode(
        'Attention',
        ['x', ...weights],
        ['attended'],
        { scale: { float: 0.5 } },
        {
          domain: 'pkg.torch',
        },
      ),
      makeNode('Add', ['x', 'attended'], ['sum']),
    ],
    opsetImport: [
      { domain: '', version: opset },
      { domain: 'pkg.torch', version: 1 },
    ],
  };
  const other: FunctionProto = {
    name: 'Twice',
    domain: 'pkg.torch',
    input: ['x'],
    output: ['y'],
    attribute: [],
    node: [makeNode('Add', ['x', 'x'], ['y'])],
    opsetImport: [{ domain: '', version: 17 }],
  };
  const more = { domain: 'pkg.torch' };
  return buildModel({
    inputs: { x: ['float32', SHAPE] },
    outputs: { z: ['float32', SHAPE] },
    nodes: [
      makeNode('Layer', ['x', ...weights], ['h'], {}, { ...more, name: 'layers.0' }),
      makeNode('Layer', ['h', ...weights], ['g'], {}, { ...more, name: 'layers.1' }),
      makeNode('Twice', ['g'], ['z'], {}, { ...more, name: 'twice' }),
    ],
    initializers: graph.proto.initializer,
    functions: [inner, outer, other],
    opsets: { '': 17, 'pkg.torch': 1 },
  });
}

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
});

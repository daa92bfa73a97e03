import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import {
  buildModel,
  type GraphProto,
  loadModel,
  lowerModel,
  type Model,
  makeNode,
  modelBytes,
  parseModel,
  raiseModel,
  rewriteModel,
  type ValueSpec,
} from '../../exporter/index.js';
import { type ConformanceCase, conformanceCases } from '../cases/conformance.js';
import { relativeError } from '../cases/tensors.js';
import { TINYLM } from '../support/models.js';
import { modelOf, OUTPUTS } from './support/conformance.js';
import { ints } from './support/run.js';

/** On stock ONNX Runtime, after a round trip through bytes. */
async function runCase(model: Model, c: ConformanceCase): Promise<Record<string, Float64Array>> {
  const session = await ort.InferenceSession.create(modelBytes(model), { logSeverityLevel: 3 });
  try {
    const feeds = Object.entries(c.inputs).map(([name, { shape, data }]) => [
      name,
      new ort.Tensor('float32', Float32Array.from(data), shape),
    ]);
    const results = await session.run(Object.fromEntries(feeds));
    return Object.fromEntries(
      OUTPUTS.map((o) => [o, Float64Array.from(results[o]!.data as Float32Array)]),
    );
  } finally {
    await session.release();
  }
}

function domains(model: Model): Set<string> {
  return new Set([...model.graph.walk()].map((n) => n.domain));
}

const bound = (c: ConformanceCase) =>
  c.dtype === 'float32' ? 2e-6 : c.dtype === 'float16' ? 2e-3 : 1.6e-2;

describe.each(conformanceCases)('$name', (c) => {
  it.each([
    ['', 27],
    ['com.microsoft', 21],
  ])("from domain '%s' to com.fla, and from there to every other", async (domain, opset) => {
    const model = modelOf(c, domain, opset, opset === 27);
    expect(await raiseModel(model)).toEqual([
      { node: 'node', from: `${domain || 'ai.onnx'}.${c.opType}`, to: 'com.fla', reason: null },
    ]);
    expect(model.opset()).toBe(Math.min(opset, 26));
    const check = async (m: Model) => {
      const got = await runCase(m, c);
      for (const o of OUTPUTS)
        expect(relativeError(got[o]!, c.outputs[o]!.data), o).toBeLessThan(bound(c));
    };
    await check(model);
    for (const to of ['com.microsoft', 'standard'] as const) {
      const lowered = parseModel(modelBytes(model));
      expect(await lowerModel(lowered, { to })).toMatchObject([
        { from: `com.fla.${c.opType}`, to },
      ]);
      expect(domains(lowered)).toEqual(new Set(to === 'standard' ? [''] : ['', to]));
      expect(lowered.functions).toEqual([]);
      expect(lowered.opset('com.fla')).toBeUndefined();
      await check(lowered);
    }
    if (opset !== 27) return;
    const standard = parseModel(modelBytes(model));
    await lowerModel(standard, { to: 'ai.onnx' });
    expect(standard.opset()).toBe(27);
    expect(domains(standard)).toEqual(new Set(['']));
    // ONNX Runtime knows no opset 27; what it means is what it raises to.
    await raiseModel(standard);
    await check(standard);
  });
});

describe('a rewritten language model', () => {
  const logits = async (model: Model) => {
    const session = await ort.InferenceSession.create(modelBytes(model), { logSeverityLevel: 3 });
    const ids = [5, 300, 42, 7, 1999, 12, 88];
    const feeds = {
      input_ids: ints([1, ids.length], ids),
      attention_mask: ints(
        [1, ids.length],
        ids.map(() => 1),
      ),
    };
    const { logits } = await session.run(feeds);
    await session.release();
    return Float64Array.from(logits!.data as Float32Array);
  };
  it.each(['linear', 'retention'] as const)('%s runs where com.fla is unknown', async (variant) => {
    const model = loadModel(TINYLM.model);
    for (const t of model.proto.graph.initializer) inlineTensor(model, t.name!);
    await rewriteModel(model, { variant });
    const expected = await logits(model);
    for (const to of ['standard', 'com.microsoft'] as const) {
      const lowered = parseModel(modelBytes(model));
      const moved = await lowerModel(lowered, { to });
      expect(moved.map((m) => m.to)).toEqual([to, to, to, to]);
      expect(domains(lowered).has('com.fla')).toBe(false);
      expect(relativeError(await logits(lowered), expected)).toBeLessThan(1e-5);
    }
  });
});

describe('left alone, with the reason', () => {
  it('a shape that nothing tells', async () => {
    const [first] = conformanceCases.filter((c) => c.inputs.decay);
    const model = modelOf(first!, 'com.microsoft', 21);
    const decay = model.proto.graph.input.find((i) => i.name === 'decay')!;
    delete decay.type!.tensorType!.shape;
    expect(await raiseModel(model)).toMatchObject([
      { to: null, reason: "the last dimension of 'decay/typed' must be known" },
    ]);
    expect(domains(model)).toEqual(new Set(['', 'com.microsoft']));
  });

  it('a filter too wide for a standard body', async () => {
    const [conv] = conformanceCases.filter((c) => c.opType === 'CausalConvWithState');
    const model = modelOf(conv!, 'com.microsoft', 21);
    const weight = model.proto.graph.input.find((i) => i.name === 'weight')!;
    weight.type!.tensorType!.shape!.dim[2] = { dimValue: 2 ** 31 };
    expect(await raiseModel(model, { body: 'standard' })).toMatchObject([
      {
        to: null,
        reason: expect.stringContaining('width must be at most 1024 for a standard body'),
      },
    ]);
  });

  it('what com.microsoft cannot say', async () => {
    const model = loadModel(TINYLM.model);
    await rewriteModel(model, { variant: 'linear', layers: [0] });
    const node = [...model.graph.walk()].find((n) => n.domain === 'com.fla')!;
    node.proto.attribute.find((a) => a.name === 'causal')!.i = 0;
    node.proto.overload = 'none';
    const [moved] = await lowerModel(model, { to: 'com.microsoft' });
    expect(moved).toMatchObject({ to: null });
    expect(moved!.reason).toContain('it has no causal=0');
  });

  it('opsets that ai.onnx 27 is too far from', async () => {
    await expect(lowerModel(loadModel(TINYLM.model), { to: 'ai.onnx' })).rejects.toThrow(
      "lower to ai.onnx: the model's opset must be 26, as operators of older ones changed since, received 16",
    );
  });
});

it('a model that imports nothing but what is gone stays a model', async () => {
  const [c] = conformanceCases;
  const model = modelOf(c!, 'com.microsoft', 21);
  model.proto.opsetImport = [{ domain: 'com.fla', version: 1 }];
  await lowerModel(model, { to: 'standard' });
  expect(() => parseModel(modelBytes(model))).not.toThrow();
});

it('nested graphs are gone through', async () => {
  const c = conformanceCases.find(
    (k) => k.opType === 'CausalConvWithState' && k.dtype === 'float32',
  )!;
  const inner = modelOf(c, 'com.microsoft', 21);
  const branch = (name: string): { graph: GraphProto } => ({
    graph: { ...parseModel(modelBytes(inner)).proto.graph, input: [], name },
  });
  const model = buildModel({
    inputs: {
      ...Object.fromEntries(
        Object.entries(c.inputs).map(([name, { shape }]): [string, ValueSpec] => [
          name,
          ['float32', shape],
        ]),
      ),
      choice: ['bool', []],
    },
    outputs: { output: ['float32'], present_state: ['float32'] },
    nodes: [
      makeNode('If', ['choice'], OUTPUTS, {
        then_branch: renamed(branch('then'), 'then/'),
        else_branch: renamed(branch('else'), 'else/'),
      }),
    ],
    opsets: { '': 21, 'com.microsoft': 1 },
  });
  expect((await raiseModel(model)).map((m) => m.to)).toEqual(['com.fla', 'com.fla']);
  expect((await lowerModel(model, { to: 'standard' })).map((m) => m.to)).toEqual([
    'standard',
    'standard',
  ]);
  const session = await ort.InferenceSession.create(modelBytes(model), { logSeverityLevel: 3 });
  for (const choice of [true, false]) {
    const feeds: Record<string, ort.Tensor> = { choice: new ort.Tensor('bool', [choice], []) };
    for (const [name, { shape, data }] of Object.entries(c.inputs)) {
      feeds[name] = new ort.Tensor('float32', Float32Array.from(data), shape);
    }
    const { output } = await session.run(feeds);
    expect(
      relativeError(Float64Array.from(output!.data as Float32Array), c.outputs.output!.data),
    ).toBeLessThan(2e-6);
  }
});

/** Names of what a branch computes, made its own. */
function renamed({ graph }: { graph: GraphProto }, prefix: string): { graph: GraphProto } {
  const made = new Set(graph.node.flatMap((n) => n.output));
  const own = (name: string) => (made.has(name) ? prefix + name : name);
  for (const node of graph.node) {
    node.input = node.input.map(own);
    node.output = node.output.map(own);
    if (node.name) node.name = prefix + node.name;
  }
  for (const out of graph.output) out.name = own(out.name);
  return { graph };
}

function inlineTensor(model: Model, name: string): void {
  const tensor = model.graph.initializer(name)!;
  if (tensor.dataLocation !== 1) return;
  const entry = (key: string) => tensor.externalData!.find((e) => e.key === key)?.value;
  tensor.rawData = model.external!.read(
    entry('location')!,
    Number(entry('offset') ?? 0),
    Number(entry('length')),
  );
  delete tensor.dataLocation;
  delete tensor.externalData;
}

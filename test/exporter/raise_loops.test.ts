import type * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import {
  type FunctionProto,
  lowerModel,
  type Model,
  makeNode,
  modelBytes,
  nodeRunner,
  parseModel,
  raiseModel,
} from '../../exporter/index.js';
import { kerasLoop, loadLoop, withSizes } from './support/loops.js';
import { distance, type Feeds, floats, random, run } from './support/run.js';
import { scanModel } from './support/scan.js';

function feedsOf(model: Model, tokens = 7): Feeds {
  const sizes: Record<string, number> = { B: 2, T: tokens };
  const next = random(5);
  return Object.fromEntries(
    model.graph.inputs.map(({ name }) => {
      const dims = model.graph.dims(name)!.map((d) => (typeof d === 'number' ? d : sizes[d!]!));
      const isDecay = name === 'g' || name === 'decay';
      const draw = () => (isDecay ? next() / 4 - 0.3 : name === 'beta' ? 0.5 + next() / 3 : next());
      return [name, floats(dims, draw)];
    }),
  );
}

function same(got: Record<string, ort.Tensor>, expected: Record<string, ort.Tensor>) {
  for (const [name, { dims, data }] of Object.entries(expected)) {
    expect(got[name]!.dims, name).toEqual(dims);
    expect(distance(got[name]!.data as Float32Array, data as Float32Array), name).toBeLessThan(
      5e-6,
    );
  }
}

/** Raised, then lowered to operators of ai.onnx: both compute what the model did. @returns the call in between */
async function movesAndComesBack(load: () => Model, from: string) {
  const feeds = feedsOf(load());
  const expected = await run(load(), feeds);
  const model = load();
  const moved = await raiseModel(model, { runner: nodeRunner });
  expect(moved).toMatchObject([{ from, to: 'com.fla', reason: null }]);
  expect(model.graph.nodes.some((n) => n.subgraphs.length > 0)).toBe(false);
  same(await run(parseModel(modelBytes(model)), feeds), expected);
  const [call] = model.graph.nodes.filter((n) => n.domain === 'com.fla');
  const attributes = ['update_rule', 'read', 'activation'].map((name) => call!.string(name));
  const heads = call!.int('q_num_heads');
  await lowerModel(model, { to: 'standard', runner: nodeRunner });
  same(await run(parseModel(modelBytes(model)), feeds), expected);
  return [...attributes, heads].filter((x) => x !== undefined);
}

describe('a loop of PyTorch becomes LinearAttention', () => {
  it.each([
    ['gated_stack', ['gated', 'after', 2]],
    ['gated_delta_written', ['gated_delta', 'after', 2]],
    ['linear_joined', ['linear', 'after', 2]],
    ['delta_bmm', ['delta', 'after', 1]],
    ['retention', ['gated', 'after', 2]],
    ['per_key_decay', ['gated', 'before', 2]],
    ['cell', ['gated_delta', 'after', 2]],
  ])('%s', async (name, call) => {
    expect(await movesAndComesBack(() => loadLoop(name), 'ai.onnx.Loop')).toEqual(call);
  });
});

it('a token that is read twice is one token', async () => {
  const load = () => {
    const model = loadLoop('gated_delta_written');
    const [body] = model.graph.nodes.find((n) => n.is('Loop'))!.subgraphs;
    const read = body!.nodes.find((n) => n.is('Gather') && n.inputs[0] === 'k')!;
    const [use] = body!.uses(read.outputs[0]!);
    body!.insert([makeNode('Gather', read.inputs, ['again'], { axis: 2 })], read);
    body!.setInput(use!.node, use!.index, 'again');
    return parseModel(modelBytes(model));
  };
  await movesAndComesBack(load, 'ai.onnx.Loop');
});

it('a body that a target cannot say is a reason', async () => {
  const model = loadLoop('per_key_decay');
  const moved = await raiseModel(model, { runner: nodeRunner, body: 'com.microsoft' });
  expect(moved).toMatchObject([{ to: null, reason: expect.stringContaining('read=before') }]);
  expect(modelBytes(model)).toEqual(modelBytes(loadLoop('per_key_decay')));
});

it('a loop over fewer tokens than none leaves state and outputs as they start', async () => {
  const load = () => loadLoop('per_key_decay');
  const feeds = feedsOf(load(), 1);
  const model = load();
  await raiseModel(model, { runner: nodeRunner });
  same(await run(model, feeds), await run(load(), feeds));
});

describe('a function body of opset 27 becomes its operator', () => {
  it.each([
    ['body_linear', ['linear', 'after', 2]],
    ['body_gated', ['gated', 'after', 2]],
    ['body_delta', ['delta', 'after', 2]],
    ['body_gated_delta', ['gated_delta', 'after', 4]],
  ])('%s', async (name, call) => {
    expect(await movesAndComesBack(() => loadLoop(name), 'ai.onnx.Scan')).toEqual(call);
  });
  it.each([
    ['body_conv', 'silu'],
    ['body_conv_start', 'none'],
  ])('%s', async (name, activation) => {
    const call = await movesAndComesBack(() => loadLoop(name), 'ai.onnx.Conv');
    expect(call).toEqual([activation]);
  });
});

it("a while loop of tf2onnx's becomes LinearAttention", async () => {
  expect(await movesAndComesBack(kerasLoop, 'ai.onnx.Loop')).toEqual(['gated', 'after', 2]);
});

it("a Scan whose body is a function, as PyTorch's newer exporter writes it, becomes LinearAttention", async () => {
  const load = () => {
    const model = scanModel({ rule: 'gated_delta' }, { H: 2, K: 4, V: 3 });
    const body = model.graph.nodes[0]!.subgraphs[0]!.proto;
    const [input, output] = [body.input, body.output].map((v) => v.map((i) => i.name));
    model.addFunction({
      ...{ domain: 'pkg', name: 'combine', overload: '', input: input!, output: output! },
      ...{ node: body.node, opsetImport: [{ domain: '', version: 17 }] },
      ...{ attribute: [], attributeProto: [], valueInfo: [] },
    } as FunctionProto);
    model.requireOpset('pkg', 1);
    body.node = [makeNode('combine', input!, output!, {}, { domain: 'pkg' })];
    return parseModel(modelBytes(model));
  };
  expect(await movesAndComesBack(load, 'ai.onnx.Scan')).toEqual(['gated_delta', 'after', 2]);
});

describe('left alone, with the reason', () => {
  const rules = 'its body is none of the rules linear, gated, delta and gated_delta';
  const counted = 'what it computes depends on the number of the token';
  const stopped = 'whether it goes on depends on more than the number of tokens';
  it.each([
    ['saturated', rules],
    ['backwards', counted],
    ['positional', counted],
    ['stopping', stopped],
  ])('%s', async (name, reason) => {
    const model = loadLoop(name);
    expect(await raiseModel(model, { runner: nodeRunner })).toMatchObject([{ to: null, reason }]);
    expect(modelBytes(model)).toEqual(modelBytes(loadLoop(name)));
  });
  it('a state that is too large to try', async () => {
    const model = withSizes(loadLoop('gated_stack'), { H: 2, K: 2 ** 26, V: 2 ** 26 });
    const reason = `its body cannot be tried: at most 16777216 elements expected, received [2,2,${2 ** 26},${2 ** 26}]`;
    expect(await raiseModel(model, { runner: nodeRunner })).toMatchObject([{ to: null, reason }]);
  });
  it('a while loop that the state ends', async () => {
    expect(await raiseModel(kerasLoop({ stop: true }), { runner: nodeRunner })).toMatchObject([
      { to: null, reason: stopped },
    ]);
  });
  it('a sequence of outputs that something else reads', async () => {
    const model = loadLoop('gated_stack');
    const sequence = model.graph.nodes.find((n) => n.is('ConcatFromSequence'))!.inputs[0]!;
    model.graph.insert([makeNode('SequenceLength', [sequence], ['length'])]);
    expect(await raiseModel(model, { runner: nodeRunner })).toMatchObject([
      {
        to: null,
        reason: `the sequence '${sequence}' must be read by one ConcatFromSequence only`,
      },
    ]);
  });
  it('a condition to start that nothing is known of', async () => {
    const model = loadLoop('gated_stack');
    const loop = model.graph.nodes.find((n) => n.is('Loop'))!;
    model.graph.insert([makeNode('IsInf', ['S'], ['starts'])], loop);
    model.graph.setInput(loop, 1, 'starts');
    expect(await raiseModel(model, { runner: nodeRunner })).toMatchObject([
      { to: null, reason: "whether it starts depends on more than the number of tokens: 'starts'" },
    ]);
  });
  it('a convolution that looks further than the state goes', async () => {
    const model = loadLoop('body_conv');
    const conv = model.graph.nodes.find((n) => n.is('Conv'))!;
    conv.proto.attribute.push(...makeNode('Conv', [], [], { dilations: [2] }).attribute);
    expect(await raiseModel(model, { runner: nodeRunner })).toEqual([]);
  });
});

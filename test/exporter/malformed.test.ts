import { describe, expect, it } from 'vitest';
import {
  buildModel,
  DATA_TYPE,
  inspectModel,
  type Model,
  makeNode,
  makeTensor,
  makeValueInfo,
  modelBytes,
  type NodeProto,
  parseModel,
  retarget,
  rewriteModel,
  TARGETS,
  validateModel,
} from '../../exporter/index.js';
import { FlaError } from '../../ops/error.js';
import { DECODERS, decoder } from './support/decoder.js';

const model = (nodes: NodeProto[], more: Partial<Parameters<typeof buildModel>[0]> = {}): Model =>
  buildModel({
    inputs: { x: ['float32', ['B', 4]] },
    outputs: { y: ['float32', ['B', 4]] },
    nodes,
    ...more,
  });

const MALFORMED: { name: string; build: () => Model; message: RegExp }[] = [
  {
    name: 'a cycle',
    build: () =>
      model([
        makeNode('Add', ['x', 'b'], ['a']),
        makeNode('Relu', ['a'], ['b']),
        makeNode('Relu', ['b'], ['y']),
      ]),
    message: /node 'a' \(Add\) depends on its own output/,
  },
  {
    name: 'a value that nothing produces',
    build: () => model([makeNode('Add', ['x', 'nowhere'], ['y'])]),
    message: /node 'y' \(Add\) reads 'nowhere', which nothing produces/,
  },
  {
    name: 'an output that nothing produces',
    build: () => model([makeNode('Relu', ['x'], ['z'])]),
    message: /output 'y' is not produced/,
  },
  {
    name: 'a value produced twice',
    build: () => model([makeNode('Relu', ['x'], ['y']), makeNode('Abs', ['x'], ['y'])]),
    message: /value 'y' is produced twice, again by node 'y' \(Abs\)/,
  },
  {
    name: 'a node that overwrites an initializer',
    build: () =>
      model([makeNode('Relu', ['x'], ['w']), makeNode('Add', ['x', 'w'], ['y'])], {
        initializers: [makeTensor('w', 'float32', [4], [1, 2, 3, 4])],
      }),
    message: /value 'w' is produced twice/,
  },
  {
    name: 'a nested graph that reads what is nowhere',
    build: () => {
      const body = (op: string, input: string) => ({
        graph: {
          name: 'branch',
          node: [makeNode(op, [input], [`${op}_out`])],
          initializer: [],
          input: [],
          output: [{ name: `${op}_out` }],
          valueInfo: [],
        },
      });
      const branches = { then_branch: body('Relu', 'x'), else_branch: body('Abs', 'gone') };
      return model([makeNode('If', ['c'], ['y'], branches)], {
        inputs: { x: ['float32', ['B', 4]], c: ['bool', []] },
      });
    },
    message: /graph 'branch': node 'Abs_out' \(Abs\) reads 'gone'/,
  },
  {
    name: 'an input left out of many',
    build: () => model([makeNode('Min', ['x', ''], ['y'])]),
    message: /node 'y' \(Min\) leaves out an input, all of which it must have/,
  },
  {
    name: 'a function that reads what is nowhere',
    build: () => {
      const m = model([makeNode('F', ['x'], ['y'], {}, { domain: 'pkg' })], {
        opsets: { '': 17, pkg: 1 },
      });
      m.addFunction({
        ...{ name: 'F', domain: 'pkg', input: ['a'], output: ['b'], attribute: [] },
        ...{
          node: [makeNode('Add', ['a', 'gone'], ['b'])],
          opsetImport: [{ domain: '', version: 17 }],
        },
      });
      return m;
    },
    message: /graph 'pkg\.F': node 'b' \(Add\) reads 'gone', which nothing produces/,
  },
  {
    name: 'a permutation of another rank',
    build: () => model([makeNode('Transpose', ['x'], ['y'], { perm: [0, 2, 1] })]),
    message: /\(Transpose\): perm must have 2 entries, the rank of 'x', received \[0,2,1\]/,
  },
  {
    name: 'factors that do not fit',
    build: () =>
      model([makeNode('MatMul', ['x', 'w'], ['y'])], {
        initializers: [makeTensor('w', 'float32', [3, 4], Array(12).fill(1))],
      }),
    message: /\(MatMul\): inner dimensions must agree, received \[B,4\] and \[3,4\]/,
  },
  {
    name: 'a weight of negative dimensions',
    build: () =>
      model([makeNode('Add', ['x', 'w'], ['y'])], {
        initializers: [{ name: 'w', dataType: 1, dims: [-1, -4], rawData: new Uint8Array(16) }],
      }),
    message: /^tensor 'w': dimensions must not be negative, received \[-1,-4\]$/,
  },
];

describe.each(MALFORMED)('$name', ({ build, message }) => {
  it('is one clear error of inspect and of rewrite', async () => {
    for (const attempt of [inspectModel(build()), rewriteModel(build(), { variant: 'linear' })]) {
      const error = await attempt.then(
        () => undefined,
        (e: unknown) => e,
      );
      expect(error).toBeInstanceOf(FlaError);
      expect(error).toMatchObject({ code: 'invalid_model' });
      expect((error as FlaError).message).toMatch(message);
      expect((error as FlaError).message).not.toContain('\n');
    }
  });
});

describe('attention in integers', () => {
  it('is left alone, and has a reason', async () => {
    const q = ['int64', ['B', 'T', 8]] as const;
    const fused = buildModel({
      inputs: { q, k: q, v: q },
      outputs: { y: q },
      nodes: [
        makeNode(
          'MultiHeadAttention',
          ['q', 'k', 'v'],
          ['y'],
          { num_heads: 2 },
          { domain: 'com.microsoft' },
        ),
      ],
      opsets: { '': 17, 'com.microsoft': 1 },
    });
    const reason = 'attention must be in floating point, received int64';
    const { sites } = await inspectModel(fused);
    expect(sites).toMatchObject([{ layer: 0, rewritable: false, reason }]);
    const before = structuredClone(fused.graph.proto.node);
    await rewriteModel(fused, { variant: 'none' });
    expect(fused.graph.proto.node).toEqual(before);
  });
});

/** Branches in branches, `depth` of them, and how often the inputs of nodes are looked at while the model is checked. */
function looksAt(depth: number, nodes: number): number {
  let looks = 0;
  const counted = (node: NodeProto): NodeProto => {
    const { input } = node;
    const get = () => {
      looks++;
      return input;
    };
    Object.defineProperty(node, 'input', { get });
    return node;
  };
  let inner: NodeProto = makeNode('Relu', ['x'], ['v0']);
  for (let i = 1; i <= depth; i++) {
    const chain = Array.from({ length: nodes / depth }, (_, n) =>
      counted(makeNode('Relu', [n === 0 ? 'x' : `r${i}_${n - 1}`], [`r${i}_${n}`])),
    );
    const branch = (name: string, list: NodeProto[]) => ({
      graph: {
        name,
        node: list,
        initializer: [],
        input: [],
        output: [{ name: list.at(-1)!.output[0]! }],
        valueInfo: [],
      },
    });
    inner = makeNode('If', ['c'], [`v${i}`], {
      then_branch: branch('then', [...chain, inner]),
      else_branch: branch('else', [makeNode('Relu', ['x'], [`e${i}`])]),
    });
  }
  const whole = model([inner, makeNode('Relu', [`v${depth}`], ['y'])], {
    inputs: { x: ['float32', ['B', 4]], c: ['bool', []] },
  });
  validateModel(whole);
  whole.graph.sort();
  return looks;
}

/** Attention of queries that are the maximum of `count` values, each of them a copy of the one before or of the input. */
function manyValues(count: number, ofInput: boolean): Model {
  const copies = Array.from({ length: count }, (_, i) =>
    makeNode('Identity', [i === 0 || ofInput ? 'x' : `c${i - 1}`], [`c${i}`]),
  );
  const q = ofInput ? copies.map((c) => c.output[0]!) : [`c${count - 1}`];
  return buildModel({
    inputs: { x: ['float32', ['B', 2, 'T', 4]] },
    outputs: { y: ['float32', ['B', 2, 'T', 4]] },
    nodes: [
      ...copies,
      makeNode('Max', q, ['q']),
      makeNode('Transpose', ['x'], ['k'], { perm: [0, 1, 3, 2] }),
      makeNode('MatMul', ['q', 'k'], ['scores']),
      makeNode('Softmax', ['scores'], ['weights'], { axis: -1 }),
      makeNode('MatMul', ['weights', 'x'], ['y']),
    ],
  });
}

/** Functions of which each calls the one before twice, the first being an operator. */
function doubling(count: number, first: string) {
  const functions = Array.from({ length: count }, (_, i) => {
    const call = (input: string, output: string) =>
      makeNode(`F${i - 1}`, [input], [output], {}, { domain: 'x' });
    const node = i === 0 ? [makeNode(first, ['a'], ['b'])] : [call('a', 'm'), call('m', 'b')];
    const opsetImport = [
      { domain: '', version: 17 },
      { domain: 'x', version: 1 },
    ];
    return {
      name: `F${i}`,
      domain: 'x',
      input: ['a'],
      output: ['b'],
      attribute: [],
      node,
      opsetImport,
    };
  });
  const call = makeNode(`F${count - 1}`, ['x'], ['y'], {}, { domain: 'x' });
  return { call, functions, opsets: { '': 17, x: 1 } };
}

/** Attention with a mask that a node makes of `x`. */
function maskedBy(mask: NodeProto, more: Partial<Parameters<typeof buildModel>[0]>): Model {
  return buildModel({
    inputs: { x: ['float32', [1]], q: ['float32', ['B', 2, 'T', 4]] },
    outputs: { z: ['float32', ['B', 2, 'T', 'T']] },
    nodes: [
      mask,
      makeNode('Transpose', ['q'], ['t'], { perm: [0, 1, 3, 2] }),
      makeNode('MatMul', ['q', 't'], ['scores']),
      makeNode('Add', ['scores', mask.output[0]!], ['masked']),
      makeNode('Softmax', ['masked'], ['weights'], { axis: -1 }),
      makeNode('MatMul', ['weights', 'q'], ['z']),
    ],
    ...more,
  });
}

describe('models that are large in one way', () => {
  it.each([
    ['inputs of one node', manyValues(130_000, true)],
    ['copies in a row', manyValues(20_000, false)],
  ])('are understood: %s', async (_, large) => {
    expect((await inspectModel(large)).sites).toMatchObject([{ layer: 0, q_num_heads: 2 }]);
  });

  it('are refused before more nodes are read than any model has, nested ones counted', () => {
    const many = (nodes: number) => {
      const node = Array.from({ length: nodes }, () => makeNode('Relu', ['x'], ['b']));
      const body = { node, initializer: [], input: [], output: [], valueInfo: [] };
      return modelBytes(model([makeNode('Loop', [], ['y'], { body: { graph: body } })]));
    };
    expect(parseModel(many(199_999)).graph.nodes.length).toBe(1);
    expect(() => parseModel(many(200_000), 'x.onnx')).toThrow(
      /^x\.onnx: at most 200000 nodes expected, received more$/,
    );
  });

  it('are refused before functions are written out a billion times', async () => {
    const { call, ...more } = doubling(40, 'Softmax');
    await expect(inspectModel(model([call], more))).rejects.toThrow(
      /^model: its functions cannot be written out: at most 200000 nodes expected, received 549755813888$/,
    );
  });

  it('are not run to find a mask that takes a Loop of 2^62 steps, or functions called a billion times', async () => {
    const value = (name: string, dtype: number) => makeValueInfo(name, dtype, []);
    const body = {
      name: 'body',
      node: [makeNode('Identity', ['c'], ['d']), makeNode('Relu', ['a'], ['b'])],
      initializer: [],
      input: [value('i', 7), value('c', 9), makeValueInfo('a', 1, [1])],
      output: [value('d', 9), makeValueInfo('b', 1, [1])],
      valueInfo: [],
    };
    const loop = makeNode('Loop', ['steps', 'on', 'zero'], ['y'], { body: { graph: body } });
    const steps = makeTensor('steps', 'int64', [], [2 ** 62]);
    const on = makeTensor('on', 'bool', [], [1]);
    const zero = makeTensor('zero', 'float32', [1], [0]);
    const { call, ...more } = doubling(40, 'Relu');
    for (const endless of [
      maskedBy(loop, { initializers: [steps, on, zero] }),
      maskedBy(call, more),
    ]) {
      const { sites } = await inspectModel(endless); // with no runner: that would be an error
      const reason = expect.stringMatching(
        /^mask: .* '.*' behind it may run more than 262144 nodes$/,
      );
      expect(sites).toMatchObject([{ layer: 0, rewritable: false, reason }]);
    }
  });
});

describe('well-formed models', () => {
  it('are checked in as many steps however deep their graphs are nested', () => {
    expect(looksAt(32, 320)).toBe(looksAt(1, 320));
  });

  it('may list initializers among their inputs, as before IR version 4', () => {
    const old = model([makeNode('Add', ['x', 'w'], ['y'])], {
      inputs: { x: ['float32', ['B', 4]], w: ['float32', [4]] },
      initializers: [makeTensor('w', 'float32', [4], [1, 2, 3, 4])],
    });
    expect(() => validateModel(old)).not.toThrow();
  });

  it('may be out of order', async () => {
    const mixed = model([makeNode('Relu', ['a'], ['y']), makeNode('Abs', ['x'], ['a'])]);
    expect((await inspectModel(mixed)).sites).toEqual([]);
  });
});

describe('metadata of an earlier rewrite', () => {
  const state = { past: 'x', present: 'y', shape: ['B', 4], dtype: 'float32', in_place: false };
  const withStates = (text: string) => {
    const m = model([makeNode('Relu', ['x'], ['y'])]);
    m.setMetadata('onnx_fla.state', text);
    return m;
  };
  it.each<[unknown, RegExp]>([
    ['{', /onnx_fla\.state must be JSON, received \{/],
    [null, /onnx_fla\.state must be Array, received null/],
    [[null], /onnx_fla\.state: 0 must be Object, received null/],
    [[{ ...state, past: 1 }], /onnx_fla\.state: 0\.past must be string, received 1/],
    [[{ ...state, past: 'gone' }], /name one input and one output .* received 'gone' and 'y'/],
    [[{ ...state, present: 'x' }], /received 'x' and 'x'/],
    [[state, state], /received 'x' and 'y'/],
  ])('%j is refused', (value, message) => {
    const text = typeof value === 'string' ? value : JSON.stringify(value);
    for (const target of TARGETS) {
      expect(() => retarget(withStates(text), target)).toThrow(
        expect.objectContaining({ code: 'invalid_model', message: expect.stringMatching(message) }),
      );
    }
  });
});

it('floats where tokens are expected are not taken for sound of thousands of tokens', async () => {
  const { spec } = DECODERS.find(
    (d) => d.name === 'com.microsoft.Attention, positions: mask, padded',
  )!;
  const m = decoder({ ...spec, cache: false });
  m.graph.info('input_ids')!.type!.tensorType!.elemType = DATA_TYPE.bfloat16;
  const { sites } = await inspectModel(m);
  expect(sites).toMatchObject([
    { rewritable: false, reason: expect.stringMatching(/scores \[2,1,3200,3200\] are too many/) },
  ]);
});

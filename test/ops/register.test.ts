import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { buildModel, DATA_TYPE, makeNode, modelBytes } from '../../exporter/ir/index.js';
import {
  causalConvWithState,
  hybridAttention,
  linearAttention,
  ops,
  type Tensor64,
  windowAttention,
  zeros,
} from '../../ops/index.js';
import { linearAttentionReference } from '../../ops/linear_attention/reference.js';
import { nativeFile, OPS_LIBRARY } from '../../runtime/native.js';
import { load, nativeInfo } from '../../runtime/node/addon.js';
import { decode, encode, Random, relativeError, rounded } from '../cases/tensors.js';
import { type KernelCall, openCall, refusalOf, runCall } from '../support/kernels.js';
import { ROOT } from '../support/models.js';

const random = new Random('register');
const normal = (...shape: number[]) =>
  rounded(
    random.tensor(shape, () => random.normal()),
    'float32',
  );

const attributes = { q_num_heads: 2, kv_num_heads: 2, update_rule: 'linear' } as const;
const inputs = { query: normal(1, 40, 8), key: normal(1, 40, 8), value: normal(1, 40, 6) };
const past_state = normal(1, 2, 4, 3);

const callOf = (tensors: Record<string, Tensor64>, more: Partial<KernelCall> = {}): KernelCall => ({
  op: linearAttention,
  attributes,
  inputs: tensors,
  dtypes: Object.fromEntries(Object.keys(tensors).map((name) => [name, 'float32'])),
  ...more,
});

function expectClose(actual: Tensor64, expected: Tensor64): void {
  expect(actual.shape).toEqual(expected.shape);
  expect(relativeError(actual.data, expected.data)).toBeLessThanOrEqual(3e-6);
}

describe('the operator library', () => {
  it('says what it is', () => {
    const { version } = JSON.parse(readFileSync(`${ROOT}/package.json`, 'utf8'));
    expect(nativeInfo().ops).toEqual({
      version,
      isa: expect.stringMatching(/^(portable|avx2|avx512)$/),
      ops: Object.keys(ops).map((name) => `com.fla.${name}`),
      cuda: nativeInfo().ops.cuda === false ? false : { devices: expect.any(Number) },
      workspace_peak: expect.any(Number),
    });
  });

  it('tells how much work memory its kernels took, which does not depend on the length', async () => {
    const peakOf = async (tokens: number) => {
      const [query, key, value] = [0, 1, 2].map(() => normal(1, tokens, 64));
      nativeInfo();
      await runCall(callOf({ query: query!, key: key!, value: value! }), { threads: 1 });
      return nativeInfo().ops.workspace_peak;
    };
    const short = await peakOf(100);
    expect(short).toBeGreaterThan(10_000);
    expect(short).toBeLessThan(1_000_000);
    expect(await peakOf(2000)).toBe(short);
    expect(nativeInfo().ops.workspace_peak).toBe(0);
  });

  it('exports RegisterCustomOps and fla_ops_info, nothing else', () => {
    const symbols = execFileSync('nm', ['-D', '--defined-only', nativeFile(OPS_LIBRARY)], {
      encoding: 'utf8',
    });
    const names = symbols
      .trim()
      .split('\n')
      .map((line) => line.split(' ').at(-1));
    expect(names.sort()).toEqual(['RegisterCustomOps', 'fla_ops_info']);
  });

  it('fills in the defaults of attributes that the node lacks', async () => {
    const tensors = {
      ...inputs,
      decay: zeros([1, 40, 2]),
      beta: { shape: [1, 40, 1], data: new Float64Array(40).fill(0.1) },
    };
    const heads = { q_num_heads: 2, kv_num_heads: 2 };
    const actual = await runCall(callOf(tensors, { attributes: heads }));
    expectClose(actual.output, linearAttentionReference(heads, tensors).output);
  });

  it.each([
    [
      'a required one is missing',
      { kv_num_heads: 2 },
      'q_num_heads must be of type int, received none',
    ],
    ['a string is an int', { ...attributes, read: 1 }, 'read must be of type string, received int'],
    [
      'an int is a string',
      { ...attributes, normalize: 'yes' },
      'normalize must be of type int, received string',
    ],
  ])('refuses attributes when %s', async (_, bad, message) => {
    expect(await refusalOf(callOf(inputs, { attributes: bad }))).toContain(
      `LinearAttention: ${message}`,
    );
  });

  it('refuses types that no registration has', async () => {
    const dtypes = { query: 'float32', key: 'float32', value: 'float16' } as const;
    expect(await refusalOf(callOf(inputs, { dtypes }))).toMatch(/LinearAttention/);
  });

  it('clamps the argument of the exp feature map', async () => {
    const query = { shape: [1, 40, 8], data: new Float64Array(320).map((_, i) => 70 + (i % 40)) };
    const call = { ...attributes, feature_map: 'exp' } as const;
    const actual = await runCall(callOf({ ...inputs, query }, { attributes: call }));
    expectClose(actual.output, linearAttentionReference(call, { ...inputs, query }).output);
  });

  it('leaves out outputs that the node does not have', async () => {
    const expected = linearAttentionReference(attributes, inputs);
    const first = await runCall(callOf(inputs, { outputs: ['output'] }));
    expectClose(first.output, expected.output);
    const last = await runCall(callOf(inputs, { outputs: ['output', ''] }));
    expectClose(last.output, expected.output);
  });

  it('gives the same on one thread and on many', async () => {
    const tensors = {
      query: normal(1, 300, 64),
      key: normal(1, 300, 64),
      value: normal(1, 300, 64),
    };
    const call = callOf(tensors, { attributes: { ...attributes, feature_map: 'softmax' } });
    const one = await runCall(call, { threads: 1 });
    const many = await runCall(call, { threads: 4 });
    expectClose(many.output, one.output);
    expectClose(many.present_state, one.present_state);
  });
});

describe('shape inference', () => {
  const shapesOf = async (call: KernelCall) => {
    const session = await openCall(call);
    const shapes = Object.fromEntries(session.outputs.map(({ name, shape }) => [name, shape]));
    session.dispose();
    return shapes;
  };

  it('gives sizes, and the names the model has for unknown ones', async () => {
    const declared = {
      query: ['batch', 'tokens', 8],
      key: ['batch', 'tokens', 8],
      value: ['batch', 'tokens', 6],
    };
    expect(await shapesOf(callOf(inputs, { declared }))).toEqual({
      output: ['batch', 'tokens', 6],
      present_state: ['batch', 2, 4, 3],
    });
  });

  it('knows about groups and the normalizer', async () => {
    const call = callOf(
      { ...inputs, value: normal(1, 40, 12) },
      { attributes: { ...attributes, kv_num_heads: 4, normalize: 1 } },
    );
    expect(await shapesOf(call)).toEqual({ output: [1, 40, 12], present_state: [1, 4, 4, 4] });
  });

  it('works with a hole among the inputs', async () => {
    const beta = normal(1, 40, 2);
    const call = callOf(
      { ...inputs, beta },
      { attributes: { ...attributes, update_rule: 'delta' } },
    );
    expect(await shapesOf(call)).toEqual({ output: [1, 40, 6], present_state: [1, 2, 4, 3] });
  });

  it.each(['float32', 'float16', 'bfloat16'] as const)(
    'gives the types of query and past_state, %s',
    async (T) => {
      const tensors = { ...inputs, past_state };
      const typesOf = async (S: 'float32' | typeof T, names = Object.keys(tensors)) => {
        const dtypes = { query: T, key: T, value: T, past_state: S };
        const given = Object.fromEntries(
          Object.entries(tensors).filter(([name]) => names.includes(name)),
        );
        const session = await openCall(callOf(given, { dtypes }));
        const types = session.outputs.map(({ type }) => type);
        session.dispose();
        return types;
      };
      expect(await typesOf('float32')).toEqual([DATA_TYPE[T], DATA_TYPE.float32]);
      expect(await typesOf(T)).toEqual([DATA_TYPE[T], DATA_TYPE[T]]);
      expect(await typesOf(T, ['query', 'key', 'value'])).toEqual([DATA_TYPE[T], DATA_TYPE[T]]);
    },
  );

  it('of HybridAttention', async () => {
    const tensors = {
      query: normal(1, 40, 16),
      key: normal(1, 40, 8),
      value: normal(1, 40, 6),
      query_features: normal(1, 40, 20),
      key_features: normal(1, 40, 10),
      query_weight: normal(4, 5, 7),
      key_weight: normal(2, 5, 7),
    };
    const tokens = (width: number) => ['batch', 'tokens', width];
    const declared = {
      ...{ query: tokens(16), key: tokens(8), value: tokens(6) },
      ...{ query_features: tokens(20), key_features: tokens(10) },
    };
    const attributes = { q_num_heads: 4, kv_num_heads: 2, window: 16, sinks: 3, cache: 5 };
    const call = callOf(tensors, { op: hybridAttention, attributes, declared });
    expect(await shapesOf(call)).toEqual({
      output: tokens(12),
      present_window: ['batch', 2, 25, 12],
      present_state: ['batch', 2, 14, 4],
    });
  });

  it('of WindowAttention', async () => {
    const heads = { q_num_heads: 2, kv_num_heads: 2, window: 16 };
    const call = callOf(inputs, { op: windowAttention, attributes: heads });
    expect(await shapesOf(call)).toEqual({
      output: [1, 40, 6],
      lse: [1, 40, 2],
      present_window: [1, 2, 17, 7],
    });
  });

  it('of CausalConvWithState', async () => {
    const tensors = { input: normal(2, 5, 9), weight: normal(5, 1, 4) };
    const declared = { input: ['batch', 5, 'tokens'], weight: [5, 1, 4] };
    expect(
      await shapesOf(callOf(tensors, { op: causalConvWithState, attributes: {}, declared })),
    ).toEqual({
      output: ['batch', 5, 'tokens'],
      present_state: ['batch', 5, 3],
    });
  });
});

describe('in-place state', () => {
  const state = (tensor: Tensor64) => {
    const value = new (load().addon.Value)(DATA_TYPE.float32, tensor.shape);
    value.write(encode(tensor.data, 'float32'), 0);
    return value;
  };
  const contents = (value: {
    read(offset: number, length: number): ArrayBuffer;
    byteLength: number;
  }) => decode(new Uint8Array(value.read(0, value.byteLength)), 'float32');

  it('the same tensor as past_state and present_state', async () => {
    const call = callOf({ ...inputs, past_state });
    const session = await openCall(call);
    const carried = state(past_state);
    const feeds = session.inputs.map(({ name }) =>
      name === 'past_state'
        ? carried
        : {
            type: DATA_TYPE.float32,
            dims: call.inputs[name].shape,
            data: encode(call.inputs[name].data, 'float32'),
          },
    );
    await session.run([0, 1, 2, 3], feeds, [0, 1], [undefined, carried]);
    const expected = linearAttentionReference(attributes, { ...inputs, past_state });
    expect(relativeError(contents(carried), expected.presentState.data)).toBeLessThanOrEqual(3e-6);
    session.dispose();
  });

  it('ONNX Runtime never overwrites a state that is read later', async () => {
    // Copies of past_state on both sides of the op: one may be reused, the other is still needed.
    const names = ['query', 'key', 'value', 'past_state'];
    const shapes: Record<string, readonly number[]> = {
      ...Object.fromEntries(Object.entries(inputs).map(([n, t]) => [n, t.shape])),
      past_state: past_state.shape,
    };
    const model = buildModel({
      opsets: { '': 17, 'com.fla': 1 },
      inputs: Object.fromEntries(names.map((name) => [name, ['float32', shapes[name]]])),
      outputs: { output: ['float32'], present: ['float32'], before: ['float32'] },
      nodes: [
        makeNode('Neg', ['past_state'], ['negative']),
        makeNode('Neg', ['negative'], ['copy']),
        makeNode(
          'LinearAttention',
          ['query', 'key', 'value', 'copy'],
          ['output', 'after'],
          attributes,
          {
            domain: 'com.fla',
          },
        ),
        makeNode('Neg', ['after'], ['present']),
        makeNode('Neg', ['copy'], ['before']),
      ],
    });
    const session = await load().addon.createSession(modelBytes(model), {
      library: nativeFile(OPS_LIBRARY),
    });
    const tensors: Record<string, Tensor64> = { ...inputs, past_state };
    const feeds = names.map((name) => ({
      type: DATA_TYPE.float32,
      dims: tensors[name].shape,
      data: encode(tensors[name].data, 'float32'),
    }));
    const results = await session.run(
      [0, 1, 2, 3],
      feeds,
      [0, 1, 2],
      [undefined, undefined, undefined],
    );
    const [, present, before] = results.map((result) =>
      decode(new Uint8Array((result as { data: ArrayBuffer }).data), 'float32'),
    );
    const expected = linearAttentionReference(attributes, { ...inputs, past_state });
    expect(
      relativeError(
        present.map((x) => -x),
        expected.presentState.data,
      ),
    ).toBeLessThanOrEqual(3e-6);
    expect(before.map((x) => -x)).toEqual(past_state.data);
    session.dispose();
  });
});

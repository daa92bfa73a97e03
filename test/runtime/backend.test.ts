import * as ort from 'onnxruntime-node';
import { afterEach, describe, expect, test } from 'vitest';
import { buildModel, makeNode, modelBytes } from '../../exporter/ir/index.js';
import { NativeTensor } from '../../runtime/node/index.js';
import { binaryModel, identityModel } from './support/models.js';
import { createSession, failureOf, floats } from './support/session.js';

const sessions: ort.InferenceSession[] = [];
async function open(...args: Parameters<typeof createSession>): Promise<ort.InferenceSession> {
  const session = await createSession(...args);
  sessions.push(session);
  return session;
}
afterEach(async () => {
  for (const session of sessions.splice(0)) await session.release();
});

describe('registration', () => {
  test('a session is ours, not the stock one', async () => {
    const session = await open(binaryModel('Add', 'float32'));
    expect((session as unknown as { handler: object }).handler.constructor.name).toBe('FlaSession');
  });

  test("['fla', 'cpu'] is ours; ['cpu', 'fla'] is the stock backend", async () => {
    const kind = async (executionProviders: ort.InferenceSession.ExecutionProviderConfig[]) => {
      const session = await ort.InferenceSession.create(binaryModel('Add', 'float32'), {
        executionProviders,
      });
      sessions.push(session);
      return (session as unknown as { handler: object }).handler.constructor.name;
    };
    const fla = { name: 'fla', library: false } as const;
    expect(await kind([fla, 'cpu'])).toBe('FlaSession');
    expect(await kind(['cpu', fla])).not.toBe('FlaSession');
  });

  test('it is not chosen unless it is asked for', async () => {
    const session = await ort.InferenceSession.create(binaryModel('Add', 'float32'));
    sessions.push(session);
    expect((session as unknown as { handler: object }).handler.constructor.name).not.toBe(
      'FlaSession',
    );
  });

  test('stock sessions of the same process go on working', async () => {
    const model = binaryModel('Mul', 'float32');
    const stock = await ort.InferenceSession.create(model);
    const ours = await open(model);
    const feeds = { x: floats([1, 2, 3, 4], [1, 4]), y: floats([5, 6, 7, 8], [1, 4]) };
    for (let i = 0; i < 20; i++) {
      const [a, b] = await Promise.all([stock.run(feeds), ours.run(feeds)]);
      expect(a.z.data).toEqual(b.z.data);
    }
    await ours.release();
    expect((await stock.run(feeds)).z.data).toEqual(Float32Array.of(5, 12, 21, 32));
    await stock.release();
  });
});

describe('metadata', () => {
  test('names, types and shapes are those of the stock backend', async () => {
    const model = modelBytes(
      buildModel({
        inputs: { ids: ['int64', ['batch', 7]], h: ['float16', [2, 'time', 3]] },
        outputs: { a: ['float32', ['batch', 7]], b: ['float16', [2, 'time', 3]] },
        nodes: [makeNode('Cast', ['ids'], ['a'], { to: 1 }), makeNode('Neg', ['h'], ['b'])],
      }),
    );
    const stock = await ort.InferenceSession.create(model);
    const ours = await open(model);
    expect(ours.inputNames).toEqual(stock.inputNames);
    expect(ours.outputNames).toEqual(stock.outputNames);
    expect(ours.inputMetadata).toEqual(stock.inputMetadata);
    expect(ours.outputMetadata).toEqual(stock.outputMetadata);
    await stock.release();
  });
});

describe('element types', () => {
  const cases: [ort.Tensor.Type, ort.Tensor][] = [
    ['float32', floats([1.5, -2, Number.NaN], [3])],
    ['float64', new ort.Tensor('float64', Float64Array.of(1e300, -0, 3), [3])],
    ['float16', new ort.Tensor('float16', Uint16Array.of(0x3c00, 0xc000, 0x7c00), [3])],
    ['int8', new ort.Tensor('int8', Int8Array.of(-128, 0, 127), [3])],
    ['uint8', new ort.Tensor('uint8', Uint8Array.of(0, 1, 255), [3])],
    ['int16', new ort.Tensor('int16', Int16Array.of(-32768, 0, 32767), [3])],
    ['uint16', new ort.Tensor('uint16', Uint16Array.of(0, 1, 65535), [3])],
    ['int32', new ort.Tensor('int32', Int32Array.of(-(2 ** 31), 0, 2 ** 31 - 1), [3])],
    ['uint32', new ort.Tensor('uint32', Uint32Array.of(0, 1, 2 ** 32 - 1), [3])],
    ['int64', new ort.Tensor('int64', BigInt64Array.of(-(2n ** 63n), 0n, 2n ** 63n - 1n), [3])],
    ['uint64', new ort.Tensor('uint64', BigUint64Array.of(0n, 1n, 2n ** 64n - 1n), [3])],
    ['bool', new ort.Tensor('bool', Uint8Array.of(0, 1, 1), [3])],
    ['string', new ort.Tensor('string', ['', 'häßlich', '日本語 🎉'], [3])],
  ];
  test.each(cases)('%s passes unchanged', async (type, x) => {
    const session = await open(identityModel(type as never));
    const { y } = await session.run({ x });
    expect(y).toBeInstanceOf(ort.Tensor);
    expect([y.type, y.dims]).toEqual([type, [3]]);
    expect(y.data).toEqual(x.data);
    expect(y.data.constructor).toBe(x.data.constructor);
  });

  test.each(cases)('%s of no elements', async (type, { data }) => {
    const session = await open(identityModel(type as never));
    const x = new ort.Tensor(type as 'float32', data.slice(0, 0) as Float32Array, [0]);
    const { y } = await session.run({ x });
    expect([y.type, y.dims, y.data.length]).toEqual([type, [0], 0]);
  });

  test('bfloat16 passes as NativeTensor', async () => {
    const session = await open(identityModel('bfloat16'));
    const bits = Uint16Array.of(0x3f80, 0xc000, 0x7f80);
    const x = NativeTensor.from('bfloat16', bits, [3]) as unknown as ort.Tensor;
    const { y } = await session.run({ x });
    expect([y.type, y.dims]).toEqual(['bfloat16', [3]]);
    expect(y.data).toEqual(bits);
  });

  test('arithmetic in float16 agrees with the stock backend', async () => {
    const model = binaryModel('Add', 'float16');
    const x = new ort.Tensor('float16', Uint16Array.of(0x3c00, 0x4000, 0x4200, 0x4400), [1, 4]);
    const stock = await ort.InferenceSession.create(model);
    const ours = await open(model);
    expect((await ours.run({ x, y: x })).z.data).toEqual((await stock.run({ x, y: x })).z.data);
    await stock.release();
  });
});

describe('inputs', () => {
  test('a view into a larger buffer is read at its offset', async () => {
    const session = await open(binaryModel('Add', 'float32'));
    const all = Float32Array.from({ length: 12 }, (_, i) => i);
    const x = new ort.Tensor('float32', all.subarray(4, 8), [1, 4]);
    expect((await session.run({ x, y: x })).z.data).toEqual(Float32Array.of(8, 10, 12, 14));
  });

  test('shared memory is read', async () => {
    const session = await open(binaryModel('Add', 'float32'));
    const data = new Float32Array(
      new SharedArrayBuffer(16),
    ) as unknown as Float32Array<ArrayBuffer>;
    data.set([1, 2, 3, 4]);
    const x = new ort.Tensor('float32', data, [1, 4]);
    expect((await session.run({ x, y: x })).z.data).toEqual(Float32Array.of(2, 4, 6, 8));
  });

  test('scalars', async () => {
    const model = buildModel({
      inputs: { x: ['float32', []] },
      outputs: { y: ['float32', []] },
      nodes: [makeNode('Neg', ['x'], ['y'])],
    });
    const session = await open(modelBytes(model));
    const { y } = await session.run({ x: floats([3], []) });
    expect([y.dims, y.data]).toEqual([[], Float32Array.of(-3)]);
  });
});

describe('an output that is an input', () => {
  const model = modelBytes(
    buildModel({
      inputs: { x: ['float32', [4]] },
      outputs: { x: ['float32', [4]], y: ['float32', [4]] },
      nodes: [makeNode('Neg', ['x'], ['y'])],
    }),
  );

  test('is a copy', async () => {
    const session = await open(model);
    const x = floats([1, 2, 3, 4], [4]);
    const result = (await session.run({ x })).x;
    (x.data as Float32Array).fill(0);
    expect(result.data).toEqual(Float32Array.of(1, 2, 3, 4));
  });

  test('is written to a preallocated tensor', async () => {
    const session = await open(model);
    const out = floats([0, 0, 0, 0], [4]);
    await session.run({ x: floats([1, 2, 3, 4], [4]) }, { x: out });
    expect(out.data).toEqual(Float32Array.of(1, 2, 3, 4));
  });
});

describe('failures are rejections with a FlaError', () => {
  test('of a shape', async () => {
    const session = await open(binaryModel('Add', 'float32'));
    const error = await failureOf(
      session.run({ x: floats([1, 2, 3], [1, 3]), y: floats([1, 2, 3, 4], [1, 4]) }),
    );
    expect([error.code, error.message]).toEqual([
      'invalid_shape',
      "Session: input 'x' must be [N,4], received [1,3]",
    ]);
  });

  test('of a type', async () => {
    const session = await open(binaryModel('Add', 'float32'));
    const x = new ort.Tensor('int32', Int32Array.of(1, 2, 3, 4), [1, 4]);
    const error = await failureOf(session.run({ x, y: x }));
    expect([error.code, error.message]).toEqual([
      'invalid_type',
      "Session: input 'x' must be float32, received int32",
    ]);
  });

  test('of a node, by name and without the wrapping of ONNX Runtime', async () => {
    const model = buildModel({
      inputs: { x: ['float32', ['A', 'B']], y: ['float32', ['C', 'D']] },
      outputs: { z: ['float32', ['A', 'D']] },
      nodes: [makeNode('MatMul', ['x', 'y'], ['z'], {}, { name: 'product' })],
    });
    const session = await open(modelBytes(model), { logSeverityLevel: 4 });
    const error = await failureOf(
      session.run({ x: floats([1, 2], [1, 2]), y: floats([1, 2, 3], [3, 1]) }),
    );
    expect(error.message).toMatch(
      /^(?!.*(Non-zero status|onnxruntime_src|ONNXRuntimeError)).*\(node product\)$/s,
    );
    expect((error.cause as Error).message).toContain('Non-zero status');
  });

  test('of a detached buffer', async () => {
    const session = await open(binaryModel('Add', 'float32'));
    const x = floats([1, 2, 3, 4], [1, 4]);
    structuredClone(x.data, { transfer: [(x.data as Float32Array).buffer as ArrayBuffer] });
    const error = await failureOf(session.run({ x, y: x }));
    expect(error.message).toContain('received a buffer that was transferred away');
  });

  test('of a file that is not there', async () => {
    const error = await failureOf(createSession('/no/such/model.onnx'));
    expect([error.code, error.message]).toEqual([
      'not_found',
      expect.stringContaining('/no/such/model.onnx'),
    ]);
  });

  test('of bytes that are no model', async () => {
    for (const bytes of [
      new Uint8Array(0),
      Uint8Array.of(1, 2, 3),
      binaryModel('Add', 'float32').slice(0, 50),
    ]) {
      expect((await failureOf(createSession(bytes))).code).toBe('invalid_model');
    }
  });

  test('of an operator that ONNX Runtime does not know', async () => {
    const error = await failureOf(createSession(binaryModel('NoSuchOp', 'float32')));
    expect(error.message).toContain('NoSuchOp');
  });
});

describe('release', () => {
  test('use afterwards is rejected, a second release is not', async () => {
    const session = await open(binaryModel('Add', 'float32'));
    await session.release();
    await session.release();
    const x = floats([1, 2, 3, 4], [1, 4]);
    const error = await failureOf(session.run({ x, y: x }));
    expect([error.code, error.message]).toEqual(['disposed', 'Session: used after release()']);
    expect(() => session.endProfiling()).toThrow('used after release');
  });

  test('outputs outlive their session', async () => {
    const session = await open(binaryModel('Add', 'float32'));
    const x = floats([1, 2, 3, 4], [1, 4]);
    const { z } = await session.run({ x, y: x });
    await session.release();
    expect(z.data).toEqual(Float32Array.of(2, 4, 6, 8));
  });
});

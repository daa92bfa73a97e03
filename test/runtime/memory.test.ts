import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { buildModel, makeNode, modelBytes } from '../../exporter/ir/index.js';
import { NativeTensor } from '../../runtime/node/index.js';
import { collect, peak, resetPeak, resident } from './support/memory.js';
import { binaryModel, identityModel } from './support/models.js';
import { createSession, failureOf, floats } from './support/session.js';

/** Elements of a tensor of 128 MiB: large against whatever else the process does. */
const LARGE = 32 * 2 ** 20;
const LARGE_MIB = 128;

/** `y = max(x)` over [N]. */
function maxModel(): Uint8Array {
  return modelBytes(
    buildModel({
      inputs: { x: ['float32', ['N']] },
      outputs: { y: ['float32', []] },
      nodes: [makeNode('ReduceMax', ['x'], ['y'], { keepdims: 0 })],
    }),
  );
}

/** `y = x` repeated to the shape that is fed. */
function expandModel(): Uint8Array {
  return modelBytes(
    buildModel({
      inputs: { x: ['float32', [1]], shape: ['int64', [1]] },
      outputs: { y: ['float32', ['N']] },
      nodes: [makeNode('Expand', ['x', 'shape'], ['y'])],
    }),
  );
}

/** What a run adds to the peak, in MiB. */
async function peakOf(run: () => Promise<unknown>): Promise<number> {
  await collect();
  const before = resident();
  resetPeak();
  await run();
  return peak() - before;
}

describe('zero-copy', () => {
  test('an input is not copied', async () => {
    const session = await createSession(maxModel());
    const data = new Float32Array(LARGE).fill(1);
    data[LARGE - 1] = 7;
    const x = new ort.Tensor('float32', data, [LARGE]);
    let y: ort.Tensor | undefined;
    const growth = await peakOf(async () => {
      ({ y } = await session.run({ x }));
    });
    expect(y!.data[0]).toBe(7);
    expect(growth).toBeLessThan(LARGE_MIB / 4);
    await session.release();
  });

  test('an output is handed over, not copied', async () => {
    const session = await createSession(expandModel(), { enableCpuMemArena: false });
    const feeds = {
      x: floats([3], [1]),
      shape: new ort.Tensor('int64', BigInt64Array.of(BigInt(LARGE)), [1]),
    };
    let y: ort.Tensor | undefined;
    const growth = await peakOf(async () => {
      ({ y } = await session.run(feeds));
    });
    expect(y!.data[LARGE - 1]).toBe(3);
    expect(growth).toBeGreaterThan(LARGE_MIB * 0.9);
    expect(growth).toBeLessThan(LARGE_MIB * 1.25);
    await session.release();
  });

  test('a preallocated output is written in place', async () => {
    const session = await createSession(expandModel(), { enableCpuMemArena: false });
    const feeds = {
      x: floats([3], [1]),
      shape: new ort.Tensor('int64', BigInt64Array.of(BigInt(LARGE)), [1]),
    };
    const out = new ort.Tensor('float32', new Float32Array(LARGE).fill(1), [LARGE]);
    let y: ort.Tensor | undefined;
    const growth = await peakOf(async () => {
      ({ y } = await session.run(feeds, { y: out }));
    });
    expect(y).toBe(out);
    expect(out.data[LARGE - 1]).toBe(3);
    expect(growth).toBeLessThan(LARGE_MIB / 4);
    await session.release();
  });
});

describe('preallocated outputs', () => {
  let session: ort.InferenceSession;
  const x = floats([1, 2, 3, 4], [1, 4]);
  beforeAll(async () => {
    session = await createSession(binaryModel('Add', 'float32'), { logSeverityLevel: 4 });
  });
  afterAll(() => session.release());

  test('a view into a larger buffer is written at its offset', async () => {
    const all = new Float32Array(12);
    await session.run({ x, y: x }, { z: new ort.Tensor('float32', all.subarray(4, 8), [1, 4]) });
    expect(all).toEqual(Float32Array.of(0, 0, 0, 0, 2, 4, 6, 8, 0, 0, 0, 0));
  });

  test('of another rank or size', async () => {
    const error = await failureOf(session.run({ x, y: x }, { z: floats([0, 0, 0], [1, 3]) }));
    expect([error.code, error.message]).toEqual([
      'invalid_shape',
      "Session: output 'z' must be [N,4], received [1,3]",
    ]);
  });

  test('of a size that only the run can refuse', async () => {
    const z = floats(new Array(8).fill(-1), [2, 4]);
    const error = await failureOf(session.run({ x, y: x }, { z }));
    expect([error.code, error.message]).toEqual([
      'invalid_shape',
      "Session: output 'z' must be [1,4], received [2,4]",
    ]);
    expect(new Set(z.data as Float32Array)).toEqual(new Set([-1]));
  });

  test('of another type', async () => {
    const z = new ort.Tensor('int32', new Int32Array(4), [1, 4]);
    expect((await failureOf(session.run({ x, y: x }, { z }))).code).toBe('invalid_type');
  });

  test('strings for numbers', async () => {
    const z = new ort.Tensor('string', ['', '', '', ''], [1, 4]);
    expect((await failureOf(session.run({ x, y: x }, { z }))).code).toBe('invalid_type');
  });

  test('a string tensor is filled', async () => {
    const strings = await createSession(identityModel('string'));
    const out = new ort.Tensor('string', ['', ''], [2]);
    const { y } = await strings.run({ x: new ort.Tensor('string', ['a', 'b'], [2]) }, { y: out });
    expect(y).toBe(out);
    expect(out.data).toEqual(['a', 'b']);
    await strings.release();
  });
});

describe('NativeTensor', () => {
  const asTensor = (tensor: NativeTensor) => tensor as unknown as ort.Tensor;

  test('is an ort.Tensor to onnxruntime-node', () => {
    expect(NativeTensor.zeros('float32', [2])).toBeInstanceOf(ort.Tensor);
  });

  test('feeds, and is written to', async () => {
    const session = await createSession(binaryModel('Add', 'float32'));
    const x = NativeTensor.from('float32', Float32Array.of(1, 2, 3, 4), [1, 4]);
    const z = NativeTensor.zeros('float32', [1, 4]);
    const result = await session.run({ x: asTensor(x), y: asTensor(x) }, { z: asTensor(z) });
    expect(result.z).toBe(z);
    expect(z.data).toEqual(Float32Array.of(2, 4, 6, 8));
    await session.release();
  });

  test('as feed and fetch at once it is state updated in place', async () => {
    const session = await createSession(binaryModel('Add', 'float32'));
    const state = NativeTensor.zeros('float32', [1, 4]);
    const view = state.data;
    for (let i = 0; i < 10; i++) {
      await session.run(
        { x: asTensor(state), y: floats([1, 2, 3, 4], [1, 4]) },
        { z: asTensor(state) },
      );
    }
    expect(view).toEqual(Float32Array.of(10, 20, 30, 40));
    await session.release();
  });

  test('data is the memory itself, read() a copy', () => {
    const tensor = NativeTensor.from('int32', Int32Array.of(1, 2, 3), [3]);
    const copy = new Int32Array(tensor.read(4, 8));
    (tensor.data as Int32Array)[1] = 9;
    expect([...copy]).toEqual([2, 3]);
    expect([...new Int32Array(tensor.read())]).toEqual([1, 9, 3]);
    tensor.write(Int32Array.of(7), 8);
    expect(tensor.data[2]).toBe(7);
  });

  test('data stays valid after dispose(), the tensor does not', async () => {
    const tensor = NativeTensor.from('float32', Float32Array.of(1, 2), [2]);
    const { data } = tensor;
    tensor.dispose();
    tensor.dispose();
    await collect();
    expect(data).toEqual(Float32Array.of(1, 2));
    expect(() => tensor.data).toThrow('used after dispose()');
    const session = await createSession(identityModel('float32'));
    expect((await failureOf(session.run({ x: asTensor(tensor) }))).code).toBe('disposed');
    await session.release();
  });

  test('ranges and sizes are checked', () => {
    const tensor = NativeTensor.zeros('float32', [2]);
    expect(() => tensor.read(4, 5)).toThrow('byte range must be within [0, 8), received 4 + 5');
    expect(() => tensor.read(-1, 1)).toThrow('byte range');
    expect(() => tensor.write(new Uint8Array(9))).toThrow('byte range');
    expect(() => NativeTensor.from('float32', Float32Array.of(1), [2])).toThrow(
      'must have 8 bytes',
    );
    expect(() => NativeTensor.zeros('float32', [-1])).toThrow('dims must be >= 0');
    expect(() => NativeTensor.zeros('float32', [2 ** 40, 2 ** 40])).toThrow('too large');
  });
});

describe('memory stays flat', () => {
  test('over sessions that are released', async () => {
    const model = binaryModel('Add', 'float32');
    const x = floats([1, 2, 3, 4], [1, 4]);
    const cycle = async (count: number) => {
      for (let i = 0; i < count; i++) {
        const session = await createSession(model, { intraOpNumThreads: 1 });
        await session.run({ x, y: x });
        await session.release();
      }
      await collect();
      return resident();
    };
    // Sessions are made on four threads and freed on another, so the allocator needs some hundreds of them to settle. 400
    // that were kept would be 75 MiB.
    const before = await cycle(600);
    expect((await cycle(400)) - before).toBeLessThan(30);
  });

  test('over runs, with outputs left to the garbage collector', async () => {
    const session = await createSession(expandModel());
    const size = 2 ** 20;
    const feeds = {
      x: floats([3], [1]),
      shape: new ort.Tensor('int64', BigInt64Array.of(BigInt(size)), [1]),
    };
    const cycle = async (count: number) => {
      for (let i = 0; i < count; i++) await session.run(feeds);
      return resident();
    };
    const before = await cycle(100);
    // 400 outputs of 4 MiB are 1600 MiB.
    expect((await cycle(400)) - before).toBeLessThan(400);
    await collect();
    await session.release();
  });

  test('over NativeTensors that are disposed', async () => {
    const cycle = (count: number) => {
      for (let i = 0; i < count; i++) NativeTensor.zeros('float32', [2 ** 20]).dispose();
      return resident();
    };
    const before = cycle(50);
    expect(cycle(500) - before).toBeLessThan(12);
  });

  test('over runs that fail', async () => {
    const session = await createSession(binaryModel('Add', 'float32'), { logSeverityLevel: 4 });
    const feeds = {
      x: floats(new Array(8).fill(0), [2, 4]),
      y: floats(new Array(12).fill(0), [3, 4]),
    };
    const cycle = async (count: number) => {
      for (let i = 0; i < count; i++) await failureOf(session.run(feeds));
      await collect();
      return resident();
    };
    const before = await cycle(300);
    expect((await cycle(2000)) - before).toBeLessThan(12);
    await session.release();
  });
});

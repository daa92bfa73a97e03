import { describe, expect, test } from 'vitest';
import { FlaSession, NativeTensor } from '../../runtime/node/index.js';
import { binaryModel } from './support/models.js';
import { createSession, failureOf, floats } from './support/session.js';

// What concerns tensors on a GPU, as far as it can be seen without one; the rest is in test/cuda/ort_run.ts.
describe('a session on the CPU', () => {
  const create = () =>
    FlaSession.create(binaryModel('Add', 'float32'), {
      executionProviders: [{ name: 'fla', library: false }],
    });

  test('says where it computes, and gives zeros there', async () => {
    const session = await create();
    expect([session.device, session.deviceId]).toEqual(['cpu', -1]);
    const zeros = session.zeros('bfloat16', [2, 3]);
    expect([zeros.location, zeros.deviceId, zeros.byteLength]).toEqual(['cpu', -1, 12]);
    expect(zeros.data).toEqual(new Uint16Array(6));
    expect(await zeros.getData()).toBe(zeros.data);
    await session.dispose();
  });

  test('zeros of strings, and of a session that is gone', async () => {
    const session = await create();
    expect(() => session.zeros('string', [1])).toThrow('type must be numeric, received string');
    await session.dispose();
    expect(() => session.zeros('float32', [1])).toThrow('used after release()');
  });

  test('ignores preferredOutputLocation', async () => {
    const session = await createSession(binaryModel('Add', 'float32'), {
      preferredOutputLocation: 'gpu-buffer',
    });
    const feeds = Object.fromEntries(
      session.inputNames.map((name) => [name, floats([1, 2, 3, 4], [1, 4])]),
    );
    const results = await session.run(feeds);
    expect(results[session.outputNames[0]].location).toBe('cpu');
    await session.release();
  });
});

describe("device 'cuda'", () => {
  test('a number that is none', async () => {
    const error = await failureOf(
      createSession(binaryModel('Add', 'float32'), {}, { device: 'cuda', deviceId: -1 }),
    );
    // Without CUDA libraries that is said first.
    expect(error.message).toMatch(/deviceId must be an integer >= 0, received -1|lacks lib/);
  });
});

test('NativeTensor.assign takes all bytes or none', () => {
  const tensor = NativeTensor.zeros('float32', [3]);
  tensor.assign(Float32Array.of(1, 2, 3));
  expect([...tensor.data]).toEqual([1, 2, 3]);
  expect(() => tensor.assign(new Float32Array(2))).toThrow(
    'data must have 12 bytes for float32 [3], received 8',
  );
  expect([...tensor.data]).toEqual([1, 2, 3]);
});

import { Worker } from 'node:worker_threads';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { buildModel, makeNode, modelBytes } from '../../exporter/index.js';
import { NativeTensor, type RunOptions } from '../../runtime/node/index.js';
import { binaryModel, slowModel } from './support/models.js';
import { createSession, failureOf, floats } from './support/session.js';

const SIZE = 384;

function ones(size: number): ort.Tensor {
  return floats(new Array(size * size).fill(1), [size, size]);
}

/** Number of times a timer of 2 ms fires while `run` is under way, and how long that is in ms. */
async function ticksDuring(run: () => Promise<unknown>): Promise<{ ticks: number; ms: number }> {
  let ticks = 0;
  const timer = setInterval(() => ticks++, 2);
  const start = performance.now();
  await run();
  clearInterval(timer);
  return { ticks, ms: performance.now() - start };
}

describe('a long run', () => {
  let slow: ort.InferenceSession;
  beforeAll(async () => {
    slow = await createSession(slowModel(SIZE, 400), { intraOpNumThreads: 1, logSeverityLevel: 4 });
  });
  afterAll(() => slow.release());

  test('leaves the event loop free', async () => {
    const { ticks, ms } = await ticksDuring(() => slow.run({ x: ones(SIZE) }));
    expect(ms).toBeGreaterThan(60);
    // 2 ms timers on a busy machine; a blocked loop would give 0 or 1.
    expect(ticks).toBeGreaterThan(ms / 20);
  });

  test('does not hold up a short one of another session', async () => {
    const short = await createSession(binaryModel('Add', 'float32'));
    const order: string[] = [];
    const x = floats([1, 2, 3, 4], [1, 4]);
    await Promise.all([
      slow.run({ x: ones(SIZE) }).then(() => order.push('slow')),
      short.run({ x, y: x }).then(() => order.push('short')),
    ]);
    expect(order).toEqual(['short', 'slow']);
    await short.release();
  });

  test('is stopped by a signal', async () => {
    const controller = new AbortController();
    const running = slow.run({ x: ones(SIZE) }, { signal: controller.signal } as RunOptions);
    setTimeout(() => controller.abort(new Error('enough')), 20);
    await expect(running).rejects.toThrow('enough');
    expect((await slow.run({ x: ones(SIZE) })).y.data[0]).toBeCloseTo(1, 3);
  });

  test('does not start when the signal has fired', async () => {
    const options = { signal: AbortSignal.abort(new Error('too late')) } as RunOptions;
    await expect(slow.run({ x: ones(SIZE) }, options)).rejects.toThrow('too late');
  });

  test('with terminate set stops at once', async () => {
    const error = await failureOf(slow.run({ x: ones(SIZE) }, { terminate: true }));
    expect(error.message).toContain('terminate');
  });
});

describe('short runs, which stay on the event loop', () => {
  test('leave room for timers, one after the other', async () => {
    const session = await createSession(binaryModel('Add', 'float32'));
    const x = floats([1, 2, 3, 4], [1, 4]);
    const { ticks, ms } = await ticksDuring(async () => {
      for (let i = 0; i < 3000; i++) await session.run({ x, y: x });
    });
    expect(ticks).toBeGreaterThan(ms / 20);
    await session.release();
  });

  test('may have their inputs disposed at once', async () => {
    const session = await createSession(binaryModel('Add', 'float32'));
    const x = floats([1, 2, 3, 4], [1, 4]);
    for (let i = 0; i < 4; i++) {
      const y = NativeTensor.from('float32', Float32Array.of(i, i, i, i), [1, 4]);
      const running = session.run({ x, y: y as unknown as ort.Tensor });
      y.dispose();
      expect((await running).z.data[3]).toBe(4 + i);
    }
    await session.release();
  });

  test('are rejections when they fail, and the next one works', async () => {
    const model = buildModel({
      inputs: { x: ['float32', [4]], i: ['int64', [1]] },
      outputs: { y: ['float32', [1]] },
      nodes: [makeNode('Gather', ['x', 'i'], ['y'])],
    });
    const session = await createSession(modelBytes(model), { logSeverityLevel: 4 });
    const x = floats([1, 2, 3, 4], [4]);
    const run = (i: number) => session.run({ x, i: new ort.Tensor('int64', [BigInt(i)], [1]) });
    for (let i = 0; i < 4; i++) expect((await run(i)).y.data[0]).toBe(i + 1);
    for (const i of [9, 9])
      expect((await failureOf(run(i))).message).toContain('out of data bounds');
    expect((await run(2)).y.data[0]).toBe(3);
    await session.release();
  });
});

test('runs of one session at the same time give what they give alone', async () => {
  const session = await createSession(binaryModel('Mul', 'float32'));
  const inputs = Array.from({ length: 50 }, (_, i) => floats([i, i + 1, i + 2, i + 3], [1, 4]));
  const outputs = await Promise.all(inputs.map((x) => session.run({ x, y: x })));
  for (const [i, { z }] of outputs.entries()) {
    expect(z.data).toEqual((inputs[i].data as Float32Array).map((v) => v * v));
  }
  await session.release();
});

test('release waits for the runs in flight', async () => {
  const session = await createSession(slowModel(SIZE, 50), { intraOpNumThreads: 1 });
  let finished = 0;
  const runs = [1, 2].map(async () => {
    const { y } = await session.run({ x: ones(SIZE) });
    finished++;
    return y;
  });
  await session.release();
  expect(finished).toBe(2);
  for (const y of await Promise.all(runs)) expect(y.data[0]).toBeCloseTo(1, 3);
  expect((await failureOf(session.run({ x: ones(SIZE) }))).code).toBe('disposed');
});

test('a tensor that is disposed during the run stays alive until its end', async () => {
  const session = await createSession(slowModel(SIZE, 50), { intraOpNumThreads: 1 });
  const x = NativeTensor.from('float32', new Float32Array(SIZE * SIZE).fill(1), [SIZE, SIZE]);
  const running = session.run({ x: x as unknown as ort.Tensor });
  x.dispose();
  expect((await running).y.data[0]).toBeCloseTo(1, 3);
  await session.release();
});

describe('worker threads', () => {
  const size = 64;
  function start(cycles: number, depth: number): Worker {
    return new Worker(new URL('./support/worker.mjs', import.meta.url), {
      workerData: {
        script: new URL('./support/worker.ts', import.meta.url).href,
        cycles,
        size,
        depth,
      },
    });
  }
  function message(worker: Worker, key: string): Promise<unknown> {
    return new Promise((resolve, reject) => {
      worker.on('message', (value) => key in value && resolve(value[key]));
      worker.on('error', reject);
      worker.on('exit', (code) => reject(new Error(`the worker ended with ${code}`)));
    });
  }
  const exit = (worker: Worker) => new Promise((resolve) => worker.on('exit', resolve));

  test('several at once, beside the main thread', async () => {
    const session = await createSession(slowModel(size, 4));
    const workers = [start(6, 4), start(6, 4), start(6, 4)];
    const exits = Promise.all(workers.map(exit));
    const results = Promise.all(workers.map((worker) => message(worker, 'results')));
    for (let i = 0; i < 50; i++)
      expect((await session.run({ x: ones(size) })).y.data[0]).toBeCloseTo(1, 4);
    for (const values of (await results) as number[][]) {
      expect(values).toHaveLength(6);
      for (const value of values) expect(value).toBeCloseTo(1, 4);
    }
    expect(await exits).toEqual([0, 0, 0]);
    expect((await session.run({ x: ones(size) })).y.data[0]).toBeCloseTo(1, 4);
    await session.release();
  });

  test('one that is terminated in the middle of a run takes nothing with it', async () => {
    const session = await createSession(slowModel(size, 4));
    for (let i = 0; i < 3; i++) {
      const worker = start(1, 3000);
      await message(worker, 'running');
      expect(await worker.terminate()).toBe(1);
      expect((await session.run({ x: ones(size) })).y.data[0]).toBeCloseTo(1, 4);
    }
    await session.release();
  });
});

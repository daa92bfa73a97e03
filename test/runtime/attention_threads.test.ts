import { Worker } from 'node:worker_threads';
import { describe, expect, test } from 'vitest';
import { errorsOf } from './support/attention.js';

/** Of float32 arithmetic; the delta rules among the calls solve triangular systems. */
const LIMIT = 1e-5;

describe('LinearAttention in many threads', () => {
  test('sessions that run at the same time', async () => {
    const errors = await Promise.all(Array.from({ length: 24 }, (_, seed) => errorsOf(seed)));
    expect(Math.max(...errors.flat())).toBeLessThan(LIMIT);
  });

  test('worker threads beside the main thread', async () => {
    const script = new URL('./support/attention_worker.ts', import.meta.url).href;
    const answers = [100, 200, 300].map(
      (seed) =>
        new Promise<number[]>((resolve, reject) => {
          const workerData = { script, cycles: 6, seed };
          const worker = new Worker(new URL('./support/worker.mjs', import.meta.url), {
            workerData,
          });
          worker.on('message', ({ errors }) => resolve(errors));
          worker.on('error', reject);
          worker.on('exit', (code) => reject(new Error(`the worker ended with ${code}`)));
        }),
    );
    const here = Promise.all([0, 1, 2, 3].map(errorsOf));
    const errors = [...(await Promise.all(answers)), ...(await here)].flat();
    expect(errors).toHaveLength(3 * 6 * 4 + 4 * 4);
    expect(Math.max(...errors)).toBeLessThan(LIMIT);
  });
});

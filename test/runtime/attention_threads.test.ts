import { Worker } from 'node:worker_threads';
import { describe, expect, test } from 'vitest';
import { openCall, runIn } from '../support/kernels.js';
import { attentionCall, errorsOf } from './support/attention.js';
import { collect, resident } from './support/memory.js';

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

test('10,000 decode steps with prefills of any length in between leave memory flat', async () => {
  const prefill = attentionCall(3); // gated_delta
  const { past_state, ...sequences } = prefill.inputs;
  const part = (tokens: number) => ({
    ...prefill,
    inputs: {
      ...Object.fromEntries(
        Object.entries(sequences).map(([name, { shape, data }]) => [
          name,
          { shape: [1, tokens, shape[2]!], data: data.subarray(0, tokens * shape[2]!) },
        ]),
      ),
      past_state: past_state!,
    },
    declared: Object.fromEntries(
      Object.entries(sequences).map(([name, { shape }]) => [name, [1, 'T', shape[2]!]]),
    ),
  });
  const session = await openCall(part(1), { threads: 2 });
  const sweep = async (steps: number) => {
    for (let i = 0; i < steps; i++) {
      await runIn(session, part(i % 100 === 99 ? 1 + ((i * 7) % 150) : 1));
    }
    await collect();
    return resident();
  };
  await sweep(3000); // the heaps of V8 and of the allocator settle
  const before = await sweep(1000);
  expect((await sweep(10_000)) - before).toBeLessThan(6);
  session.dispose();
});

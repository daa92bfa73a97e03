import { test } from 'vitest';
import { openCall, runCall, runIn } from '../support/kernels.js';
import { attentionCall } from './support/attention.js';
import { collect, expectFlat, resident } from './support/memory.js';

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
  await expectFlat(() => sweep(10_000), 6);
  session.dispose();
});

test('sessions that come and go leave memory flat', async () => {
  const call = attentionCall(3);
  const cycle = async (sessions: number) => {
    for (let i = 0; i < sessions; i++) await runCall(call, { threads: 1 });
    await collect();
    return resident();
  };
  await cycle(200);
  // Were the library unloaded with each last session, its work memory would be lost: 30 MiB.
  await expectFlat(() => cycle(300), 10);
});

// Runs in a process of its own, so that its peak memory is one model's. Speaks with cost.ts.
import fs from 'node:fs';
import { seededRandom } from '../random.js';
import { LanguageModel } from '../text/language_model.js';
import type { CostJob, CostReply, CostRequest } from './cost.js';
import { feedsFor } from './outputs.js';
import { openSession } from './session.js';
import { median } from './statistics.js';

const DECODE_STEPS = 8;

interface Workload {
  run(): Promise<{ ms: number; decodeMs: number | null }>;
  stateBytes(): number;
}

async function tokenWorkload(job: CostJob): Promise<Workload> {
  const model = await LanguageModel.open(job.file, job.choice);
  const random = seededRandom(0);
  const ids = Array.from({ length: job.length }, () => Math.floor(random() * job.vocabulary!));
  const timed = async (work: () => Promise<unknown>) => {
    const start = performance.now();
    await work();
    return performance.now() - start;
  };
  return {
    run: async () => {
      await model.reset();
      const ms = await timed(() => model.prefill(ids, { chunk: job.chunk }));
      if (model.memory === 'none') return { ms, decodeMs: null };
      const steps: number[] = [];
      while (steps.length < DECODE_STEPS) steps.push(await timed(() => model.advance([ids[0]!])));
      return { ms, decodeMs: median(steps) };
    },
    stateBytes: () => model.stateBytes,
  };
}

async function plainWorkload(job: CostJob): Promise<Workload> {
  const { session } = await openSession(job.file, job.choice);
  const feeds = await feedsFor(job.file, session, { length: job.length, dims: job.dims });
  return {
    run: async () => {
      const start = performance.now();
      await session.run(feeds);
      return { ms: performance.now() - start, decodeMs: null };
    },
    stateBytes: () => 0,
  };
}

/**
 * Peak resident bytes of this process. Linux counts what the parent had before the child was started
 * into getrusage's figure, so the kernel's mark for this address space is read instead.
 */
function peakMemory(): number {
  if (process.platform === 'linux') {
    const status = fs.readFileSync('/proc/self/status', 'utf8');
    const kib = /^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1];
    if (kib) return Number(kib) * 1024;
  }
  return process.resourceUsage().maxRSS * 1024;
}

let workload: Workload | undefined;

async function answer(request: CostRequest): Promise<CostReply> {
  if (request.type === 'open') {
    const { job } = request;
    workload = await (job.vocabulary === null ? plainWorkload(job) : tokenWorkload(job));
    return { type: 'ready' };
  }
  const result = await workload!.run();
  return {
    type: 'done',
    ...result,
    stateBytes: workload!.stateBytes(),
    peakBytes: peakMemory(),
  };
}

process.on('message', (request: CostRequest) => {
  answer(request).then(
    (reply) => process.send!(reply),
    (error: Error) => process.send!({ type: 'failed', message: error.message } satisfies CostReply),
  );
});

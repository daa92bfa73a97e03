import { readFileSync, writeFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

const MIB = 2 ** 20;

setFlagsFromString('--expose_gc');
const gc = runInNewContext('gc') as () => void;

/** Collects garbage, finalizers included. */
export async function collect(): Promise<void> {
  for (let i = 0; i < 4; i++) {
    gc();
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Resident memory in MiB. */
export function resident(): number {
  return process.memoryUsage.rss() / MIB;
}

/**
 * Fails unless one of three sweeps in a row leaves less than `limit` MiB more than the one before: a leak shows in each of
 * them, a heap that V8 or the allocator happens to grow does not.
 */
export async function expectFlat(sweep: () => Promise<number>, limit: number): Promise<void> {
  const growth: number[] = [];
  for (let before = await sweep(); growth.length < 3; ) {
    const after = await sweep();
    growth.push(after - before);
    if (after - before < limit) return;
    before = after;
  }
  throw new Error(`every sweep left memory: ${growth.map((g) => g.toFixed(1)).join(', ')} MiB`);
}

/** Forgets the peak so far. */
export function resetPeak(): void {
  writeFileSync('/proc/self/clear_refs', '5');
}

/** Highest resident memory since resetPeak(), in MiB. */
export function peak(): number {
  const status = readFileSync('/proc/self/status', 'utf8');
  return Number(/VmHWM:\s+(\d+) kB/.exec(status)![1]) / 1024;
}

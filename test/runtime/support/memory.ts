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

/** Forgets the peak so far. */
export function resetPeak(): void {
  writeFileSync('/proc/self/clear_refs', '5');
}

/** Highest resident memory since resetPeak(), in MiB. */
export function peak(): number {
  const status = readFileSync('/proc/self/status', 'utf8');
  return Number(/VmHWM:\s+(\d+) kB/.exec(status)![1]) / 1024;
}

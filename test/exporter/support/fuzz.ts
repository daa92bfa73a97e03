import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { ROOT } from '../../support/models.js';

const SLOWEST_MS = 5000;
const START_MS = 60_000;
const HEAP_MIB = 1024;
/** Inputs that one process works through at most: starting it takes about as long as 200 of them. */
const PIECE = 2500;

/** Beside this module, compiled when it is. */
const CHILD = fileURLToPath(import.meta.url).replace(/fuzz(\.[jt]s)$/, 'fuzz_child$1');
const LOADER = CHILD.endsWith('.ts') ? ['--import', 'tsx'] : [];

export interface FuzzOptions {
  readonly seed: number;
  /** The inputs of the seed to run: from this one to below that one. */
  readonly from: number;
  readonly to: number;
  /** Processes at a time. */
  readonly jobs: number;
  onProgress?(progress: FuzzProgress): void;
}

export interface FuzzProgress {
  /** Inputs that were begun. */
  readonly begun: number;
  /** All inputs below this one are done: a run that was stopped goes on from here. */
  readonly doneBelow: number;
  readonly failures: readonly string[];
}

export interface FuzzOutcome {
  readonly counts: { read: number; refused: number; tooDeep: number };
  readonly failures: string[];
}

/** Runs the inputs in other processes. One that takes too long, or takes its process down, is a failure, and the next follow. */
export async function fuzz(options: FuzzOptions): Promise<FuzzOutcome> {
  const { seed, from, to, jobs, onProgress } = options;
  const counts = { read: 0, refused: 0, tooDeep: 0 };
  const failures: string[] = [];
  const running = new Set<number>();
  let next = from;
  let begun = 0;
  const begin = () => {
    begun++;
    report();
  };
  const report = () =>
    onProgress?.({ begun, doneBelow: Math.min(next, ...running), failures: [...failures] });
  const piece = Math.min(PIECE, Math.ceil((to - from) / jobs));
  const job = async () => {
    while (next < to) {
      const start = next;
      const end = Math.min(start + piece, to);
      next = end;
      running.add(start);
      for (let at = start; at < end; ) {
        const part = await runProcess(seed, at, end, begin);
        failures.push(...part.failures);
        for (const name of ['read', 'refused', 'tooDeep'] as const)
          counts[name] += part.counts?.[name] ?? 0;
        at = part.next;
      }
      running.delete(start);
    }
  };
  await Promise.all(Array.from({ length: jobs }, job));
  report();
  return { counts, failures };
}

interface Part {
  counts?: FuzzOutcome['counts'];
  failures: string[];
  /** The first input that is left. */
  next: number;
}

/** One process, which is stopped when an input takes too long. */
function runProcess(seed: number, from: number, to: number, begin: () => void): Promise<Part> {
  const folder = fs.mkdtempSync(path.join(fs.realpathSync(os.tmpdir()), 'fla-fuzz-'));
  const child = spawn(
    process.execPath,
    [
      `--max-old-space-size=${HEAP_MIB}`,
      ...LOADER,
      ...[CHILD, folder, String(seed), String(from), String(to)],
    ],
    { cwd: ROOT, stdio: ['ignore', 'pipe', 'pipe'] },
  );
  const part: Part = { failures: [], next: to };
  let last: number | undefined;
  let rest = '';
  let errors = '';
  let watchdog: NodeJS.Timeout | undefined;
  let what = '';
  const lastInput = () =>
    last === undefined ? 'the start' : `input ${last} of seed ${seed}${what && ` (${what})`}`;
  let stopped = false;
  const stop = (why: string) => {
    stopped = true;
    part.failures.push(`${lastInput()} ${why}`);
    child.kill('SIGKILL');
  };
  /** On a busy machine, time is that of the processor, up to a point. */
  const watch = (limit: number) => {
    clearTimeout(watchdog);
    const start = performance.now();
    const used = processorMs(child.pid!);
    const look = () => {
      const passed = performance.now() - start;
      const worked = processorMs(child.pid!) - used;
      if (worked >= limit || passed >= 6 * limit || Number.isNaN(worked)) {
        stop(`took ${Math.round(passed)} ms, ${Math.round(worked)} ms of the processor`);
      } else watchdog = setTimeout(look, limit - worked);
    };
    watchdog = setTimeout(look, limit);
  };
  watch(START_MS);
  child.stderr.on('data', (data: Buffer) => (errors += data));
  child.stdout.on('data', (data: Buffer) => {
    const lines = (rest + data).split('\n');
    rest = lines.pop()!;
    for (const line of lines) {
      if (line.startsWith('> ')) {
        last = Number(line.slice(2));
        what = '';
        begin();
        watch(START_MS); // it is still to be made
      } else if (line.startsWith('= ')) {
        what = line.slice(2);
        watch(SLOWEST_MS);
      } else if (line.startsWith('! ')) part.failures.push(line.slice(2));
      else if (line.startsWith('{')) part.counts = JSON.parse(line);
    }
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => {
      clearTimeout(watchdog);
      fs.rmSync(folder, { recursive: true, force: true });
      if (!part.counts) {
        if (!stopped)
          part.failures.push(
            `${lastInput()}: ended with ${signal ?? code}: ${errors.slice(-2000)}`,
          );
        if (last !== undefined) part.next = last + 1;
      }
      resolve(part);
    });
  });
}

/** What a process has used of the processors, all its threads together; NaN where the system does not tell. */
function processorMs(pid: number): number {
  try {
    const fields = fs
      .readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /, '')
      .split(' ');
    return (Number(fields[11]) + Number(fields[12])) * 10; // user and system, in ticks of 10 ms
  } catch {
    return Number.NaN;
  }
}

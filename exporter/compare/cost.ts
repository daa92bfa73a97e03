import { type ChildProcess, fork } from 'node:child_process';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { CostRow } from './report/schema.js';
import type { SessionChoice } from './session.js';
import { median } from './statistics.js';

export type { CostRow } from './report/schema.js';

/** What a child process is to measure. */
export interface CostJob {
  file: string;
  choice: SessionChoice;
  length: number;
  dims: Readonly<Record<string, number>>;
  /** Token ids are drawn below this; null for what is no language model. */
  vocabulary: number | null;
  /** Tokens read at a time by models that carry state. */
  chunk: number;
}

export type CostRequest = { type: 'open'; job: CostJob } | { type: 'run' };

interface Timing {
  ms: number;
  decodeMs: number | null;
  stateBytes: number;
  peakBytes: number;
}

export type CostReply =
  | { type: 'ready' }
  | ({ type: 'done' } & Timing)
  | { type: 'failed'; message: string };

export interface CostOptions {
  original: Pick<CostJob, 'file' | 'choice'>;
  rewritten: Pick<CostJob, 'file' | 'choice'>;
  lengths: readonly number[];
  vocabulary: number | null;
  dims?: Readonly<Record<string, number>>;
  /** Default 512. */
  chunk?: number;
  /** Timed runs per model and length. Default 5; fewer when they take more than 15 s together. */
  runs?: number;
  onProgress?: (done: number, total: number, length: number) => void;
  signal?: AbortSignal;
}

const SLOW_MS = 1500; // runs this long need no warm-up
const BUDGET_MS = 15_000; // for one length; slow models are timed less often

/**
 * Measures both models at each length, every one in a fresh process, runs of the two taking turns.
 *
 * @throws FlaError `aborted` when the signal fires; a model that fails leaves nulls and its message
 */
export async function measureCost(options: CostOptions): Promise<CostRow[]> {
  const rows: CostRow[] = [];
  for (const length of options.lengths) {
    options.onProgress?.(rows.length, options.lengths.length, length);
    rows.push(await measureLength(length, options));
  }
  options.onProgress?.(rows.length, rows.length, options.lengths.at(-1) ?? 0);
  return rows;
}

async function measureLength(length: number, options: CostOptions): Promise<CostRow> {
  const { dims = {}, chunk = 512, vocabulary, signal } = options;
  const children = [options.original, options.rewritten].map(
    (which) => new CostChild({ ...which, length, dims, chunk, vocabulary }, signal),
  ) as [CostChild, CostChild];
  try {
    for (const child of children) await child.open();
    const [a, b] = await takeTurns(children, options.runs ?? 5);
    return costRow(length, children, a, b);
  } finally {
    for (const child of children) child.close();
    signal?.throwIfAborted();
  }
}

/** The timings of either child; the first run of fast models only warms up. */
async function takeTurns(
  children: readonly [CostChild, CostChild],
  runs: number,
): Promise<[Timing[], Timing[]]> {
  const timings: [Timing[], Timing[]] = [[], []];
  const start = performance.now();
  const turn = async () => {
    for (const [i, child] of children.entries()) {
      const timing = await child.run();
      if (timing) timings[i]!.push(timing);
    }
  };
  await turn();
  if (performance.now() - start < SLOW_MS) for (const list of timings) list.length = 0;
  while (Math.max(timings[0].length, timings[1].length) < runs) {
    const late = timings.some((t) => t.length > 0) && performance.now() - start > BUDGET_MS;
    if (late || children.every((c) => c.error !== undefined)) break;
    await turn();
  }
  return timings;
}

function costRow(
  length: number,
  [a, b]: readonly [CostChild, CostChild],
  original: readonly Timing[],
  rewritten: readonly Timing[],
): CostRow {
  const ms = (t: readonly Timing[]) => (t.length > 0 ? median(t.map((x) => x.ms)) : null);
  const decode = (t: readonly Timing[]) => {
    const steps = t.flatMap((x) => (x.decodeMs === null ? [] : [x.decodeMs]));
    return steps.length > 0 ? median(steps) : null;
  };
  const [x, y] = [ms(original), ms(rewritten)];
  return {
    length,
    original_ms: x,
    rewritten_ms: y,
    speedup: x !== null && y !== null ? x / y : null,
    original_decode_ms: decode(original),
    rewritten_decode_ms: decode(rewritten),
    original_peak_bytes: original.at(-1)?.peakBytes ?? null,
    rewritten_peak_bytes: rewritten.at(-1)?.peakBytes ?? null,
    original_state_bytes: original.at(-1)?.stateBytes ?? null,
    rewritten_state_bytes: rewritten.at(-1)?.stateBytes ?? null,
    runs: Math.max(original.length, rewritten.length),
    ...(a.error && { original_error: a.error }),
    ...(b.error && { rewritten_error: b.error }),
  };
}

/** A child process with one model. Once it has failed it answers nothing more. */
class CostChild {
  error?: string;
  private readonly child: ChildProcess;
  private settle: ((reply: CostReply) => void) | undefined;
  private stderr = '';

  constructor(
    private readonly job: CostJob,
    signal: AbortSignal | undefined,
  ) {
    const here = fileURLToPath(import.meta.url);
    const script = path.join(path.dirname(here), `cost_child${path.extname(here)}`);
    this.child = fork(script, {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      killSignal: 'SIGKILL',
      signal,
    });
    this.child.stderr!.on('data', (data: Buffer) => {
      this.stderr = (this.stderr + data).slice(-500);
    });
    this.child.on('message', (reply: CostReply) => this.settle?.(reply));
    this.child.on('error', (error) => this.settle?.({ type: 'failed', message: error.message }));
    this.child.on('exit', (code, killed) => {
      const why = killed ? `was killed by ${killed}` : `ended with code ${code}`;
      const message = `the measuring process ${why} ${this.stderr}`.trim();
      this.settle?.({ type: 'failed', message });
    });
  }

  async open(): Promise<void> {
    await this.ask({ type: 'open', job: this.job });
  }

  async run(): Promise<Timing | undefined> {
    const reply = await this.ask({ type: 'run' });
    return reply?.type === 'done' ? reply : undefined;
  }

  close(): void {
    this.settle = undefined;
    this.child.kill('SIGKILL');
  }

  private async ask(request: CostRequest): Promise<CostReply | undefined> {
    if (this.error !== undefined) return undefined;
    const reply = await new Promise<CostReply>((resolve) => {
      this.settle = resolve;
      this.child.send(request, (error) => {
        if (error) resolve({ type: 'failed', message: error.message });
      });
    });
    if (reply.type !== 'failed') return reply;
    this.error = reply.message;
    return undefined;
  }
}

import cliProgress from 'cli-progress';
import { formatTable } from './table.js';

/** What commands talk to. */
export interface Io {
  out(text: string): void;
  err(text: string): void;
  /** Fires on Ctrl-C. */
  signal: AbortSignal;
  /** Progress is drawn only here. */
  interactive: boolean;
  /** Characters that fit into a line of output. */
  columns: number;
}

const DEFAULT_COLUMNS = 120;

/** This process's own streams. */
export function processIo(signal: AbortSignal): Io {
  return {
    out: (text) => process.stdout.write(text),
    err: (text) => process.stderr.write(text),
    signal,
    interactive: process.stderr.isTTY === true,
    columns: process.stdout.columns || Number(process.env.COLUMNS) || DEFAULT_COLUMNS,
  };
}

/** Prints a value as JSON; numbers that JSON lacks become null. */
export function printJson(io: Io, value: unknown): void {
  io.out(`${JSON.stringify(value, null, 2)}\n`);
}

/** Prints rows under a head, as wide as the terminal at most. */
export function printTable(
  io: Io,
  head: readonly string[],
  rows: readonly (readonly string[])[],
): void {
  io.out(`${formatTable(head, rows, io.columns)}\n`);
}

const PATIENCE_MS = 700;

/** A bar on the terminal for work that turns out to take a while; elsewhere nothing. */
export class Progress {
  private readonly start = performance.now();
  private bar: cliProgress.SingleBar | undefined;
  private stage = '';
  private waiting: NodeJS.Timeout | undefined;

  constructor(private readonly io: Io) {}

  readonly update = (stage: string, done: number, total: number): void => {
    clearTimeout(this.waiting);
    if (!this.io.interactive || total === 0) return;
    const patience = PATIENCE_MS - (performance.now() - this.start);
    if (patience > 0) {
      this.waiting = setTimeout(() => this.draw(stage, done, total), patience);
    } else {
      this.draw(stage, done, total);
    }
  };

  /** Wipes the bar. */
  end(): void {
    clearTimeout(this.waiting);
    this.bar?.stop();
    this.bar = undefined;
  }

  private draw(stage: string, done: number, total: number): void {
    if (stage !== this.stage) this.end();
    this.stage = stage;
    this.bar ??= this.begin(stage, total);
    this.bar.setTotal(total);
    this.bar.update(done);
  }

  private begin(stage: string, total: number): cliProgress.SingleBar {
    const bar = new cliProgress.SingleBar(
      {
        format: `{bar} {value}/{total} ${stage}, {eta_formatted} left`,
        clearOnComplete: true,
        stream: process.stderr,
      },
      cliProgress.Presets.shades_classic,
    );
    bar.start(total, 0);
    return bar;
  }
}

/** Runs work with a progress bar that is gone when it ends, however it ends. */
export async function withProgress<T>(
  io: Io,
  work: (update: Progress['update']) => Promise<T>,
): Promise<T> {
  const progress = new Progress(io);
  try {
    return await work(progress.update);
  } finally {
    progress.end();
  }
}

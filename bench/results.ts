/**
 * Result files: every bench writes `bench/results/<name>-<machine>.json` with the same columns, and
 * docs/benchmarks.md is made from those files (`npm run bench:docs`).
 */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { ROOT } from '../test/support/models.js';

/** One measured configuration: ours, and a peer in the same run. */
export interface Row {
  op: string;
  B: number;
  T: number;
  H: number;
  K: number;
  V: number;
  dtype: string;
  /** How it was run: prefill, decode, ... */
  mode: string;
  /** Median, milliseconds. */
  ms: number;
  /** Peer by name; peer_ms and ratio are null where it was not run, and `note` says why. */
  peer: string;
  peer_ms: number | null;
  /** peer_ms / ms: above 1, we are faster. */
  ratio: number | null;
  /** Bytes that the op must move: each input read once, each output written once. */
  bytes: number;
  /** bytes / ms over the copy bandwidth measured in the same run. */
  fraction_of_copy: number;
  /** Memory that the kernel needs beside inputs and outputs; null where it was not measured. */
  workspace_bytes: number | null;
  note?: string;
}

export interface ResultFile {
  name: string;
  /** What was measured and how, one or two sentences, printed above the table. */
  about: string;
  machine: string;
  device: string;
  date: string;
  commit: string;
  /** Names and versions of everything that took part. */
  versions: Record<string, string>;
  copy_bytes_per_second: number;
  /** Relative errors against float64 of ours and the peer's, on the same inputs, where they were compared. */
  errors?: Record<string, { ours: number; peer: number }>;
  rows: Row[];
}

export const RESULTS = path.join(ROOT, 'bench/results');

/** A short name of this machine for file names: architecture, processor model, cores. */
export function machineName(): string {
  const model = os.cpus()[0]?.model ?? 'cpu';
  const words = model.replace(/\(.*?\)|CPU|Processor|@.*|\d+-Core/g, '').trim();
  return `${os.arch()}-${words}-${os.cpus().length}c`.toLowerCase().replace(/[^a-z0-9]+/g, '-');
}

/** The commit measured; `+` marks uncommitted changes to sources. */
export function commit(): string {
  const git = (...args: string[]) =>
    execFileSync('git', args, {
      cwd: ROOT,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  try {
    const changed = git(
      'status',
      '--porcelain',
      '--',
      'ops',
      'cuda',
      'wgsl',
      'runtime',
      'bench/cpu',
      'bench/webgpu',
    );
    return git('rev-parse', '--short', 'HEAD') + (changed ? '+' : '');
  } catch {
    // A packed bench has its commit in a file.
    const file = path.join(ROOT, 'COMMIT');
    return fs.existsSync(file) ? fs.readFileSync(file, 'utf8').trim() : 'unknown';
  }
}

export function packageVersion(name: string): string {
  const file = path.join(ROOT, 'node_modules', name, 'package.json');
  return (JSON.parse(fs.readFileSync(file, 'utf8')) as { version: string }).version;
}

/** Writes a result file, under a temporary name first. Returns its path. */
export function writeResults(result: ResultFile): string {
  fs.mkdirSync(RESULTS, { recursive: true });
  const file = path.join(RESULTS, `${result.name}-${result.machine}.json`);
  const { rows, ...head } = result;
  const lines = rows.map((row) => `    ${JSON.stringify(row)}`).join(',\n');
  const body = `${JSON.stringify(head, null, 2).slice(0, -2)},\n  "rows": [\n${lines}\n  ]\n}\n`;
  fs.writeFileSync(`${file}.tmp`, body);
  fs.renameSync(`${file}.tmp`, file);
  return file;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const mid = sorted.length >> 1;
  return sorted.length % 2 ? sorted[mid]! : (sorted[mid - 1]! + sorted[mid]!) / 2;
}

/** Calls shorter than this are timed in groups that last about as long. */
const GROUP_MS = 10;

/**
 * Times several functions in turn, a, b, a, b, ..., so that a machine that speeds up or slows down
 * does so for all of them. Returns the median milliseconds of one call of each.
 *
 * @param budgetMs stop after about this long (at least `minRounds` rounds are run)
 */
export async function interleaved(
  fns: readonly (() => Promise<unknown>)[],
  { budgetMs = 2000, minRounds = 5, maxRounds = 2000 } = {},
): Promise<number[]> {
  for (const fn of fns) await fn(); // warm up
  // Short calls are timed many at a time, after as many that are not: those meet the caches and, for some milliseconds,
  // the spinning threads of the session that ran before.
  const calls: number[] = [];
  for (const fn of fns) calls.push(Math.max(1, Math.ceil(GROUP_MS / (await fastest(fn)))));
  const samples: number[][] = fns.map(() => []);
  const start = performance.now();
  for (let round = 0; round < maxRounds; round++) {
    if (round >= minRounds && performance.now() - start > budgetMs) break;
    for (const [i, fn] of fns.entries()) {
      for (let c = 1; c < calls[i]!; c++) await fn();
      const t0 = performance.now();
      for (let c = 0; c < calls[i]!; c++) await fn();
      samples[i]!.push((performance.now() - t0) / calls[i]!);
    }
  }
  return samples.map(median);
}

/** Milliseconds of the fastest of five calls, fewer when they are slow. */
async function fastest(fn: () => Promise<unknown>): Promise<number> {
  let best = Number.POSITIVE_INFINITY;
  for (let n = 0; n < 5 && !(best > 10 && n > 0); n++) {
    const t0 = performance.now();
    await fn();
    best = Math.min(best, performance.now() - t0);
  }
  return best;
}

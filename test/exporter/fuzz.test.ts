/**
 * Mutated models are read, inspected, rewritten and written, or refused with an error of one line: no crash, no hang, and no file
 * outside the model's folder. FLA_FUZZ=200000 runs that many; FLA_FUZZ_SEED starts elsewhere.
 */
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect, it } from 'vitest';
import { loadModel } from '../../exporter/index.js';
import { ROOT } from '../support/models.js';

const INPUTS = Number(process.env.FLA_FUZZ ?? 5000);
const SEED = Number(process.env.FLA_FUZZ_SEED ?? 20261125);
const SLOWEST_MS = 5000;
const HEAP_MIB = 1024;

interface Outcome {
  counts?: { read: number; refused: number; tooDeep: number };
  failures: string[];
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

/** Runs the inputs in another process, which is stopped when one of them takes too long. */
function fuzz(folder: string): Promise<Outcome> {
  const child = spawn(
    process.execPath,
    [
      `--max-old-space-size=${HEAP_MIB}`,
      ...['--import', 'tsx', path.join(ROOT, 'test/exporter/support/fuzz_child.ts')],
      ...[folder, String(SEED), '0', String(INPUTS)],
    ],
    { cwd: ROOT, stdio: ['ignore', 'pipe', 'pipe'] },
  );
  const outcome: Outcome = { failures: [] };
  let last = 'the start';
  let rest = '';
  let errors = '';
  let watchdog: NodeJS.Timeout | undefined;
  const stop = (why: string) => {
    outcome.failures.push(`${last} ${why}`);
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
  watch(60_000);
  child.stderr.on('data', (data: Buffer) => (errors += data));
  child.stdout.on('data', (data: Buffer) => {
    const lines = (rest + data).split('\n');
    rest = lines.pop()!;
    for (const line of lines) {
      if (line.startsWith('> ')) {
        last = `input ${line.slice(2)} of seed ${SEED}`;
        watch(SLOWEST_MS);
      } else if (line.startsWith('! ')) outcome.failures.push(line.slice(2));
      else if (line.startsWith('{')) outcome.counts = JSON.parse(line);
    }
  });
  return new Promise((resolve) => {
    child.on('close', (code, signal) => {
      clearTimeout(watchdog);
      if (!outcome.counts && outcome.failures.length === 0) {
        outcome.failures.push(`${last}: ended with ${signal ?? code}: ${errors.slice(-2000)}`);
      }
      resolve(outcome);
    });
  });
}

it(
  `${INPUTS} mutated models are rewritten, or refused with an error that says why`,
  async () => {
    const folder = fs.mkdtempSync(path.join(fs.realpathSync(os.tmpdir()), 'fla-fuzz-'));
    try {
      const { counts, failures } = await fuzz(folder);
      expect(failures).toEqual([]);
      // Were all of them refused or none, they would show nothing.
      expect(counts!.read).toBeGreaterThan(INPUTS / 10);
      expect(counts!.refused).toBeGreaterThan(INPUTS / 10);
    } finally {
      fs.rmSync(folder, { recursive: true, force: true });
    }
  },
  120_000 + INPUTS * 60,
);

/** A model whose only node holds a graph with a node that holds a graph, and so on, written without a recursion. */
function nested(depth: number): Buffer {
  const varint = (n: number): number[] => (n < 128 ? [n] : [(n & 127) | 128, ...varint(n >>> 7)]);
  const field = (number: number, content: Buffer) =>
    Buffer.concat([Buffer.from([(number << 3) | 2, ...varint(content.length)]), content]);
  let graph: Buffer = field(2, Buffer.from('leaf'));
  for (let i = 0; i < depth; i++) {
    const attribute = Buffer.concat([field(1, Buffer.from('then_branch')), field(6, graph)]);
    graph = field(1, Buffer.concat([field(4, Buffer.from('If')), field(5, attribute)]));
  }
  return Buffer.concat([field(7, graph), field(8, Buffer.from([0x10, 17]))]);
}

it.each([10, 100, 2000])('graphs nested %d deep', (depth) => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-nested-'));
  const file = path.join(folder, 'deep.onnx');
  fs.writeFileSync(file, nested(depth));
  try {
    if (depth === 10) expect(loadModel(file).graph.nodes).toHaveLength(1);
    else expect(() => loadModel(file)).toThrow(/not a readable ONNX model.*depth/);
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
});

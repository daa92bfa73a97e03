/**
 * Times the CUDA kernels beside their peers on one GPU, all in one run, and prints tables and result files:
 *
 * - kernels alone (bench.cu), against flash-linear-attention (Triton) and PyTorch's softmax attention (peers.py)
 * - their errors against float64 on the same inputs, ours and flash-linear-attention's
 * - through ONNX Runtime (ort.ts), against com.microsoft.LinearAttention and the softmax language model
 *
 *   npm run bench:cuda -- [--fla <folder of flash-linear-attention>] [--out <folder>] [--only kernels|ort] [--seconds <n>] [--built]
 *
 * Needs an NVIDIA GPU and nvcc (`--built`: takes the programs in build/cuda as they are); peers need python3 with PyTorch
 * and Triton; `ort` needs `npm run build:cuda` and ONNX Runtime's CUDA provider. What is missing is left out, and said.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import Table from 'cli-table3';
import { ROOT } from '../../test/support/models.js';
import { commit, type ResultFile, type Row, writeResults } from '../results.js';
import { benchOrt } from './ort.js';

const { values: flags } = parseArgs({
  options: {
    fla: { type: 'string' },
    out: { type: 'string' },
    only: { type: 'string' },
    built: { type: 'boolean', default: false },
    seconds: { type: 'string', default: '120' },
  },
});
const PROGRAMS = path.join(ROOT, 'build/cuda');
const PEERS = path.join(ROOT, 'bench/cuda/peers.py');
const OPS = ['linear', 'linear(elu1)', 'gated', 'gla', 'delta', 'gated_delta', 'kda'];
const TYPES: Record<string, string> = { f32: 'float32', f16: 'float16', bf16: 'bfloat16' };
const SDPA = 'torch SDPA (softmax)';

interface Line {
  op: string;
  type: string;
  B: number;
  T: number;
  H: number;
  D: number;
  ms: number;
  graph_ms: number | null;
  bytes: number;
  workspace: number;
  device: string;
  copy_TBps: number;
  error: number | string;
  ours: number;
  torch: string;
  triton: string;
}

function lines(text: string): Partial<Line>[] {
  return text
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Partial<Line>);
}

const say = (text: string) => process.stderr.write(`${text}\n`);

function program(name: string, ...args: string[]): Partial<Line>[] {
  const maxBuffer = 1 << 26;
  return lines(execFileSync(path.join(PROGRAMS, name), args, { encoding: 'utf8', maxBuffer }));
}

function build(): void {
  if (flags.built) return;
  if (spawnSync('nvcc', ['--version']).error) throw new Error('bench:cuda: nvcc was not found');
  say('Building the kernels; this takes minutes');
  const jobs = String(os.availableParallelism());
  execFileSync('make', ['-f', 'test/cuda/Makefile', '-j', jobs], { cwd: ROOT, stdio: 'ignore' });
}

// ---- peers ----

function python(...args: string[]): Partial<Line>[] {
  const { stdout, stderr, status } = spawnSync('python3', [PEERS, flags.fla as string, ...args], {
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  });
  if (status !== 0) say(`peers.py ${args[0]} failed: ${stderr.trim().split('\n').at(-1)}`);
  return lines(stdout);
}

/** Triton compiles every kernel on first use; all at once, in processes of their own, takes a fraction of the time. */
async function compilePeers(shapes: readonly string[]): Promise<void> {
  say('Compiling the peers');
  const small = [...new Set(shapes.map((shape) => shape.split('x').slice(2).join('x')))];
  const jobs = small.flatMap((tail) => OPS.map((op) => [`1x4096x${tail}`, op]));
  await Promise.all(
    jobs.map(
      ([shape, op]) =>
        new Promise((resolve) =>
          spawn('python3', [PEERS, flags.fla as string, 'time', shape!, op!, '--compile-only'], {
            stdio: 'ignore',
          }).on('close', resolve),
        ),
    ),
  );
}

// ---- kernels alone ----

const key = (op: string, line: Partial<Line>) => [op, line.B, line.T, line.H, line.D].join();

async function kernels(): Promise<ResultFile> {
  const ours = program('bench', '', flags.seconds);
  const device = ours.find((line) => line.device);
  if (!device?.device || !device.copy_TBps) throw new Error('bench:cuda: no CUDA device');
  const copy = device.copy_TBps * 1e12;
  const rows = (ours as Line[]).filter((line) => line.ms);
  const prefill = rows.filter((row) => row.T > 1 && row.type === 'bf16');
  const shapes = [...new Set(prefill.map(({ B, T, H, D }) => `${B}x${T}x${H}x${D}`))];
  let peers: Partial<Line>[] = [];
  if (flags.fla) {
    await compilePeers(shapes);
    say('Timing the peers');
    peers = python('time', shapes.join());
  } else {
    say('Without --fla: peers are left out');
  }
  const peerLines = new Map(peers.filter((l) => l.op).map((l) => [key(l.op as string, l), l]));

  const result = rows.flatMap((line): Row[] => {
    const peerOp = OPS.includes(line.op) ? line.op : line.op.replace(/\(.*/, '');
    const entry = (
      mode: string,
      ms: number,
      peer: string,
      peerMs: number | null,
      note?: string,
    ) => ({
      op: `LinearAttention ${line.op}`,
      B: line.B,
      T: line.T,
      H: line.H,
      K: line.D,
      V: line.D,
      dtype: TYPES[line.type] ?? line.type,
      mode,
      ms,
      peer,
      peer_ms: peerMs,
      ratio: peerMs && Number((peerMs / ms).toPrecision(3)),
      bytes: line.bytes,
      fraction_of_copy: Number((line.bytes / (ms / 1000) / copy).toPrecision(3)),
      workspace_bytes: line.workspace,
      ...(note && { note }),
    });
    const of = (op: string) => (line.type === 'bf16' ? peerLines.get(key(op, line)) : undefined);
    const mode = line.T === 1 ? 'decode' : 'prefill';
    const fla = of(peerOp);
    const sdpa = line.op === 'linear' ? of('sdpa') : undefined;
    const missing = fla?.error ? String(fla.error) : fla ? undefined : 'not run';
    return [
      entry(mode, line.ms, 'flash-linear-attention', fla?.ms ?? null, missing),
      entry(
        `${mode}, CUDA graph`,
        line.graph_ms as number,
        'flash-linear-attention',
        fla?.graph_ms ?? null,
        missing ?? (fla?.graph_ms ? undefined : 'cannot be captured'),
      ),
      ...(sdpa?.ms ? [entry(mode, line.ms, SDPA, sdpa.ms)] : []),
    ];
  });
  const versions = peers.find((line) => line.torch);
  return {
    name: 'cuda',
    about:
      'Kernels alone, float32 state out (16-bit in decode rows of float16), inputs rotating among sets larger than the L2 cache; medians of single calls timed with ' +
      "events, and of replayed CUDA graphs. The gates are those of FLA's own benchmark (log sigmoid of normals, a quarter of it per key); `slow` is a gate that " +
      'forgets nothing, which our first pass cannot use to stop early; `elu1` maps queries and keys and divides by the normaliser. FLA (Triton) at its defaults.',
    machine: process.env.FLA_MACHINE ?? 'gpu',
    device: device.device,
    date: new Date().toISOString().slice(0, 10),
    commit: process.env.FLA_COMMIT ?? commit(),
    versions: {
      cuda: '13.0',
      ...(versions && {
        'flash-linear-attention': process.env.FLA_PEER_COMMIT ?? 'see --fla',
        triton: String(versions.triton),
        torch: String(versions.torch),
      }),
    },
    copy_bytes_per_second: copy,
    rows: result,
  };
}

/** Prints errors against float64 beside the peer's, and fails where ours is larger. */
function errors(): Record<string, { ours: number; peer: number }> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'onnx-fla-errors-'));
  execFileSync(path.join(PROGRAMS, 'bench'), ['export', folder]);
  const table = new Table({ head: ['1x16384x8x64, bfloat16', 'error', 'FLA'] });
  const found: Record<string, { ours: number; peer: number }> = {};
  for (const { op, ours, error } of python('errors', folder)) {
    if (!op || typeof error !== 'number' || ours === undefined) continue;
    found[op] = { ours, peer: error };
    table.push([op, ours.toExponential(2), error.toExponential(2)]);
    // The same roundings give the same error but for its last digits.
    if (!(ours <= 1.001 * error)) {
      say(`${op}: our error ${ours} is larger than the peer's ${error}`);
      process.exitCode = 1;
    }
  }
  fs.rmSync(folder, { recursive: true });
  console.log(table.toString());
  return found;
}

// ---- output ----

function print({ rows, device }: ResultFile): void {
  const table = new Table({ head: [device, 'mode', 'ms', 'peer', 'peer ms', 'ratio', 'of copy'] });
  const digits = (n: number | null) => (n === null ? '' : String(Number(n.toPrecision(3))));
  for (const row of rows) {
    table.push([
      `${row.op.replace('LinearAttention ', '')} ${row.B}x${row.T}x${row.H}x${row.K} ${row.dtype}`,
      row.mode,
      digits(row.ms),
      row.peer,
      digits(row.peer_ms),
      row.ratio ? `${digits(row.ratio)}x` : (row.note ?? ''),
      digits(row.fraction_of_copy),
    ]);
  }
  console.log(table.toString());
}

function save(result: ResultFile): void {
  print(result);
  if (!flags.out) {
    say(writeResults(result));
    return;
  }
  fs.mkdirSync(flags.out, { recursive: true });
  fs.writeFileSync(path.join(flags.out, `${result.name}.json`), JSON.stringify(result, null, 2));
}

build();
if (flags.only !== 'ort') {
  const result = await kernels();
  if (flags.fla) result.errors = errors();
  save(result);
}
if (flags.only !== 'kernels') save(await benchOrt(path.join(PROGRAMS, 'ort_op')));
process.exit();

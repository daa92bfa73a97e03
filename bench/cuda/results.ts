/**
 * Makes a result file of what bench/cuda/bench.cu printed, beside a peer's times from the same run:
 *   npx tsx bench/cuda/results.ts <bench.jsonl> <peer.jsonl> <machine> <commit>
 * A line of the peer's file holds op, B, T, H, D, ms; others are ignored.
 */
import fs from 'node:fs';
import { type Row, writeResults } from '../results.js';

interface Line {
  op: string;
  type: string;
  B: number;
  T: number;
  H: number;
  D: number;
  ms: number;
  graph_ms: number;
  bytes: number;
  of_copy: number;
  workspace: number;
  device: string;
  copy_TBps: number;
}

const PEER = 'flash-linear-attention';
const types: Record<string, string> = { f32: 'float32', f16: 'float16', bf16: 'bfloat16' };
const peerNames: Record<string, string> = { 'gated_scalar(simple_gla)': 'gated' };
const [benchFile, peerFile, machine, commit] = process.argv.slice(2);
if (!benchFile || !peerFile || !machine || !commit) {
  throw new Error('usage: results.ts <bench.jsonl> <peer.jsonl> <machine> <commit>');
}

const read = (file: string) =>
  fs
    .readFileSync(file, 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Partial<Line>);
const key = (op: string, line: Partial<Line>) => [op, line.B, line.T, line.H, line.D].join();

const lines = read(benchFile);
const device = lines.find((line) => line.device);
if (!device?.device || !device.copy_TBps)
  throw new Error(`${benchFile} does not start with a device`);
const peerTimes = new Map(
  read(peerFile)
    .filter((line) => line.op && line.ms)
    .map((line) => [key(peerNames[line.op as string] ?? (line.op as string), line), line.ms]),
);

const rows = (lines.filter((line) => line.op && line.ms) as Line[]).map((line): Row => {
  const peer =
    line.type === 'bf16' ? peerTimes.get(key(line.op.replace('(slow)', ''), line)) : null;
  return {
    op: `LinearAttention ${line.op}`,
    B: line.B,
    T: line.T,
    H: line.H,
    K: line.D,
    V: line.D,
    dtype: types[line.type] ?? line.type,
    mode: line.T === 1 ? 'decode' : 'prefill',
    ms: line.ms,
    peer: PEER,
    peer_ms: peer ?? null,
    ratio: peer ? Number((peer / line.ms).toPrecision(3)) : null,
    bytes: line.bytes,
    fraction_of_copy: line.of_copy,
    workspace_bytes: line.workspace,
    note: peer ? undefined : `not run; ours in a graph ${line.graph_ms} ms`,
  };
});
const file = writeResults({
  name: 'cuda',
  about:
    'Kernels alone, float32 state out, inputs rotating among sets larger than the L2 cache; medians of single calls timed with ' +
    "events. The gates are those of FLA's benchmark (log sigmoid of normals, a quarter of it per key); `slow` is a gate that " +
    'forgets nothing, which our first pass cannot use to stop early. FLA (Triton) at its defaults, timed in the same run.',
  machine,
  device: device.device,
  date: new Date().toISOString().slice(0, 10),
  commit,
  versions: { cuda: '13.0', 'flash-linear-attention': 'bc3b101', triton: '3.6.0', torch: '2.11.0' },
  copy_bytes_per_second: device.copy_TBps * 1e12,
  rows,
});
console.log(file);

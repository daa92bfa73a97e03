/** What the benches on the CPU share. */
import os from 'node:os';
import type { ParseArgsConfig } from 'node:util';
import { nativeInfo } from '../../runtime/node/index.js';
import {
  commit,
  machineName,
  median,
  packageVersion,
  type ResultFile,
  type Row,
  writeResults,
} from '../results.js';

/** Options of parseArgs that all of them take. */
export const OPTIONS = {
  threads: { type: 'string', default: String(os.availableParallelism()) },
} as const satisfies ParseArgsConfig['options'];

let seed = 1;
/** Uniform numbers in [low, high), fresh for each tensor; past a million of them they repeat. */
export function random(n: number, low: number, high: number): Float32Array {
  const out = new Float32Array(n);
  const block = Math.min(n, 1 << 20);
  seed += 0x9e3779b9;
  let s = seed >>> 0;
  for (let i = 0; i < block; i++) {
    s = (Math.imul(s, 1664525) + 1013904223) >>> 0;
    out[i] = low + ((high - low) * s) / 2 ** 32;
  }
  for (let done = block; done < n; done *= 2) out.copyWithin(done, 0, Math.min(done, n - done));
  return out;
}

/** Bytes per second of a plain copy (read + written), median of several, arrays far above any cache. */
export function copyBandwidth(): number {
  const n = 1 << 27;
  const from = new Uint8Array(n).fill(1);
  const to = new Uint8Array(n).fill(2);
  const rates: number[] = [];
  for (let i = 0; i < 7; i++) {
    const t0 = performance.now();
    to.set(from);
    rates.push((2 * n) / ((performance.now() - t0) / 1000));
  }
  return median(rates);
}

/** Writes a result file of rows measured here, rounded. Prints where it went. */
export function record(
  name: string,
  about: string,
  copy: number,
  rows: readonly Row[],
): ResultFile {
  const round = (x: number, digits: number) => Number(x.toPrecision(digits));
  const result: ResultFile = {
    ...{ name, about },
    machine: machineName(),
    device: `${os.cpus()[0]?.model.trim()}, ${os.cpus().length} cores, ${nativeInfo().ops.isa}`,
    date: new Date().toISOString().slice(0, 10),
    commit: commit(),
    versions: {
      'onnxruntime-node': packageVersion('onnxruntime-node'),
      node: process.versions.node,
    },
    copy_bytes_per_second: Math.round(copy),
    rows: rows.map((r) => ({
      ...r,
      ms: round(r.ms, 4),
      peer_ms: r.peer_ms === null ? null : round(r.peer_ms, 4),
      ratio: r.ratio === null ? null : round(r.ratio, 3),
      fraction_of_copy: round(r.fraction_of_copy, 3),
    })),
  };
  console.log(`written: ${writeResults(result)}`);
  return result;
}

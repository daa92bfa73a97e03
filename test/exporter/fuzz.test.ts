/**
 * Mutated models are read, inspected, rewritten and written, or refused with an error of one line: no crash, no hang, and no file
 * outside the model's folder. FLA_FUZZ=200000 runs that many, FLA_FUZZ_JOBS=16 in so many processes; FLA_FUZZ_SEED starts
 * elsewhere. `npm run fuzz` does the same with lines of progress.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect, it } from 'vitest';
import { loadModel } from '../../exporter/index.js';
import { fuzz } from './support/fuzz.js';

const INPUTS = Number(process.env.FLA_FUZZ ?? 5000);
const SEED = Number(process.env.FLA_FUZZ_SEED ?? 20261125);
const JOBS = Number(process.env.FLA_FUZZ_JOBS ?? 1);

it(
  `${INPUTS} mutated models are rewritten, or refused with an error that says why`,
  async () => {
    const { counts, failures } = await fuzz({ seed: SEED, from: 0, to: INPUTS, jobs: JOBS });
    expect(failures).toEqual([]);
    // Were all of them refused or none, they would show nothing.
    expect(counts.read).toBeGreaterThan(INPUTS / 10);
    expect(counts.refused).toBeGreaterThan(INPUTS / 10);
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

/**
 * `npm run bench:loops [-- --threads 1] [-- --note 'what else ran on the machine']`: recurrences that a model holds as Scan or Loop, before and after `raise`, each on the CPU in the
 * stock runtime and with our kernels, calls interleaved.
 */
import { parseArgs } from 'node:util';
import Table from 'cli-table3';
import * as ort from 'onnxruntime-node';
import { type Model, modelBytes, nodeRunner, raiseModel } from '../../exporter/index.js';
import { kerasLoop, loadLoop, withSizes } from '../../test/exporter/support/loops.js';
import { scanModel } from '../../test/exporter/support/scan.js';
import { interleaved, type Row } from '../results.js';
import { copyBandwidth, OPTIONS, random, record } from './shared.js';

const { values: flags } = parseArgs({
  options: { ...OPTIONS, note: { type: 'string', default: '' } },
});
const threads = Number(flags.threads);
const [B, H, d] = [1, 8, 64];
const SIZES = { H, K: d, V: d };
const RULES = ['linear', 'gated', 'delta', 'gated_delta'] as const;

/** The operator that holds the recurrence, a name, and the model. */
const CASES: [peer: string, op: string, Model][] = [
  ...RULES.map((rule): [string, string, Model] => [
    'ai.onnx.Scan',
    rule,
    scanModel({ rule }, SIZES),
  ]),
  ['ai.onnx.Loop', 'gated, torch.stack', withSizes(loadLoop('gated_stack'), SIZES)],
  ['ai.onnx.Loop', 'gated_delta, written', withSizes(loadLoop('gated_delta_written'), SIZES)],
  ['ai.onnx.Loop', 'gated, tf.while_loop', withSizes(kerasLoop(), SIZES)],
];

const open = (model: Uint8Array, provider: 'fla' | 'cpu') =>
  ort.InferenceSession.create(model, {
    executionProviders: [provider],
    intraOpNumThreads: threads,
    logSeverityLevel: 3,
  });

const rows: Row[] = [];
for (const [peer, op, model] of CASES) {
  const before = await open(modelBytes(model), 'cpu');
  const [moved] = await raiseModel(model, { runner: nodeRunner });
  if (!moved?.to) throw new Error(`${op} was left alone: ${moved?.reason}`);
  const after = await open(modelBytes(model), 'fla');
  for (const T of [1, 1024]) {
    const sizes: Record<string, number> = { B, T };
    let bytes = B * T * H * d * 4 + B * H * d * d * 4;
    const feeds = Object.fromEntries(
      model.graph.inputs.map(({ name }) => {
        const dims = model.graph.dims(name)!.map((n) => (typeof n === 'number' ? n : sizes[n!]!));
        const count = dims.reduce((a, b) => a * b, 1);
        const [low, high] = { g: [-0.2, 0], beta: [0.3, 0.7] }[name] ?? [-0.3, 0.3];
        bytes += count * 4;
        return [name, new ort.Tensor('float32', random(count, low!, high!), dims)];
      }),
    );
    const calls = [() => after.run(feeds), () => before.run(feeds)];
    const [ms, was] = (await interleaved(calls)) as [number, number];
    rows.push({
      ...{ op, B, T, H, K: d, V: d, dtype: 'float32', mode: T === 1 ? 'decode' : 'prefill' },
      ...{ ms, peer, peer_ms: was, ratio: was / ms },
      ...{ bytes, fraction_of_copy: 0, workspace_bytes: null },
    });
  }
  await before.release();
  await after.release();
}
const copy = copyBandwidth();
for (const row of rows) row.fraction_of_copy = row.bytes / (row.ms / 1000) / copy;
const about = `On the CPU, ${threads} threads, batch 1, float32: recurrences written as Scan or Loop, one token a step, in ONNX Runtime, and the calls that \`onnx-fla raise\` makes of them, in the same process. Calls of both interleaved.`;
const result = record('loops', [about, flags.note].filter(Boolean).join(' '), copy, rows);
const table = new Table({ head: ['rule', 'tokens', 'was', 'before ms', 'raised ms', 'ratio'] });
for (const r of result.rows) table.push([r.op, r.T, r.peer, r.peer_ms, r.ms, `${r.ratio}x`]);
console.log(table.toString());

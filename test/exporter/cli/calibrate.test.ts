import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type CalibrationReport, loadModel, writeNpz } from '../../../exporter/index.js';
import { Random } from '../../../exporter/random.js';
import { readText } from '../../../exporter/text/read_text.js';
import { ROOT, TINYLM } from '../../support/models.js';
import { recallSequence } from '../calibrate/sequences.js';
import { runCli, runJson } from './run_cli.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-cli-calibrate-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));
const at = (name: string) => path.join(folder, name);

const MODEL = path.join(ROOT, 'test/fixtures/tinyrecall/model.onnx');
const [COUNT, T] = [60, 120];
beforeAll(() => {
  const ids = Array.from({ length: COUNT }, (_, i) => recallSequence(new Random(8, i), T).ids);
  writeNpz(at('tokens.npz'), {
    input_ids: { dims: [COUNT, T], data: BigInt64Array.from(ids.flat(), BigInt) },
  });
});

const PATIENCE = 180_000; // processes of their own, on a busy machine

const SHORT = ['--window', '24', '--sinks', '2', '--steps', '4', '--refit-batches', '2'];

test(
  'writes a calibrated model, with the layers it chose to keep in its metadata',
  async () => {
    const out = at('hybrid.onnx');
    const { pareto, losses } = await runJson<CalibrationReport>(
      ...['calibrate', MODEL, '--data', at('tokens.npz'), '-o', out, ...SHORT],
      ...['--feature-map', 'softmax', '--unrotated', '--keep-softmax', 'auto:1'],
    );
    expect(pareto.map((r) => r.kept)).toEqual([[], [1]]);
    expect(Object.keys(losses)).toEqual(['0', '1']);
    const model = loadModel(out);
    const hybrid = model.graph.nodes.filter((n) => n.is('HybridAttention', 'com.fla'));
    expect(hybrid).toHaveLength(1);
    expect(hybrid[0]!.inputs[6]).not.toBe('');
    expect(model.graph.initializer(hybrid[0]!.inputs[6]!)).toBeDefined();
    expect(JSON.parse(model.metadata('onnx_fla.pareto')!)).toEqual(pareto);
    expect(fs.existsSync(`${out}.calibration`)).toBe(false);
  },
  PATIENCE,
);

test(
  'calibrates a model with a KV cache on text, to states of fixed size',
  async () => {
    const out = at('kv.onnx');
    fs.writeFileSync(at('text.txt'), readText(TINYLM.text).slice(0, 30_000));
    const { code, stderr, stdout } = await runCli(
      ...['calibrate', TINYLM.modelKv, '--data', at('text.txt'), '--tokenizer', TINYLM.tokenizer],
      ...['-o', out, '--length', '96', '--batches', '1', '--layers', '0,2', ...SHORT],
    );
    expect(stderr).toBe('');
    expect(code).toBe(0);
    expect(stdout).toContain(`written to ${out}`);
    const { graph } = loadModel(out);
    expect(graph.dims('past_key_values.0.window')).toEqual(['batch', 2, 27, 128]);
    expect(graph.dims('past_key_values.0.state')).toEqual(['batch', 2, 128, 65]);
  },
  PATIENCE,
);

test(
  'fits the gates of another variant, from gates in a file',
  async () => {
    const gates = at('gates.json');
    const out = at('gated.onnx');
    fs.writeFileSync(gates, JSON.stringify({ default: { beta: { constant: 0.5 } } }));
    const { code, stderr, stdout } = await runCli(
      ...['calibrate', MODEL, '--data', at('tokens.npz'), '-o', out, '--variant', 'gated-delta'],
      ...['--gates', gates, '--constant-gates', '--steps', '4', '--refit-batches', '2'],
    );
    expect(stderr).toBe('');
    expect(code).toBe(0);
    expect(stdout).toContain('relative squared error of the output');
    const { graph } = loadModel(out);
    const calls = graph.nodes.filter((n) => n.is('LinearAttention', 'com.fla'));
    expect(calls.map((n) => n.string('update_rule'))).toEqual(['gated_delta', 'gated_delta']);
  },
  PATIENCE,
);

test.each([
  [['--data', 'absent.npz'], /absent\.npz/],
  [['--data', TINYLM.text], /is text, which needs a tokenizer/],
  [['--data', 'tokens.npz', '--keep-softmax', 'auto:x'], /expected layers like 0,2-3/],
  [['--data', 'tokens.npz', '--budget', '0.05'], /expected kl=0\.05 or the like/],
  [
    ['--data', 'tokens.npz', '--budget', 'kl=1', '--keep-softmax', 'auto:1'],
    /give auto:K or --budget, not both/,
  ],
])('refuses %s', async (args, message) => {
  const given = args.map((a) => (a === 'tokens.npz' ? at(a) : a));
  const { code, stderr } = await runCli('calibrate', MODEL, '-o', at('never.onnx'), ...given);
  expect(code).toBe(1);
  expect(stderr).toMatch(message);
  expect(fs.existsSync(at('never.onnx'))).toBe(false);
});

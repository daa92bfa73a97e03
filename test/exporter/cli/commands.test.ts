import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import type { Report } from '../../../exporter/compare/index.js';
import {
  type InspectReport,
  loadModel,
  type RewriteReport,
  saveModel,
  tensorNumbers,
} from '../../../exporter/index.js';
import { OCR_DETECTOR, OCR_RECOGNISER, TINYLM, TINYRECALL } from '../../support/models.js';
import { runCli, runJson, startCli } from './run_cli.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-cli-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));
const at = (name: string) => path.join(folder, name);
const COMMANDS = [
  'inspect',
  'rewrite',
  'calibrate',
  'compare',
  'generate',
  'raise',
  'lower',
  'ops',
];

/** How the outputs of two models differ. */
async function outputsOf(original: string, rewritten: string) {
  const { rows } = await runJson<Report>('compare', original, rewritten, '--no-controls');
  return rows.at(-1)!.outputs!;
}

describe('help', () => {
  test('lists the commands', async () => {
    const { code, stdout } = await runCli('--help');
    expect(code).toBe(0);
    for (const command of COMMANDS) expect(stdout).toMatch(new RegExp(`^  ${command}\\b`, 'm'));
  });
  test.each(COMMANDS)('of %s has examples', async (command) => {
    const { code, stdout } = await runCli(command, '--help');
    expect(code).toBe(0);
    expect(stdout).toContain('--json');
    expect(stdout).toMatch(new RegExp(`Examples:\n  onnx-fla ${command}`));
  });
  test('without a command is shown, with exit code 1', async () => {
    const { code, stderr } = await runCli();
    expect(code).toBe(1);
    expect(stderr).toContain('Usage: onnx-fla');
  });
  test('--version', async () => {
    const { version } = JSON.parse(fs.readFileSync('package.json', 'utf8'));
    expect((await runCli('--version')).stdout).toBe(`${version}\n`);
  });
});

describe('inspect', () => {
  test('--json has every key of every site', async () => {
    const { sites } = await runJson<InspectReport>('inspect', OCR_RECOGNISER);
    expect(sites).toHaveLength(3);
    expect(sites[0]).toEqual({
      node: 'p2o.Softmax.0',
      layer: 0,
      pattern: 'decomposed',
      q_num_heads: 8,
      kv_num_heads: 8,
      head_dim: 15,
      mask: 'bidirectional',
      cache: false,
      rewritable: true,
      reason: null,
      notes: [],
    });
    expect(sites[2]).toMatchObject({ node: 'p2o.Softmax.2', layer: null, rewritable: false });
    expect(sites[2]!.reason).toMatch(/not attention/);
  });
  test('a table for people', async () => {
    const { stdout } = await runCli('inspect', TINYLM.modelKv);
    expect(stdout).toContain('/m/layers.3/self_attn/Softmax');
    expect(stdout).toContain('4/2');
    expect(stdout).toMatch(/4 of 4 can be rewritten\n$/);
  });
  test('a model without attention', async () => {
    expect(await runJson<InspectReport>('inspect', OCR_DETECTOR)).toEqual({ sites: [] });
  });
});

describe('rewrite', () => {
  test('a bias by position, when it may be dropped', async () => {
    const t5 = 'test/fixtures/torch/t5.onnx';
    const out = at('t5.onnx');
    const { stdout } = await runCli('rewrite', t5, '-o', out);
    expect(stdout).toMatch(/a bias \(relative positions\), not a mask;\s+bias\s+'drop'/);
    const dropped = await runCli('rewrite', t5, '-o', out, '--bias', 'drop');
    expect(dropped.stdout).toContain('layer 0: the bias by position is left out');
  });
  test('writes a model that computes the same with --variant none', async () => {
    const out = at('none.onnx');
    const report = await runJson<RewriteReport>(
      'rewrite',
      TINYLM.model,
      '-o',
      out,
      '--variant',
      'none',
    );
    expect(report.sites.map((s) => s.rewritten)).toEqual([true, true, true, true]);
    const outputs = await outputsOf(TINYLM.model, out);
    expect(Object.keys(outputs)).toEqual(['logits']);
    expect(outputs.logits!.max_abs).toBeLessThan(1e-4);
  });
  test('--layers and --keep-softmax choose', async () => {
    const out = at('some.onnx');
    const args = ['rewrite', TINYLM.modelKv, '-o', out, '--layers', '1-3', '--keep-softmax', '2'];
    const report = await runJson<RewriteReport>(...args);
    expect(report.sites.map((s) => s.rewritten)).toEqual([false, true, false, true]);
    const { sites } = await runJson<InspectReport>('inspect', out);
    expect(sites.filter((s) => s.rewritable)).toHaveLength(2);
  });
  test('every option arrives in the model', async () => {
    const out = at('options.onnx');
    const how = ['--variant', 'retention', '--decay', '-0.25,-0.5', '--feature-map', 'relu'];
    const more = ['--normalize', '--dtype', 'same', '--body', 'standard', '--layers', '0'];
    await runJson('rewrite', TINYLM.modelKv, '-o', out, ...how, ...more);
    const model = loadModel(out);
    const [call, ...others] = model.graph.nodes.filter((n) => n.is('LinearAttention', 'com.fla'));
    expect(others).toEqual([]);
    expect([call!.string('update_rule'), call!.string('feature_map')]).toEqual(['gated', 'relu']);
    expect(call!.int('normalize')).toBe(1);
    expect(model.functions.map((f) => f.overload)).toEqual([expect.stringMatching(/^standard_/)]);
    const constants = model.graph.proto.node.flatMap((n) => n.attribute.map((a) => a.t));
    const tensors = [...model.graph.proto.initializer, ...constants].filter((t) => !!t);
    const values = tensors.map((t) => [...tensorNumbers(t, model.external).slice(0, 3)]);
    expect(values).toContainEqual([-0.25, -0.5]);
  });
  test('takes what it wrote again: a layer of one kind, the rest of another', async () => {
    const gates = at('gates.json');
    fs.writeFileSync(
      gates,
      JSON.stringify({ default: { decay: { constant: -0.1 }, beta: { constant: 1 } } }),
    );
    const [first, second] = [at('first.onnx'), at('second.onnx')];
    const delta = ['--variant', 'gated-delta', '--gates', gates, '--layers', '0'];
    await runJson('rewrite', TINYLM.modelKv, '-o', first, ...delta);
    const report = await runJson<RewriteReport>('rewrite', first, '-o', second);
    expect(report.sites.map((s) => s.rewritten)).toEqual([true, true, true]);
    const outputs = await outputsOf(TINYLM.modelKv, second);
    expect(outputs.logits!.cosine).toBeGreaterThan(0.5);
  });
  test('--dry-run writes nothing', async () => {
    const before = fs.readdirSync(folder);
    const args = ['rewrite', TINYLM.model, '-o', at('dry.onnx'), '--dry-run'];
    const { code, stdout } = await runCli(...args);
    expect(code).toBe(0);
    expect(stdout).toMatch(/nothing written/);
    expect(fs.readdirSync(folder)).toEqual(before);
  });
});

describe('compare', () => {
  test('--json has the promised shape', async () => {
    const linear = at('linear.onnx');
    await runJson('rewrite', TINYLM.modelKv, '-o', linear);
    const text = ['--text', TINYLM.text, '--tokenizer', TINYLM.tokenizer, '--max-tokens', '600'];
    const cost = ['--lengths', '16,32', '--runs', '2'];
    const report = await runJson<Report>('compare', TINYLM.modelKv, linear, ...text, ...cost);
    const ids = ['original', 'parity', 'zeroed', 'window', 'elu1', 'model'];
    expect(report.rows.map((r) => r.id)).toEqual(ids);
    const [original, parity, zeroed, window, elu1, result] = report.rows;
    const number = expect.any(Number);
    const language = result!.language!;
    const { ppl, kld } = language;
    expect(ppl).toMatchObject({ original: number, rewritten: number, tokens: 598 });
    expect(ppl.ratio.value).toBeCloseTo(ppl.rewritten! / ppl.original!, 6);
    expect(Object.keys(kld)).toEqual(['mean', 'median', 'p99', 'p999', 'max']);
    expect(kld.max).toBeGreaterThanOrEqual(kld.p999.value!);
    expect(kld.mean.value).toBeGreaterThan(0);
    expect(language.same_top.value).toBeGreaterThan(0);
    expect(language.same_top.value).toBeLessThan(1);
    expect(result!.outputs!.logits).toEqual({ max_abs: number, cosine: number });
    // The controls: one that computes the same, two that lose something, and the very rewrite that is measured.
    expect(parity!.outputs!.logits!.max_abs).toBeLessThan(1e-4);
    expect(window!.language!.kld.mean.value).toBeGreaterThan(1e-4);
    expect(zeroed!.language!.kld.mean.value).toBeGreaterThan(window!.language!.kld.mean.value!);
    expect(elu1!.language).toEqual(language);
    expect(result!.attention).toEqual({ layers: 4, softmax: 0 });
    expect(original!.state_bytes).toBe(512 * 4 * 2 * 2 * 64 * 4);
    expect(result!.state_bytes).toBeLessThan(original!.state_bytes!);
    expect(report.notices).toContainEqual(
      expect.stringMatching(/^linear\.onnx is no better than window 64 \+ 4 sinks only/),
    );
    expect(result!.cost!.map((row) => row.length)).toEqual([16, 32]);
    const layers = 4;
    const cacheBytes = (tokens: number) => tokens * layers * 2 * 2 * 64 * 4; // K and V, heads, dim, bytes
    for (const row of result!.cost!) {
      expect(row.original_error ?? row.rewritten_error).toBeUndefined();
      expect(row.original_ms).toBeGreaterThan(0);
      expect(row.rewritten_ms).toBeGreaterThan(0);
      expect(row.rewritten_decode_ms).toBeGreaterThan(0);
      expect(row.original_state_bytes).toBe(cacheBytes(row.length + 8)); // 8 timed steps
      expect(row.original_peak_bytes).toBeGreaterThan(20e6);
      expect(row.original_peak_bytes).toBeLessThan(2e9);
    }
    const [first, second] = result!.cost!.map((row) => row.rewritten_state_bytes);
    expect(first).toBeGreaterThan(0);
    expect(second).toBe(first);
  });
  test('images, with free dimensions set', async () => {
    const { rows, settings } = await runJson<Report>(
      ...['compare', OCR_RECOGNISER, OCR_RECOGNISER, '--length', '64', '--no-controls'],
    );
    expect(rows.map((r) => r.id)).toEqual(['original', 'model']);
    expect(rows[1]!.language).toBeNull();
    expect(settings.text).toBeNull();
    expect(Object.values(rows[1]!.outputs!)).toEqual([
      { max_abs: 0, cosine: expect.closeTo(1, 6) },
    ]);
  });
  test('tasks without a tokenizer; a report that is a baseline for the next, with conditions', async () => {
    const linear = at('recall.onnx');
    await runJson('rewrite', TINYRECALL, '-o', linear);
    const tasks = ['--tasks', 'repeat,mqar', '--task-lengths', '1x,128', '--samples', '1'];
    const folder = at('report');
    const first = await runCli(
      ...['compare', TINYRECALL, linear, ...tasks, '--report', folder],
      ...['--fail-if', 'recall<0,parity>1e-4'],
    );
    expect([first.code, first.stderr]).toEqual([0, expect.stringMatching(/recalls no more/)]);
    expect(first.stdout).toMatch(/recall: repeat/);
    expect(fs.readdirSync(folder).sort()).toEqual(['report.html', 'report.json']);
    const kept = JSON.parse(fs.readFileSync(path.join(folder, 'report.json'), 'utf8')) as Report;
    const recall = (id: string) =>
      kept.rows.find((r) => r.id === id)!.tasks!.filter((t) => t.task === 'repeat');
    for (const { recall: share } of recall('original')) expect(share.value).toBeGreaterThan(0.9);
    for (const { recall: share } of recall('model')) expect(share.value).toBeLessThan(0.2);

    const again = await runCli(
      ...['compare', TINYRECALL, TINYRECALL, linear, ...tasks, '--baseline', folder],
      ...['--fail-if', 'recall<0.5,recall.mqar>+1%', '--no-controls'],
    );
    expect(again.code).toBe(1); // the second model has no counterpart in the baseline
    expect(again.stderr).toMatch(/the baseline has no recall\.mqar for recall\.onnx/);
    const worse = await runCli(
      ...['compare', TINYRECALL, TINYRECALL, linear, ...tasks, '--baseline', folder],
      ...['--fail-if', 'recall<0.5', '--no-controls'],
    );
    expect(worse.code).toBe(2);
    expect(worse.stderr).toMatch(
      /^onnx-fla: failed: recall\.onnx: recall<0\.5: recall is 0\.\d+$/m,
    );
    expect(worse.stdout).toMatch(/against the baseline/);
  });
});

describe('generate', () => {
  interface Result {
    text: string;
    ids: number[];
    prompt_tokens: number;
    new_tokens: number;
    state_bytes: number;
    memory: string;
  }
  const args = [
    '--tokenizer',
    TINYLM.tokenizer,
    '--prompt',
    'Mr. Speaker, I',
    '--max-new-tokens',
    '12',
  ];

  test('greedy text does not depend on whether there is a cache', async () => {
    const cached = await runJson<Result>('generate', TINYLM.modelKv, ...args, '--temperature', '0');
    const plain = await runJson<Result>('generate', TINYLM.model, ...args, '--temperature', '0');
    expect(cached.ids).toEqual(plain.ids);
    expect([cached.memory, plain.memory]).toEqual(['cache', 'none']);
    expect(cached.new_tokens).toBe(12);
    expect(plain.state_bytes).toBe(0);
    expect(cached.state_bytes).toBe((cached.prompt_tokens + 11) * 4 * 2 * 2 * 64 * 4);
  });
  test('streams what --json says, and the seed decides', async () => {
    const { stdout, stderr } = await runCli('generate', TINYLM.modelKv, ...args, '--seed', '5');
    const same = await runJson<Result>('generate', TINYLM.modelKv, ...args, '--seed', '5');
    const other = await runJson<Result>('generate', TINYLM.modelKv, ...args, '--seed', '6');
    expect(stdout).toBe(`${same.text}\n`);
    expect(other.text).not.toBe(same.text);
    expect(stderr).toMatch(
      /prompt: \d+ tokens at \d+ tokens\/s; new: 12 at [\d.]+ tokens\/s; carried: /,
    );
  });
  test('a rewritten model carries a state of fixed size', async () => {
    const linear = at('generate.onnx');
    await runJson('rewrite', TINYLM.modelKv, '-o', linear);
    const short = await runJson<Result>('generate', linear, ...args);
    const long = await runJson<Result>('generate', linear, ...args, '--max-new-tokens', '30');
    expect(short.memory).toBe('state');
    expect(long.state_bytes).toBe(short.state_bytes);
    expect(short.new_tokens).toBe(12);
  });
});

test('rewrite --variant rmt: memory from a file, generate reads on over segments', async () => {
  const memory = at('memory.safetensors');
  const header = Buffer.from(
    JSON.stringify({ memory: { dtype: 'F32', shape: [3, 256], data_offsets: [0, 3072] } }),
  );
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(header.length));
  const values = Buffer.from(Float32Array.from({ length: 768 }, (_, i) => i / 1000).buffer);
  fs.writeFileSync(memory, Buffer.concat([size, header, values]));
  const output = at('rmt.onnx');
  const given = ['--variant', 'rmt', '--memory-tokens', '3', '--segment', '16', '--memory', memory];
  const report = await runJson<Record<string, unknown>>(
    'rewrite',
    TINYLM.model,
    '-o',
    output,
    ...given,
  );
  expect(report).toMatchObject({ variant: 'rmt', tokens: 3, segment: 16, hidden: 256 });
  const initial = loadModel(output).graph.initializer('memory/initial')!;
  expect([...tensorNumbers(initial)]).toEqual([
    ...Float32Array.from({ length: 768 }, (_, i) => i / 1000),
  ]);
  const result = await runJson<Record<string, unknown>>(
    ...[
      'generate',
      output,
      '--tokenizer',
      TINYLM.tokenizer,
      '--prompt',
      'Call me Ishmael. Some years ago',
    ],
    ...['--max-new-tokens', '30'],
  );
  expect(result).toMatchObject({ memory: 'state', new_tokens: 30, state_bytes: 3 * 256 * 4 });
});

test('generate continues several prompts as a batch', async () => {
  const args = ['generate', TINYLM.modelKv, '--tokenizer', TINYLM.tokenizer, '--temperature', '0'];
  const prompts = ['Call me Ishmael.', 'It was'];
  const given = prompts.flatMap((text) => ['--prompt', text]);
  const two = await runJson<{ texts: { text: string; ids: number[] }[]; new_tokens: number }>(
    ...[...args, '--max-new-tokens', '6', ...given],
  );
  expect(two.new_tokens).toBe(12);
  const one = await runJson<{ text: string; ids: number[] }>(
    ...[...args, '--max-new-tokens', '6', '--prompt', prompts[1]!],
  );
  expect(two.texts[1]).toEqual({ text: one.text, ids: one.ids });
  const wrong = await runCli(...args, '--prompt', 'It', '--cache-length', '9');
  expect(wrong.stderr).toContain('a cache length is for models that write their cache in place');
});

test('rewrite --target transformersjs names states as caches', async () => {
  const output = at('target.onnx');
  const report = await runJson<RewriteReport & { config: unknown }>(
    ...['rewrite', TINYLM.modelKv, '-o', output, '--layers', '0', '--target', 'transformersjs'],
  );
  expect(report.config).toBeNull();
  expect(report.state.map((s) => [s.past, s.present, s.shape[0]])).toEqual([
    ['past_key_values.0.key', 'present.0.key', 'batch_size'],
  ]);
  const names = loadModel(output).graph.inputs.map((i) => i.name);
  expect(names).toContain('past_key_values.0.key');
  expect(names).toContain('past_key_values.3.value');
  const result = await runJson<Record<string, unknown>>(
    ...[
      'generate',
      output,
      '--tokenizer',
      TINYLM.tokenizer,
      '--prompt',
      'Call me',
      '--max-new-tokens',
      '3',
    ],
  );
  expect(result.new_tokens).toBe(3);
});

test('rewrite --target transformersjs --write-config writes config.json where the library reads it', async () => {
  const [from, to] = [at('hub'), at('hub-hybrid')];
  for (const root of [from, to]) fs.mkdirSync(path.join(root, 'onnx'), { recursive: true });
  const model = path.join(from, 'onnx/model.onnx');
  saveModel(loadModel(TINYLM.modelKv), model, { externalData: 'inline' });
  const output = path.join(to, 'onnx/model.onnx');
  const rewrite = (to: string) => [
    ...['rewrite', model, '-o', to, '--variant', 'hybrid', '--window', '8'],
    ...['--target', 'transformersjs', '--write-config'],
  ];
  const original = path.join(from, 'config.json');
  const config = path.join(to, 'config.json');
  const refused = async (message: RegExp) => {
    const { code, stderr } = await runCli(...rewrite(output));
    expect(code).toBe(1);
    expect(stderr).toMatch(message);
    expect(stderr.trim().split('\n')).toHaveLength(1);
    expect(fs.readdirSync(to).filter((name) => name.includes('.tmp-'))).toEqual([]);
  };
  await refused(/hub\/config\.json: cannot be read: no such file/);
  fs.writeFileSync(original, '{"num_hidden_layers": 4');
  await refused(/hub\/config\.json: is no JSON/);
  fs.writeFileSync(original, '[4]');
  await refused(/hub\/config\.json: must hold a JSON object, received \[4\]$/m);
  fs.rmSync(original);
  execFileSync('mkfifo', [original]);
  await refused(/hub\/config\.json: cannot be read: must be a regular file, received a pipe/);
  fs.rmSync(original);
  const text = JSON.stringify({ model_type: 'llama', num_hidden_layers: 4, vocab_size: 2048 });
  fs.writeFileSync(original, text);
  fs.symlinkSync(original, config);
  await refused(/must be another file than the model's own config\.json/);
  fs.rmSync(config);
  fs.mkdirSync(config);
  await refused(/hub-hybrid\/config\.json: cannot be written: is a folder/);
  fs.rmdirSync(config);
  expect(fs.readdirSync(path.join(to, 'onnx'))).toEqual([]);
  const { stdout } = await runCli(...rewrite(output));
  expect(stdout).toContain(`config.json written to ${config}`);
  expect(JSON.parse(fs.readFileSync(config, 'utf8'))).toEqual({
    ...{ model_type: 'llama', num_hidden_layers: 5, vocab_size: 2048 },
  });
  const beside = await runCli(...rewrite(path.join(from, 'onnx/other.onnx')));
  expect(beside.stderr).toMatch(/must be another file than the model's own config\.json/);
  expect(fs.readFileSync(original, 'utf8')).toBe(text);
  const itself = await runCli(...rewrite(config));
  expect(itself.stderr).toMatch(/-o must be another file than config\.json, .*received \S+$/m);
  expect(JSON.parse(fs.readFileSync(config, 'utf8')).num_hidden_layers).toBe(5);
  fs.writeFileSync(original, '{"model_type": "llama"}');
  const unknown = await runCli(...rewrite(output));
  expect(unknown.stderr).toMatch(/hub\/onnx\/model\.onnx: config\.json must have the number of/);
  const alone = await runCli('rewrite', model, '-o', output, '--write-config');
  expect(alone.stderr).toMatch(/--write-config is for --target transformersjs, received none/);
});

test('rewrite --target genai names states as genai makes them and patches its configuration', async () => {
  const from = at('genai');
  const to = at('genai-linear');
  for (const made of [from, to]) fs.mkdirSync(made);
  const model = path.join(from, 'model.onnx');
  saveModel(loadModel(TINYLM.modelKv), model, { externalData: 'inline' });
  const output = path.join(to, 'linear.onnx');
  const args = ['rewrite', model, '-o', output, '--target', 'genai'];
  expect((await runCli(...args)).stderr).toMatch(/genai_config\.json: cannot be read/);
  const config = {
    model: {
      type: 'llama',
      decoder: {
        filename: 'model.onnx',
        num_hidden_layers: 4,
        inputs: { past_key_names: 'past_key_values.%d.key' },
        sliding_window: { window_size: 128 },
      },
    },
    search: { num_beams: 4, max_length: 512 },
  };
  fs.writeFileSync(path.join(from, 'genai_config.json'), JSON.stringify(config));
  const beside = await runCli(...args.slice(0, 3), path.join(from, 'b.onnx'), ...args.slice(4));
  expect(beside.stderr).toMatch(/must be another file than the model's own genai_config\.json/);
  const { stdout } = await runCli(...args);
  expect(stdout).toContain(`genai_config.json written to ${path.join(to, 'genai_config.json')}`);
  const { decoder } = config.model;
  const { sliding_window: _, ...left } = decoder;
  expect(JSON.parse(fs.readFileSync(path.join(to, 'genai_config.json'), 'utf8'))).toEqual({
    model: { ...config.model, decoder: { ...left, filename: 'linear.onnx' } },
    search: { num_beams: 1, max_length: 512 },
  });
  const { graph } = loadModel(output);
  expect(graph.inputs.filter((i) => /past/.test(i.name)).map((i) => i.name)).toEqual(
    [0, 1, 2, 3].flatMap((i) =>
      ['conv_state', 'recurrent_state'].map((what) => `past_key_values.${i}.${what}`),
    ),
  );
  const plain = at('genai-plain.onnx');
  await runJson('rewrite', model, '-o', plain);
  const [written, expected] = await Promise.all(
    [output, plain].map((file) =>
      runJson<{ ids: number[] }>(
        ...['generate', file, '--tokenizer', TINYLM.tokenizer, '--prompt', 'Call me Ishmael.'],
        ...['--max-new-tokens', '5', '--temperature', '0'],
      ),
    ),
  );
  expect(written!.ids).toEqual(expected!.ids);
});

test('ops names the library, the processor and the operators', async () => {
  const result = await runJson<Record<string, unknown>>('ops');
  expect(result.library).toMatch(/libfla_ops\.(so|dylib)$/);
  expect(result.ops).toContain('com.fla.LinearAttention');
  expect(typeof result.isa).toBe('string');
  // Without the CUDA kernels false, else how many GPUs there are.
  expect([false, { devices: expect.any(Number) }]).toContainEqual(result.cuda);
});

test('Ctrl-C ends a command with 130 and leaves no process behind', async () => {
  const { child, result } = startCli([
    'compare',
    TINYLM.modelKv,
    TINYLM.modelKv,
    '--lengths',
    '2048',
    '--runs',
    '1000000',
  ]);
  let measuring: number[] = [];
  while (measuring.length === 0 && child.exitCode === null) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    measuring = children(child.pid!);
  }
  child.kill('SIGINT');
  const { code, stdout, stderr } = await result;
  expect(code).toBe(130);
  expect(stderr).toBe('onnx-fla: interrupted\n');
  expect(stdout).toBe('');
  expect(measuring.length).toBeGreaterThan(0);
  await expect.poll(() => measuring.filter(isAlive), { timeout: 10_000 }).toEqual([]);
});

/** Process ids of the children of a process that run the measuring script. */
function children(parent: number): number[] {
  return fs
    .readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        const parentOf = / (\d+) /.exec(
          fs.readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) \S/, ''),
        );
        const command = fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8');
        return Number(parentOf?.[1]) === parent && command.includes('cost_child');
      } catch {
        return false; // it ended meanwhile
      }
    })
    .map(Number);
}

/** Does a process run? One that ended and waits to be collected does not. */
function isAlive(pid: number): boolean {
  try {
    return !/\) Z /.test(fs.readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
}

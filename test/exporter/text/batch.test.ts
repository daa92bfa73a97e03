/** Several texts side by side: the same as each by itself, whoever runs the model and however it is told of padding. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { compareModels } from '../../../exporter/compare/index.js';
import {
  loadModel,
  type Model,
  type RewriteOptions,
  rewriteModel,
  saveModel,
} from '../../../exporter/index.js';
import { generate, generateBatch } from '../../../exporter/text/generate.js';
import { LanguageModel, type LanguageModelChoice } from '../../../exporter/text/language_model.js';
import { TINYLM } from '../../support/models.js';
import { DECODERS, decoder, GROUPED } from '../support/decoder.js';
import { genaiModel } from '../support/genai.js';
import { loadTransformers } from '../support/transformers.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-batch-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));

/** A file whose output is called logits. */
async function write(name: string, model: Model, options?: RewriteOptions): Promise<string> {
  const { graph } = model;
  const output = graph.outputs.find((o) => o.name === 'y');
  if (output) {
    output.name = 'logits';
    const node = graph.producer('y')!;
    graph.renameOutput(node, node.outputs.indexOf('y'), 'logits');
  }
  if (options) await rewriteModel(model, options);
  const file = path.join(folder, `${name}.onnx`);
  saveModel(model, file, { externalData: 'inline' });
  return file;
}

const PROMPTS = [
  [4, 9, 2, 10, 8, 3],
  [11, 5, 7],
  [6, 6, 1, 2],
];

async function check(file: string, choice: LanguageModelChoice): Promise<void> {
  const batch = await LanguageModel.open(file, { ...choice, batch: PROMPTS.length });
  const single = await LanguageModel.open(file, choice);
  for (const temperature of [0, 1]) {
    const options = { maxNewTokens: 5, seed: 3, temperature, topK: 0, topP: 1 };
    await batch.reset();
    const { ids, promptTokens } = await generateBatch(batch, PROMPTS, options);
    expect(promptTokens).toBe(13);
    for (const [b, prompt] of PROMPTS.entries()) {
      await single.reset();
      const alone = await generate(single, prompt, { ...options, seed: options.seed + b });
      expect(ids[b]).toEqual(alone.ids);
    }
  }
  await batch.release();
  await single.release();
}

const told = GROUPED.find(({ spec }) => spec.told)!.spec;
const MODELS: [string, () => Model, LanguageModelChoice?][] = [
  ['tinylm', () => loadModel(TINYLM.modelKv)],
  ['positions as an input', () => decoder(DECODERS[2]!.spec)],
  ['seqlens_k and total_sequence_length as inputs', () => decoder(told), { cacheLength: 16 }],
  ['a merged decoder', () => loadTransformers('gpt2_merged.torchscript')],
  ['of onnxruntime-genai, its cache a buffer', genaiModel, { cacheLength: 16 }],
  ['a cache whose heads have no declared size', () => loadTransformers('llama.genai-fp32-cpu')],
];

test('compare runs a model whose cache does not declare the size of heads', async () => {
  const original = await write('undeclared', loadTransformers('llama.genai-fp32-cpu'));
  const none = await write('undeclared-none', loadModel(original), { variant: 'none' });
  const mixed = await write('undeclared-mixed', loadModel(original), {
    variant: 'linear',
    keepSoftmax: [0],
  });
  const { rows } = await compareModels(
    original,
    [none, mixed].map((file) => ({ file, name: file })),
    {
      ...{ context: 16, length: 8, controls: false },
    },
  );
  const [same, changed] = rows.filter((r) => r.role === 'model');
  expect(same).toMatchObject({ error: null });
  expect(same!.outputs!.logits!.max_abs).toBeLessThan(1e-5);
  expect(changed).toMatchObject({ error: null });
  expect(changed!.outputs!.logits!.max_abs).toBeGreaterThan(1e-3);
});

test('compare runs a model that is told lengths, its cache a buffer', async () => {
  const original = await write('told', decoder(told));
  const same = await write('told-none', decoder(told), { variant: 'none' });
  const linear = await write('told-linear', decoder(told), { variant: 'linear' });
  const ids = Array.from({ length: 40 }, (_, i) => (i * 7) % 12);
  const { rows } = await compareModels(
    original,
    [
      { file: same, name: 'none' },
      { file: linear, name: 'linear' },
    ],
    { text: { ids, name: 'numbers' }, context: 16, length: 8, controls: false, cacheLength: 24 },
  );
  const [none, changed] = rows.filter((r) => r.role === 'model');
  expect(none).toMatchObject({ error: null });
  expect(none!.outputs!.logits!.max_abs).toBeLessThan(1e-5);
  expect(none!.language!.ppl.ratio.value).toBeCloseTo(1, 5);
  expect(none!.language!.kld.max).toBeLessThan(1e-9);
  expect(changed!.outputs!.logits!.max_abs).toBeGreaterThan(1e-3);
});

describe.each(['fla', 'stock'] as const)('run by %s', (backend) => {
  test.each(MODELS)('%s: greedy and sampled', async (name, build, choice) => {
    await check(await write(name, build()), { backend, ...choice });
    const linear = await write(`${name}-linear`, build(), { variant: 'linear' });
    await check(linear, { backend, ...choice });
  });

  test('tinylm, without a cache: all is read again', async () => {
    await check(await write('bare', loadModel(TINYLM.model)), { backend });
  });

  test.each([
    ['tinylm', TINYLM.modelKv],
    ['tinylm, without a cache', TINYLM.model],
  ])('%s: a text that ends leaves the others as they are', async (_, file) => {
    const options = { maxNewTokens: 5, seed: 3, temperature: 0, topK: 0, topP: 1 };
    const model = await LanguageModel.open(file, { backend, batch: PROMPTS.length });
    const { ids: free } = await generateBatch(model, PROMPTS, options);
    const end = free[1]![1]!;
    const expected = free.map((ids) => (ids.includes(end) ? ids.slice(0, ids.indexOf(end)) : ids));
    expect(new Set(expected.map((ids) => ids.length)).size).toBeGreaterThan(1);
    await model.reset();
    const { ids } = await generateBatch(model, PROMPTS, { ...options, endIds: new Set([end]) });
    expect(ids).toEqual(expected);
    await model.release();
  });

  test('one layer that stays softmax, its cache a buffer', async () => {
    const file = await write('mixed', genaiModel(), { variant: 'linear', keepSoftmax: [1] });
    await check(file, { backend, cacheLength: 16 });
  });

  test('says what does not go', async () => {
    const plain = await write('plain', decoder(DECODERS[0]!.spec));
    const model = await LanguageModel.open(plain, { backend, batch: 3 });
    await expect(model.advanceRows(PROMPTS)).rejects.toThrow(
      /must be of one length, as the model has no input that tells of padding/,
    );
    await expect(model.advance([1])).rejects.toThrow('tokens must be of 3 texts, received 1');
    await model.release();
    await expect(LanguageModel.open(plain, { backend, cacheLength: 8 })).rejects.toThrow(
      'a cache length is for models that write their cache in place',
    );
    const full = await write('full', genaiModel());
    const short = await LanguageModel.open(full, { backend, cacheLength: 4 });
    await expect(short.advance(PROMPTS[0]!)).rejects.toThrow(
      /(cache must hold 6|tokens so far, 6)/,
    );
    await short.release();
  });
});

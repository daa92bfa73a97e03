/** Rewritten decoders under @huggingface/transformers, whose own code makes, feeds and hands on the states. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { env, pipeline, random } from '@huggingface/transformers';
import { afterAll, describe, expect, it } from 'vitest';
import {
  loadModel,
  type Model,
  type RewriteOptions,
  retarget,
  rewriteModel,
  saveModel,
} from '../../exporter/index.js';
import { logitsRow } from '../../exporter/text/engine.js';
import { generate } from '../../exporter/text/generate.js';
import { LanguageModel } from '../../exporter/text/language_model.js';
import { sampleToken } from '../../exporter/text/sample.js';
import { loadTokenizer } from '../../exporter/text/tokenizer.js';
import { TINYLM } from '../support/models.js';
import { mergedSeq2Seq } from './support/seq2seq.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-transformers-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));
env.allowRemoteModels = false;
env.localModelPath = folder;

const PROMPTS = [
  'Mr. Speaker, Members of the Congress: the state of the Union',
  'Call me Ishmael.',
];
const LENGTH = 20;

/** A folder as the hub has it. */
async function publish(name: string, options?: RewriteOptions) {
  const at = path.join(folder, name);
  const file = path.join(at, 'onnx/model.onnx');
  fs.mkdirSync(path.dirname(file), { recursive: true });
  const model = loadModel(TINYLM.modelKv);
  if (options) await rewriteModel(model, options);
  const carries = options && options.variant !== 'none';
  const report = carries ? retarget(model, 'transformersjs') : { state: [], config: null };
  saveModel(model, file, { externalData: 'inline' });
  const config = JSON.parse(fs.readFileSync(path.join(TINYLM.folder, 'config.json'), 'utf8'));
  fs.writeFileSync(path.join(at, 'config.json'), JSON.stringify({ ...config, ...report.config }));
  fs.copyFileSync(TINYLM.tokenizer, path.join(at, 'tokenizer.json'));
  fs.writeFileSync(
    path.join(at, 'tokenizer_config.json'),
    JSON.stringify({
      tokenizer_class: 'PreTrainedTokenizerFast',
      pad_token: '<|pad|>',
      clean_up_tokenization_spaces: false,
    }),
  );
  fs.writeFileSync(path.join(at, 'generation_config.json'), JSON.stringify({}));
  return { file, report };
}

describe.each<[string, RewriteOptions, number?]>([
  ['all-linear', { variant: 'linear' }],
  ['two-linear', { variant: 'linear', layers: [0, 2] }],
  ['retention', { variant: 'retention' }],
  // Two states a layer, and the length of the text in those of a fifth.
  ['hybrid', { variant: 'hybrid', window: 8 }, 5],
])('%s', (name, options, layers) => {
  it('writes under the pipeline what it writes under onnx-fla, alone and padded in a batch', async () => {
    const { file, report } = await publish(name, options);
    for (const { past } of report.state) expect(past).toMatch(/^past_key_values\.\d\.(key|value)$/);
    expect(report.config).toEqual(layers ? { num_hidden_layers: layers } : null);
    const expected = await Promise.all(PROMPTS.map((prompt) => written(file, prompt)));

    const writer = await pipeline('text-generation', name, { dtype: 'fp32' });
    const more = { max_new_tokens: LENGTH, do_sample: false, return_full_text: false };
    for (const [i, prompt] of PROMPTS.entries()) {
      const [one] = (await writer(prompt, more)) as { generated_text: string }[];
      expect(one!.generated_text).toBe(expected[i]);
    }
    const both = (await writer(PROMPTS, more)) as { generated_text: string }[][];
    expect(both.map(([b]) => b!.generated_text)).toEqual(expected);
    await writer.dispose();
  });

  it('draws under the pipeline what onnx-fla draws from the same logits and numbers', async () => {
    const { file } = await publish(`${name}-sampled`, options);
    const [one, both] = await sampledTexts(`${name}-sampled`);
    expect(one).toEqual(await drawn(file, PROMPTS.slice(0, 1)));
    expect(both).toEqual(await drawn(file, PROMPTS));
  });
});

it('promises one layer more under the name that the configuration has', async () => {
  const patch = async (model: Model, config?: object) => {
    await rewriteModel(model, { variant: 'hybrid', window: 8 });
    return retarget(model, 'transformersjs', { config }).config;
  };
  const lm = () => loadModel(TINYLM.modelKv);
  expect(await patch(lm())).toEqual({ num_hidden_layers: 5 });
  expect(await patch(lm(), { model_type: 'gpt2', n_layer: 4 })).toEqual({ n_layer: 5 });
  const text = { model_type: 'gemma3', text_config: { num_hidden_layers: 4 } };
  expect(await patch(lm(), text)).toEqual({ text_config: { num_hidden_layers: 5 } });
  const t5 = { model_type: 't5', num_layers: 2, num_decoder_layers: 2 };
  expect(await patch(mergedSeq2Seq(), t5)).toEqual({ num_decoder_layers: 3 });
  await expect(patch(lm(), { model_type: 'gpt2' })).rejects.toThrow(
    /^config\.json must have the number of layers, num_hidden_layers or n_layer.*, received model_type$/,
  );
});

it('sampled: the original and the same attention written again write one text, the seed decides which', async () => {
  const { file } = await publish('original');
  const original = await sampledTexts('original');
  expect(original[1]).toEqual(await drawn(file, PROMPTS));
  await publish('none', { variant: 'none' });
  expect(await sampledTexts('none')).toEqual(original);
  expect(await sampledTexts('none', SEED + 1)).not.toEqual(original);
  await publish('linear-too', { variant: 'linear' });
  const linear = await sampledTexts('linear-too');
  expect(linear).not.toEqual(original);
  expect(await sampledTexts('linear-too')).toEqual(linear);
});

const SEED = 3;
const SAMPLING = { temperature: 1.3, topK: 12, topP: 1 };

/** What the pipeline samples for the first prompt alone, and for both in a batch. */
async function sampledTexts(name: string, seed = SEED): Promise<string[][]> {
  const writer = await pipeline('text-generation', name, { dtype: 'fp32' });
  const { temperature, topK: top_k } = SAMPLING;
  const more = { max_new_tokens: LENGTH, do_sample: true, temperature, top_k };
  const texts: string[][] = [];
  for (const prompts of [PROMPTS.slice(0, 1), PROMPTS]) {
    random.seed(seed);
    const written = await writer(prompts, { ...more, return_full_text: false });
    texts.push((written as { generated_text: string }[][]).map(([t]) => t!.generated_text));
  }
  await writer.dispose();
  return texts;
}

/** What comes of the logits of onnx-fla, a number drawn for each row in turn as the library does. */
async function drawn(file: string, prompts: readonly string[]): Promise<string[]> {
  const tokenizer = loadTokenizer(TINYLM.tokenizer);
  const batch = prompts.length;
  const lm = await LanguageModel.open(file, { backend: 'stock', batch });
  const source = new random.Random(SEED);
  const next = () => source.random();
  const texts: number[][] = prompts.map(() => []);
  let rows = prompts.map((prompt) => tokenizer.encode(prompt));
  for (let i = 0; i < LENGTH; i++) {
    const logits = await lm.advanceRows(rows);
    rows = texts.map((text, b) => {
      const id = sampleToken(logitsRow(logits, b), SAMPLING, next);
      text.push(id);
      return [id];
    });
  }
  await lm.release();
  return texts.map((ids) => tokenizer.decode(ids));
}

/** What onnx-fla writes, by the best token each. */
async function written(file: string, prompt: string): Promise<string> {
  const tokenizer = loadTokenizer(TINYLM.tokenizer);
  const lm = await LanguageModel.open(file, { backend: 'stock' });
  const { ids } = await generate(lm, tokenizer.encode(prompt), {
    ...{ maxNewTokens: LENGTH, temperature: 0, topP: 1, topK: 0, seed: 1 },
  });
  await lm.release();
  return tokenizer.decode(ids);
}

/** Rewritten decoders under @huggingface/transformers, whose own code makes, feeds and hands on the states. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { env, pipeline } from '@huggingface/transformers';
import { afterAll, describe, expect, it } from 'vitest';
import {
  loadModel,
  type RewriteOptions,
  retarget,
  rewriteModel,
  saveModel,
} from '../../exporter/index.js';
import { generate } from '../../exporter/text/generate.js';
import { LanguageModel } from '../../exporter/text/language_model.js';
import { loadTokenizer } from '../../exporter/text/tokenizer.js';
import { TINYLM } from '../support/models.js';

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
  const report = retarget(model, 'transformersjs');
  saveModel(model, file, { externalData: 'inline' });
  const config = JSON.parse(fs.readFileSync(path.join(TINYLM.folder, 'config.json'), 'utf8'));
  fs.writeFileSync(path.join(at, 'config.json'), JSON.stringify({ ...config, ...report.config }));
  fs.copyFileSync(TINYLM.tokenizer, path.join(at, 'tokenizer.json'));
  fs.writeFileSync(
    path.join(at, 'tokenizer_config.json'),
    JSON.stringify({ tokenizer_class: 'PreTrainedTokenizerFast', pad_token: '<|pad|>' }),
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
});

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

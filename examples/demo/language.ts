import fs from 'node:fs';
import path from 'node:path';
import { printLanguage } from '../../exporter/cli/commands/compare.js';
import { printSites } from '../../exporter/cli/commands/inspect.js';
import { formatBytes, formatNumber } from '../../exporter/cli/format.js';
import { printTable } from '../../exporter/cli/io.js';
import { compareLanguage, compareModels } from '../../exporter/compare/index.js';
import { inspectModel, loadModel, rewriteModel, saveModel } from '../../exporter/index.js';
import { generate } from '../../exporter/text/generate.js';
import { LanguageModel } from '../../exporter/text/language_model.js';
import { loadTokenizer } from '../../exporter/text/tokenizer.js';
import { OUTPUT, TINYLM_CACHED, TINYLM_TEXT, TINYLM_TOKENIZER } from './paths.js';
import { io, say, title } from './print.js';

const PROMPT = 'Mr. Speaker, Members of the Congress:';
const SELECTIONS = [[0], [1], [2], [3], [1, 2, 3]];
const tokenizer = loadTokenizer(TINYLM_TOKENIZER);

/** Rewrites a language model with KV cache, measures what that does to it, lets it write. Returns the file without any cache. */
export async function languageDemo(): Promise<string> {
  title('A language model: 4 layers, 2.9 M parameters, KV cache');
  const { sites } = await inspectModel(loadModel(TINYLM_CACHED));
  printSites(io, sites);
  const ids = tokenizer.encode(fs.readFileSync(TINYLM_TEXT, 'utf8'));

  const all = await rewritten('tinylm-linear.onnx');
  say(
    'All four layers rewritten to linear attention (elu + 1), no calibration, text not trained on:',
  );
  printLanguage(io, await compareModels(TINYLM_CACHED, all, { ids, maxTokens: 4096 }));
  say(
    'The weights were trained for softmax, and a plain swap ruins this model. Not every layer\n' +
      'matters alike, though; rewriting only some of them gives:',
  );
  await compareSelections(ids);

  const kept = await rewritten('tinylm-keep0.onnx', [1, 2, 3]);
  say(`\nAll three continue "${PROMPT}":`);
  await write('original        ', TINYLM_CACHED);
  await write('layer 0 kept    ', kept);
  await write('all rewritten   ', all);
  return all;
}

/** Rewrites the model into the output folder. */
async function rewritten(name: string, layers?: readonly number[]): Promise<string> {
  const model = loadModel(TINYLM_CACHED);
  await rewriteModel(model, { variant: 'linear', layers });
  const file = path.join(OUTPUT, name);
  saveModel(model, file);
  return file;
}

/** Prints perplexity and divergence for some choices of layers. */
async function compareSelections(ids: readonly number[]): Promise<void> {
  const original = await LanguageModel.open(TINYLM_CACHED);
  const rows: string[][] = [];
  for (const layers of SELECTIONS) {
    const model = await LanguageModel.open(await rewritten('tinylm-some.onnx', layers));
    const { ppl, kld, same_top } = await compareLanguage(original, model, ids, { maxTokens: 2048 });
    await model.release();
    rows.push([
      layers.join(', '),
      formatNumber(ppl.rewritten),
      formatNumber(ppl.ratio, 3),
      formatNumber(kld.mean, 3),
      `${(same_top * 100).toFixed(1)} %`,
    ]);
  }
  await original.release();
  printTable(io, ['layers rewritten', 'perplexity', 'ratio', 'KL mean', 'same top token'], rows);
}

async function write(name: string, file: string): Promise<void> {
  const model = await LanguageModel.open(file);
  const options = { maxNewTokens: 24, temperature: 0.7, topK: 40, topP: 0.95, seed: 1 };
  const result = await generate(model, tokenizer.encode(PROMPT), options);
  await model.release();
  const text = JSON.stringify(tokenizer.decode(result.ids));
  say(`  ${name}${text} (${formatBytes(result.stateBytes)} carried)`);
}

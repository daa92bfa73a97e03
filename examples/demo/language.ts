import fs from 'node:fs';
import path from 'node:path';
import { printLanguage } from '../../exporter/cli/commands/compare.js';
import { printInspection } from '../../exporter/cli/commands/inspect.js';
import { formatBytes, formatNumber } from '../../exporter/cli/format.js';
import { printTable } from '../../exporter/cli/io.js';
import { compareLanguage, type LanguageDifference } from '../../exporter/compare/index.js';
import {
  inspectModel,
  loadModel,
  type RewriteOptions,
  rewriteModel,
  saveModel,
} from '../../exporter/index.js';
import { generate } from '../../exporter/text/generate.js';
import { LanguageModel } from '../../exporter/text/language_model.js';
import { loadTokenizer } from '../../exporter/text/tokenizer.js';
import { OUTPUT, TINYLM_CACHED, TINYLM_TEXT, TINYLM_TOKENIZER } from './paths.js';
import { io, say, title } from './print.js';

const PROMPT = 'Mr. Speaker, Members of the Congress:';
const TOKENS = 2048; // of the held-out text, from its start
const LINEAR: RewriteOptions = { variant: 'linear' };
/** The constants were chosen on a later part of the held-out text than the one reported on. */
const GATED_DELTA: RewriteOptions = {
  variant: 'gated-delta',
  gates: { default: { decay: { constant: -0.1 }, beta: { constant: 1 } } },
};
const tokenizer = loadTokenizer(TINYLM_TOKENIZER);

/** Rewrites a language model with KV cache, measures what that does to it, lets it write. Returns the best file without any cache. */
export async function languageDemo(): Promise<string> {
  title('A language model: 4 layers, 2.9 M parameters, KV cache');
  const { sites } = await inspectModel(loadModel(TINYLM_CACHED));
  printInspection(io, sites);
  const ids = tokenizer.encode(fs.readFileSync(TINYLM_TEXT, 'utf8'));

  const linear = await rewritten('tinylm-linear', LINEAR);
  say('All four layers rewritten to linear attention (elu + 1), on text not trained on:');
  printLanguage(io, await difference(ids, linear));
  say(
    'The weights were trained for softmax and nothing is calibrated: a plain swap ruins this model.\n' +
      'Which layers are rewritten, and to what, makes all the difference:',
  );
  const kept = await rewritten('tinylm-keep0', { ...LINEAR, keepSoftmax: [0] });
  const delta = await rewritten('tinylm-gated-delta', GATED_DELTA);
  await compareFiles(ids, [
    ['linear: all layers', linear],
    ['linear: layer 0', await rewritten('tinylm-linear-0', { ...LINEAR, layers: [0] })],
    ['linear: layer 1', await rewritten('tinylm-linear-1', { ...LINEAR, layers: [1] })],
    ['linear: layer 2', await rewritten('tinylm-linear-2', { ...LINEAR, layers: [2] })],
    ['linear: layer 3', await rewritten('tinylm-linear-3', { ...LINEAR, layers: [3] })],
    ['linear: all but layer 0', kept],
    ['gated delta rule, constant gates: all layers', delta],
  ]);

  say(`\nThey continue "${PROMPT}":`);
  await write('original', TINYLM_CACHED);
  await write('linear: layer 2', path.join(OUTPUT, 'tinylm-linear-2.onnx'));
  await write('linear: all but layer 0', kept);
  await write('gated delta: all layers', delta);
  await write('linear: all layers', linear);
  return delta;
}

/** Rewrites the model into the output folder. */
async function rewritten(name: string, options: RewriteOptions): Promise<string> {
  const model = loadModel(TINYLM_CACHED);
  await rewriteModel(model, options);
  const file = path.join(OUTPUT, `${name}.onnx`);
  saveModel(model, file);
  return file;
}

/** How a file's predictions differ from the original's. */
async function difference(ids: readonly number[], file: string): Promise<LanguageDifference> {
  const original = await LanguageModel.open(TINYLM_CACHED);
  const model = await LanguageModel.open(file);
  const found = await compareLanguage(original, model, ids, { maxTokens: TOKENS });
  await model.release();
  await original.release();
  return found;
}

/** Prints perplexity and divergence from the original for each file. */
async function compareFiles(
  ids: readonly number[],
  files: readonly (readonly [label: string, file: string])[],
): Promise<void> {
  const rows: string[][] = [];
  for (const [label, file] of files) {
    const { ppl, kld, same_top } = await difference(ids, file);
    rows.push([
      label,
      formatNumber(ppl.rewritten),
      formatNumber(ppl.ratio.value, 3),
      formatNumber(kld.mean.value, 3),
      `${((same_top.value ?? 0) * 100).toFixed(1)} %`,
    ]);
  }
  printTable(io, ['rewritten', 'perplexity', 'ratio', 'KL mean', 'same top token'], rows);
}

async function write(name: string, file: string): Promise<void> {
  const model = await LanguageModel.open(file);
  const options = { maxNewTokens: 24, temperature: 0.7, topK: 40, topP: 0.95, seed: 1 };
  const result = await generate(model, tokenizer.encode(PROMPT), options);
  await model.release();
  const text = JSON.stringify(tokenizer.decode(result.ids));
  say(`  ${name.padEnd(25)}${text} (${formatBytes(result.stateBytes)} carried)`);
}

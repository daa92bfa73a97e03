import fs from 'node:fs';
import path from 'node:path';
import { printLanguage } from '../../exporter/cli/commands/compare.js';
import { printSites } from '../../exporter/cli/commands/inspect.js';
import { compareModels } from '../../exporter/compare/index.js';
import { inspectModel, loadModel, rewriteModel, saveModel } from '../../exporter/index.js';
import { generate } from '../../exporter/text/generate.js';
import { LanguageModel } from '../../exporter/text/language_model.js';
import { loadTokenizer } from '../../exporter/text/tokenizer.js';
import { OUTPUT, TINYLM_CACHED, TINYLM_TEXT, TINYLM_TOKENIZER } from './paths.js';
import { io, say, title } from './print.js';

const PROMPT = 'Mr. Speaker, Members of the Congress:';

/** Rewrites a language model with KV cache, measures what that does to it, lets both write. Returns the new file. */
export async function languageDemo(): Promise<string> {
  title('A language model: 4 layers, 2.9 M parameters, KV cache');
  const { sites } = await inspectModel(loadModel(TINYLM_CACHED));
  printSites(io, sites);
  const model = loadModel(TINYLM_CACHED);
  const { state } = await rewriteModel(model, { variant: 'linear' });
  const file = path.join(OUTPUT, 'tinylm-linear.onnx');
  saveModel(model, file);
  say(
    `All layers rewritten to linear attention (elu + 1); ${state.length} states take the place of the KV cache.`,
  );

  const tokenizer = loadTokenizer(TINYLM_TOKENIZER);
  const ids = tokenizer.encode(fs.readFileSync(TINYLM_TEXT, 'utf8'));
  const comparison = await compareModels(TINYLM_CACHED, file, { ids, maxTokens: 4096 });
  printLanguage(io, comparison);
  say(
    'This is the price of a swap without any calibration: the weights were trained for softmax.\n' +
      'The rewritten model is faithful to linear attention, and a much worse language model.',
  );

  say(`\nBoth continue "${PROMPT}":`);
  for (const [name, which] of [
    ['original ', TINYLM_CACHED],
    ['rewritten', file],
  ] as const) {
    const lm = await LanguageModel.open(which);
    const options = { maxNewTokens: 24, temperature: 0.7, topK: 40, topP: 0.95, seed: 1 };
    const result = await generate(lm, tokenizer.encode(PROMPT), options);
    const text = JSON.stringify(tokenizer.decode(result.ids));
    say(`  ${name}  ${text}  (${result.stateBytes} bytes carried)`);
    await lm.release();
  }
  return file;
}

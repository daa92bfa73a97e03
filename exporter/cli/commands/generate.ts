import type { Command } from 'commander';
import { FlaError } from '../../../ops/error.js';
import type { BackendChoice } from '../../compare/index.js';
import { type Generated, generate, generateBatch } from '../../text/generate.js';
import { LanguageModel } from '../../text/language_model.js';
import { readText } from '../../text/read_text.js';
import { loadTokenizer, TextStream, type Tokenizer } from '../../text/tokenizer.js';
import { formatBytes } from '../format.js';
import { type Io, printJson, withProgress } from '../io.js';
import {
  backendOption,
  cacheLengthOption,
  parseCount,
  parsePositive,
  parseWithin,
  threadsOption,
} from '../options.js';

interface Flags {
  tokenizer: string;
  prompt?: string[];
  promptFile?: string;
  maxNewTokens: number;
  temperature: number;
  topK: number;
  topP: number;
  seed: number;
  chunk: number;
  cacheLength?: number;
  threads?: number;
  backend: BackendChoice;
  json?: boolean;
}

export function addGenerate(program: Command, io: Io): void {
  program
    .command('generate')
    .description('continue a text with a language model, rewritten or not')
    .argument('<model>', 'ONNX file: input_ids -> logits, with or without KV cache or state')
    .requiredOption('--tokenizer <file>', 'tokenizer.json of the model')
    .option(
      '--prompt <text>',
      'text to continue; several are read as a batch',
      (text, all: string[] = []) => [...all, text],
    )
    .option('--prompt-file <file>', 'file with the text to continue')
    .option('--max-new-tokens <n>', 'stop after this many', parsePositive, 64)
    .option('--temperature <t>', '0 takes the likeliest token', parseWithin(0, 100), 0.8)
    .option('--top-k <n>', 'choose among the n likeliest; 0 among all', parseCount, 40)
    .option('--top-p <p>', 'choose among the likeliest that make up p', parseWithin(0, 1), 0.95)
    .option('--seed <n>', 'of the choices', parseCount, 0)
    .option('--chunk <tokens>', 'tokens of the prompt read at a time', parsePositive, 512)
    .addOption(cacheLengthOption())
    .addOption(threadsOption())
    .addOption(backendOption())
    .option('--json', 'print JSON at the end instead of text as it comes')
    .addHelpText(
      'after',
      `
Examples:
  onnx-fla generate linear.onnx --tokenizer tokenizer.json --prompt "Call me"
  onnx-fla generate linear.onnx --tokenizer tokenizer.json --prompt-file book.txt --max-new-tokens 200
  onnx-fla generate model.onnx --tokenizer tokenizer.json --prompt "Mr. Speaker," --temperature 0 --json
  onnx-fla generate model.onnx --tokenizer tokenizer.json --prompt "Call me" --prompt "It was" --cache-length 256
`,
    )
    .action((file: string, flags: Flags) => runGenerate(io, file, flags));
}

async function runGenerate(io: Io, file: string, flags: Flags): Promise<void> {
  const tokenizer = loadTokenizer(flags.tokenizer);
  const prompts = readPrompts(flags).map((text) => tokenizer.encode(text));
  if (prompts.some((ids) => ids.length === 0)) {
    throw new FlaError('invalid_argument', 'generate: the prompt is empty');
  }
  const model = await withProgress(io, (update) => {
    update('models opened', 0, 1);
    return LanguageModel.open(file, { ...flags, batch: prompts.length });
  });
  if (model.notice) io.err(`note: ${model.notice}\n`);
  if (prompts.length > 1) return generateTexts(io, model, tokenizer, prompts, flags);
  const ids = prompts[0]!;
  const stream = new TextStream(tokenizer);
  const result = await withProgress(io, (update) =>
    generate(model, ids, {
      ...flags,
      endIds: tokenizer.endIds,
      signal: io.signal,
      onPrefill: (done) => {
        if (done < ids.length) update('prompt tokens', done, ids.length);
      },
      onToken: (id) => {
        const text = stream.push(id);
        if (!flags.json) io.out(text);
      },
    }),
  );
  const { memory, backend } = model;
  await model.release();
  if (flags.json) {
    return printJson(io, {
      text: tokenizer.decode(result.ids),
      ...summary(result),
      memory,
      backend,
    });
  }
  io.out(`${stream.end()}\n`);
  printSummary(io, result, { memory, backend });
}

/** Continues the texts of a batch, and prints them one after the other. */
async function generateTexts(
  io: Io,
  model: LanguageModel,
  tokenizer: Tokenizer,
  prompts: readonly (readonly number[])[],
  flags: Flags,
): Promise<void> {
  const result = await withProgress(io, () =>
    generateBatch(model, prompts, { ...flags, endIds: tokenizer.endIds, signal: io.signal }),
  );
  const { memory, backend } = model;
  await model.release();
  const all = { ...result, ids: result.ids.flat() };
  if (flags.json) {
    const texts = result.ids.map((ids) => ({ text: tokenizer.decode(ids), ids }));
    const { ids: _, ...rest } = summary(all);
    return printJson(io, { texts, ...rest, memory, backend });
  }
  for (const [i, ids] of result.ids.entries()) io.out(`[${i + 1}] ${tokenizer.decode(ids)}\n`);
  printSummary(io, all, { memory, backend });
}

function printSummary(io: Io, result: Generated, run: { memory: string; backend: string }): void {
  const s = summary(result);
  io.err(
    `prompt: ${s.prompt_tokens} tokens at ${s.prefill_tokens_per_second.toFixed(0)} tokens/s; ` +
      `new: ${s.new_tokens} at ${s.decode_tokens_per_second.toFixed(1)} tokens/s; ` +
      `carried: ${formatBytes(s.state_bytes)} (${run.memory}); run by ${run.backend}\n`,
  );
}

function summary(result: Generated) {
  const perSecond = (tokens: number, ms: number) => (ms > 0 ? (tokens * 1000) / ms : 0);
  return {
    ids: result.ids,
    prompt_tokens: result.promptTokens,
    new_tokens: result.ids.length,
    prefill_tokens_per_second: perSecond(result.promptTokens, result.prefillMs),
    decode_tokens_per_second: perSecond(result.ids.length, result.decodeMs),
    state_bytes: result.stateBytes,
  };
}

function readPrompts({ prompt, promptFile }: Flags): string[] {
  if ((prompt === undefined) === (promptFile === undefined)) {
    throw new FlaError('invalid_argument', 'generate: give one of --prompt and --prompt-file');
  }
  return prompt ?? [readText(promptFile!)];
}

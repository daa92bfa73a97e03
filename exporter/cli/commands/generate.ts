import type { Command } from 'commander';
import type { BackendChoice } from '../../compare/index.js';
import {
  type Generated,
  type GenerateOptions,
  generate,
  generateBatch,
} from '../../text/generate.js';
import { LanguageModel } from '../../text/language_model.js';
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
import { type ReadingFlags, readingOf } from '../reading.js';

interface Flags extends ReadingFlags {
  tokenizer: string;
  withPast?: string;
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
    .description(
      'continue a text with a language model, or answer a source with an encoder-decoder',
    )
    .argument('<model>', 'ONNX file: input_ids -> logits, with or without KV cache or state')
    .requiredOption('--tokenizer <file>', 'tokenizer.json of the model')
    .option(
      '--prompt <text>',
      'text to continue; several are read as a batch',
      (text, all: string[] = []) => [...all, text],
    )
    .option('--prompt-file <file>', 'file with the text to continue')
    .option(
      '--encoder <file>',
      'encoder_model.onnx: the model is a decoder of what this makes of the prompt',
    )
    .option(
      '--encoder-input <file>',
      'what the encoder reads in place of a prompt (input_features, pixel_values): .npy, .npz, .safetensors',
    )
    .option(
      '--decoder-prompt <text>',
      'what the decoder goes on with after its first token; then nothing is forced',
    )
    .option(
      '--decoder-start-token-id <id>',
      'what the decoder starts from (default: as generation_config.json or config.json says)',
      parseCount,
    )
    .option('--with-past <file>', 'decoder_with_past_model.onnx: makes all calls but the first')
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
  onnx-fla generate onnx/decoder_model_merged.onnx --encoder onnx/encoder_model.onnx --tokenizer tokenizer.json --prompt "translate English to German: Hello"
  onnx-fla generate decoder_model.onnx --with-past decoder_with_past_model.onnx --encoder encoder_model.onnx \\
    --tokenizer tokenizer.json --encoder-input input_features.npy --decoder-prompt "<|en|><|transcribe|><|notimestamps|>"
`,
    )
    .action((file: string, flags: Flags) => runGenerate(io, file, flags));
}

async function runGenerate(io: Io, file: string, flags: Flags): Promise<void> {
  const tokenizer = loadTokenizer(flags.tokenizer);
  const { prompts, source, ...told } = readingOf(file, flags, tokenizer);
  const model = await withProgress(io, (update) => {
    update('models opened', 0, 1);
    return LanguageModel.open(file, { ...flags, batch: prompts.length });
  });
  if (model.notice) io.err(`note: ${model.notice}\n`);
  const read = source ? await timed(() => model.readSource(source)) : { tokens: 0, ms: 0 };
  const options = { ...flags, ...told, signal: io.signal };
  if (prompts.length > 1) return generateTexts(io, model, tokenizer, prompts, options, read);
  const ids = prompts[0]!;
  const stream = new TextStream(tokenizer);
  const result = await withProgress(io, (update) =>
    generate(model, ids, {
      ...options,
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
      ...summary(result, read),
      memory,
      backend,
    });
  }
  io.out(`${stream.end()}\n`);
  printSummary(io, summary(result, read), { memory, backend });
}

/** Continues the texts of a batch, and prints them one after the other. */
async function generateTexts(
  io: Io,
  model: LanguageModel,
  tokenizer: Tokenizer,
  prompts: readonly (readonly number[])[],
  options: Flags & Pick<GenerateOptions, 'endIds' | 'rules' | 'signal'>,
  read: SourceRead,
): Promise<void> {
  const result = await withProgress(io, () => generateBatch(model, prompts, options));
  const { memory, backend } = model;
  await model.release();
  const all = { ...result, ids: result.ids.flat() };
  if (options.json) {
    const texts = result.ids.map((ids) => ({ text: tokenizer.decode(ids), ids }));
    const { ids: _, ...rest } = summary(all, read);
    return printJson(io, { texts, ...rest, memory, backend });
  }
  for (const [i, ids] of result.ids.entries()) io.out(`[${i + 1}] ${tokenizer.decode(ids)}\n`);
  printSummary(io, summary(all, read), { memory, backend });
}

/** What an encoder took in, and how long that took. */
interface SourceRead {
  tokens: number;
  ms: number;
}

async function timed(read: () => Promise<number>): Promise<SourceRead> {
  const start = performance.now();
  return { tokens: await read(), ms: performance.now() - start };
}

function printSummary(
  io: Io,
  s: ReturnType<typeof summary>,
  run: { memory: string; backend: string },
): void {
  io.err(
    `prompt: ${s.prompt_tokens} tokens at ${s.prefill_tokens_per_second.toFixed(0)} tokens/s; ` +
      `new: ${s.new_tokens} at ${s.decode_tokens_per_second.toFixed(1)} tokens/s; ` +
      `carried: ${formatBytes(s.state_bytes)} (${run.memory}); run by ${run.backend}\n`,
  );
}

function summary(result: Generated, read: SourceRead) {
  const perSecond = (tokens: number, ms: number) => (ms > 0 ? (tokens * 1000) / ms : 0);
  const promptTokens = result.promptTokens + read.tokens;
  return {
    ids: result.ids,
    prompt_tokens: promptTokens,
    new_tokens: result.ids.length,
    prefill_tokens_per_second: perSecond(promptTokens, result.prefillMs + read.ms),
    decode_tokens_per_second: perSecond(result.ids.length, result.decodeMs),
    state_bytes: result.stateBytes,
  };
}

import { FlaError } from '../../ops/error.js';
import type { NumberArray } from '../text/encoder.js';
import type { TokenRows } from '../text/engine.js';
import type { TokenRules } from '../text/generate.js';
import { type GenerationConfig, readGenerationConfig } from '../text/generation_config.js';
import { readText } from '../text/read_text.js';
import type { Tokenizer } from '../text/tokenizer.js';
import { readArrays } from './arrays.js';
import { optionOf } from './options.js';

export interface ReadingFlags {
  prompt?: string[];
  promptFile?: string;
  encoder?: string;
  encoderInput?: string;
  decoderPrompt?: string;
  decoderStartTokenId?: number;
}

/** What a model is to read before it writes. */
export interface Reading {
  /** For the encoder, where there is one. */
  source?: TokenRows | ReadonlyMap<string, NumberArray>;
  /** What each text of the batch begins with. */
  prompts: readonly (readonly number[])[];
  endIds: ReadonlySet<number>;
  rules: TokenRules;
}

/** @throws FlaError `invalid_argument` for options that do not go together, empty prompts, and a start that nothing tells */
export function readingOf(model: string, flags: ReadingFlags, tokenizer: Tokenizer): Reading {
  const config = readGenerationConfig(model);
  const endIds = new Set([...tokenizer.endIds, ...config.endIds]);
  const { rules } = config;
  if (flags.encoder === undefined) {
    for (const name of ['encoderInput', 'decoderPrompt', 'decoderStartTokenId'] as const) {
      if (flags[name] === undefined) continue;
      throw wrong(`${optionOf(name)} is for a model with an --encoder`);
    }
    const prompts = textsOf(flags).map((text) => encoded(tokenizer, text));
    return { prompts, endIds, rules: { ...rules, forced: new Map() } };
  }
  const source = sourceOf(flags, tokenizer);
  const batch = source instanceof Map ? batchOf(source) : (source as TokenRows).length;
  const start = decoderTokens(model, config, flags, tokenizer);
  const dictated = flags.decoderPrompt === undefined ? rules.forced : new Map<number, number>();
  return {
    source,
    prompts: Array.from({ length: batch }, () => start),
    endIds,
    rules: { ...rules, forced: dictated },
  };
}

function sourceOf(flags: ReadingFlags, tokenizer: Tokenizer): Reading['source'] {
  if (flags.encoderInput === undefined) {
    return textsOf(flags).map((text) => encoded(tokenizer, text));
  }
  if (flags.prompt !== undefined || flags.promptFile !== undefined) {
    throw wrong('the encoder reads a prompt or --encoder-input, not both');
  }
  return readArrays(flags.encoderInput);
}

function batchOf(arrays: ReadonlyMap<string, NumberArray>): number {
  const [[name, { dims }] = ['nothing', { dims: [] }]] = arrays;
  if (dims[0]) return dims[0];
  throw wrong(`--encoder-input must hold sources along the first axis, received ${name} [${dims}]`);
}

function decoderTokens(
  model: string,
  { decoderStart }: GenerationConfig,
  { decoderStartTokenId: given = decoderStart, decoderPrompt = '' }: ReadingFlags,
  tokenizer: Tokenizer,
): number[] {
  const prompt = tokenizer.encodePiece(decoderPrompt);
  if (given !== undefined) return prompt[0] === given ? prompt : [given, ...prompt];
  if (prompt.length > 0) return prompt;
  throw wrong(
    `no config.json or generation_config.json beside ${model} tells what its decoder starts from; give --decoder-start-token-id`,
  );
}

function textsOf({ prompt, promptFile }: ReadingFlags): string[] {
  if ((prompt === undefined) === (promptFile === undefined)) {
    throw wrong('give one of --prompt and --prompt-file');
  }
  return prompt ?? [readText(promptFile!)];
}

function encoded(tokenizer: Tokenizer, text: string): number[] {
  const ids = tokenizer.encode(text);
  if (ids.length === 0) throw wrong('the prompt is empty');
  return ids;
}

function wrong(what: string): FlaError {
  return new FlaError('invalid_argument', `generate: ${what}`);
}

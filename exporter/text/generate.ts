import { seededRandom } from '../random.js';
import { logitsRow } from './engine.js';
import type { LanguageModel } from './language_model.js';
import { type SamplingOptions, sampleToken } from './sample.js';

/** Which new tokens a model's configuration dictates or forbids. */
export interface TokenRules {
  /** By number, counted from 0. */
  forced: ReadonlyMap<number, number>;
  suppressed: readonly number[];
  /** Not as the first token that is not forced. */
  suppressedFirst: readonly number[];
}

export interface GenerateOptions extends SamplingOptions {
  maxNewTokens: number;
  seed: number;
  /** Tokens read at a time from the prompt. */
  chunk?: number;
  /** Generation stops before any of these. */
  endIds?: ReadonlySet<number>;
  rules?: TokenRules;
  /** Called with each new token as it is chosen. */
  onToken?: (id: number) => void;
  onPrefill?: (done: number) => void;
  signal?: AbortSignal;
}

export interface Generated {
  ids: number[];
  promptTokens: number;
  prefillMs: number;
  decodeMs: number;
  /** Bytes carried between calls when generation ended. */
  stateBytes: number;
}

/** Reads a prompt (at least one token) and continues it. */
export async function generate(
  model: LanguageModel,
  prompt: readonly number[],
  options: GenerateOptions,
): Promise<Generated> {
  const random = seededRandom(options.seed);
  const start = performance.now();
  let logits = await model.prefill(prompt, {
    chunk: options.chunk,
    onProgress: options.onPrefill,
    signal: options.signal,
  });
  const prefilled = performance.now();
  const ids: number[] = [];
  while (ids.length < options.maxNewTokens) {
    options.signal?.throwIfAborted();
    const id = nextToken(logitsRow(logits, logits.rows - 1), ids.length, options, random);
    if (options.endIds?.has(id)) break;
    ids.push(id);
    options.onToken?.(id);
    if (ids.length < options.maxNewTokens) logits = await model.advance([id]);
    await new Promise(setImmediate); // a run may not yield, and an interrupt must get through
  }
  return {
    ids,
    promptTokens: prompt.length,
    prefillMs: prefilled - start,
    decodeMs: performance.now() - prefilled,
    stateBytes: model.stateBytes,
  };
}

/** The token that follows `count` new ones. @param random gives numbers in [0, 1) */
export function nextToken(
  logits: Float32Array,
  count: number,
  options: SamplingOptions & Pick<GenerateOptions, 'rules'>,
  random: () => number,
): number {
  const { rules } = options;
  if (!rules) return sampleToken(logits, options, random);
  const { forced, suppressed, suppressedFirst } = rules;
  const id = forced.get(count);
  if (id !== undefined) return id;
  const isFirst = count === Math.max(-1, ...forced.keys()) + 1;
  const allowed = logits.slice();
  for (const no of [...suppressed, ...(isFirst ? suppressedFirst : [])]) {
    if (no < allowed.length) allowed[no] = Number.NEGATIVE_INFINITY;
  }
  return sampleToken(allowed, options, random);
}

/** What a batch was continued with. */
export interface GeneratedBatch extends Omit<Generated, 'ids'> {
  /** New tokens of each text. */
  ids: number[][];
}

/**
 * Reads the prompts of a model's batch (at least one token each) at once, and continues each as `generate` would with the seed
 * plus its place in the batch.
 */
export async function generateBatch(
  model: LanguageModel,
  prompts: readonly (readonly number[])[],
  options: Omit<GenerateOptions, 'chunk' | 'onToken' | 'onPrefill'>,
): Promise<GeneratedBatch> {
  const start = performance.now();
  let logits = await model.advanceRows(prompts);
  const prefilled = performance.now();
  const texts = prompts.map((_, b) => ({
    ids: [] as number[],
    random: seededRandom(options.seed + b),
    last: 0,
    ended: false,
  }));
  for (let step = 1; step <= options.maxNewTokens; step++) {
    options.signal?.throwIfAborted();
    for (const [b, text] of texts.entries()) {
      if (text.ended) continue;
      text.last = nextToken(logitsRow(logits, b), text.ids.length, options, text.random);
      text.ended = options.endIds?.has(text.last) ?? false;
      if (!text.ended) text.ids.push(text.last);
    }
    if (step === options.maxNewTokens || texts.every((text) => text.ended)) break;
    logits = await model.advanceRows(texts.map((text) => [text.last]));
    await new Promise(setImmediate); // a run may not yield, and an interrupt must get through
  }
  return {
    ids: texts.map((text) => text.ids),
    promptTokens: prompts.reduce((sum, prompt) => sum + prompt.length, 0),
    prefillMs: prefilled - start,
    decodeMs: performance.now() - prefilled,
    stateBytes: model.stateBytes,
  };
}

import { seededRandom } from '../random.js';
import { logitsRow } from './engine.js';
import type { LanguageModel } from './language_model.js';
import { type SamplingOptions, sampleToken } from './sample.js';

export interface GenerateOptions extends SamplingOptions {
  maxNewTokens: number;
  seed: number;
  /** Tokens read at a time from the prompt. */
  chunk?: number;
  /** Generation stops before any of these. */
  endIds?: ReadonlySet<number>;
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
    const id = sampleToken(logitsRow(logits, logits.rows - 1), options, random);
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

import { FlaError } from '../../ops/error.js';
import { logitsRow } from '../text/engine.js';
import type { LanguageModel } from '../text/language_model.js';
import { argmax, klDivergence, logSoftmax, mean, quantile, standardError } from './statistics.js';

/** How two language models differ on one text. */
export interface LanguageDifference {
  ppl: {
    original: number;
    rewritten: number;
    ratio: number;
    /** Standard error of the ratio, tokens taken as independent. */
    ratio_error: number;
  };
  /** KL(original || rewritten) of the next-token distributions, nats a token. */
  kld: { mean: number; median: number; p99: number; p999: number; max: number };
  /** Share of tokens at which both like the same next token best. */
  same_top: number;
  /** Predictions compared. */
  tokens: number;
  /** Tokens a window; each starts with nothing remembered. */
  context: number;
}

export interface LanguageOptions {
  /** Tokens a window. Default 512. */
  context?: number;
  /** Stop after this many tokens. Default 8192. */
  maxTokens?: number;
  onProgress?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

/**
 * Compares the next-token predictions of two models on a text, window by window.
 *
 * @param ids the tokens of the text, at least two
 */
export async function compareLanguage(
  original: LanguageModel,
  rewritten: LanguageModel,
  ids: readonly number[],
  { context = 512, maxTokens = 8192, onProgress, signal }: LanguageOptions = {},
): Promise<LanguageDifference> {
  const used = ids.slice(0, maxTokens);
  const scores = new Scores();
  for (let at = 0; at + 1 < used.length; at += context) {
    signal?.throwIfAborted();
    await scoreWindow(original, rewritten, used.slice(at, at + context), scores);
    onProgress?.(Math.min(at + context, used.length), used.length);
  }
  if (scores.kld.length === 0) {
    throw new FlaError('invalid_argument', 'text must have at least 2 tokens, received fewer');
  }
  return scores.summary(context);
}

class Scores {
  readonly originalNll: number[] = [];
  readonly rewrittenNll: number[] = [];
  readonly kld: number[] = [];
  sameTop = 0;

  summary(context: number): LanguageDifference {
    const logRatio = this.rewrittenNll.map((x, i) => x - this.originalNll[i]!);
    const ratio = Math.exp(mean(logRatio));
    return {
      ppl: {
        original: Math.exp(mean(this.originalNll)),
        rewritten: Math.exp(mean(this.rewrittenNll)),
        ratio,
        ratio_error: ratio * standardError(logRatio),
      },
      kld: {
        mean: mean(this.kld),
        median: quantile(this.kld, 0.5),
        p99: quantile(this.kld, 0.99),
        p999: quantile(this.kld, 0.999),
        max: quantile(this.kld, 1),
      },
      same_top: this.sameTop / this.kld.length,
      tokens: this.kld.length,
      context,
    };
  }
}

async function scoreWindow(
  original: LanguageModel,
  rewritten: LanguageModel,
  window: readonly number[],
  scores: Scores,
): Promise<void> {
  if (window.length < 2) return;
  await original.reset();
  await rewritten.reset();
  const a = await original.advance(window);
  const b = await rewritten.advance(window);
  if (a.vocabulary !== b.vocabulary) {
    throw new FlaError(
      'invalid_argument',
      `models must have one vocabulary, received ${a.vocabulary} and ${b.vocabulary} tokens`,
    );
  }
  for (let row = 0; row + 1 < window.length; row++) {
    const next = window[row + 1]!;
    const logP = logSoftmax(logitsRow(a, row));
    const logQ = logSoftmax(logitsRow(b, row));
    scores.originalNll.push(-logP[next]!);
    scores.rewrittenNll.push(-logQ[next]!);
    scores.kld.push(klDivergence(logP, logQ));
    if (argmax(logP) === argmax(logQ)) scores.sameTop++;
  }
}

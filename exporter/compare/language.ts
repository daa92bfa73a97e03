import { FlaError } from '../../ops/error.js';
import { type Logits, logitsRow } from '../text/engine.js';
import type { Memory } from '../text/token_interface.js';
import type { LanguageDifference } from './report/schema.js';
import {
  argmax,
  correlation,
  type Estimate,
  histogram,
  klDivergence,
  logSoftmax,
  mean,
  meanEstimate,
  quantileEstimate,
  rmsEstimate,
  shareEstimate,
} from './statistics.js';

export type { LanguageDifference } from './report/schema.js';

/** What a language model must be able to do to be scored; `LanguageModel` can. */
export interface TokenReader {
  readonly memory: Memory;
  readonly stateBytes: number;
  reset(): Promise<void>;
  /** Reads tokens and returns the logits of each. */
  advance(ids: readonly number[]): Promise<Logits>;
  /** Reads tokens in pieces and returns the last one's logits. */
  prefill(
    ids: readonly number[],
    options?: { chunk?: number; signal?: AbortSignal },
  ): Promise<Logits>;
}

export interface LanguageOptions {
  /** Tokens a window. Default 512. */
  context?: number;
  /** Stop after this many tokens. Default 8192. */
  maxTokens?: number;
  /** Tokens read at a time where both models remember. Default 512. */
  chunk?: number;
  onProgress?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

/**
 * Compares the next-token predictions of two models on a text, window by window.
 *
 * @param ids the tokens of the text, at least two
 */
export async function compareLanguage(
  original: TokenReader,
  rewritten: TokenReader,
  ids: readonly number[],
  options: LanguageOptions = {},
): Promise<LanguageDifference> {
  const { context = 512, maxTokens = 8192, chunk = 512, onProgress, signal } = options;
  const used = ids.slice(0, maxTokens);
  if (used.length < 2 || context < 2) {
    const received = `${used.length} in windows of ${context}`;
    throw new FlaError(
      'invalid_argument',
      `text must have at least 2 tokens in a window, received ${received}`,
    );
  }
  const forgetful = [original, rewritten].some(({ memory }) => memory === 'none');
  const scores = new Scores(context);
  for (let at = 0; at + 1 < used.length; at += context) {
    const window = used.slice(at, at + context);
    if (window.length < 2) break;
    await scoreWindow(original, rewritten, window, forgetful ? context : chunk, scores, signal);
    onProgress?.(Math.min(at + context, used.length), used.length);
  }
  return scores.summary();
}

async function scoreWindow(
  original: TokenReader,
  rewritten: TokenReader,
  window: readonly number[],
  chunk: number,
  scores: Scores,
  signal: AbortSignal | undefined,
): Promise<void> {
  await original.reset();
  await rewritten.reset();
  const repeated = endsRepeatedPair(window);
  for (let from = 0; from < window.length; from += chunk) {
    signal?.throwIfAborted();
    const piece = window.slice(from, from + chunk);
    const a = await original.advance(piece);
    const b = await rewritten.advance(piece);
    if (a.vocabulary !== b.vocabulary) {
      throw new FlaError(
        'invalid_argument',
        `models must have one vocabulary, received ${a.vocabulary} and ${b.vocabulary} tokens`,
      );
    }
    for (let i = 0; i < piece.length && from + i + 1 < window.length; i++) {
      const at = from + i + 1;
      scores.add(at, window[at]!, repeated[at]!, logitsRow(a, i), logitsRow(b, i));
    }
  }
}

/** For every token, whether it and the one before it have stood side by side earlier in the window. */
export function endsRepeatedPair(window: readonly number[]): boolean[] {
  const seen = new Set<string>();
  return window.map((id, i) => {
    if (i === 0) return false;
    const pair = `${window[i - 1]} ${id}`;
    const known = seen.has(pair);
    seen.add(pair);
    return known;
  });
}

/** Edges of KL classes, 1e-6 to 31.6 nats, four a decade. */
const KL_EDGES = Array.from({ length: 31 }, (_, i) => Number((10 ** (i / 4 - 6)).toPrecision(6)));
const MOST_BINS = 24; // of positions

/** What was found token by token. */
class Scores {
  private readonly originalNll: number[] = [];
  private readonly rewrittenNll: number[] = [];
  private readonly kld: number[] = [];
  private readonly deltaP: number[] = [];
  private readonly position: number[] = [];
  private readonly repeated: boolean[] = [];
  private sameTop = 0;

  constructor(private readonly context: number) {}

  /** The prediction of token `next` at `position` of its window. */
  add(
    position: number,
    next: number,
    repeated: boolean,
    original: ArrayLike<number>,
    rewritten: ArrayLike<number>,
  ): void {
    const logP = logSoftmax(original);
    const logQ = logSoftmax(rewritten);
    this.originalNll.push(-logP[next]!);
    this.rewrittenNll.push(-logQ[next]!);
    this.kld.push(klDivergence(logP, logQ));
    this.deltaP.push(Math.exp(logQ[next]!) - Math.exp(logP[next]!));
    this.position.push(position);
    this.repeated.push(repeated);
    if (argmax(logP) === argmax(logQ)) this.sameTop++;
  }

  summary(): LanguageDifference {
    const sorted = Float64Array.from(this.kld).sort();
    const indices = this.kld.map((_, i) => i);
    const some = (wanted: boolean) => {
      const chosen = indices.filter((i) => this.repeated[i] === wanted);
      return chosen.length > 0 ? this.perplexity(chosen) : null;
    };
    return {
      tokens: this.kld.length,
      context: this.context,
      ppl: this.perplexity(indices),
      repeated: some(true),
      rest: some(false),
      correlation: correlation(this.originalNll, this.rewrittenNll),
      kld: {
        mean: meanEstimate(this.kld),
        median: quantileEstimate(sorted, 0.5),
        p99: quantileEstimate(sorted, 0.99),
        p999: quantileEstimate(sorted, 0.999),
        max: sorted.at(-1)!,
      },
      same_top: shareEstimate(this.sameTop, this.kld.length),
      delta_p: { mean: meanEstimate(this.deltaP), rms: rmsEstimate(this.deltaP) },
      histogram: { edges: KL_EDGES, counts: histogram(this.kld, KL_EDGES) },
      drift: this.drift(),
    };
  }

  private perplexity(indices: readonly number[]): LanguageDifference['ppl'] {
    const pick = (values: readonly number[]) => indices.map((i) => values[i]!);
    const [a, b] = [pick(this.originalNll), pick(this.rewrittenNll)];
    const log = meanEstimate(b.map((x, i) => x - a[i]!));
    return {
      tokens: indices.length,
      original: Math.exp(mean(a)),
      rewritten: Math.exp(mean(b)),
      ratio: exponential(log),
    };
  }

  private drift(): LanguageDifference['drift'] {
    const width = Math.ceil(this.context / MOST_BINS);
    const bins = new Map<number, number[]>();
    for (const [i, position] of this.position.entries()) {
      const bin = Math.floor(position / width);
      const bucket = bins.get(bin);
      if (bucket) bucket.push(i);
      else bins.set(bin, [i]);
    }
    return [...bins]
      .sort(([a], [b]) => a - b)
      .map(([bin, indices]) => ({
        from: bin * width,
        to: Math.min((bin + 1) * width, this.context),
        tokens: indices.length,
        kld: meanEstimate(indices.map((i) => this.kld[i]!)),
        nll_original: mean(indices.map((i) => this.originalNll[i]!)),
        nll_rewritten: mean(indices.map((i) => this.rewrittenNll[i]!)),
      }));
  }
}

/** exp(x), its error to first order. */
function exponential({ value, error }: Estimate): Estimate {
  const e = Math.exp(value);
  return { value: e, error: error === null ? null : e * error };
}

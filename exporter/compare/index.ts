import { loadModel } from '../ir/file.js';
import { LanguageModel } from '../text/language_model.js';
import { isLanguageModel } from '../text/token_interface.js';
import { type CostRow, measureCost } from './cost.js';
import { inputVocabularies } from './feeds.js';
import { compareLanguage, type LanguageDifference } from './language.js';
import { compareOutputs, type OutputDifference } from './outputs.js';
import { type BackendChoice, openSession } from './session.js';

export { type CostRow, measureCost } from './cost.js';
export { compareLanguage, type LanguageDifference } from './language.js';
export { compareOutputs, type OutputDifference } from './outputs.js';
export type { BackendChoice } from './session.js';

/** What `compare --json` prints. */
export interface Comparison {
  /** Null without a text. */
  ppl: LanguageDifference['ppl'] | null;
  kld: LanguageDifference['kld'] | null;
  same_top: number | null;
  /** Predictions behind the three above, and tokens a window. */
  text: { tokens: number; context: number } | null;
  /** Every output that both models have, on the same random inputs. */
  outputs: Record<string, OutputDifference>;
  cost: CostRow[];
  /** Who ran either model. */
  backend: { original: 'fla' | 'stock'; rewritten: 'fla' | 'stock' };
  notices: string[];
}

export interface CompareOptions {
  /** Token ids of a text, for language models. */
  ids?: readonly number[];
  context?: number;
  maxTokens?: number;
  /** Lengths to measure time and memory at; none by default. */
  lengths?: readonly number[];
  chunk?: number;
  runs?: number;
  /** Lengths of named dimensions. */
  dims?: Readonly<Record<string, number>>;
  /** Length of all other free dimensions while outputs are compared. */
  length?: number;
  seed?: number;
  /** Who runs the rewritten model. */
  backend?: BackendChoice;
  /** Who runs the original; `auto` means ONNX Runtime as installed, unless it has our ops already. */
  originalBackend?: BackendChoice;
  threads?: number;
  onProgress?: (stage: string, done: number, total: number) => void;
  signal?: AbortSignal;
}

/**
 * Compares a rewritten model with its original: outputs on the same inputs, predictions on a text,
 * time and memory against length.
 *
 * @throws FlaError when a model cannot be opened or run
 */
export async function compareModels(
  originalFile: string,
  rewrittenFile: string,
  options: CompareOptions = {},
): Promise<Comparison> {
  const { signal, onProgress, threads } = options;
  const choices = {
    original: { backend: options.originalBackend ?? 'auto', threads },
    rewritten: { backend: options.backend ?? 'auto', threads },
  };
  const step = (done: number) => onProgress?.('models run', done, 2);
  step(0);
  const original = { file: originalFile, ...(await openSession(originalFile, choices.original)) };
  const rewritten = {
    file: rewrittenFile,
    ...(await openSession(rewrittenFile, choices.rewritten)),
  };
  const tokens = isLanguageModel(original.session) && isLanguageModel(rewritten.session);
  let outputs: Comparison['outputs'];
  try {
    outputs = await compareOutputs(original, rewritten, { ...options, onModelRun: step });
  } finally {
    await original.session.release();
    await rewritten.session.release();
  }
  signal?.throwIfAborted();

  let language: LanguageDifference | undefined;
  if (options.ids) {
    const a = await LanguageModel.open(originalFile, choices.original);
    const b = await LanguageModel.open(rewrittenFile, choices.rewritten);
    language = await compareLanguage(a, b, options.ids, {
      ...options,
      onProgress: (done, total) => onProgress?.('tokens', done, total),
    });
    await a.release();
    await b.release();
  }
  const cost = await measureCost({
    original: { file: originalFile, choice: choices.original },
    rewritten: { file: rewrittenFile, choice: choices.rewritten },
    lengths: options.lengths ?? [],
    vocabulary: tokens ? smallestVocabulary(originalFile) : null,
    dims: options.dims,
    chunk: options.chunk,
    runs: options.runs,
    signal,
    onProgress: (done, total) => onProgress?.('lengths', done, total),
  });
  return {
    ppl: language?.ppl ?? null,
    kld: language?.kld ?? null,
    same_top: language?.same_top ?? null,
    text: language ? { tokens: language.tokens, context: language.context } : null,
    outputs,
    cost,
    backend: { original: original.backend, rewritten: rewritten.backend },
    notices: [original.notice, rewritten.notice].filter((n) => n !== undefined),
  };
}

function smallestVocabulary(file: string): number {
  return Math.min(...inputVocabularies(loadModel(file)).values(), 1000);
}

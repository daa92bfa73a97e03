import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { loadModel } from '../ir/file.js';
import { cacheDims } from '../text/cache_dims.js';
import { statePairs } from '../text/state_pairs.js';
import {
  defaultLength,
  type FeedOptions,
  inputVocabularies,
  makeFeeds,
  tensorInputs,
  tensorValues,
} from './feeds.js';
import { loadOnnxRuntime, namingFile, type OpenedSession } from './session.js';
import { cosine, maxAbsDifference } from './statistics.js';

/** How far two tensors of the same shape are apart. */
export interface OutputDifference {
  max_abs: number;
  /** Of the tensors taken as vectors; null when one of them holds values that are not finite. */
  cosine: number | null;
}

export interface ShapeOptions {
  /** Length of every free dimension; default 128, or 320 for images. */
  length?: number;
  dims?: Readonly<Record<string, number>>;
  seed?: number;
}

/** What a model is fed with when only its file is known. */
export async function feedsFor(
  file: string,
  session: Ort.InferenceSession,
  options: ShapeOptions = {},
): Promise<Record<string, Ort.Tensor>> {
  const ort = await loadOnnxRuntime();
  const inputs = tensorInputs(session.inputMetadata);
  const model = loadModel(file);
  const full: FeedOptions = {
    length: options.length ?? defaultLength(inputs),
    dims: { ...cacheDims(model), ...options.dims },
    seed: options.seed ?? 0,
    state: new Set(statePairs(session.inputNames, session.outputNames).map((p) => p.past)),
    vocabularies: inputVocabularies(model),
  };
  return makeFeeds(ort, inputs, full);
}

/** A model file with the session that was opened from it. */
export interface OpenModel extends OpenedSession {
  file: string;
}

export type Outputs = Readonly<Record<string, Ort.Tensor>>;

/** Runs a model on made-up inputs, which are the same for every model. */
export async function outputsOf(
  { file, session }: OpenModel,
  options: ShapeOptions = {},
): Promise<Outputs> {
  const feeds = await feedsFor(file, session, options);
  return (await namingFile(file, () => session.run(feeds))) as Outputs;
}

/**
 * Compares every output that two runs share.
 *
 * @throws FlaError `invalid_argument` when that is none
 */
export function compareOutputs(
  a: Outputs,
  b: Outputs,
  files: { original: string; rewritten: string },
): Record<string, OutputDifference> {
  const differences: Record<string, OutputDifference> = {};
  for (const [name, x] of Object.entries(a)) {
    const y = b[name];
    if (!y || !sameShape(x.dims, y.dims)) continue;
    differences[name] = difference(tensorValues(x), tensorValues(y));
  }
  if (Object.keys(differences).length === 0) {
    throw new FlaError(
      'invalid_argument',
      `${files.rewritten}: must share outputs with ${files.original} (${Object.keys(a)}), received ${Object.keys(b)}`,
    );
  }
  return differences;
}

/** @throws FlaError `invalid_argument` for a dimension that no input of these models has */
export function checkDims(
  models: readonly OpenModel[],
  dims: Readonly<Record<string, number>>,
): void {
  const shapes = models.flatMap(({ session }) => tensorInputs(session.inputMetadata));
  const names = new Set(shapes.flatMap((i) => i.shape.filter((d) => typeof d === 'string' && d)));
  for (const name of Object.keys(dims)) {
    if (names.has(name)) continue;
    throw new FlaError(
      'invalid_argument',
      `dim must name a dimension of the inputs (${[...names].join(', ') || 'none has a name'}), received ${name}`,
    );
  }
}

/** The distance of two vectors of equal length. */
export function difference(a: ArrayLike<number>, b: ArrayLike<number>): OutputDifference {
  const angle = cosine(a, b);
  return { max_abs: maxAbsDifference(a, b), cosine: Number.isFinite(angle) ? angle : null };
}

function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((d, i) => d === b[i]);
}

import type * as Ort from 'onnxruntime-node';
import { tensorValues } from '../compare/feeds.js';
import type { Encoded } from './encoder.js';

/** Logits of consecutive tokens, row-major [rows, vocabulary]. */
export interface Logits {
  rows: number;
  vocabulary: number;
  data: Float32Array;
}

/** One row of logits, without a copy. */
export function logitsRow(logits: Logits, row: number): Float32Array {
  return logits.data.subarray(row * logits.vocabulary, (row + 1) * logits.vocabulary);
}

/** The last `rows` rows, without a copy. */
export function lastRows(logits: Logits, rows: number): Logits {
  const skip = Math.max(logits.rows - rows, 0) * logits.vocabulary;
  return { ...logits, rows: Math.min(rows, logits.rows), data: logits.data.subarray(skip) };
}

/** The logits in a tensor [B,T,vocabulary], the rows of the first text first. */
export function toLogits(tensor: Ort.Tensor): Logits {
  const [batch, tokens, vocabulary] = tensor.dims as [number, number, number];
  const rows = batch * tokens;
  const values = tensorValues(tensor);
  const data = values instanceof Float32Array ? values : Float32Array.from(values);
  return { rows, vocabulary, data };
}

/** Logits of one text, piece after piece. */
export function joinLogits(parts: readonly Logits[]): Logits {
  if (parts.length === 1) return parts[0]!;
  const rows = parts.reduce((sum, p) => sum + p.rows, 0);
  const { vocabulary } = parts[0]!;
  const data = new Float32Array(rows * vocabulary);
  let at = 0;
  for (const part of parts) {
    data.set(part.data.subarray(0, part.rows * vocabulary), at);
    at += part.rows * vocabulary;
  }
  return { rows, vocabulary, data };
}

/** Token ids of the texts of a batch. */
export type TokenRows = readonly (readonly number[])[];

/** Feeds tokens to a model and carries what it remembers. */
export interface Engine {
  /** Bytes carried from call to call. */
  readonly stateBytes: number;
  /** Is a prompt best read in one call, because later calls take one token at a time? */
  readonly readsAtOnce?: boolean;
  /**
   * Reads tokens of each text, as many of one as of the other but in the first call; returns the logits of all of them, or of
   * the last one of each text.
   */
  run(rows: TokenRows, wanted: 'all' | 'last'): Promise<Logits>;
  /** Starts over, with what an encoder made of the sources of the batch. */
  attend?(source: Encoded): Promise<void>;
  reset(): Promise<void>;
  release(): Promise<void>;
}

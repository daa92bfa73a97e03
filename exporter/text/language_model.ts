import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { numberTensor, type TensorInput, tensorInputs, tensorValues } from '../compare/feeds.js';
import { loadOnnxRuntime, openSession, type SessionChoice } from '../compare/session.js';
import { statePairs } from './state_pairs.js';

/** How a model remembers earlier tokens: not at all, in a cache that grows, or in a state that does not. */
export type Memory = 'none' | 'cache' | 'state';

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

/**
 * A causal language model that is fed token by token or in pieces. Whatever it remembers is carried
 * between calls; a model that remembers nothing is given all tokens again.
 */
export class LanguageModel {
  private history: number[] = [];
  private consumed = 0;
  private state: Record<string, Ort.Tensor> = {};

  private constructor(
    private readonly ort: typeof Ort,
    private readonly session: Ort.InferenceSession,
    private readonly io: TokenInterface,
    readonly backend: 'fla' | 'stock',
    readonly notice: string | undefined,
  ) {
    this.reset();
  }

  /** @throws FlaError `unsupported` when the model is no language model of the known shape */
  static async open(file: string, choice: SessionChoice = {}): Promise<LanguageModel> {
    const { session, backend, notice } = await openSession(file, choice);
    const io = tokenInterface(session, file);
    return new LanguageModel(await loadOnnxRuntime(), session, io, backend, notice);
  }

  get memory(): Memory {
    return this.io.memory;
  }
  /** Tokens seen since the start. */
  get position(): number {
    return this.consumed;
  }
  /** Bytes that are carried from call to call. */
  get stateBytes(): number {
    if (this.memory === 'none') return 0;
    return Object.values(this.state).reduce((sum, t) => sum + tensorBytes(t), 0);
  }

  /** Forgets everything. */
  reset(): void {
    this.history = [];
    this.consumed = 0;
    for (const input of this.io.state) {
      const dims = input.shape.map((d, axis) => (typeof d === 'number' ? d : axis === 0 ? 1 : 0));
      const zeros = new Array<number>(dims.reduce((a, b) => a * b, 1)).fill(0);
      this.state[input.name] = numberTensor(this.ort, input.type, zeros, dims);
    }
  }

  /** Reads more tokens and returns their logits. */
  async advance(ids: readonly number[]): Promise<Logits> {
    const whole = this.memory === 'none';
    if (whole) this.history.push(...ids);
    const logits = await this.run(whole ? this.history : ids, whole ? 0 : this.consumed);
    this.consumed += ids.length;
    const skip = (logits.rows - ids.length) * logits.vocabulary;
    return { ...logits, rows: ids.length, data: logits.data.subarray(skip) };
  }

  /** Reads tokens in pieces of at most `chunk`, so that memory does not grow with their number. Returns the last logits. */
  async prefill(
    ids: readonly number[],
    chunk = 512,
    onProgress?: (done: number) => void,
    signal?: AbortSignal,
  ): Promise<Logits> {
    const size = this.memory === 'none' ? ids.length : chunk;
    let last: Logits = { rows: 0, vocabulary: 0, data: new Float32Array() };
    for (let at = 0; at < ids.length; at += size) {
      signal?.throwIfAborted();
      last = await this.advance(ids.slice(at, at + size));
      onProgress?.(Math.min(at + size, ids.length));
    }
    return last;
  }

  async release(): Promise<void> {
    await this.session.release();
  }

  private async run(ids: readonly number[], past: number): Promise<Logits> {
    const feeds: Record<string, Ort.Tensor> = { ...this.state };
    const tensor = ({ name, type }: TensorInput, values: readonly number[]) => {
      feeds[name] = numberTensor(this.ort, type, values, [1, values.length]);
    };
    const { ids: idsInput, mask, positions, maskCoversPast } = this.io;
    tensor(idsInput, ids);
    if (mask) feeds[mask.name] = onesMask(this.ort, mask, ids.length + (maskCoversPast ? past : 0));
    if (positions)
      tensor(
        positions,
        ids.map((_, i) => past + i),
      );
    const result = await this.session.run(feeds);
    for (const { past: name, present } of this.io.pairs) {
      this.state[name]?.dispose();
      this.state[name] = result[present] as Ort.Tensor;
    }
    return toLogits(result[this.io.logits] as Ort.Tensor);
  }
}

/** A mask that hides nothing, [1, length]; made in one go because it may cover a very long past. */
function onesMask(ort: typeof Ort, { type }: TensorInput, length: number): Ort.Tensor {
  return type === 'int64'
    ? new ort.Tensor('int64', new BigInt64Array(length).fill(1n), [1, length])
    : numberTensor(ort, type, new Array(length).fill(1), [1, length]);
}

function toLogits(tensor: Ort.Tensor): Logits {
  const [, rows, vocabulary] = tensor.dims as [number, number, number];
  const values = tensorValues(tensor);
  const data = values instanceof Float32Array ? values : Float32Array.from(values);
  return { rows, vocabulary, data };
}

function tensorBytes(tensor: Ort.Tensor): number {
  const width: Partial<Record<Ort.Tensor.Type, number>> = { float16: 2, float64: 8, int64: 8 };
  return tensor.dims.reduce((a, b) => a * b, 1) * (width[tensor.type] ?? 4);
}

/** Which inputs and outputs play which part in a language model. */
export interface TokenInterface {
  memory: Memory;
  ids: TensorInput;
  mask: TensorInput | undefined;
  positions: TensorInput | undefined;
  /** Is the mask as long as everything seen so far, rather than as the new tokens? */
  maskCoversPast: boolean;
  state: TensorInput[];
  pairs: { past: string; present: string }[];
  logits: string;
}

/** Is it a model that `LanguageModel` can drive? */
export function isLanguageModel(session: Ort.InferenceSession): boolean {
  try {
    tokenInterface(session, '');
    return true;
  } catch {
    return false;
  }
}

function tokenInterface(session: Ort.InferenceSession, file: string): TokenInterface {
  const inputs = tensorInputs(session.inputMetadata);
  const outputs = tensorInputs(session.outputMetadata);
  const pairs = statePairs(session.inputNames, session.outputNames);
  const pastNames = new Set(pairs.map((p) => p.past));
  const state = inputs.filter((i) => pastNames.has(i.name));
  const isInteger = (i: TensorInput) => /^u?int(32|64)$/.test(i.type) && i.shape.length === 2;
  const ids = inputs.find(
    (i) => isInteger(i) && /(^|_)ids$|tokens?$/.test(i.name) && !/type|pos/.test(i.name),
  );
  const mask = inputs.find((i) => isInteger(i) && /mask/.test(i.name));
  const positions = inputs.find((i) => isInteger(i) && /position/.test(i.name));
  const logits = outputs.find((o) => o.shape.length === 3 && /logits/.test(o.name));
  if (!ids || !logits) {
    throw new FlaError(
      'unsupported',
      `${file}: must be a language model with inputs 'input_ids' [B,T] and output 'logits' [B,T,V], ` +
        `received inputs ${list(inputs)} and outputs ${list(outputs)}`,
    );
  }
  const others = inputs.filter(
    (i) => i !== ids && i !== mask && i !== positions && !state.includes(i),
  );
  if (others.length > 0) {
    throw new FlaError('unsupported', `${file}: no value is known for inputs ${list(others)}`);
  }
  const grows = state.some((i) => i.shape.some((d, axis) => axis > 0 && typeof d === 'string'));
  return {
    memory: state.length === 0 ? 'none' : grows ? 'cache' : 'state',
    ids,
    mask,
    positions,
    maskCoversPast: mask !== undefined && mask.shape[1] !== ids.shape[1],
    state,
    pairs,
    logits: logits.name,
  };
}

function list(values: readonly TensorInput[]): string {
  return values.map((v) => `${v.name} [${v.shape.join(',')}]`).join(', ') || 'none';
}

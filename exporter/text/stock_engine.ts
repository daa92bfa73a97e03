import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { type Padding, RowLengths } from '../../runtime/common/row_lengths.js';
import { numberTensor, type TensorInput } from '../compare/feeds.js';
import type { Encoded } from './encoder.js';
import {
  type Engine,
  joinLogits,
  type Logits,
  logitsRow,
  type TokenRows,
  toLogits,
} from './engine.js';
import { presentOf } from './state_pairs.js';
import type { TokenInterface } from './token_interface.js';

export interface StockOptions {
  /** Texts side by side. */
  batch: number;
  /** Where texts of different length are padded. */
  padding: Padding;
  /** Sizes of named dimensions of caches, other than their length. */
  dims: Readonly<Record<string, number>>;
  /** Caches are made for so many tokens, and past and present are one buffer. */
  cacheLength?: number;
  /** What makes the first call instead: Optimum's decoder_model.onnx for a decoder_with_past_model.onnx. */
  first?: { session: Ort.InferenceSession; io: TokenInterface };
}

/**
 * Drives a session of ONNX Runtime as user code does: past tensors are handed back by name, and a
 * model that remembers nothing is given all tokens again.
 */
export class StockEngine implements Engine {
  /** What makes calls after the first one was often traced with a single token, and has no causal mask then. */
  readonly readsAtOnce: boolean;
  private history: number[][] = [];
  private past = 0;
  private state: Record<string, Ort.Tensor> = {};
  private source: Encoded | undefined;
  private readonly rows: RowLengths;

  constructor(
    private readonly ort: typeof Ort,
    private readonly session: Ort.InferenceSession,
    private readonly io: TokenInterface,
    private readonly options: StockOptions,
  ) {
    this.readsAtOnce = io.branch !== undefined || options.first !== undefined;
    this.rows = new RowLengths(options.batch, options.padding);
    this.state = this.start();
  }

  get stateBytes(): number {
    return Object.values(this.state).reduce((sum, t) => sum + tensorBytes(t), 0);
  }

  async run(rows: TokenRows, wanted: 'all' | 'last'): Promise<Logits> {
    const given = this.io.memory === 'none' ? this.remembered(rows) : rows;
    const count = Math.max(...given.map((r) => r.length));
    if (this.past === 0) this.pad(given);
    const filled = given.map((row) => this.filled(row, count));
    const logits = await this.read(filled);
    if (wanted === 'last') return this.lastOfEach(logits);
    const skip = (logits.rows - rows[0]!.length) * logits.vocabulary;
    return { ...logits, rows: rows[0]!.length, data: logits.data.subarray(skip) };
  }

  async attend(source: Encoded): Promise<void> {
    const { batch } = this.options;
    if (source.hidden.dims[0] !== batch) {
      throw new FlaError(
        'invalid_argument',
        `the encoder must have read ${batch} sources, received ${source.hidden.dims[0]}`,
      );
    }
    await this.reset();
    this.source = source;
  }

  /** The logits of columns of tokens [B,count]. */
  private async read(rows: TokenRows): Promise<Logits> {
    const { first } = this.options;
    if (this.past === 0) {
      if (!first) return this.call(rows);
      const result = await first.session.run(this.feeds(first.io, rows));
      const own = this.io.pairs.every(({ present }) => result[present]);
      this.keep(result, own);
      if (own) return this.done(rows, result[first.io.logits]);
    } else if (!this.readsAtOnce) return this.call(rows);
    const parts: Logits[] = [];
    for (let i = 0; i < rows[0]!.length; i++) {
      parts.push(await this.call(rows.map((row) => [row[i]!])));
    }
    return joinColumns(parts, this.options.batch);
  }

  private async call(rows: TokenRows): Promise<Logits> {
    const shared = this.options.cacheLength ? this.shared(rows) : undefined;
    const feeds = this.feeds(this.io, rows);
    const result = await (shared ? this.session.run(feeds, shared) : this.session.run(feeds));
    this.keep(result, true);
    return this.done(rows, result[this.io.logits]);
  }

  /** What a call leaves for the next one; keys and values of an encoder come from the first. */
  private keep(result: Ort.InferenceSession.OnnxValueMapType, own: boolean): void {
    if (own) {
      for (const { past, present } of this.io.pairs) {
        this.state[past] = result[present] as Ort.Tensor;
      }
    }
    if (this.past > 0) return;
    const outputs = new Set(Object.keys(result));
    for (const { name } of this.io.cross) {
      const present = presentOf(name, outputs);
      if (present) this.state[name] = result[present] as Ort.Tensor;
    }
  }

  private done(rows: TokenRows, logits: unknown): Logits {
    if (this.io.memory !== 'none') this.past += rows[0]!.length;
    return toLogits(logits as Ort.Tensor);
  }

  async reset(): Promise<void> {
    this.history = [];
    this.past = 0;
    this.rows.clear();
    this.state = this.start();
  }

  async release(): Promise<void> {
    await this.session.release();
    await this.options.first?.session.release();
  }

  /** All tokens so far. */
  private remembered(rows: TokenRows): TokenRows {
    this.history = rows.map((row, b) => [...(this.history[b] ?? []), ...row]);
    return this.history;
  }

  /** Notes how far rows are filled up to one length. */
  private pad(rows: TokenRows): void {
    this.rows.start(rows.map((row) => row.length));
    const { mask, lengths } = this.io;
    if (!this.rows.uneven || mask || lengths.length > 0) return;
    throw new FlaError(
      'unsupported',
      `texts of a batch must be of one length, as the model has no input that tells of padding, received ${rows.map((r) => r.length)} tokens`,
    );
  }

  /** A row of tokens and padding. */
  private filled(row: readonly number[], count: number): readonly number[] {
    const padding = new Array<number>(count - row.length).fill(0);
    return this.rows.side === 'left' ? [...padding, ...row] : [...row, ...padding];
  }

  private feeds(io: TokenInterface, rows: TokenRows): Record<string, Ort.Tensor> {
    const { ids, mask, positions, lengths, maskCoversPast, branch } = io;
    const count = rows[0]!.length;
    const columns = { past: this.past, count };
    const told = (input: TensorInput, name: string) => {
      const { dims, at } = this.rows.told(name, input.shape.length, columns, !maskCoversPast);
      return { [input.name]: integerTensor(this.ort, input.type, dims, at) };
    };
    return {
      ...Object.fromEntries(
        [...io.state, ...io.cross].map(({ name }) => [name, this.state[name]!]),
      ),
      [ids.name]: numberTensor(this.ort, ids.type, rows.flat(), [rows.length, count]),
      ...(mask && told(mask, 'attention_mask')),
      ...(positions && told(positions, 'position_ids')),
      ...Object.assign({}, ...lengths.map((input) => told(input, input.name))),
      ...(branch && { [branch.name]: new this.ort.Tensor('bool', [this.past > 0], [1]) }),
      ...this.encoded(io),
    };
  }

  /** What the encoder gave. */
  private encoded({ encoded: { hidden, mask } }: TokenInterface): Record<string, Ort.Tensor> {
    if (!hidden && !mask) return {};
    if (!this.source) {
      throw new FlaError('invalid_argument', 'the encoder must read a source before the decoder');
    }
    const [batch, places] = this.source.hidden.dims as [number, number];
    const seen = this.source.mask?.data ?? new Array<number>(batch * places).fill(1);
    return {
      ...(hidden && { [hidden.name]: this.source.hidden }),
      ...(mask && {
        [mask.name]: numberTensor(this.ort, mask.type, Array.from(seen), [batch, places]),
      }),
    };
  }

  /** What a run writes where: caches into the buffers that they are read from. */
  private shared(rows: TokenRows): Record<string, Ort.Tensor | null> {
    const { cacheLength = 0 } = this.options;
    const needed = this.past + rows[0]!.length;
    if (needed > cacheLength) {
      throw new FlaError(
        'invalid_argument',
        `the cache must hold ${needed} tokens, received a length of ${cacheLength}`,
      );
    }
    const presents = this.io.pairs.map((p) => [p.present, this.state[p.past]!] as const);
    return { ...Object.fromEntries(presents), [this.io.logits]: null };
  }

  private lastOfEach({ rows, vocabulary, data }: Logits): Logits {
    const { batch } = this.options;
    const count = rows / batch;
    const last = new Float32Array(batch * vocabulary);
    // The call that padded some rows was the first, and is over.
    const columns = { past: this.io.memory === 'none' ? 0 : this.past - count, count };
    for (let b = 0; b < batch; b++) {
      const from = (b * count + this.rows.lastOf(b, columns)) * vocabulary;
      last.set(data.subarray(from, from + vocabulary), b * vocabulary);
    }
    return { rows: batch, vocabulary, data: last };
  }

  /** Caches of no length or as buffers, states of zeros. */
  private start(): Record<string, Ort.Tensor> {
    const { batch, dims: known, cacheLength = 0 } = this.options;
    return Object.fromEntries(
      [...this.io.state, ...this.io.cross].map(({ name, type, shape }) => {
        const dims = shape.map((d, axis) =>
          typeof d === 'number' ? d : axis === batchAxis(shape) ? batch : (known[d] ?? cacheLength),
        );
        const zeros = new Array<number>(dims.reduce((a, b) => a * b, 1)).fill(0);
        return [name, numberTensor(this.ort, type, zeros, dims)];
      }),
    );
  }
}

/** Logits [B,1,V] of columns, as [B,columns,V]. */
function joinColumns(parts: readonly Logits[], batch: number): Logits {
  const row = (logits: Logits, b: number) => ({ ...logits, rows: 1, data: logitsRow(logits, b) });
  return joinLogits(
    Array.from({ length: batch }, (_, b) => parts.map((part) => row(part, b))).flat(),
  );
}

/** A cache of keys and values in one has the batch behind its first axis. */
function batchAxis(shape: readonly unknown[]): number {
  return shape.length === 5 ? 1 : 0;
}

/** Whole numbers, int64 in one go because a mask may cover a very long past. */
function integerTensor(
  ort: typeof Ort,
  type: string,
  dims: readonly number[],
  at: (i: number) => number,
): Ort.Tensor {
  const size = dims.reduce((a, b) => a * b, 1);
  if (type !== 'int64') {
    return numberTensor(
      ort,
      type,
      Array.from({ length: size }, (_, i) => at(i)),
      dims,
    );
  }
  const data = new BigInt64Array(size);
  for (let i = 0; i < size; i++) data[i] = BigInt(at(i));
  return new ort.Tensor('int64', data, dims);
}

function tensorBytes(tensor: Ort.Tensor): number {
  const { data } = tensor;
  return ArrayBuffer.isView(data) ? data.byteLength : 0;
}

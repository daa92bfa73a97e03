import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { type Columns, type Padding, RowLengths } from '../../runtime/common/row_lengths.js';
import { numberTensor, type TensorInput } from '../compare/feeds.js';
import { type Engine, type Logits, type TokenRows, toLogits } from './engine.js';
import type { TokenInterface } from './token_interface.js';

export interface StockOptions {
  /** Texts side by side. */
  batch: number;
  /** Where texts of different length are padded. */
  padding: Padding;
  /** Caches are made for so many tokens, and past and present are one buffer. */
  cacheLength?: number;
}

/**
 * Drives a session of ONNX Runtime as user code does: past tensors are handed back by name, and a
 * model that remembers nothing is given all tokens again.
 */
export class StockEngine implements Engine {
  private history: number[][] = [];
  private past = 0;
  private state: Record<string, Ort.Tensor> = {};
  private readonly rows: RowLengths;

  constructor(
    private readonly ort: typeof Ort,
    private readonly session: Ort.InferenceSession,
    private readonly io: TokenInterface,
    private readonly options: StockOptions,
  ) {
    this.rows = new RowLengths(options.batch, options.padding);
    this.state = this.start();
  }

  get stateBytes(): number {
    return Object.values(this.state).reduce((sum, t) => sum + tensorBytes(t), 0);
  }

  async run(rows: TokenRows, wanted: 'all' | 'last'): Promise<Logits> {
    const given = this.io.memory === 'none' ? this.remembered(rows) : rows;
    const columns = { past: this.past, count: Math.max(...given.map((r) => r.length)) };
    if (this.past === 0) this.pad(given);
    const shared = this.options.cacheLength ? this.shared(columns) : undefined;
    const feeds = this.feeds(given, columns);
    const result = await (shared ? this.session.run(feeds, shared) : this.session.run(feeds));
    for (const { past, present } of this.io.pairs) {
      this.state[past] = result[present] as Ort.Tensor;
    }
    if (this.io.memory !== 'none') this.past += columns.count;
    const logits = toLogits(result[this.io.logits] as Ort.Tensor);
    if (wanted === 'last') return this.lastOfEach(logits, columns);
    const skip = (columns.count - rows[0]!.length) * logits.vocabulary;
    return { ...logits, rows: rows[0]!.length, data: logits.data.subarray(skip) };
  }

  async reset(): Promise<void> {
    this.history = [];
    this.past = 0;
    this.rows.clear();
    this.state = this.start();
  }

  async release(): Promise<void> {
    await this.session.release();
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

  private feeds(rows: TokenRows, columns: Columns): Record<string, Ort.Tensor> {
    const { ids, mask, positions, lengths, maskCoversPast } = this.io;
    const { count } = columns;
    const tokens = rows.flatMap((row) => {
      const padding = new Array<number>(count - row.length).fill(0);
      return this.rows.side === 'left' ? [...padding, ...row] : [...row, ...padding];
    });
    const told = (input: TensorInput, name: string) => {
      const { dims, at } = this.rows.told(name, input.shape.length, columns, !maskCoversPast);
      return { [input.name]: integerTensor(this.ort, input.type, dims, at) };
    };
    return {
      ...this.state,
      [ids.name]: numberTensor(this.ort, ids.type, tokens, [rows.length, count]),
      ...(mask && told(mask, 'attention_mask')),
      ...(positions && told(positions, 'position_ids')),
      ...Object.assign({}, ...lengths.map((input) => told(input, input.name))),
    };
  }

  /** What a run writes where: caches into the buffers that they are read from. */
  private shared({ past, count }: Columns): Record<string, Ort.Tensor | null> {
    const { cacheLength = 0 } = this.options;
    if (past + count > cacheLength) {
      throw new FlaError(
        'invalid_argument',
        `the cache must hold ${past + count} tokens, received a length of ${cacheLength}`,
      );
    }
    const presents = this.io.pairs.map((p) => [p.present, this.state[p.past]!] as const);
    return { ...Object.fromEntries(presents), [this.io.logits]: null };
  }

  private lastOfEach({ vocabulary, data }: Logits, columns: Columns): Logits {
    const { batch } = this.options;
    const last = new Float32Array(batch * vocabulary);
    for (let b = 0; b < batch; b++) {
      const from = (b * columns.count + this.rows.lastOf(b, columns)) * vocabulary;
      last.set(data.subarray(from, from + vocabulary), b * vocabulary);
    }
    return { rows: batch, vocabulary, data: last };
  }

  /** Caches of no length or as buffers, states of zeros. */
  private start(): Record<string, Ort.Tensor> {
    const { batch, cacheLength = 0 } = this.options;
    return Object.fromEntries(
      this.io.state.map(({ name, type, shape }) => {
        const dims = shape.map((d, axis) =>
          typeof d === 'number' ? d : axis === batchAxis(shape) ? batch : cacheLength,
        );
        const zeros = new Array<number>(dims.reduce((a, b) => a * b, 1)).fill(0);
        return [name, numberTensor(this.ort, type, zeros, dims)];
      }),
    );
  }
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

/** Where rows of different length are padded to one length, in the first call of a text. */
export type Padding = 'left' | 'right';

/** Whole numbers for an input: its shape, and its elements in row-major order. */
export interface Told {
  readonly dims: readonly number[];
  readonly at: (i: number) => number;
}

/** One call: the columns of the batch that went before, and its own. */
export interface Columns {
  readonly past: number;
  readonly count: number;
}

/**
 * What models are told of a call besides its tokens, by the customary names of inputs. `[B,T]` are the new tokens, P those before.
 *
 * - `attention_mask` [B,P+T]: 1, and 0 for padding
 * - `position_ids` [B,T] or [T]: places in the row, 0 before its first token; `cache_position` [T] counts padding too
 * - `seqlens_k` [B] or [B,1]: tokens of each row so far, minus 1; `nonpad_kv_seqlen` [B]: the same without the minus 1
 * - `write_indices` [B]: tokens of each row before the call
 * - `total_sequence_length`: P+T; `past_sequence_length` and `past_key_values_length`: P; scalars or [1]
 */
export const TOLD = new Set([
  'attention_mask',
  'position_ids',
  'cache_position',
  'seqlens_k',
  'nonpad_kv_seqlen',
  'write_indices',
  'total_sequence_length',
  'past_sequence_length',
  'past_key_values_length',
]);

/**
 * Where a model takes padding that is told by these inputs; undefined when it takes none. nonpad_kv_seqlen does not tell of
 * padding among new tokens: causal queries are the last of what it counts.
 */
export function paddingOf(inputs: readonly string[]): Padding | undefined {
  if (inputs.includes('seqlens_k')) return 'right';
  return inputs.includes('attention_mask') ? 'left' : undefined;
}

/** The rows of a batch that a first call padded to one length. */
export class RowLengths {
  /** Tokens of padding in each row. */
  padded: readonly number[];
  /** Columns of the first call. */
  width = 0;

  constructor(
    readonly batch: number,
    readonly side: Padding = 'left',
  ) {
    this.padded = new Array<number>(batch).fill(0);
  }

  /** The first call's rows have these lengths. */
  start(lengths: readonly number[]): void {
    this.width = Math.max(...lengths);
    this.padded = lengths.map((n) => this.width - n);
  }

  clear(): void {
    this.width = 0;
    this.padded = this.padded.map(() => 0);
  }

  /** Is there any padding? */
  get uneven(): boolean {
    return this.padded.some((n) => n > 0);
  }

  /** The column of a row's last token among the new ones of a call. */
  lastOf(row: number, { past, count }: Columns): number {
    const isFirst = past === 0 && this.side === 'right';
    return count - 1 - (isFirst ? this.padded[row] : 0);
  }

  /**
   * The values of an input called `name`.
   *
   * @param rank declared for it
   * @param maskIsCurrent attention_mask covers the new tokens only
   */
  told(name: string, rank: number, columns: Columns, maskIsCurrent = false): Told {
    const { past, count } = columns;
    const end = past + count;
    const { batch } = this;
    const perRow = (f: (row: number) => number): Told => ({
      dims: rank === 2 ? [batch, 1] : [batch],
      at: f,
    });
    const one = (value: number): Told => ({ dims: rank === 0 ? [] : [1], at: () => value });
    switch (name) {
      case 'attention_mask': {
        const from = maskIsCurrent ? past : 0;
        const width = end - from;
        return {
          dims: [batch, width],
          at: (i) => +this.#shows(Math.floor(i / width), from + (i % width)),
        };
      }
      case 'position_ids':
        return rank === 1
          ? { dims: [count], at: (i) => past + i }
          : {
              dims: [batch, count],
              at: (i) => this.#place(Math.floor(i / count), past + (i % count)),
            };
      case 'cache_position':
        return { dims: rank === 1 ? [count] : [batch, count], at: (i) => past + (i % count) };
      case 'seqlens_k':
        return perRow((row) => this.#length(row, end) - 1);
      case 'nonpad_kv_seqlen':
        return perRow((row) => this.#length(row, end));
      case 'write_indices':
        return perRow((row) => (past === 0 ? 0 : this.#length(row, past)));
      case 'total_sequence_length':
        return one(end);
      default:
        return one(past);
    }
  }

  #shows(row: number, column: number): boolean {
    const padded = this.padded[row];
    return this.side === 'left'
      ? column >= padded
      : column < this.width - padded || column >= this.width;
  }

  #place(row: number, column: number): number {
    const padded = this.padded[row];
    if (this.side === 'left') return Math.max(column - padded, 0);
    return column < this.width ? column : column - padded;
  }

  /** Tokens of a row among the first `columns`, where padding stands behind them. */
  #length(row: number, columns: number): number {
    return this.side === 'left' ? columns : columns - this.padded[row];
  }
}

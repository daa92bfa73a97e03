/** The state of WindowAttention and HybridAttention as plain code: one head's rows and their count. */
import { windowAttention } from './schema.js';

const BASE = windowAttention.constants.count_base.value;
const DIGITS = 4;
/** The count never reaches this. */
const LIMIT = BASE ** DIGITS;

/** A token that is still there, key and value and whatever else its row holds. */
export interface RingToken {
  /** Its number; undefined for a token in the cache, whose number is forgotten. */
  readonly index?: number;
  readonly row: Float64Array;
}

/** One head of [B,HV,sinks+window+cache+1,width], as a view. */
export class Ring {
  constructor(
    private readonly rows: Float64Array, // [sinks+window+cache+1,width]
    private readonly width: number,
    private readonly window: number,
    private readonly sinks: number,
    readonly cache = 0,
  ) {}

  /** How many tokens there were: the number of the next one. */
  get count(): number {
    return this.lastRow.slice(0, DIGITS).reduceRight((n, digit) => n * BASE + digit, 0);
  }

  set count(count: number) {
    const lowered = this.window * Math.floor(LIMIT / 2 / this.window);
    let rest = count < LIMIT ? count : count - lowered;
    this.lastRow.fill(0);
    for (let i = 0; i < DIGITS; i += 1) {
      this.lastRow[i] = rest % BASE;
      rest = Math.floor(rest / BASE);
    }
  }

  /** Tokens that have left the window, those in the cache included. */
  get departed(): number {
    return Math.max(0, this.count - this.sinks - this.window);
  }

  /** A copy of the token whose place the next one will take: it leaves the window. */
  leaving(): Float64Array | undefined {
    const index = this.count - this.window;
    return index < this.sinks ? undefined : this.row(this.slotOf(index)).slice();
  }

  /** The next token. */
  push(row: Float64Array): void {
    const { count } = this;
    this.row(this.slotOf(count)).set(row);
    this.count = count + 1;
  }

  /** The tokens that are seen exactly: sinks, window, cache. */
  *tokens(): Generator<RingToken> {
    const { count, window, sinks } = this;
    for (let index = 0; index < Math.min(sinks, count); index += 1) {
      yield { index, row: this.row(index) };
    }
    for (let index = Math.max(sinks, count - window); index < count; index += 1) {
      yield { index, row: this.row(this.slotOf(index)) };
    }
    for (let slot = 0; slot < Math.min(this.cache, this.departed); slot += 1) {
      yield { row: this.cacheRow(slot) };
    }
  }

  cacheRow(slot: number): Float64Array {
    return this.row(this.sinks + this.window + slot);
  }

  private slotOf(index: number): number {
    return index < this.sinks ? index : this.sinks + ((index - this.sinks) % this.window);
  }

  private row(slot: number): Float64Array {
    return this.rows.subarray(slot * this.width, (slot + 1) * this.width);
  }

  private get lastRow(): Float64Array {
    return this.row(this.sinks + this.window + this.cache);
  }
}

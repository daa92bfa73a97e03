import type { BodyEmitter } from '../../ops/function/emitter.js';
import type { Lengths } from '../match/sdpa.js';

/** What follows from the lengths of a batch's rows, written once for all sites that are told the same lengths. */
export class Rows {
  private readonly made = new Map<string, string>();

  /**
   * @param e writes the nodes; whoever made it inserts them
   * @param tokens gives the number of new tokens, int64 [1]
   */
  constructor(
    readonly e: BodyEmitter,
    readonly tokens: () => string,
  ) {}

  /** int64 [B,1]: cached tokens of each row. */
  past(lengths: Lengths): string {
    return this.once('past', lengths, (e) => {
      const total = e.reshape(e.cast(lengths.total, 'int64'), [1]);
      const starts = e.op('Equal', [total, this.tokens()]);
      const before = e.sub(e.add(this.seqlens(lengths), e.ints(1)), this.tokens());
      return e.op('Where', [starts, e.ints(0), before]);
    });
  }

  /** int64 [B,T]: where each new token stands in its row. */
  positions(lengths: Lengths): string {
    return this.once('positions', lengths, (e) => e.add(this.past(lengths), this.range()));
  }

  /** bool [B,T]: which new tokens are no padding. */
  visible(lengths: Lengths): string {
    return this.once('visible', lengths, (e) => {
      const last = e.sub(this.seqlens(lengths), this.past(lengths));
      return e.op('Not', [e.op('Greater', [this.range(), last])]);
    });
  }

  /** bool [B,T]: which tokens lie before the length of their row, int32 [B]. */
  before(length: string): string {
    const key = { seqlens: length, total: '' };
    return this.once('before', key, (e) => e.op('Less', [this.range(), this.column(length)]));
  }

  /** int64 [1,T]: 0, 1, 2, .. */
  private range(): string {
    const key = { seqlens: '', total: '' };
    return this.once('range', key, (e) => e.unsqueeze(e.positions(this.tokens()), 0));
  }

  private seqlens({ seqlens }: Lengths): string {
    return this.column(seqlens);
  }
  /** int64 [B,1] */
  private column(value: string): string {
    const key = { seqlens: value, total: '' };
    return this.once('column', key, (e) => e.reshape(e.cast(value, 'int64'), [-1, 1]));
  }

  private once(what: string, l: Lengths, make: (e: BodyEmitter) => string): string {
    const key = `${what}|${l.seqlens}|${l.total}`;
    const value = this.made.get(key) ?? make(this.e);
    this.made.set(key, value);
    return value;
  }
}

import type { TokenReader } from '../../../exporter/compare/language.js';
import type { Logits } from '../../../exporter/text/engine.js';

/** A model made of a rule: from all tokens so far to the id that it likes best, with the given log-odds over the others. */
export class RuleReader implements TokenReader {
  readonly stateBytes = 0;
  private seen: number[] = [];

  constructor(
    private readonly vocabulary: number,
    private readonly rule: (seen: readonly number[]) => number | undefined,
    readonly memory: TokenReader['memory'] = 'state',
    private readonly odds = 20,
  ) {}

  async reset(): Promise<void> {
    this.seen = [];
  }

  async advance(ids: readonly number[]): Promise<Logits> {
    const data = new Float32Array(ids.length * this.vocabulary);
    ids.forEach((id, row) => {
      this.seen.push(id);
      const next = this.rule(this.seen);
      if (next !== undefined) data[row * this.vocabulary + next] = this.odds;
    });
    return { rows: ids.length, vocabulary: this.vocabulary, data };
  }

  async prefill(ids: readonly number[]): Promise<Logits> {
    const { vocabulary, data } = await this.advance(ids);
    return { rows: 1, vocabulary, data: data.subarray((ids.length - 1) * vocabulary) };
  }
}

/** What followed the last `known` tokens where they stood before, at the latest; what an induction head computes. */
export function induction(known: number, window = Number.POSITIVE_INFINITY) {
  return (seen: readonly number[]): number | undefined => {
    const end = seen.length - known;
    for (let at = end - 1; at >= Math.max(0, seen.length - window); at--) {
      let same = 0;
      while (same < known && seen[at + same] === seen[end + same]) same++;
      if (same === known) return seen[at + known];
    }
    return undefined;
  };
}

import type * as Ort from 'onnxruntime-node';
import { numberTensor, type TensorInput } from '../compare/feeds.js';
import {
  type Engine,
  joinLogits,
  type Logits,
  lastRows,
  type TokenRows,
  toLogits,
} from './engine.js';
import type { TokenInterface } from './token_interface.js';

/** What is kept of a text. */
interface Text {
  /** [m,hidden], before the segment under way. */
  memory: Float32Array;
  /** The segment under way. */
  pending: number[];
}

/**
 * Drives a model with memory tokens (see `addMemoryTokens`): each text is cut into segments, and memory goes from one to the next when
 * a segment is complete. A segment under way is read again with every piece that is added to it. Texts whose segments are of one
 * length are read together, so that nothing is padded.
 */
export class SegmentEngine implements Engine {
  private readonly texts: Text[];

  constructor(
    private readonly ort: typeof Ort,
    private readonly session: Ort.InferenceSession,
    private readonly io: TokenInterface,
    private readonly segment: number,
    batch = 1,
  ) {
    this.texts = Array.from({ length: batch }, () => this.empty());
  }

  get stateBytes(): number {
    return this.texts.reduce((sum, text) => sum + text.memory.byteLength, 0);
  }

  async run(rows: TokenRows, wanted: 'all' | 'last'): Promise<Logits> {
    const parts: Logits[][] = rows.map(() => []);
    const at = rows.map(() => 0);
    for (;;) {
      const pieces = rows.map((ids, b) => {
        const { pending } = this.texts[b]!;
        return ids.slice(at[b], at[b]! + this.segment - pending.length);
      });
      if (pieces.every((piece) => piece.length === 0)) break;
      for (const [b, piece] of pieces.entries()) {
        this.texts[b]!.pending.push(...piece);
        at[b]! += piece.length;
      }
      for (const group of this.sameLength(pieces)) {
        for (const [b, logits] of await this.read(group)) {
          parts[b]!.push(lastRows(logits, pieces[b]!.length));
        }
      }
    }
    const last = (p: readonly Logits[]) => lastRows(p.at(-1)!, 1);
    return joinLogits(wanted === 'last' ? parts.map(last) : parts.flat());
  }

  async reset(): Promise<void> {
    for (const [b] of this.texts.entries()) this.texts[b] = this.empty();
  }

  async release(): Promise<void> {
    await this.session.release();
  }

  /** Zeros stand for the memory that the model starts with. */
  private empty(): Text {
    const [, tokens, hidden] = this.io.state[0]!.shape as [unknown, number, number];
    return { memory: new Float32Array(tokens * hidden), pending: [] };
  }

  /** Texts that have something to read, by the length of their segments under way. */
  private sameLength(pieces: TokenRows): Iterable<number[]> {
    const groups = new Map<number, number[]>();
    for (const [b, piece] of pieces.entries()) {
      if (piece.length === 0) continue;
      const { length } = this.texts[b]!.pending;
      groups.set(length, [...(groups.get(length) ?? []), b]);
    }
    return groups.values();
  }

  /** Reads the segments under way of some texts, and ends those that are complete. */
  private async read(group: readonly number[]): Promise<[text: number, Logits][]> {
    const result = await this.session.run(this.feeds(group));
    const all = toLogits(result[this.io.logits] as Ort.Tensor);
    const memory = result[this.io.pairs[0]!.present]!.data as Float32Array;
    const size = memory.length / group.length;
    const rows = all.rows / group.length;
    return group.map((b, i) => {
      if (rows === this.segment) {
        this.texts[b] = { memory: memory.slice(i * size, (i + 1) * size), pending: [] };
      }
      const data = all.data.subarray(i * rows * all.vocabulary, (i + 1) * rows * all.vocabulary);
      return [b, { ...all, rows, data }];
    });
  }

  private feeds(group: readonly number[]): Record<string, Ort.Tensor> {
    const { ids, mask, positions, pairs, state } = this.io;
    const texts = group.map((b) => this.texts[b]!);
    const { length } = texts[0]!.pending;
    const row = (input: TensorInput | undefined, value: (text: Text, i: number) => number) =>
      input && {
        [input.name]: numberTensor(
          this.ort,
          input.type,
          texts.flatMap((text) => text.pending.map((_, i) => value(text, i))),
          [texts.length, length],
        ),
      };
    const [, tokens, hidden] = state[0]!.shape as [unknown, number, number];
    const memory = new Float32Array(texts.length * tokens * hidden);
    for (const [i, text] of texts.entries()) memory.set(text.memory, i * tokens * hidden);
    return {
      [pairs[0]!.past]: new this.ort.Tensor('float32', memory, [texts.length, tokens, hidden]),
      ...row(ids, ({ pending }, i) => pending[i]!),
      ...row(mask, () => 1),
      ...row(positions, (_, i) => i),
    };
  }
}

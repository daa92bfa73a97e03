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

/**
 * Drives a model with memory tokens (see `addMemoryTokens`): text is cut into segments, and memory goes from one to the next when a
 * segment is complete. A segment under way is read again with every piece that is added to it.
 */
export class SegmentEngine implements Engine {
  private memory: Ort.Tensor;
  private pending: number[] = [];

  constructor(
    private readonly ort: typeof Ort,
    private readonly session: Ort.InferenceSession,
    private readonly io: TokenInterface,
    private readonly segment: number,
  ) {
    this.memory = this.empty();
  }

  get stateBytes(): number {
    return (this.memory.data as Float32Array).byteLength;
  }

  async run([ids = []]: TokenRows, wanted: 'all' | 'last'): Promise<Logits> {
    const parts: Logits[] = [];
    for (let at = 0; at < ids.length; ) {
      const piece = ids.slice(at, at + this.segment - this.pending.length);
      at += piece.length;
      this.pending.push(...piece);
      const result = await this.session.run(this.feeds());
      parts.push(lastRows(toLogits(result[this.io.logits] as Ort.Tensor), piece.length));
      if (this.pending.length === this.segment) {
        this.memory = result[this.io.pairs[0]!.present] as Ort.Tensor;
        this.pending = [];
      }
    }
    return wanted === 'last' ? lastRows(parts.at(-1)!, 1) : joinLogits(parts);
  }

  async reset(): Promise<void> {
    this.memory = this.empty();
    this.pending = [];
  }

  async release(): Promise<void> {
    await this.session.release();
  }

  /** Zeros stand for the memory that the model starts with. */
  private empty(): Ort.Tensor {
    const [, tokens, hidden] = this.io.state[0]!.shape as [unknown, number, number];
    return new this.ort.Tensor('float32', new Float32Array(tokens * hidden), [1, tokens, hidden]);
  }

  private feeds(): Record<string, Ort.Tensor> {
    const { ids, mask, positions, pairs } = this.io;
    const row = (input: TensorInput | undefined, value: (i: number) => number) =>
      input && {
        [input.name]: numberTensor(
          this.ort,
          input.type,
          this.pending.map((_, i) => value(i)),
          [1, this.pending.length],
        ),
      };
    return {
      [pairs[0]!.past]: this.memory,
      ...row(ids, (i) => this.pending[i]!),
      ...row(mask, () => 1),
      ...row(positions, (i) => i),
    };
  }
}

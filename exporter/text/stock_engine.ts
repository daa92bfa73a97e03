import type * as Ort from 'onnxruntime-node';
import { numberTensor, type TensorInput } from '../compare/feeds.js';
import { type Engine, type Logits, lastRows, toLogits } from './engine.js';
import type { TokenInterface } from './token_interface.js';

/**
 * Drives a session of ONNX Runtime as user code does: past tensors are handed back by name, and a
 * model that remembers nothing is given all tokens again.
 */
export class StockEngine implements Engine {
  private history: number[] = [];
  private past = 0;
  private state: Record<string, Ort.Tensor> = {};

  constructor(
    private readonly ort: typeof Ort,
    private readonly session: Ort.InferenceSession,
    private readonly io: TokenInterface,
  ) {
    this.state = emptyState(ort, io.state);
  }

  get stateBytes(): number {
    return Object.values(this.state).reduce((sum, t) => sum + tensorBytes(t), 0);
  }

  async run(ids: readonly number[], wanted: 'all' | 'last'): Promise<Logits> {
    let given = ids;
    if (this.io.memory === 'none') {
      this.history.push(...ids);
      given = this.history;
    }
    const result = await this.session.run(this.feeds(given));
    for (const { past, present } of this.io.pairs) {
      this.state[past] = result[present] as Ort.Tensor;
    }
    if (this.io.memory !== 'none') this.past += ids.length;
    const logits = toLogits(result[this.io.logits] as Ort.Tensor);
    return lastRows(logits, wanted === 'last' ? 1 : ids.length);
  }

  async reset(): Promise<void> {
    this.history = [];
    this.past = 0;
    this.state = emptyState(this.ort, this.io.state);
  }

  async release(): Promise<void> {
    await this.session.release();
  }

  private feeds(ids: readonly number[]): Record<string, Ort.Tensor> {
    const { ids: idsInput, mask, positions, maskCoversPast } = this.io;
    const row = (input: TensorInput, values: readonly number[]) => ({
      [input.name]: numberTensor(this.ort, input.type, values, [1, values.length]),
    });
    const maskLength = ids.length + (maskCoversPast ? this.past : 0);
    return {
      ...this.state,
      ...row(idsInput, ids),
      ...(mask && { [mask.name]: onesMask(this.ort, mask, maskLength) }),
      ...(positions &&
        row(
          positions,
          ids.map((_, i) => this.past + i),
        )),
    };
  }
}

/** Caches of no length, states of zeros. */
function emptyState(ort: typeof Ort, inputs: readonly TensorInput[]): Record<string, Ort.Tensor> {
  return Object.fromEntries(
    inputs.map(({ name, type, shape }) => {
      const dims = shape.map((d, axis) => (typeof d === 'number' ? d : axis === 0 ? 1 : 0));
      const zeros = new Array<number>(dims.reduce((a, b) => a * b, 1)).fill(0);
      return [name, numberTensor(ort, type, zeros, dims)];
    }),
  );
}

/** A mask that hides nothing, [1, length]; made in one go because it may cover a very long past. */
function onesMask(ort: typeof Ort, { type }: TensorInput, length: number): Ort.Tensor {
  return type === 'int64'
    ? new ort.Tensor('int64', new BigInt64Array(length).fill(1n), [1, length])
    : numberTensor(ort, type, new Array(length).fill(1), [1, length]);
}

function tensorBytes(tensor: Ort.Tensor): number {
  const { data } = tensor;
  return ArrayBuffer.isView(data) ? data.byteLength : 0;
}

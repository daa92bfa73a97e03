import type * as Ort from 'onnxruntime-node';
import type { StatefulSession } from '../../runtime/node/index.js';
import { type Engine, type Logits, type TokenRows, toLogits } from './engine.js';

/** Drives a model through our backend, which keeps the state in native memory. */
export class StatefulEngine implements Engine {
  constructor(
    private readonly stateful: StatefulSession,
    private readonly logits: string,
  ) {}

  get stateBytes(): number {
    return this.stateful.stateBytes;
  }

  async run(rows: TokenRows, wanted: 'all' | 'last'): Promise<Logits> {
    const outputs = wanted === 'last' ? ('last' as const) : [this.logits];
    const result = await this.stateful.step(rows, { outputs });
    return toLogits(result[this.logits] as Ort.Tensor);
  }

  async reset(): Promise<void> {
    await this.stateful.reset();
  }

  async release(): Promise<void> {
    await this.stateful.dispose();
  }
}

import {
  chooseBackend,
  loadOnnxRuntime,
  namingFile,
  openSession,
  type SessionChoice,
  sessionOptions,
} from '../compare/session.js';
import { loadModel } from '../ir/file.js';
import { segmentOf } from '../memory_tokens.js';
import type { Engine, Logits } from './engine.js';
import { SegmentEngine } from './segment_engine.js';
import { statePairs } from './state_pairs.js';
import { StatefulEngine } from './stateful_engine.js';
import { StockEngine } from './stock_engine.js';
import { type Memory, tokenInterface } from './token_interface.js';

export interface PrefillOptions {
  /** Tokens in a run; default 512. A model that remembers nothing reads all at once. */
  chunk?: number;
  onProgress?: (done: number) => void;
  signal?: AbortSignal;
}

/** A causal language model that is fed token by token or in pieces. */
export class LanguageModel {
  private consumed = 0;

  private constructor(
    private readonly engine: Engine,
    private readonly file: string,
    readonly memory: Memory,
    readonly backend: 'fla' | 'stock',
    readonly notice: string | undefined,
  ) {}

  /** @throws FlaError `unsupported` when the model is no language model of the known form */
  static async open(file: string, choice: SessionChoice = {}): Promise<LanguageModel> {
    const { backend, notice } = await chooseBackend(file, choice.backend);
    return namingFile(file, async () => {
      const segments = segmentOf(loadModel(file));
      const { engine, memory } = segments
        ? await segmentEngine(file, { ...choice, backend }, segments.segment)
        : backend === 'fla' && hasState(file)
          ? await statefulEngine(file, choice)
          : await stockEngine(file, { ...choice, backend });
      return new LanguageModel(engine, file, memory, backend, notice);
    });
  }

  /** Tokens seen since the start. */
  get position(): number {
    return this.consumed;
  }
  /** Bytes carried from call to call. */
  get stateBytes(): number {
    return this.engine.stateBytes;
  }

  /** Reads tokens and returns the logits of each. */
  advance(ids: readonly number[]): Promise<Logits> {
    return this.run(ids, 'all');
  }

  /** Reads tokens in pieces, so that memory does not grow with their number, and returns the last one's logits. */
  async prefill(ids: readonly number[], options: PrefillOptions = {}): Promise<Logits> {
    const size = this.memory === 'none' ? ids.length : (options.chunk ?? 512);
    let last: Logits = { rows: 0, vocabulary: 0, data: new Float32Array() };
    for (let at = 0; at < ids.length; at += size) {
      options.signal?.throwIfAborted();
      last = await this.run(ids.slice(at, at + size), 'last');
      options.onProgress?.(Math.min(at + size, ids.length));
    }
    return last;
  }

  /** Forgets everything. */
  async reset(): Promise<void> {
    this.consumed = 0;
    await this.engine.reset();
  }

  async release(): Promise<void> {
    await this.engine.release();
  }

  private async run(ids: readonly number[], wanted: 'all' | 'last'): Promise<Logits> {
    const logits = await namingFile(this.file, () => this.engine.run(ids, wanted));
    this.consumed += ids.length;
    return logits;
  }
}

/** The model's own word on which tokens its attention_mask covers. */
const MASK_KEY = 'onnx_fla.attention_mask';

function hasState(file: string): boolean {
  const { graph } = loadModel(file);
  const names = (infos: readonly { name: string }[]) => infos.map((i) => i.name);
  return statePairs(names(graph.inputs), names(graph.outputs)).length > 0;
}

async function stockEngine(file: string, choice: SessionChoice) {
  const { session } = await openSession(file, choice);
  const io = tokenInterface(session, loadModel(file).metadata(MASK_KEY) === 'current');
  return { engine: new StockEngine(await loadOnnxRuntime(), session, io), memory: io.memory };
}

async function segmentEngine(file: string, choice: SessionChoice, segment: number) {
  const { session } = await openSession(file, choice);
  const io = tokenInterface(session);
  return {
    engine: new SegmentEngine(await loadOnnxRuntime(), session, io, segment),
    memory: io.memory,
  };
}

async function statefulEngine(file: string, choice: SessionChoice) {
  const { StatefulSession } = await import('../../runtime/node/index.js');
  const stateful = await StatefulSession.create(file, sessionOptions(choice));
  const { memory, logits } = tokenInterface(stateful.session);
  return { engine: new StatefulEngine(stateful, logits), memory };
}

import { FlaError } from '../../ops/error.js';
import { type Padding, paddingOf } from '../../runtime/common/row_lengths.js';
import {
  chooseBackend,
  loadOnnxRuntime,
  namingFile,
  openSession,
  type SessionChoice,
  sessionOptions,
} from '../compare/session.js';
import { loadModel } from '../ir/file.js';
import type { Model } from '../ir/index.js';
import { segmentOf } from '../memory_tokens.js';
import { cacheDims } from './cache_dims.js';
import { Encoder, type NumberArray } from './encoder.js';
import type { Engine, Logits, TokenRows } from './engine.js';
import { SegmentEngine } from './segment_engine.js';
import { presentOf, statePairs } from './state_pairs.js';
import { StatefulEngine } from './stateful_engine.js';
import { StockEngine } from './stock_engine.js';
import { type Memory, type TokenInterface, tokenInterface } from './token_interface.js';

export interface PrefillOptions {
  /** Tokens in a run; default 512. A model that remembers nothing reads all at once. */
  chunk?: number;
  onProgress?: (done: number) => void;
  signal?: AbortSignal;
}

export interface LanguageModelChoice extends SessionChoice {
  /** Texts side by side; default 1. */
  batch?: number;
  /** The file is the decoder of an encoder-decoder, and this its encoder (Optimum's encoder_model.onnx). */
  encoder?: string;
  /** The file makes the first call only, and this those after it (Optimum's decoder_with_past_model.onnx). */
  withPast?: string;
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
    readonly batch: number,
    private readonly encoder?: Encoder,
  ) {}

  /**
   * @throws FlaError `unsupported` when the model is no language model of the known form, `invalid_argument` for a `cacheLength` when
   * nothing writes its cache in place
   */
  static async open(file: string, choice: LanguageModelChoice = {}): Promise<LanguageModel> {
    const { encoder, withPast = file } = choice;
    const { backend, notice } = await chooseBackend(withPast, choice.backend);
    const read = encoder === undefined ? undefined : await Encoder.open(encoder, choice);
    return namingFile(withPast, async () => {
      const model = loadModel(withPast);
      const segments = segmentOf(model);
      if (segments) checkAlone(file, choice);
      const { batch = 1 } = choice;
      const chosen = { ...choice, batch, backend, padding: paddingSide(model) };
      const { engine, memory } = segments
        ? await segmentEngine(file, chosen, segments.segment)
        : backend === 'fla' && hasState(model) && isWhole(model, chosen)
          ? await statefulEngine(file, model, chosen)
          : await stockEngine(file, model, chosen);
      return new LanguageModel(engine, withPast, memory, backend, notice, batch, read);
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
    return this.run([ids], 'all');
  }

  /** Reads tokens of each text of the batch, of any number in the first call, and returns the logits of each one's last. */
  advanceRows(rows: TokenRows): Promise<Logits> {
    return this.run(rows, 'last');
  }

  /** Reads tokens in pieces, so that memory does not grow with their number, and returns the last one's logits. */
  async prefill(ids: readonly number[], options: PrefillOptions = {}): Promise<Logits> {
    const whole = this.memory === 'none' || this.engine.readsAtOnce;
    const size = whole ? ids.length : (options.chunk ?? 512);
    let last: Logits = { rows: 0, vocabulary: 0, data: new Float32Array() };
    for (let at = 0; at < ids.length; at += size) {
      options.signal?.throwIfAborted();
      last = await this.run([ids.slice(at, at + size)], 'last');
      options.onProgress?.(Math.min(at + size, ids.length));
    }
    return last;
  }

  /**
   * Reads the sources of the batch with the encoder and starts over: token ids of texts, or arrays by the names of the encoder's
   * inputs (input_features, pixel_values).
   *
   * @returns how many places the encoder made of them, padding left out
   * @throws FlaError `invalid_argument` when there is no encoder or the sources do not fit it
   */
  async readSource(source: TokenRows | ReadonlyMap<string, NumberArray>): Promise<number> {
    if (!this.encoder) {
      throw new FlaError('invalid_argument', `${this.file}: a source needs an encoder`);
    }
    const encoded = await (source instanceof Map
      ? this.encoder.readArrays(source)
      : this.encoder.read(source as TokenRows));
    this.consumed = 0;
    await namingFile(this.file, async () => this.engine.attend?.(encoded));
    return encoded.tokens;
  }

  /** Forgets everything but the source. */
  async reset(): Promise<void> {
    this.consumed = 0;
    await this.engine.reset();
  }

  async release(): Promise<void> {
    await this.engine.release();
    await this.encoder?.release();
  }

  private async run(rows: TokenRows, wanted: 'all' | 'last'): Promise<Logits> {
    if (rows.length !== this.batch) {
      throw new FlaError(
        'invalid_argument',
        `tokens must be of ${this.batch} texts, received ${rows.length}`,
      );
    }
    const logits = await namingFile(this.file, () => this.engine.run(rows, wanted));
    this.consumed += Math.max(...rows.map((row) => row.length));
    return logits;
  }
}

/** Memory tokens go through one file. */
function checkAlone(file: string, { encoder, withPast }: LanguageModelChoice): void {
  if (encoder === undefined && withPast === undefined) return;
  const received = withPast === undefined ? 'an encoder beside it' : `${file} for the first call`;
  throw new FlaError(
    'unsupported',
    `a model with memory tokens must be one file, received ${received}`,
  );
}

/** The model's own word on which tokens its attention_mask covers. */
const MASK_KEY = 'onnx_fla.attention_mask';

/** How a model is opened. */
type Chosen = Required<Pick<LanguageModelChoice, 'batch'>> &
  LanguageModelChoice & { padding: Padding };

/** Does one file do all of the work, in every call the same? */
function isWhole({ graph }: Model, { encoder, withPast }: Chosen): boolean {
  const merged = graph.inputs.some((i) => /use_cache/i.test(i.name));
  return encoder === undefined && withPast === undefined && !merged;
}

function hasState({ graph }: Model): boolean {
  const names = (infos: readonly { name: string }[]) => infos.map((i) => i.name);
  return statePairs(names(graph.inputs), names(graph.outputs)).length > 0;
}

/** Does a model write its caches into the buffers that they are read from? */
export function writesInPlace({ graph }: Model): boolean {
  return [...graph.walk()].some((node) => node.is('GroupQueryAttention', 'com.microsoft'));
}

/** GroupQueryAttention goes by the lengths of rows, also where these are made from a mask. */
function paddingSide(model: Model): Padding {
  if (writesInPlace(model)) return 'right';
  return paddingOf(model.graph.inputs.map((i) => i.name)) ?? 'left';
}

/** The length of shared caches, for a model that has caches. */
function cacheLength(
  model: Model,
  memory: Memory,
  { cacheLength: wanted }: Chosen,
): { cacheLength?: number } {
  if (wanted === undefined || memory !== 'cache') return {};
  if (writesInPlace(model)) return { cacheLength: wanted };
  throw new FlaError(
    'invalid_argument',
    'a cache length is for models that write their cache in place, as com.microsoft.GroupQueryAttention does, received one with other attention',
  );
}

async function stockEngine(file: string, model: Model, chosen: Chosen) {
  const { batch, padding, encoder, withPast } = chosen;
  const { session } = await openSession(withPast ?? file, chosen);
  const io = tokenInterface(session, {
    maskIsCurrent: model.metadata(MASK_KEY) === 'current',
    encoder: encoder !== undefined,
  });
  const first = withPast === undefined ? undefined : await firstOf(file, io, chosen);
  const made = new Set((first?.session ?? session).outputNames);
  const missing = io.cross.find((c) => !presentOf(c.name, made));
  if (missing) {
    throw new FlaError(
      'unsupported',
      `nothing makes '${missing.name}': a decoder_with_past_model.onnx goes after its decoder_model.onnx`,
    );
  }
  const dims = cacheDims(model);
  const options = { batch, padding, first, dims, ...cacheLength(model, io.memory, chosen) };
  return {
    engine: new StockEngine(await loadOnnxRuntime(), session, io, options),
    memory: io.memory,
  };
}

/** What makes the first call for a decoder with past. */
async function firstOf(file: string, later: TokenInterface, chosen: Chosen) {
  if (later.state.length === 0 || later.branch) {
    const received = later.branch ? `an input '${later.branch.name}'` : 'none';
    throw new FlaError(
      'unsupported',
      `a decoder with past must have a cache and no branch without one, received ${received}`,
    );
  }
  return namingFile(file, async () => {
    const { session } = await openSession(file, chosen);
    const io = tokenInterface(session, { encoder: chosen.encoder !== undefined });
    if (io.state.length === 0) return { session, io };
    throw new FlaError(
      'unsupported',
      `must have no cache, as it makes the first call for a decoder with past, received ${io.state.length} caches`,
    );
  });
}

async function segmentEngine(file: string, chosen: Chosen, segment: number) {
  const { session } = await openSession(file, chosen);
  const io = tokenInterface(session);
  return {
    engine: new SegmentEngine(await loadOnnxRuntime(), session, io, segment, chosen.batch),
    memory: io.memory,
  };
}

async function statefulEngine(file: string, model: Model, chosen: Chosen) {
  const { StatefulSession } = await import('../../runtime/node/index.js');
  const { batch, padding } = chosen;
  const declared = model.graph.inputs.some(({ name }) => grows(model, name));
  const stateful = await StatefulSession.create(file, {
    ...sessionOptions(chosen),
    ...{ batch, padding, ...cacheLength(model, declared ? 'cache' : 'state', chosen) },
    freeDimensionOverrides: cacheDims(model),
  });
  const { memory, logits } = tokenInterface(stateful.session);
  return { engine: new StatefulEngine(stateful, logits), memory };
}

/** Is it a cache that gets longer with every token? */
function grows({ graph }: Model, name: string): boolean {
  return (
    /past/i.test(name) && (graph.dims(name) ?? []).some((d, i) => i > 0 && typeof d !== 'number')
  );
}

import { FlaError } from '../../ops/error.js';
import { arrayOver, type DType, type NumericDType } from './dtypes.js';
import {
  type Feeds,
  feedLength,
  integers,
  sliceFeeds,
  type Tokens,
  tokenTensor,
  toRows,
} from './feeds.js';
import { type Columns, type Padding, paddingOf, RowLengths, TOLD } from './row_lengths.js';
import {
  findStatePairs,
  makeSlot,
  type StateModel,
  type StatePair,
  type StateSlot,
  type StateTensor,
} from './state.js';
import type { MakeTensor, TensorLike, ValueInfo } from './values.js';

/**
 * Which outputs a call gives back besides the state it keeps.
 *
 * - `'last'`: every output, of those with time along axis 1 only the last position, [B,1,...]
 * - `'none'`
 * - names: those outputs, whole
 */
export type Outputs = 'last' | 'none' | readonly string[];

/** What a StatefulSession takes besides the options of its session. */
export interface StateOptions {
  /** Sequences side by side; default 1. */
  batch?: number;
  /** Default for the calls; `'last'`. */
  outputs?: Outputs;
  /**
   * States of fixed size, by the names of their inputs, that are read and written in the same memory; `true` for all. Right
   * only where a single operator reads the past and writes the present, and allows it, as those of com.fla do. Default:
   * those that the model's metadata names, when the operator library is in use; the others have two tensors in turn.
   */
  inPlace?: boolean | readonly string[];
  /**
   * Where rows of different length are padded in the first call. Default: on the right for a model that is told the lengths of
   * its rows (`seqlens_k`), else on the left. A model with com.microsoft.GroupQueryAttention needs `right` even
   * where it makes these from `attention_mask`.
   */
  padding?: Padding;
  /**
   * Caches that grow are made this long at once, and past and present are one buffer. For models whose operators write their cache in
   * place, such as com.microsoft.GroupQueryAttention.
   */
  cacheLength?: number;
}

export interface StepOptions {
  outputs?: Outputs;
  signal?: AbortSignal;
}

export interface PrefillOptions<T> extends StepOptions {
  /** Tokens per run; default 1024. Peak memory depends on it and not on the length of the text. */
  chunk?: number;
  /** Called after every run with tokens done and in all. */
  onProgress?: (done: number, total: number) => void;
  /** Called with the outputs of every run, when `outputs` names some; `start` counts from this call's first token. */
  onChunk?: (outputs: Record<string, T>, start: number, count: number) => void | Promise<void>;
}

/** A copy of the state. Plain data, so that it can be cloned, sent to a worker thread or stored. */
export interface StateSnapshot {
  position: number;
  /** Tokens of padding in each row, where the first call padded some. */
  padded?: number[];
  /** Columns of that call. */
  width?: number;
  tensors: Record<string, { type: DType; dims: number[]; data: Uint8Array }>;
}

/** Key of metadata_props: `current` when attention_mask covers only the tokens of the run. */
const MASK_KEY = 'onnx_fla.attention_mask';
const DEFAULT_CHUNK = 1024;
const TOKEN_INPUTS = ['input_ids', 'tokens', 'ids'];

/** What a runtime's session must do to be run with memory. */
export interface StatefulModel<T extends TensorLike, S extends StateTensor> extends StateModel<S> {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  /** Whether states that the model marks with `in_place` may share memory. */
  readonly sharesState: boolean;
  /** `null` fetches a tensor for the caller, `'native'` one that stays where the session computes. */
  run(
    feeds: Readonly<Record<string, T | S>>,
    fetches: Readonly<Record<string, T | S | 'native' | null>>,
    options: { signal?: AbortSignal },
  ): Promise<Record<string, T | S>>;
  dispose(): Promise<void>;
}

/** Checks the sizes among the options. @throws FlaError `invalid_argument` */
export function checkSizes({ batch = 1, cacheLength = 1 }: StateOptions): void {
  for (const [name, value] of Object.entries({ batch, cacheLength })) {
    if (Number.isInteger(value) && value >= 1) continue;
    throw new FlaError(
      'invalid_argument',
      `StatefulSession: ${name} must be an integer >= 1, received ${value}`,
    );
  }
}

/**
 * A model with memory: keeps every past/present pair where it computes between calls, so that a text of any length can be
 * fed in pieces. Pairs are found in the model's metadata (`onnx_fla.state`) or by name: `past_X` -> `present_X`,
 * `past_key_values.N.X` -> `present.N.X`. Pairs of fixed size start as zeros, growing ones (KV caches) empty.
 * `attention_mask`, `position_ids`, `cache_position`, `seqlens_k`, `total_sequence_length`, `past_sequence_length`,
 * `past_key_values_length`, `nonpad_kv_seqlen` and `write_indices` are fed where the model has them. The first call after the start
 * or a reset may have rows of different length, which are padded.
 *
 * Calls are carried out one after the other, in the order in which they were made.
 *
 * Each runtime has its own StatefulSession over this; `T` are its tensors, `S` those that hold state.
 */
export abstract class Stateful<
  T extends TensorLike,
  S extends StateTensor,
  M extends StatefulModel<T, S>,
> {
  readonly session: M;
  readonly pairs: readonly StatePair[];
  readonly batch: number;
  readonly #outputs: Outputs;
  readonly #slots: StateSlot<S>[];
  readonly #make: MakeTensor<T>;
  readonly #batchNames: ReadonlySet<string>;
  readonly #rows: RowLengths;
  readonly #cacheLength: number | undefined;
  #position = 0;
  #queue: Promise<unknown> = Promise.resolve();
  #spoiled = false;
  #disposed: Promise<void> | undefined;

  /** @param make Makes a tensor for the caller; of bfloat16, too, where the runtime has such tensors. */
  protected constructor(session: M, options: StateOptions, make: MakeTensor<T>) {
    this.#make = make;
    this.session = session;
    this.batch = options.batch ?? 1;
    this.#outputs = options.outputs ?? 'last';
    this.pairs = findStatePairs(session);
    if (this.pairs.length === 0) {
      throw new FlaError(
        'invalid_model',
        `StatefulSession: the model must have past/present pairs, received inputs ${session.inputNames.join(' ')} and outputs ${session.outputNames.join(' ')}`,
      );
    }
    const names = session.inputs.map(({ name }) => name);
    this.#cacheLength = options.cacheLength;
    this.#rows = new RowLengths(this.batch, options.padding ?? paddingOf(names));
    this.#batchNames = batchNames(session, this.pairs);
    this.#slots = this.pairs.map((pair) =>
      makeSlot(
        pair,
        this.batch,
        this.#batchNames,
        isInPlace(pair, session.sharesState, options.inPlace),
        session,
        options.cacheLength,
      ),
    );
  }

  /** Tokens taken in since the start, the last reset or load. */
  get position(): number {
    return this.#position;
  }

  /** Bytes of the state as it is now. */
  get stateBytes(): number {
    return this.#slots.reduce((sum, slot) => sum + slot.current.byteLength, 0);
  }

  /**
   * Takes in tokens, or feeds by input name, in chunks.
   *
   * @returns The outputs of the last chunk.
   * @throws FlaError as a rejection; the state then is that after the last finished chunk.
   */
  prefill(input: Tokens | Feeds<T>, options: PrefillOptions<T> = {}): Promise<Record<string, T>> {
    return this.#enqueue(() => this.#prefill(input, options));
  }

  /** Takes in one token per sequence, or whatever is given, in one run. */
  step(input: Tokens | Feeds<T>, options: StepOptions = {}): Promise<Record<string, T>> {
    return this.#enqueue(() => {
      const feeds = this.#toFeeds(input);
      return this.#run(feeds, feedLength(feeds), options.outputs ?? this.#outputs, options.signal);
    });
  }

  /** Back to the state before the first token. */
  reset(): Promise<void> {
    return this.#enqueue(async () => this.#clear());
  }

  /** A copy of the state. */
  save(): Promise<StateSnapshot> {
    return this.#enqueue(async () => {
      this.#assertSound();
      const tensors: StateSnapshot['tensors'] = {};
      for (const { pair, current } of this.#slots) {
        const data = new Uint8Array(await current.read());
        tensors[pair.past] = { type: pair.type, dims: [...current.dims], data };
      }
      const { uneven, padded, width } = this.#rows;
      return { position: this.#position, ...(uneven && { padded: [...padded], width }), tensors };
    });
  }

  /** Goes on from a copy, of this session or of another one of the same model. */
  load(snapshot: StateSnapshot): Promise<void> {
    return this.#enqueue(async () => {
      for (const slot of this.#slots) this.#checkSnapshot(snapshot, slot);
      for (const slot of this.#slots) {
        const { dims, data } = snapshot.tensors[slot.pair.past];
        slot.set(dims, data);
      }
      this.#position = snapshot.position;
      const { padded, width = 0 } = snapshot;
      if (padded) this.#rows.start(padded.map((n) => width - n));
      else this.#rows.clear();
      this.#spoiled = false;
    });
  }

  /** Waits for the calls made before, then releases the session and the state. */
  dispose(): Promise<void> {
    this.#disposed ??= this.#queue
      .catch(() => {})
      .then(async () => {
        for (const slot of this.#slots) slot.dispose();
        await this.session.dispose();
      });
    return this.#disposed;
  }

  #enqueue<T>(body: () => Promise<T>): Promise<T> {
    if (this.#disposed)
      return Promise.reject(new FlaError('disposed', 'StatefulSession: used after dispose()'));
    const result = this.#queue.then(body);
    this.#queue = result.catch(() => {});
    return result;
  }

  #assertSound(): void {
    if (!this.#spoiled) return;
    throw new FlaError(
      'runtime',
      'StatefulSession: a run failed while it updated the state in place; call reset() or load()',
    );
  }

  #assertRoom(needed: number): void {
    if (this.#cacheLength === undefined || needed <= this.#cacheLength) return;
    throw new FlaError(
      'invalid_argument',
      `StatefulSession: cacheLength must be at least the number of tokens so far, ${needed}, received ${this.#cacheLength}`,
    );
  }

  #clear(): void {
    for (const slot of this.#slots) slot.reset();
    this.#position = 0;
    this.#rows.clear();
    this.#spoiled = false;
  }

  #checkSnapshot(snapshot: StateSnapshot, { pair, current, target }: StateSlot<S>): void {
    const saved = snapshot.tensors[pair.past];
    const wrong = (what: string, expected: unknown, received: unknown) =>
      new FlaError(
        'invalid_argument',
        `StatefulSession.load: ${what} of '${pair.past}' must be ${expected}, received ${received}`,
      );
    if (saved === undefined) throw wrong('the tensor', 'in the snapshot', 'none');
    if (saved.type !== pair.type) throw wrong('type', pair.type, saved.type);
    const fixed = target !== 'native' && String(current.dims) !== String(saved.dims);
    if (fixed) throw wrong('dims', `[${current.dims}]`, `[${saved.dims}]`);
  }

  #toFeeds(input: Tokens | Feeds<T>): Feeds<T> {
    if (isFeeds(input)) return input;
    const { name } = this.#tokenInput;
    const rows = toRows(input, this.batch);
    const lengths = rows.map((row) => row.length);
    if (this.#position === 0) this.#rows.clear();
    if (lengths.some((n) => n !== lengths[0])) this.#pad(lengths);
    return { [name]: tokenTensor(this.#make, this.#tokenInput, rows, this.#rows.side) };
  }

  /** Notes that the first call's rows are padded to one length. */
  #pad(lengths: readonly number[]): void {
    const told = `${lengths[0]} and ${lengths.find((n) => n !== lengths[0])}`;
    if (this.#position > 0) {
      throw new FlaError(
        'invalid_shape',
        `StatefulSession: token lists must be of one length after the first call, received ${told}`,
      );
    }
    if (!paddingOf(this.session.inputNames)) {
      throw new FlaError(
        'invalid_shape',
        `StatefulSession: token lists must be of one length, as the model has no input that tells of padding, received ${told}`,
      );
    }
    if (lengths.includes(0)) {
      throw new FlaError('invalid_shape', 'StatefulSession: token lists must not be empty');
    }
    this.#rows.start(lengths);
  }

  get #tokenInput(): ValueInfo {
    const states = new Set(this.pairs.map((pair) => pair.past));
    const free = this.session.inputs.filter(({ name }) => !states.has(name) && !TOLD.has(name));
    const input =
      free.find(({ name }) => TOKEN_INPUTS.includes(name)) ??
      (free.length === 1 ? free[0] : undefined);
    if (input?.type?.includes('int')) return input;
    throw new FlaError(
      'invalid_argument',
      `StatefulSession: token ids need an integer input called ${TOKEN_INPUTS.join(' or ')}; pass tensors by name instead: ${free.map(({ name }) => name).join(' ')}`,
    );
  }

  async #prefill(input: Tokens | Feeds<T>, options: PrefillOptions<T>): Promise<Record<string, T>> {
    const { chunk = DEFAULT_CHUNK, outputs = this.#outputs, signal } = options;
    if (!Number.isInteger(chunk) || chunk < 1) {
      throw new FlaError(
        'invalid_argument',
        `StatefulSession.prefill: chunk must be an integer >= 1, received ${chunk}`,
      );
    }
    const feeds = this.#toFeeds(input);
    const total = feedLength(feeds);
    // Rows that end early, and their lengths, are for one call.
    const whole = this.#rows.side === 'right' && this.#rows.uneven && this.#position === 0;
    let results: Record<string, T> = {};
    const step = whole ? total : chunk;
    for (let start = 0; start < total; start += step) {
      const count = Math.min(step, total - start);
      const isLast = start + count === total;
      const wanted = outputs === 'last' && !isLast ? 'none' : outputs;
      const piece = sliceFeeds(this.#make, feeds, total, start, count);
      results = await this.#run(piece, count, wanted, signal);
      if (Array.isArray(outputs)) await options.onChunk?.(results, start, count);
      options.onProgress?.(start + count, total);
    }
    return results;
  }

  /** One run of the model: state in, state out, and the outputs that are wanted. */
  async #run(
    feeds: Feeds<T>,
    count: number,
    outputs: Outputs,
    signal?: AbortSignal,
  ): Promise<Record<string, T>> {
    this.#assertSound();
    signal?.throwIfAborted();
    this.#assertRoom(this.#position + count);
    const names = this.#wanted(outputs);
    const fetches: Record<string, S | 'native' | null> = {};
    for (const name of names) fetches[name] = outputs === 'last' ? 'native' : null;
    for (const slot of this.#slots) fetches[slot.pair.present] = slot.target;
    const results = await this.#guarded(() =>
      this.session.run({ ...this.#automatic(feeds, count), ...feeds, ...this.#past() }, fetches, {
        signal,
      }),
    );
    for (const slot of this.#slots) slot.commit(results[slot.pair.present] as S);
    const columns = { past: this.#position, count };
    this.#position += count;
    if (outputs !== 'last')
      return Object.fromEntries(names.map((name) => [name, results[name] as T]));
    const last = names.map(
      async (name): Promise<[string, T]> => [
        name,
        await this.#lastPosition(results[name] as S, columns),
      ],
    );
    return Object.fromEntries(await Promise.all(last));
  }

  /** [B,1,...] of a [B,T,...] tensor, and the memory of the rest given back; a tensor without time comes whole. */
  async #lastPosition(tensor: S, columns: Columns): Promise<T> {
    const { count } = columns;
    const [batch, length, ...rest] = tensor.dims;
    const timed = tensor.dims.length >= 2 && length === count && count > 0;
    const dims = timed ? [batch, 1, ...rest] : [...tensor.dims];
    const rows = timed ? batch : 1;
    const steps = timed ? length : 1;
    const bytes = tensor.byteLength / (timed ? batch * length : 1);
    try {
      const read = Array.from({ length: rows }, (_, b) =>
        tensor.read((b * steps + (timed ? this.#rows.lastOf(b, columns) : 0)) * bytes, bytes),
      );
      const data = new Uint8Array(rows * bytes);
      for (const [b, row] of (await Promise.all(read)).entries())
        data.set(new Uint8Array(row), b * bytes);
      const type = tensor.type as NumericDType;
      return this.#make(type, arrayOver(type, data.buffer), dims);
    } finally {
      tensor.dispose();
    }
  }

  /** Names of outputs that are no state. */
  #wanted(outputs: Outputs): readonly string[] {
    if (outputs === 'none') return [];
    const states = new Set(this.pairs.map((pair) => pair.present));
    const others = this.session.outputNames.filter((name) => !states.has(name));
    if (outputs === 'last') return others;
    const unknown = outputs.find((name) => !others.includes(name));
    if (unknown === undefined) return outputs;
    throw new FlaError(
      'invalid_argument',
      `StatefulSession: outputs must be among ${others.join(' ')}, received '${unknown}'`,
    );
  }

  /**
   * A run that fails half way leaves a state that it was updating in place between old and new. A FlaError without a cause
   * is one of ours, from before the run began.
   */
  async #guarded<T>(body: () => Promise<T>): Promise<T> {
    try {
      return await body();
    } catch (thrown) {
      const started = !(thrown instanceof FlaError) || thrown.cause !== undefined;
      this.#spoiled = started && this.#slots.some((slot) => slot.current === slot.target);
      throw thrown;
    }
  }

  #past(): Record<string, S> {
    return Object.fromEntries(this.#slots.map((slot) => [slot.pair.past, slot.current]));
  }

  /** The inputs that follow from the position, where the model has them and the caller did not give them. */
  #automatic(feeds: Feeds<T>, count: number): Record<string, T> {
    const made: Record<string, T> = {};
    const columns = { past: this.#position, count };
    const isCurrent = this.session.modelMetadata[MASK_KEY] === 'current';
    for (const input of this.session.inputs) {
      if (!TOLD.has(input.name) || feeds[input.name] !== undefined) continue;
      const rank = input.shape?.length ?? 0;
      const { dims, at } = this.#rows.told(input.name, rank, columns, isCurrent);
      made[input.name] = integers(this.#make, input, dims, at);
    }
    return made;
  }
}

function isInPlace(
  pair: StatePair,
  sharesState: boolean,
  inPlace: StateOptions['inPlace'] = pair.inPlace && sharesState,
): boolean {
  return typeof inPlace === 'boolean' ? inPlace : inPlace.includes(pair.past);
}

function isFeeds<T extends TensorLike>(input: Tokens | Feeds<T>): input is Feeds<T> {
  return typeof input === 'object' && !('length' in input);
}

/** Names of the batch in the shapes of the inputs that are no state, whose first axis it is. */
function batchNames(
  session: Pick<StateModel<never>, 'inputs'>,
  pairs: readonly StatePair[],
): Set<string> {
  const states = new Set(pairs.map((pair) => pair.past));
  const names = session.inputs.map(({ name, shape = [] }) =>
    !states.has(name) && shape.length >= 2 ? shape[0] : '',
  );
  return new Set(names.filter((name): name is string => typeof name === 'string' && name !== ''));
}

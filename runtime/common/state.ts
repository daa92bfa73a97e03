import { FlaError } from '../../ops/error.js';
import type { DType } from './dtypes.js';
import type { ValueInfo } from './values.js';

/** A tensor that stays where the session computes, from run to run. */
export interface StateTensor {
  readonly type: string;
  readonly dims: readonly number[];
  readonly byteLength: number;
  /** A copy of a range of bytes; the whole when no range is given. */
  read(byteOffset?: number, byteLength?: number): ArrayBuffer | Promise<ArrayBuffer>;
  /** Overwrites all of it. */
  assign(data: ArrayBufferView): void;
  dispose(): void;
}

/** What the shared code needs of a session to know and keep its state. */
export interface StateModel<S extends StateTensor> {
  readonly inputs: readonly ValueInfo[];
  readonly outputs: readonly ValueInfo[];
  readonly modelMetadata: Readonly<Record<string, string>>;
  /** Zeros where the session computes. */
  zeros(type: DType, dims: readonly number[]): S;
}

/** An input that takes what an output of the run before gave. */
export interface StatePair {
  /** Name of the input. */
  readonly past: string;
  /** Name of the output. */
  readonly present: string;
  readonly type: DType;
  /** Sizes by number, or by name where they vary. */
  readonly shape: readonly (number | string)[];
  /** The model says that past and present may share memory where the kernels of com.fla run. */
  readonly inPlace: boolean;
}

/** One pair as `metadata_props["onnx_fla.state"]` lists it; only the names are needed. */
interface StateEntry {
  past?: string;
  present?: string;
  input?: string;
  output?: string;
  shape?: (number | string)[];
  in_place?: boolean;
}

/** Key of metadata_props under which the exporter lists the pairs, as JSON. */
export const STATE_KEY = 'onnx_fla.state';

function readEntries(session: Pick<StateModel<never>, 'modelMetadata'>): StateEntry[] {
  const text = session.modelMetadata[STATE_KEY];
  if (text === undefined) return [];
  try {
    const entries = JSON.parse(text);
    if (Array.isArray(entries)) return entries;
  } catch (cause) {
    throw new FlaError(
      'invalid_model',
      `model: metadata ${STATE_KEY} must be JSON: ${(cause as Error).message}`,
      { cause },
    );
  }
  throw new FlaError(
    'invalid_model',
    `model: metadata ${STATE_KEY} must be a list, received ${text.slice(0, 60)}`,
  );
}

/** Names under which exporters give back what an input called `past` takes. */
function presentNames(past: string): string[] {
  return [past.replace('past_key_values', 'present'), past.replace('past', 'present')];
}

function toPair(input: ValueInfo, output: ValueInfo | undefined, entry: StateEntry): StatePair {
  const what = `model: state '${input.name}'`;
  if (output === undefined)
    throw new FlaError('invalid_model', `${what} must have the output '${entry.present}'`);
  if (!input.type || input.type !== output.type) {
    throw new FlaError(
      'invalid_model',
      `${what} must have the type of '${output.name}', ${output.type}, received ${input.type}`,
    );
  }
  return {
    past: input.name,
    present: output.name,
    type: input.type,
    shape: input.shape?.length ? input.shape : (entry.shape ?? []),
    inPlace: entry.in_place === true,
  };
}

/**
 * The model's past/present pairs: those it lists itself, then those that follow a naming custom:
 * `past_X` -> `present_X`, `past_key_values.N.X` -> `present.N.X`.
 */
export function findStatePairs(session: StateModel<StateTensor>): StatePair[] {
  const outputs = new Map(session.outputs.map((output) => [output.name, output]));
  const entries = new Map(readEntries(session).map((entry) => [entry.past ?? entry.input, entry]));
  return session.inputs.flatMap((input) => {
    const entry = entries.get(input.name);
    if (entry) {
      const present = entry.present ?? entry.output ?? '';
      return [toPair(input, outputs.get(present), { ...entry, present })];
    }
    const present =
      input.name.includes('past') && presentNames(input.name).find((name) => outputs.has(name));
    return present ? [toPair(input, outputs.get(present), { present })] : [];
  });
}

/** Whether a size is the batch; other symbolic sizes grow with the tokens. */
function isBatch(size: number | string, axis: number, batchNames: ReadonlySet<string>): boolean {
  return typeof size === 'string' && (axis === 0 || batchNames.has(size) || /batch/i.test(size));
}

/** Sizes before the first token: the batch and the growing dimensions filled in. */
function initialDims(
  pair: StatePair,
  batch: number,
  batchNames: ReadonlySet<string>,
  growing: number,
): number[] {
  return pair.shape.map((size, axis) => {
    if (typeof size === 'number') return size;
    return isBatch(size, axis, batchNames) ? batch : growing;
  });
}

/** Where one pair's tensor lives between runs: in the memory that the session computes in. */
export interface StateSlot<S extends StateTensor> {
  readonly pair: StatePair;
  /** The state after the last committed run. */
  readonly current: S;
  /** What to fetch the new state into. */
  readonly target: S | 'native';
  /** Makes the run's result the current state. */
  commit(result: S): void;
  /** Back to the state before the first token. */
  reset(): void;
  /** Makes a copy of these bytes the current state. */
  set(dims: readonly number[], bytes: Uint8Array): void;
  dispose(): void;
}

/** State of a fixed size: two tensors in turn, or one that is read and written in the same run. */
class FixedSlot<S extends StateTensor> implements StateSlot<S> {
  readonly #tensors: S[];

  constructor(
    readonly pair: StatePair,
    dims: readonly number[],
    inPlace: boolean,
    session: StateModel<S>,
  ) {
    this.#tensors = Array.from({ length: inPlace ? 1 : 2 }, () => session.zeros(pair.type, dims));
  }

  get current(): S {
    return this.#tensors[0];
  }

  get target(): S {
    return this.#tensors[this.#tensors.length - 1];
  }

  commit(): void {
    this.#tensors.reverse();
  }

  reset(): void {
    this.current.assign(new Uint8Array(this.current.byteLength));
  }

  set(_dims: readonly number[], bytes: Uint8Array): void {
    this.current.assign(bytes);
  }

  dispose(): void {
    for (const tensor of this.#tensors) tensor.dispose();
  }
}

/** State that grows with every token, as an ordinary KV cache: each run hands out a new tensor. */
class GrowingSlot<S extends StateTensor> implements StateSlot<S> {
  readonly target = 'native';
  readonly #empty: readonly number[];
  readonly #session: StateModel<S>;
  #tensor: S;

  constructor(
    readonly pair: StatePair,
    dims: readonly number[],
    session: StateModel<S>,
  ) {
    this.#empty = dims;
    this.#session = session;
    this.#tensor = session.zeros(pair.type, dims);
  }

  get current(): S {
    return this.#tensor;
  }

  commit(result: S): void {
    this.#tensor.dispose();
    this.#tensor = result;
  }

  reset(): void {
    this.commit(this.#session.zeros(this.pair.type, this.#empty));
  }

  set(dims: readonly number[], bytes: Uint8Array): void {
    const tensor = this.#session.zeros(this.pair.type, dims);
    tensor.assign(bytes);
    this.commit(tensor);
  }

  dispose(): void {
    this.#tensor.dispose();
  }
}

/** Whether the model's state gets longer with every token. */
function grows(pair: StatePair, batchNames: ReadonlySet<string>): boolean {
  return pair.shape.some(
    (size, axis) => typeof size === 'string' && !isBatch(size, axis, batchNames),
  );
}

/**
 * Allocates one pair's state as it is before the first token.
 *
 * @param batchNames Names of the batch in the model's shapes.
 * @param inPlace Reads and writes a state of fixed size in the same memory.
 * @param session Gives the memory.
 * @param cacheLength Size that a growing dimension has from the start, in memory shared by past and present.
 */
export function makeSlot<S extends StateTensor>(
  pair: StatePair,
  batch: number,
  batchNames: ReadonlySet<string>,
  inPlace: boolean,
  session: StateModel<S>,
  cacheLength?: number,
): StateSlot<S> {
  const dims = initialDims(pair, batch, batchNames, cacheLength ?? 0);
  if (!grows(pair, batchNames)) return new FixedSlot(pair, dims, inPlace, session);
  return cacheLength === undefined
    ? new GrowingSlot(pair, dims, session)
    : new FixedSlot(pair, dims, true, session);
}

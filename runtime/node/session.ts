import { type InferenceSession, type InferenceSessionHandler, Tensor } from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import {
  arrayOver,
  type DType,
  dtypeCode,
  dtypeName,
  isNumeric,
  type NumericArray,
} from '../common/dtypes.js';
import { cleanMessage, toFlaError } from '../common/errors.js';
import { checkTensor, showShape as show, type ValueInfo } from '../common/values.js';
import {
  type ArrayOutput,
  type Fetch,
  load,
  type NativeRunOptions,
  type NativeSession,
  type NativeValue,
  type NativeValueInfo,
  type TensorView,
} from './addon.js';
import { NativeTensor } from './native_tensor.js';
import {
  cudaError,
  flattenExtra,
  nativeOptions,
  outputsOnGpu,
  type SessionOptions,
} from './options.js';

export type AnyTensor = Tensor | NativeTensor;

/**
 * Runs that are shorter than so many milliseconds stay where they are: the way to another thread and back takes some 0.04 ms, many times that
 * where spinning threads keep the processors busy, and an event loop that is held for so short serves others all the same.
 */
const SHORT_MS = 0.5;

/** OrtErrorCode of an execution provider that could not be added. */
const ORT_EP_FAIL = 11;

export interface RunOptions extends InferenceSession.RunOptions {
  /** Stops the run at its next node; the promise is rejected with the signal's reason. */
  signal?: AbortSignal;
}

function valueInfo({ name, type, shape }: NativeValueInfo): ValueInfo {
  if (type === undefined) return { name, isTensor: false };
  return { name, isTensor: true, type: dtypeName(type), shape };
}

function place(deviceId: number): string {
  return deviceId < 0 ? "the host's memory" : `GPU ${deviceId}`;
}

/** The tensor's own memory for the addon, in the host or on GPU `deviceId`; nothing is copied but strings. */
function viewOf(tensor: AnyTensor, deviceId: number): NativeValue | TensorView {
  if (tensor instanceof NativeTensor) {
    if (tensor.location === 'none')
      throw new FlaError('disposed', 'NativeTensor: used after dispose()');
    if (tensor.location === 'gpu-buffer' && tensor.deviceId !== deviceId) {
      throw new FlaError(
        'unsupported',
        `Session: a tensor must be in ${place(deviceId)}, where the session computes, received one on ${place(tensor.deviceId)}`,
      );
    }
    return tensor.value;
  }
  if (tensor.location !== 'cpu' && tensor.location !== 'cpu-pinned') {
    throw new FlaError(
      'unsupported',
      `Session: a tensor's location must be cpu, received ${tensor.location}`,
    );
  }
  const data = tensor.data as NumericArray | string[];
  if (data.length === 0 && tensor.size > 0) {
    throw new FlaError(
      'invalid_argument',
      `Session: a tensor of ${show(tensor.dims)} must have its data, received a buffer that was transferred away`,
    );
  }
  const bytes = Array.isArray(data)
    ? data
    : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return { type: dtypeCode(tensor.type), dims: tensor.dims, data: bytes };
}

function bytesOf(input: NativeValue | TensorView): number {
  return 'data' in input ? input.data.length : input.byteLength;
}

function isArrayOutput(output: ArrayOutput | NativeValue): output is ArrayOutput {
  return 'data' in output;
}

function tensorOf(output: ArrayOutput): AnyTensor {
  const dtype = dtypeName(output.type);
  if (!isNumeric(dtype)) return new Tensor('string', output.data as string[], output.dims);
  const data = arrayOver(dtype, output.data as ArrayBuffer);
  if (dtype === 'bfloat16') return NativeTensor.from(dtype, data, output.dims);
  return new Tensor(dtype, data as never, output.dims);
}

/** A session of the `fla` backend; what `ort.InferenceSession` calls its handler. */
export class FlaSession implements InferenceSessionHandler {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputMetadata: InferenceSessionHandler['inputMetadata'];
  readonly outputMetadata: InferenceSessionHandler['outputMetadata'];
  /** Same as inputMetadata, with bfloat16 among the types. */
  readonly inputs: readonly ValueInfo[];
  readonly outputs: readonly ValueInfo[];
  /** The model's metadata_props. */
  readonly modelMetadata: Readonly<Record<string, string>>;
  /** Whether the operator library is in use: its kernels run, not the function bodies. */
  readonly hasLibrary: boolean;
  /** The kernels of com.fla may write a state over the one they read. */
  readonly sharesState: boolean;
  /** Where it computes. */
  readonly device: 'cpu' | 'cuda';
  /** Number of its GPU, -1 on the CPU. */
  readonly deviceId: number;
  readonly #staysOnGpu: (output: string) => boolean;
  readonly #native: NativeSession;
  readonly #running = new Set<Promise<unknown>>();
  /** Bytes that a run is fed with which is known to be short. */
  #shortBytes: number | undefined;
  #disposed: Promise<void> | undefined;

  private constructor(
    native: NativeSession,
    hasLibrary: boolean,
    deviceId: number,
    staysOnGpu: (output: string) => boolean,
  ) {
    this.#native = native;
    this.hasLibrary = hasLibrary;
    this.sharesState = hasLibrary;
    this.device = deviceId < 0 ? 'cpu' : 'cuda';
    this.deviceId = deviceId;
    this.#staysOnGpu = staysOnGpu;
    this.inputs = native.inputs.map(valueInfo);
    this.outputs = native.outputs.map(valueInfo);
    this.inputNames = this.inputs.map((input) => input.name);
    this.outputNames = this.outputs.map((output) => output.name);
    this.inputMetadata = this.inputs as InferenceSessionHandler['inputMetadata'];
    this.outputMetadata = this.outputs as InferenceSessionHandler['outputMetadata'];
    this.modelMetadata = native.metadata;
  }

  /** Loads a model off the event loop, from a path or from its bytes, which must not be changed until it is loaded. */
  static async create(
    model: string | Uint8Array,
    options: SessionOptions = {},
  ): Promise<FlaSession> {
    const { addon, info } = load();
    if (model.length === 0) throw new FlaError('invalid_model', 'Session: the model is empty');
    const native = await nativeOptions(options, info);
    const staysOnGpu = outputsOnGpu(options);
    try {
      const session = await addon.createSession(model, native);
      return new FlaSession(
        session,
        native.library !== undefined,
        native.cudaDevice ?? -1,
        staysOnGpu,
      );
    } catch (thrown) {
      const { ortCode, message } = thrown as Error & { ortCode?: number };
      if (native.cuda && ortCode === ORT_EP_FAIL) throw cudaError(cleanMessage(message), thrown);
      throw toFlaError(thrown);
    }
  }

  /**
   * Zeros where the session computes: on its GPU, or in the host's memory. A tensor on a GPU keeps the session's memory
   * alive until it is disposed.
   */
  zeros(type: DType, dims: readonly number[]): NativeTensor {
    this.#assertLive();
    if (!isNumeric(type))
      throw new FlaError('invalid_type', 'Session.zeros: type must be numeric, received string');
    try {
      return new NativeTensor(this.#native.allocate(dtypeCode(type), dims));
    } catch (thrown) {
      throw toFlaError(thrown);
    }
  }

  /**
   * Runs the model off the event loop.
   *
   * @param feeds Tensors by input name. Their memory is used as it is: leave it alone until the run is over.
   * @param fetches Wanted outputs: `null` for a new tensor (in the host's memory, unless `preferredOutputLocation` says
   *   otherwise), `'native'` for a new NativeTensor where the session computes, or a tensor to write into, which may be one
   *   of the feeds when the model's operator allows it (state updated in place).
   * @throws FlaError as a rejection, as do all failures.
   */
  async run(
    feeds: Readonly<Record<string, AnyTensor>>,
    fetches: Readonly<Record<string, AnyTensor | 'native' | null>>,
    options: RunOptions = {},
  ): Promise<Record<string, Tensor>> {
    this.#assertLive();
    options.signal?.throwIfAborted();
    const running = this.#start(feeds, fetches, options);
    this.#running.add(running);
    try {
      return await running;
    } finally {
      this.#running.delete(running);
    }
  }

  async #start(
    feeds: Readonly<Record<string, AnyTensor>>,
    fetches: Readonly<Record<string, AnyTensor | 'native' | null>>,
    { signal, ...options }: RunOptions,
  ): Promise<Record<string, Tensor>> {
    const fed = this.inputs.flatMap((input, i) => (feeds[input.name] === undefined ? [] : [i]));
    const fetched = Object.keys(fetches);
    const native = nativeRunOptions(options, signal);
    const inputs = fed.map((i) => this.#input(i, feeds[this.inputs[i].name]));
    const outputs = fetched.map((name) => this.#fetch(name, fetches[name]));
    const bytes = inputs.reduce((sum, x) => sum + bytesOf(x), 0);
    const isShort = !native && bytes === this.#shortBytes;
    const stop = () => native?.terminate();
    signal?.addEventListener('abort', stop, { once: true });
    try {
      const results = await this.#native.run(
        fed,
        inputs,
        fetched.map((name) => this.#outputIndex(name)),
        outputs,
        native,
        isShort,
      );
      // Whoever runs again and again leaves room for other things nevertheless.
      if (isShort) await new Promise((resolve) => setImmediate(resolve));
      this.#shortBytes =
        this.device === 'cpu' && results.milliseconds < SHORT_MS ? bytes : undefined;
      return Object.fromEntries(
        results.map((result, i) => [fetched[i], finish(result, fetches[fetched[i]])]),
      ) as Record<string, Tensor>;
    } catch (thrown) {
      signal?.throwIfAborted();
      throw toFlaError(thrown);
    } finally {
      signal?.removeEventListener('abort', stop);
    }
  }

  #input(index: number, tensor: AnyTensor): NativeValue | TensorView {
    checkTensor('input', tensor, this.inputs[index]);
    return viewOf(tensor, this.deviceId);
  }

  #outputIndex(name: string): number {
    const index = this.outputNames.indexOf(name);
    if (index >= 0) return index;
    const known = this.outputNames.join(' ');
    throw new FlaError(
      'invalid_argument',
      `Session: output must be one of ${known}, received '${name}'`,
    );
  }

  #fetch(name: string, fetch: AnyTensor | 'native' | null): Fetch {
    if (fetch === null) return this.#staysOnGpu(name) || undefined;
    if (fetch === 'native') return true;
    checkTensor('output', fetch, this.outputs[this.#outputIndex(name)]);
    if (fetch.type === 'string') return undefined;
    return viewOf(fetch, this.deviceId);
  }

  /** Does nothing: profiling starts with the session when `enableProfiling` is set. */
  startProfiling(): void {}

  /** Writes the profile and returns its path. */
  endProfiling(): string {
    this.#assertLive();
    return this.#native.endProfiling();
  }

  /** Waits for the runs in flight, then releases the session. Later runs are rejected. */
  dispose(): Promise<void> {
    this.#disposed ??= Promise.allSettled(this.#running).then(() => this.#native.dispose());
    return this.#disposed;
  }

  #assertLive(): void {
    if (this.#disposed) throw new FlaError('disposed', 'Session: used after release()');
  }
}

function nativeRunOptions(
  { extra, ...options }: InferenceSession.RunOptions,
  signal: AbortSignal | undefined,
): NativeRunOptions | undefined {
  if (!signal && !extra && Object.keys(options).length === 0) return undefined;
  return new (load().addon.RunOptions)({ ...options, config: extra && flattenExtra(extra) });
}

/** The result of one output, given what was asked for. */
function finish(
  result: ArrayOutput | NativeValue | undefined,
  fetch: AnyTensor | 'native' | null,
): AnyTensor {
  if (result === undefined) return fetch as AnyTensor;
  if (!isArrayOutput(result)) return new NativeTensor(result);
  const tensor = tensorOf(result);
  if (fetch === null || fetch === 'native') return tensor;
  return fillStrings(fetch as Tensor, tensor as Tensor);
}

/** String tensors have no memory that ONNX Runtime could write to. */
function fillStrings(target: Tensor, source: Tensor): Tensor {
  if (target.size !== source.size) {
    throw new FlaError(
      'invalid_shape',
      `Session: output must be ${show(source.dims)}, received ${show(target.dims)}`,
    );
  }
  const data = target.data as string[];
  for (const [i, text] of (source.data as string[]).entries()) data[i] = text;
  return target;
}

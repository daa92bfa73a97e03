import type { InferenceSession, InferenceSessionHandler, Tensor } from 'onnxruntime-web';
import { FlaError } from '../../ops/error.js';
import { type DType, dtypeName } from '../common/dtypes.js';
import { toFlaError } from '../common/errors.js';
import { checkTensor, type ValueInfo } from '../common/values.js';
import { defaultGpu, Gpu } from './device.js';
import { bytesOf, DeviceTensor } from './device_tensor.js';
import type { Engine, RunOptions as EngineRunOptions, Wanted } from './engine.js';
import { GpuEngine } from './gpu_engine.js';
import { ModelSource } from './load.js';
import type { OnnxModel, ValueType } from './onnx/model.js';
import { checkProvider, flaProvider, outputsOnGpu, type SessionOptions } from './options.js';
import { exclusive } from './ort.js';
import { WasmEngine } from './wasm_engine.js';

export type AnyTensor = Tensor | DeviceTensor;

export interface RunOptions extends InferenceSession.RunOptions {
  /** Stops the run before its next step; the promise is rejected with the signal's reason. */
  signal?: AbortSignal;
}

/** TensorProto.DataType of float16. */
const FLOAT16 = 10;

function valueInfo({ name, type, shape }: ValueType): ValueInfo {
  if (type === 0) return { name, isTensor: false };
  return { name, isTensor: true, type: dtypeName(type), shape: shape ?? [] };
}

let told = false;

/** Says once that there is no GPU to use. */
function tellOnce(why: string): void {
  if (told) return;
  told = true;
  console.info(
    `onnx-fla: WebGPU is not used, as ${why}. Models run on wasm, com.fla operators by their function bodies.`,
  );
}

/** The GPU to run on; undefined when there is none, which is told, or none is to be used. */
async function chooseGpu(model: OnnxModel, options: SessionOptions): Promise<Gpu | undefined> {
  const { device } = flaProvider(options);
  if (device === 'wasm') return undefined;
  const gpu = device instanceof Object ? Gpu.of(device as GPUDevice) : await defaultGpu();
  if (typeof gpu === 'string') {
    tellOnce(gpu);
    return undefined;
  }
  gpu.assertSound();
  const halves = [...model.inputs, ...model.outputs].some(({ type }) => type === FLOAT16);
  if (!halves || gpu.device.features.has('shader-f16')) return gpu;
  tellOnce('the model computes in float16 and the GPU does not (shader-f16)');
  return undefined;
}

/** A session of the `fla` backend; what `ort.InferenceSession` calls its handler. */
export class FlaSession implements InferenceSessionHandler {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputMetadata: InferenceSessionHandler['inputMetadata'];
  readonly outputMetadata: InferenceSessionHandler['outputMetadata'];
  readonly inputs: readonly ValueInfo[];
  readonly outputs: readonly ValueInfo[];
  /** The model's metadata_props. */
  readonly modelMetadata: Readonly<Record<string, string>>;
  /** Where it computes. */
  readonly device: 'webgpu' | 'wasm';
  /** The GPU that it computes on, for work of your own on the same tensors. */
  readonly gpuDevice: GPUDevice | undefined;
  /** How many calls of com.fla operators our kernels compute; the others run by their function bodies. */
  readonly kernelCalls: number;
  /** A kernel on a GPU may not write what it reads. */
  readonly sharesState = false;
  readonly #engine: Engine;
  readonly #staysOnGpu: (output: string) => boolean;
  readonly #running = new Set<Promise<unknown>>();
  #disposed: Promise<void> | undefined;

  private constructor(model: OnnxModel, engine: Engine, options: SessionOptions) {
    this.#engine = engine;
    this.device = engine instanceof GpuEngine ? 'webgpu' : 'wasm';
    this.gpuDevice = engine instanceof GpuEngine ? engine.gpu.device : undefined;
    this.kernelCalls = engine instanceof GpuEngine ? engine.kernelCount : 0;
    const staysOnGpu = outputsOnGpu(options);
    this.#staysOnGpu = (name) => this.device === 'webgpu' && staysOnGpu(name);
    this.inputs = model.inputs.map(valueInfo);
    this.outputs = model.outputs.map(valueInfo);
    this.inputNames = this.inputs.map((input) => input.name);
    this.outputNames = this.outputs.map((output) => output.name);
    this.inputMetadata = this.inputs as InferenceSessionHandler['inputMetadata'];
    this.outputMetadata = this.outputs as InferenceSessionHandler['outputMetadata'];
    this.modelMetadata = model.metadata;
  }

  /**
   * Loads a model from a URL or from its bytes. External data is taken from the option `externalData`, or from beside the model's
   * URL.
   *
   * @throws FlaError as a rejection, as do all failures
   */
  static async create(
    model: string | Uint8Array | ArrayBuffer,
    options: SessionOptions = {},
  ): Promise<FlaSession> {
    checkProvider(flaProvider(options));
    outputsOnGpu(options);
    const source = new ModelSource(model, options.externalData);
    const file = await source.read();
    try {
      return await exclusive(async () => {
        const gpu = await chooseGpu(file.model, options);
        const engine = gpu
          ? await GpuEngine.create(gpu, file, source, options)
          : await WasmEngine.create(file, options);
        return new FlaSession(file.model, engine, options);
      });
    } catch (thrown) {
      throw toFlaError(thrown);
    }
  }

  /** Zeros where the session computes. To be disposed when no longer used. */
  zeros(type: DType, dims: readonly number[]): DeviceTensor {
    this.#assertLive();
    return this.#engine.zeros(type, dims);
  }

  /**
   * Runs the model.
   *
   * @param feeds Tensors by input name, in the host's memory or on the session's device.
   * @param fetches Wanted outputs: `null` for a new tensor (in the host's memory, unless `preferredOutputLocation` says
   *   otherwise), `'native'` for a new DeviceTensor, or a tensor to write into.
   * @throws FlaError as a rejection, as do all failures.
   */
  async run(
    feeds: Readonly<Record<string, AnyTensor>>,
    fetches: Readonly<Record<string, AnyTensor | 'native' | null>>,
    options: RunOptions = {},
  ): Promise<Record<string, Tensor>> {
    this.#assertLive();
    options.signal?.throwIfAborted();
    const running = this.#run(feeds, fetches, options);
    this.#running.add(running);
    try {
      return await running;
    } finally {
      this.#running.delete(running);
    }
  }

  async #run(
    feeds: Readonly<Record<string, AnyTensor>>,
    fetches: Readonly<Record<string, AnyTensor | 'native' | null>>,
    options: EngineRunOptions,
  ): Promise<Record<string, Tensor>> {
    const given = new Map<string, Tensor>();
    for (const info of this.inputs) {
      const feed = feeds[info.name];
      if (feed) given.set(info.name, this.#tensor('input', feed, info));
    }
    const wanted = new Map<string, Wanted>();
    for (const [name, fetch] of Object.entries(fetches)) {
      const info = this.#output(name);
      if (fetch === 'native') wanted.set(name, 'device');
      else if (fetch === null) wanted.set(name, this.#staysOnGpu(name) ? 'device' : 'host');
      else wanted.set(name, this.#tensor('output', fetch, info));
    }
    const results = await this.#engine.run(given, wanted, options);
    return Object.fromEntries(
      [...results].map(([name, tensor]) => {
        const fetch = fetches[name];
        if (fetch instanceof DeviceTensor) return [name, fetch];
        return [name, fetch === 'native' ? this.#engine.keep(tensor) : tensor];
      }),
    ) as Record<string, Tensor>;
  }

  /** A tensor of the caller as one of onnxruntime-web that this session can use. */
  #tensor(kind: 'input' | 'output', tensor: AnyTensor, info: ValueInfo): Tensor {
    checkTensor(kind, tensor as Tensor, info);
    if (tensor instanceof DeviceTensor) {
      const { gpuDevice } = tensor;
      if (gpuDevice && gpuDevice !== this.gpuDevice) throw elsewhere(kind, info.name);
      return tensor.tensor;
    }
    if (tensor.location === 'none') {
      throw new FlaError('disposed', `Session: ${kind} '${info.name}' was used after dispose()`);
    }
    if (tensor.location === 'gpu-buffer' && !this.gpuDevice) throw elsewhere(kind, info.name);
    assertBuffer(kind, tensor, info.name);
    return tensor;
  }

  #output(name: string): ValueInfo {
    const info = this.outputs.find((output) => output.name === name);
    if (info) return info;
    throw new FlaError(
      'invalid_argument',
      `Session: output must be one of ${this.outputNames.join(' ')}, received '${name}'`,
    );
  }

  startProfiling(): void {
    this.#assertLive();
    this.#engine.startProfiling();
  }

  endProfiling(): void {
    this.#assertLive();
    this.#engine.endProfiling();
  }

  /** Waits for the runs in flight, then releases the session. Later runs are rejected. */
  dispose(): Promise<void> {
    this.#disposed ??= Promise.allSettled(this.#running).then(() =>
      exclusive(() => this.#engine.dispose()),
    );
    return this.#disposed;
  }

  #assertLive(): void {
    if (this.#disposed) throw new FlaError('disposed', 'Session: used after release()');
  }
}

function elsewhere(kind: string, name: string): FlaError {
  return new FlaError(
    'unsupported',
    `Session: ${kind} '${name}' must be in the host's memory or on the session's GPU device, received a tensor on another device`,
  );
}

/** ONNX Runtime does not notice when a tensor's buffer is too small for it. */
function assertBuffer(kind: 'input' | 'output', tensor: Tensor, name: string): void {
  if (tensor.location !== 'gpu-buffer') return;
  const { size } = tensor.gpuBuffer as GPUBuffer;
  const bytes = bytesOf(tensor.type, tensor.dims);
  if (size >= bytes) return;
  throw new FlaError(
    'invalid_argument',
    `Session: ${kind} '${name}' must have a buffer of at least ${bytes} bytes, received one of ${size}`,
  );
}

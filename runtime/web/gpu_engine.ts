import type { InferenceSession, Tensor } from 'onnxruntime-web';
import { FlaError } from '../../ops/error.js';
import type { GpuTensor, KernelCall } from '../../wgsl/kernels.js';
import { type DType, dtypeName } from '../common/dtypes.js';
import { toFlaError } from '../common/errors.js';
import { showShape } from '../common/values.js';
import type { Gpu } from './device.js';
import { bytesOf, DeviceTensor, sizeOf, viewOf } from './device_tensor.js';
import type { Engine, RunOptions, Wanted } from './engine.js';
import { fileRange, type LoadedFile, type ModelSource } from './load.js';
import { MODEL_FILE } from './onnx/write.js';
import { flaProvider, partOptions, type SessionOptions, webgpuProvider } from './options.js';
import { exclusive, ort } from './ort.js';
import { type Call, compile, FLOATS, type Part, type Program, unsupported } from './program.js';
import { type Schedule, type ScheduledStep, schedule } from './schedule.js';
import { dispose, hostTensor, lastingTensor, pooledTensor, Values } from './values.js';
import { copyInto, hostZeros } from './wasm_engine.js';

/** Runs that may be under way on the GPU before the next one waits: without a limit, what they hold would pile up. */
const RUNS_AHEAD = 2;

/** What a run of the steps leaves: tensors for the caller, and ranges of buffers that are still on their way. */
interface Outcome {
  readonly results: Map<string, Tensor>;
  readonly downloads: Promise<void> | undefined;
}

/** What the kernels say to a call with inputs of certain sizes. */
interface Looked {
  readonly key: string;
  readonly refused: string | undefined;
  readonly shapes: Readonly<Record<string, readonly number[]>>;
}

/**
 * A model cut at its com.fla nodes: the pieces between them are sessions of ONNX Runtime's WebGPU provider, the nodes run by our
 * kernels, all on one device, with the values in between left on it.
 */
export class GpuEngine implements Engine {
  readonly #schedules = new Map<string, Schedule>();
  readonly #sessions = new Map<Part, InferenceSession>();
  readonly #constants = new Map<string, Tensor>();
  readonly #looked = new Map<Call, Looked>();
  /** Runs whose end on the GPU nobody has waited for, oldest first. */
  readonly #ahead: Promise<unknown>[] = [];

  private constructor(
    readonly gpu: Gpu,
    readonly program: Program,
    readonly source: ModelSource,
    readonly options: SessionOptions,
  ) {}

  /** To be called inside `exclusive`. */
  static async create(
    gpu: Gpu,
    file: LoadedFile,
    source: ModelSource,
    options: SessionOptions,
  ): Promise<GpuEngine> {
    const useKernels = flaProvider(options).kernels !== false;
    const supports = useKernels ? (call: KernelCall) => gpu.kernels.supports(call) : undefined;
    const webgpu = webgpuProvider(flaProvider(options), gpu.device);
    const program = await gpu.guard(compile(file.model, supports, [['wasm'], [webgpu]]));
    const engine = new GpuEngine(gpu, program, source, options);
    try {
      await engine.#load(file);
      return engine;
    } catch (thrown) {
      await engine.dispose();
      throw toFlaError(thrown);
    }
  }

  /** Calls that our kernels compute. */
  get kernelCount(): number {
    return this.program.steps.reduce(
      (sum, step) => sum + (step.kind === 'calls' ? step.calls.length : 0),
      0,
    );
  }

  async #load(file: LoadedFile): Promise<void> {
    for (const step of this.program.steps)
      if (step.kind === 'piece') await this.#session(step.part, file);
    const { constants, uploads } = this.program;
    for (const name of uploads) this.#constants.set(name, this.#upload(name, file));
    if (!constants) return;
    const session = await this.#session(constants, file);
    const results = await this.gpu.guard(session.run({}));
    // What a session puts out may lie in its own memory, which goes with it.
    for (const [name, tensor] of Object.entries(results)) {
      this.#constants.set(name, this.#copyOf(tensor));
      dispose(tensor);
    }
    await this.#forget(constants);
  }

  #upload(name: string, { model, files }: LoadedFile): Tensor {
    const { type, dims, data, external } = model.initializers.get(name)!;
    const dtype = dtypeName(type) as Tensor.GpuBufferDataTypes;
    const bytes = bytesOf(dtype, dims);
    const held = data ?? fileRange(files, external!.location, external!.offset, bytes);
    if (held.length !== bytes) {
      throw new FlaError(
        'invalid_model',
        `tensor '${name}': ${dtype}[${dims}] needs ${bytes} bytes, received ${held.length}`,
      );
    }
    const tensor = lastingTensor(this.gpu, dtype, dims);
    this.gpu.write(tensor.gpuBuffer as GPUBuffer, held);
    return tensor;
  }

  /** The session of a part; made when there is none. */
  async #session(part: Part, file?: LoadedFile): Promise<InferenceSession> {
    const known = this.#sessions.get(part);
    if (known) return known;
    const externalData: { path: string; data: Uint8Array }[] = [];
    if (part.hasData) {
      const { model, files } = file ?? (await this.source.read());
      for (const [path, data] of files) externalData.push({ path, data });
      externalData.push({ path: MODEL_FILE, data: model.bytes });
    }
    const location = (name: string) => (part.onHost.has(name) ? 'cpu' : 'gpu-buffer');
    const session = await this.gpu.guard(
      ort().InferenceSession.create(part.bytes, {
        ...partOptions(this.options),
        executionProviders: [webgpuProvider(flaProvider(this.options), this.gpu.device)],
        externalData,
        preferredOutputLocation: Object.fromEntries(
          part.outputs.map((name) => [name, location(name)]),
        ),
      }),
    );
    this.#sessions.set(part, session);
    return session;
  }

  /** Releases the session of a part. */
  async #forget(part: Part): Promise<void> {
    const session = this.#sessions.get(part);
    this.#sessions.delete(part);
    if (session) await release(session, this.gpu);
  }

  async run(
    feeds: ReadonlyMap<string, Tensor>,
    wanted: ReadonlyMap<string, Wanted>,
    options: RunOptions,
  ): Promise<Map<string, Tensor>> {
    const { results, downloads } = await exclusive(() => this.#compute(feeds, wanted, options));
    await downloads;
    return results;
  }

  /** Waits until the GPU is not too far behind. */
  async #keepPace(): Promise<void> {
    while (this.#ahead.length >= RUNS_AHEAD) await this.gpu.guard(this.#ahead.shift()!);
  }

  async #compute(
    feeds: ReadonlyMap<string, Tensor>,
    wanted: ReadonlyMap<string, Wanted>,
    { signal, ...options }: RunOptions,
  ): Promise<Outcome> {
    this.gpu.assertSound();
    await this.#keepPace();
    const values = new Values(this.gpu);
    const { steps, inputs } = this.#schedule(wanted);
    for (const [name, tensor] of this.#constants) values.lend(name, tensor);
    for (const name of inputs) {
      const tensor = feeds.get(name);
      if (!tensor)
        throw new FlaError(
          'missing_input',
          `Session: input '${name}' must be given, received none`,
        );
      values.lend(name, tensor);
    }
    const targets = directTargets(feeds, wanted);
    try {
      for (const step of steps) {
        signal?.throwIfAborted();
        await this.#runStep(step, values, targets, options);
        for (const name of step.done) if (!wanted.has(name)) values.drop(name);
      }
      return this.#finish(values, wanted);
    } catch (thrown) {
      signal?.throwIfAborted();
      throw toFlaError(thrown);
    } finally {
      values.clear();
      this.gpu.pool.tick();
    }
  }

  #runStep(
    step: ScheduledStep,
    values: Values,
    targets: ReadonlyMap<string, Tensor>,
    options: InferenceSession.RunOptions,
  ): Promise<void> {
    const { outputs } = step;
    return step.kind === 'piece'
      ? this.#runPart(step.part, outputs, values, targets, options)
      : this.#runCalls(step.calls, outputs, values, targets, options);
  }

  #schedule(wanted: ReadonlyMap<string, Wanted>): Schedule {
    const key = [...wanted.keys()].join('\n');
    let found = this.#schedules.get(key);
    if (!found) this.#schedules.set(key, (found = schedule(this.program, wanted.keys())));
    return found;
  }

  /** Runs a part, and keeps those of its outputs that are needed. */
  async #runPart(
    part: Part,
    outputs: ReadonlySet<string>,
    values: Values,
    targets: ReadonlyMap<string, Tensor>,
    options: InferenceSession.RunOptions,
  ): Promise<void> {
    const feeds: Record<string, Tensor> = {};
    for (const name of part.inputs) feeds[name] = values.get(name)!;
    const fetches: Record<string, Tensor | null> = {};
    for (const name of part.outputs) {
      if (outputs.has(name)) fetches[name] = (!part.onHost.has(name) && targets.get(name)) || null;
    }
    const session = await this.#session(part);
    let results: Readonly<Record<string, Tensor>>;
    try {
      results = await this.gpu.guard(session.run(feeds, fetches, options));
    } catch (thrown) {
      // After a failure onnxruntime-web goes on with the inputs of the run that failed: a new session is made for the next one.
      await this.#forget(part);
      throw thrown;
    }
    for (const name of Object.keys(fetches)) {
      if (fetches[name]) values.lend(name, results[name]);
      else values.add(name, results[name]);
    }
  }

  async #runCalls(
    calls: readonly Call[],
    outputs: ReadonlySet<string>,
    values: Values,
    targets: ReadonlyMap<string, Tensor>,
    options: InferenceSession.RunOptions,
  ): Promise<void> {
    const { kernels, device } = this.gpu;
    const ours: KernelCall[] = [];
    const others: Part[] = [];
    for (const outline of calls) {
      const { name, body, ...call } = outline;
      const { op, attributes } = call;
      const inputs = Object.fromEntries(
        Object.entries(call.inputs).map(([argument, value]) => [
          argument,
          gpuTensor(value, values),
        ]),
      );
      const { refused, shapes } = this.#look({ op, attributes, inputs, outputs: {} }, outline);
      if (refused !== undefined) {
        if (!body) throw unsupported(name, op, refused);
        others.push(body);
        continue;
      }
      const made = this.#outputs(call, shapes, outputs, values, targets);
      ours.push({ op, attributes, inputs, outputs: made });
    }
    if (ours.length > 0) {
      this.gpu.checked('validation', () => {
        const encoder = device.createCommandEncoder();
        for (const call of ours) kernels.encode(encoder, call);
        device.queue.submit([encoder.finish()]);
      });
    }
    for (const body of others) await this.#runPart(body, outputs, values, targets, options);
  }

  /** Whether the kernels take the call, and the shapes of its outputs; looked up again only when sizes change. */
  #look(call: KernelCall, outline: Call): Looked {
    const key = Object.values(call.inputs)
      .map((tensor) => tensor?.shape)
      .join(';');
    const known = this.#looked.get(outline);
    if (known?.key === key) return known;
    const { kernels } = this.gpu;
    const refused = kernels.supports(call);
    const shapes = refused === undefined ? kernels.outputShapes(call) : {};
    const looked = { key, refused, shapes };
    this.#looked.set(outline, looked);
    return looked;
  }

  /** Tensors for the outputs of a call that something needs. */
  #outputs(
    { outputs, types }: Pick<Call, 'outputs' | 'types'>,
    shapes: Readonly<Record<string, readonly number[]>>,
    needed: ReadonlySet<string>,
    values: Values,
    targets: ReadonlyMap<string, Tensor>,
  ): Record<string, GpuTensor> {
    const made: Record<string, GpuTensor> = {};
    for (const [argument, value] of Object.entries(outputs)) {
      if (!needed.has(value)) continue;
      const dims = shapes[argument];
      const target = targets.get(value);
      if (target) {
        assertDims(value, target.dims, dims);
        values.lend(value, target);
      } else {
        const type = types.get(value) as Tensor.GpuBufferDataTypes;
        // ONNX Runtime takes tensors without elements from the host only.
        if (sizeOf(dims) === 0) values.add(value, hostZeros(type, dims));
        else values.add(value, pooledTensor(this.gpu, type, dims));
      }
      made[argument] = gpuTensor(value, values);
    }
    return made;
  }

  /** Hands out what is wanted; what goes to the host is copied on the way there. */
  #finish(values: Values, wanted: ReadonlyMap<string, Wanted>): Outcome {
    const results = new Map<string, Tensor>();
    const fetched: { name: string; tensor: Tensor; target?: Tensor }[] = [];
    for (const [name, want] of wanted) {
      const tensor = values.get(name)!;
      const toHost = want === 'host' || (want !== 'device' && want.location !== 'gpu-buffer');
      if (tensor === want) results.set(name, tensor);
      else if (tensor.location === 'gpu-buffer' && toHost)
        fetched.push({ name, tensor, target: want === 'host' ? undefined : (want as Tensor) });
      else if (typeof want !== 'string') results.set(name, this.#copy(want, tensor));
      else results.set(name, values.owns(name) ? values.release(name) : this.#copyOf(tensor));
    }
    if (fetched.length === 0) {
      this.#ahead.push(this.gpu.device.queue.onSubmittedWorkDone().catch(() => {}));
      return { results, downloads: undefined };
    }
    this.#ahead.length = 0;
    // The copies are submitted here, before the tensors are given back.
    const arriving = this.gpu.read(
      fetched.map(({ tensor: { type, dims, gpuBuffer } }) => ({
        buffer: gpuBuffer as GPUBuffer,
        offset: 0,
        bytes: bytesOf(type, dims),
      })),
    );
    const downloads = arriving.then((data) => {
      for (const [i, { name, tensor, target }] of fetched.entries()) {
        const result = hostTensor(tensor.type, data[i], tensor.dims);
        results.set(name, target ? copyInto(target, result) : result);
      }
    });
    return { results, downloads };
  }

  /** Writes a tensor into one of the caller. */
  #copy(target: Tensor, source: Tensor): Tensor {
    if (target.type !== source.type || String(target.dims) !== String(source.dims)) {
      throw new FlaError(
        'invalid_shape',
        `Session: a preallocated output must be ${source.type} ${showShape(source.dims)}, received ${target.type} ${showShape(target.dims)}`,
      );
    }
    if (target.location !== 'gpu-buffer') return copyInto(target, source);
    const buffer = target.gpuBuffer as GPUBuffer;
    if (source.location !== 'gpu-buffer') {
      this.gpu.write(buffer, viewOf(source));
      return target;
    }
    const bytes = Math.ceil(bytesOf(source.type, source.dims) / 4) * 4;
    const encoder = this.gpu.device.createCommandEncoder();
    encoder.copyBufferToBuffer(source.gpuBuffer as GPUBuffer, 0, buffer, 0, bytes);
    this.gpu.device.queue.submit([encoder.finish()]);
    return target;
  }

  /** A tensor of the caller's own, of a value that is an input or a constant. */
  #copyOf(tensor: Tensor): Tensor {
    const { type, dims } = tensor;
    if (tensor.location === 'gpu-buffer')
      return this.#copy(pooledTensor(this.gpu, type as Tensor.GpuBufferDataTypes, dims), tensor);
    if (type === 'string') return new (ort().Tensor)('string', [...(tensor.data as never)], dims);
    return hostTensor(type, viewOf(tensor).slice().buffer as ArrayBuffer, dims);
  }

  keep(tensor: Tensor): DeviceTensor {
    return new DeviceTensor(tensor, this.gpu);
  }

  zeros(type: DType, dims: readonly number[]): DeviceTensor {
    this.gpu.assertSound();
    if (!FLOATS.has(type) || sizeOf(dims) === 0) return this.keep(hostZeros(type, dims));
    return this.keep(lastingTensor(this.gpu, type as Tensor.GpuBufferDataTypes, dims));
  }

  startProfiling(): void {
    for (const session of this.#sessions.values()) session.startProfiling();
  }

  endProfiling(): void {
    for (const session of this.#sessions.values()) session.endProfiling();
  }

  async dispose(): Promise<void> {
    for (const tensor of this.#constants.values()) dispose(tensor);
    this.#constants.clear();
    for (const part of [...this.#sessions.keys()]) await this.#forget(part);
  }
}

/** On a lost device, ONNX Runtime may fail to let go. */
async function release(session: InferenceSession, gpu: Gpu): Promise<void> {
  try {
    await gpu.guard(session.release());
  } catch (thrown) {
    if (!gpu.isLost) throw toFlaError(thrown);
  }
}

function assertDims(name: string, received: readonly number[], expected: readonly number[]): void {
  if (String(received) === String(expected)) return;
  throw new FlaError(
    'invalid_shape',
    `Session: output '${name}' must be ${showShape(expected)}, received ${showShape(received)}`,
  );
}

function gpuTensor(value: string, values: Values): GpuTensor {
  const { type, dims } = values.get(value)!;
  return { buffer: values.buffer(value), dtype: type as GpuTensor['dtype'], shape: dims };
}

/** Tensors of the caller that steps may write into: on the GPU, and not read in the same run. */
function directTargets(
  feeds: ReadonlyMap<string, Tensor>,
  wanted: ReadonlyMap<string, Wanted>,
): Map<string, Tensor> {
  const fed = new Set<unknown>();
  for (const tensor of feeds.values())
    if (tensor.location === 'gpu-buffer') fed.add(tensor.gpuBuffer);
  const targets = new Map<string, Tensor>();
  for (const [name, want] of wanted) {
    if (typeof want === 'string' || want.location !== 'gpu-buffer') continue;
    if (!fed.has(want.gpuBuffer)) targets.set(name, want);
  }
  return targets;
}

/** A language model that is fed tokens, with memory of its own or without. */
import type { Tensor } from 'onnxruntime-web';
import type {
  DeviceTensor,
  FlaSession,
  GpuMemory,
  StatefulSession,
} from '../../../../runtime/web/exports.js';
import type { Opened } from './files.js';
import { runtime } from './runtime.js';

/** Tokens in one run to begin with; then as many as take about a second. */
const FIRST_CHUNK = 64;
const LONGEST_CHUNK = 1024;
const [SHORT_MS, LONG_MS] = [400, 1500];

export interface Reader {
  /** Tokens read. */
  readonly position: number;
  readonly stateBytes: number;
  /** Counts the GPU's memory; undefined without a GPU. */
  readonly memory: GpuMemory | undefined;
  /** Reads tokens in one run; the logits of the last one, when they are wanted. */
  read(ids: readonly number[], wanted: boolean): Promise<Float32Array>;
  reset(): Promise<void>;
  dispose(): Promise<void>;
}

class StatefulReader implements Reader {
  constructor(
    readonly session: StatefulSession,
    readonly memory: GpuMemory | undefined,
    readonly device: GPUDevice | undefined,
  ) {}

  get position(): number {
    return this.session.position;
  }
  get stateBytes(): number {
    return this.session.stateBytes;
  }

  async read(ids: readonly number[], wanted: boolean): Promise<Float32Array> {
    const outputs = await this.session.step(ids, { outputs: wanted ? 'last' : 'none' });
    if (wanted) return logitsOf(outputs) as Float32Array;
    // Without outputs a run is over for the caller before it is for the GPU, whose pace is what counts here.
    await this.device?.queue.onSubmittedWorkDone();
    return new Float32Array();
  }

  reset(): Promise<void> {
    return this.session.reset();
  }
  async dispose(): Promise<void> {
    await this.session.dispose();
    this.device?.destroy();
  }
}

function logitsOf(outputs: Readonly<Record<string, Tensor>>): Tensor.DataType {
  return (outputs.logits ?? Object.values(outputs)[0]).data;
}

/** Reads everything again with every token. */
class ForgetfulReader implements Reader {
  #ids: number[] = [];

  constructor(
    readonly session: FlaSession,
    readonly memory: GpuMemory | undefined,
    readonly device: GPUDevice | undefined,
  ) {}

  get position(): number {
    return this.#ids.length;
  }
  get stateBytes(): number {
    return this.#ids.length * 8;
  }

  async read(ids: readonly number[], wanted: boolean): Promise<Float32Array> {
    this.#ids.push(...ids);
    if (!wanted) return new Float32Array();
    const { ort } = await runtime();
    const dims = [1, this.#ids.length];
    const feeds: Record<string, Tensor> = {};
    for (const { name, type } of this.session.inputs) {
      const at = (i: number) =>
        BigInt(/mask/.test(name) ? 1 : /position/.test(name) ? i : this.#ids[i]);
      const data = BigInt64Array.from(this.#ids, (_, i) => at(i));
      feeds[name] =
        type === 'int32'
          ? new ort.Tensor('int32', Int32Array.from(data, Number), dims)
          : new ort.Tensor('int64', data, dims);
    }
    const name =
      this.session.outputNames.find((output) => /logits/i.test(output)) ??
      this.session.outputNames[0];
    const results = await this.session.run(feeds, { [name]: 'native' });
    const logits = results[name] as unknown as DeviceTensor;
    const row = logits.byteLength / this.#ids.length;
    const bytes = await logits.read(logits.byteLength - row, row);
    logits.dispose();
    return new Float32Array(bytes);
  }

  async reset(): Promise<void> {
    this.#ids = [];
  }
  async dispose(): Promise<void> {
    await this.session.dispose();
    this.device?.destroy();
  }
}

/** A session on a GPU device of its own, so that its memory can be told from the other's. */
export async function openSession(model: Opened) {
  const { fla } = await runtime();
  const device = await fla.requestDevice();
  const memory = device && fla.watchMemory(device);
  const options = {
    executionProviders: [{ name: 'fla', device: device ?? 'wasm' } as const],
    externalData: [...model.external].map(([path, data]) => ({ path, data })),
  };
  return { fla, device, memory, options };
}

export async function openReader(model: Opened, remembers: boolean): Promise<Reader> {
  const { fla, device, memory, options } = await openSession(model);
  return remembers
    ? new StatefulReader(await fla.StatefulSession.create(model.bytes, options), memory, device)
    : new ForgetfulReader(await fla.FlaSession.create(model.bytes, options), memory, device);
}

/** A run of a prefill. */
export interface Run {
  /** Tokens read so far. */
  readonly done: number;
  readonly ms: number;
  /** Of the last token, after the last run; else empty. */
  readonly logits: Float32Array;
}

/** Reads many tokens in runs that are neither so long that the GPU's watchdog bites nor so short that it idles. */
export class Prefill {
  #chunk = FIRST_CHUNK;

  constructor(readonly reader: Reader) {}

  async *read(ids: readonly number[]): AsyncGenerator<Run, void> {
    for (let done = 0; done < ids.length; ) {
      const piece = ids.slice(done, done + this.#chunk);
      done += piece.length;
      const start = performance.now();
      const logits = await this.reader.read(piece, done === ids.length);
      const ms = performance.now() - start;
      if (ms < SHORT_MS && piece.length === this.#chunk)
        this.#chunk = Math.min(this.#chunk * 2, LONGEST_CHUNK);
      else if (ms > LONG_MS) this.#chunk = Math.max(this.#chunk / 2, FIRST_CHUNK);
      yield { done, ms, logits };
    }
  }
}

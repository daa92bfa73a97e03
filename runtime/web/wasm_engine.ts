import type { InferenceSession, Tensor } from 'onnxruntime-web';
import { type DType, isNumeric, zeros } from '../common/dtypes.js';
import { toFlaError } from '../common/errors.js';
import { DeviceTensor, viewOf } from './device_tensor.js';
import type { Engine, RunOptions, Wanted } from './engine.js';
import type { LoadedFile } from './load.js';
import { partOptions, type SessionOptions } from './options.js';
import { exclusive, ort } from './ort.js';
import { hostTensor } from './values.js';

/** The whole model in one session on wasm: operators of com.fla run by their function bodies. */
export class WasmEngine implements Engine {
  private constructor(readonly session: InferenceSession) {}

  /** To be called inside `exclusive`. */
  static async create({ model, files }: LoadedFile, options: SessionOptions): Promise<WasmEngine> {
    const session = await ort().InferenceSession.create(model.bytes, {
      ...partOptions(options),
      executionProviders: ['wasm'],
      externalData: [...files].map(([path, data]) => ({ path, data })),
    });
    return new WasmEngine(session);
  }

  async run(
    feeds: ReadonlyMap<string, Tensor>,
    wanted: ReadonlyMap<string, Wanted>,
    { signal, ...options }: RunOptions,
  ): Promise<Map<string, Tensor>> {
    const results = await exclusive(async () => {
      signal?.throwIfAborted();
      try {
        return await this.session.run(Object.fromEntries(feeds), [...wanted.keys()], options);
      } catch (thrown) {
        throw toFlaError(thrown);
      }
    });
    return new Map(
      [...wanted].map(([name, want]) => [
        name,
        typeof want === 'string' ? results[name] : copyInto(want, results[name]),
      ]),
    );
  }

  keep(tensor: Tensor): DeviceTensor {
    return new DeviceTensor(tensor);
  }

  zeros(type: DType, dims: readonly number[]): DeviceTensor {
    return new DeviceTensor(hostZeros(type, dims));
  }

  startProfiling(): void {
    this.session.startProfiling();
  }

  endProfiling(): void {
    this.session.endProfiling();
  }

  dispose(): Promise<void> {
    return this.session.release();
  }
}

/** Zeros in the host's memory. */
export function hostZeros(type: DType, dims: readonly number[]): Tensor {
  if (!isNumeric(type)) return new (ort().Tensor)('string', [], dims);
  const size = dims.reduce((a, b) => a * b, 1);
  return hostTensor(type, zeros(type, size).buffer as ArrayBuffer, dims);
}

/** Both in the host's memory. onnxruntime-web does not write into tensors of the caller there. */
export function copyInto(target: Tensor, source: Tensor): Tensor {
  if (source.type === 'string') {
    const data = target.data as unknown as string[];
    for (const [i, text] of (source.data as unknown as string[]).entries()) data[i] = text;
  } else viewOf(target).set(viewOf(source));
  return target;
}

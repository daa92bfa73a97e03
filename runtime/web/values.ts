import type { Tensor } from 'onnxruntime-web';
import type { Gpu } from './device.js';
import { bytesOf, sizeOf, viewOf } from './device_tensor.js';
import { ort } from './ort.js';

function gpuTensor(
  gpu: Gpu,
  type: Tensor.GpuBufferDataTypes,
  dims: readonly number[],
  buffer: GPUBuffer,
  giveBack: () => void,
): Tensor {
  const { Tensor } = ort();
  const bytes = bytesOf(type, dims);
  return Tensor.fromGpuBuffer(buffer as never, {
    dataType: type,
    dims: [...dims],
    download: async () => {
      const [data] = await gpu.read([{ buffer, offset: 0, bytes }]);
      return hostTensor(type, data, dims).data as never;
    },
    dispose: giveBack,
  });
}

/** A tensor over a buffer of the pool, which goes back with `dispose()`. Holds whatever was there. */
export function pooledTensor(
  gpu: Gpu,
  type: Tensor.GpuBufferDataTypes,
  dims: readonly number[],
): Tensor {
  const buffer = gpu.pool.acquire(bytesOf(type, dims));
  return gpuTensor(gpu, type, dims, buffer, () => gpu.pool.release(buffer));
}

/** A tensor that is there for long, over a buffer of its own. Holds zeros. */
export function lastingTensor(
  gpu: Gpu,
  type: Tensor.GpuBufferDataTypes,
  dims: readonly number[],
): Tensor {
  const buffer = gpu.allocate(bytesOf(type, dims));
  return gpuTensor(gpu, type, dims, buffer, () => buffer.destroy());
}

/** A tensor over bytes in the host's memory. */
export function hostTensor(type: string, bytes: ArrayBuffer, dims: readonly number[]): Tensor {
  const { Tensor } = ort();
  // The constructor knows which array each type has.
  const sample = new Tensor(type as 'float32', [] as never, [0]).data as Float32Array;
  const array = sample.constructor as Float32ArrayConstructor;
  return new Tensor(type as 'float32', new array(bytes), [...dims]);
}

/** The values of one run. Those that the run made itself are given back when they are done with. */
export class Values {
  readonly #tensors = new Map<string, Tensor>();
  readonly #own = new Set<string>();
  readonly #uploads = new Map<string, GPUBuffer>();

  constructor(readonly gpu: Gpu) {}

  /** A value that belongs to somebody else. */
  lend(name: string, tensor: Tensor): void {
    this.#tensors.set(name, tensor);
  }

  /** A value that belongs to the run. */
  add(name: string, tensor: Tensor): void {
    this.#tensors.set(name, tensor);
    this.#own.add(name);
  }

  get(name: string): Tensor | undefined {
    return this.#tensors.get(name);
  }

  /** Whether the run may hand it to the caller as it is. */
  owns(name: string): boolean {
    return this.#own.has(name);
  }

  /** The value's bytes on the GPU; brought there, once a run, when they are in the host's memory. */
  buffer(name: string): GPUBuffer {
    const tensor = this.#tensors.get(name)!;
    if (tensor.location === 'gpu-buffer') return tensor.gpuBuffer as GPUBuffer;
    let buffer = this.#uploads.get(name);
    if (!buffer) {
      buffer = this.gpu.pool.acquire(bytesOf(tensor.type, tensor.dims));
      if (sizeOf(tensor.dims) > 0) this.gpu.write(buffer, viewOf(tensor));
      this.#uploads.set(name, buffer);
    }
    return buffer;
  }

  /** Ends the run's hold on a value without giving it back. */
  release(name: string): Tensor {
    this.#own.delete(name);
    return this.#tensors.get(name)!;
  }

  /** Gives a value back that nothing reads any more. */
  drop(name: string): void {
    const upload = this.#uploads.get(name);
    if (upload) this.gpu.pool.release(upload);
    this.#uploads.delete(name);
    if (this.#own.delete(name)) dispose(this.#tensors.get(name)!);
    this.#tensors.delete(name);
  }

  /** Gives back everything that is left. */
  clear(): void {
    for (const name of [...this.#tensors.keys()]) this.drop(name);
  }
}

/** On a lost device there is nothing to give back, and ONNX Runtime may say so. */
export function dispose(tensor: Tensor): void {
  try {
    tensor.dispose();
  } catch {}
}

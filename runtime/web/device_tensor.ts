import type { Tensor } from 'onnxruntime-web';
import { FlaError } from '../../ops/error.js';
import type { StateTensor } from '../common/state.js';
import type { Gpu } from './device.js';

/** Bits of an element of the types that tensors of onnxruntime-web may have. */
const BITS: Readonly<Record<string, number>> = {
  float32: 32,
  uint8: 8,
  int8: 8,
  uint16: 16,
  int16: 16,
  int32: 32,
  int64: 64,
  bool: 8,
  float16: 16,
  float64: 64,
  uint32: 32,
  uint64: 64,
  uint4: 4,
  int4: 4,
};

export function sizeOf(dims: readonly number[]): number {
  return dims.reduce((a, b) => a * b, 1);
}

/** Bytes of a tensor. @throws FlaError `unsupported` for strings */
export function bytesOf(type: string, dims: readonly number[]): number {
  const bits = BITS[type];
  if (bits !== undefined) return Math.ceil((sizeOf(dims) * bits) / 8);
  throw new FlaError('unsupported', `Session: a tensor must hold numbers here, received ${type}`);
}

/** The bytes of a tensor in the host's memory, not a copy. */
export function viewOf(tensor: Tensor): Uint8Array {
  const data = tensor.data as ArrayBufferView;
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/**
 * A tensor that stays where a session computes: a feed, a preallocated fetch, or what a fetch of `'native'` gives. Matrices are on the
 * GPU; whole numbers, which ONNX Runtime computes on the host, are in its memory.
 */
export class DeviceTensor implements StateTensor {
  readonly type: Tensor.Type;
  readonly dims: readonly number[];
  readonly byteLength: number;
  readonly #gpu: Gpu | undefined;
  #tensor: Tensor | undefined;

  /** @internal Use `FlaSession.zeros`. `gpu` has the buffer of a tensor on a GPU. */
  constructor(tensor: Tensor, gpu?: Gpu) {
    this.type = tensor.type;
    this.dims = tensor.dims;
    this.byteLength = bytesOf(tensor.type, tensor.dims);
    this.#gpu = gpu;
    this.#tensor = tensor;
  }

  get location(): 'cpu' | 'gpu-buffer' | 'none' {
    if (!this.#tensor) return 'none';
    return this.#tensor.location === 'gpu-buffer' ? 'gpu-buffer' : 'cpu';
  }

  /** The GPU that it is on; undefined when it is in the host's memory. */
  get gpuDevice(): GPUDevice | undefined {
    return this.location === 'gpu-buffer' ? this.#gpu?.device : undefined;
  }

  /** The same memory as a tensor of onnxruntime-web. @throws FlaError `disposed` */
  get tensor(): Tensor {
    if (this.#tensor) return this.#tensor;
    throw new FlaError('disposed', 'DeviceTensor: used after dispose()');
  }

  /** A copy of a range of bytes; the whole when no range is given. */
  async read(
    byteOffset = 0,
    byteLength: number = this.byteLength - byteOffset,
  ): Promise<ArrayBuffer> {
    const { tensor } = this;
    if (tensor.location === 'gpu-buffer') {
      const buffer = tensor.gpuBuffer as GPUBuffer;
      const [data] = await this.#gpu!.read([{ buffer, offset: byteOffset, bytes: byteLength }]);
      return data;
    }
    return viewOf(tensor).slice(byteOffset, byteOffset + byteLength).buffer as ArrayBuffer;
  }

  /** Overwrites all of it. @throws FlaError `invalid_shape` when the sizes differ */
  assign(data: ArrayBufferView): void {
    if (data.byteLength !== this.byteLength) {
      throw new FlaError(
        'invalid_shape',
        `DeviceTensor: data must have ${this.byteLength} bytes for ${this.type} [${this.dims}], received ${data.byteLength}`,
      );
    }
    const { tensor } = this;
    if (tensor.location === 'gpu-buffer') this.#gpu!.write(tensor.gpuBuffer as GPUBuffer, data);
    else viewOf(tensor).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }

  /** Gives the memory back. Calling it again does nothing. */
  dispose(): void {
    this.#tensor?.dispose();
    this.#tensor = undefined;
  }
}

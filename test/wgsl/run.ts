/** Runs one kernel call on a device with everything around its tensors poisoned. */
import type { DType } from '../../ops/define.js';
import { sizeOf, type Tensor64 } from '../../ops/tensor64.js';
import type { GpuTensor, KernelCall, Kernels } from '../../wgsl/kernels.js';
import { decode, encode } from '../cases/tensors.js';

export interface Typed {
  readonly tensor: Tensor64;
  readonly dtype: DType;
}

export interface RunOptions {
  /** past_state and present_state in one buffer. */
  readonly inPlace?: boolean;
  /** Bytes before every tensor in its buffer; default 0. */
  readonly offset?: number;
  /** Outputs to leave out. */
  readonly without?: readonly string[];
}

/** A quiet NaN as float32 and, both halves of it, as float16; as a byte of a bool it is true. */
const POISON = 0x7fe17fe1;
const SPARE = 64; // bytes behind every tensor
const USAGE = 0x80 | 0x04 | 0x08; // STORAGE | COPY_SRC | COPY_DST
const MAP_READ = 0x1;

const bytesOf = (dtype: DType, shape: readonly number[]) =>
  sizeOf(shape) * ({ float16: 2, bool: 1 }[dtype as string] ?? 4);

export class Runner {
  constructor(
    readonly device: GPUDevice,
    readonly kernels: Kernels,
  ) {}

  /** A tensor in a buffer of its own, poison around it and, without values, in it. */
  tensor(dtype: DType, shape: readonly number[], offset = 0, values?: Float64Array): GpuTensor {
    const bytes = bytesOf(dtype, shape);
    const size = offset + Math.ceil(bytes / 16) * 16 + SPARE;
    const content = new Uint8Array(new Uint32Array(size / 4).fill(POISON).buffer);
    if (values) content.set(encode(values, dtype), offset);
    const buffer = this.device.createBuffer({ size, usage: USAGE, mappedAtCreation: true });
    new Uint8Array(buffer.getMappedRange()).set(content);
    buffer.unmap();
    return { buffer, offset, dtype, shape };
  }

  /** The tensor's values; throws when the poison around them was touched. */
  async read({ buffer, offset = 0, dtype, shape }: GpuTensor): Promise<Tensor64> {
    const staging = this.device.createBuffer({ size: buffer.size, usage: MAP_READ | 0x08 });
    const encoder = this.device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, 0, staging, 0, buffer.size);
    this.device.queue.submit([encoder.finish()]);
    await staging.mapAsync(MAP_READ);
    const content = new Uint8Array(staging.getMappedRange().slice(0));
    staging.destroy();
    const end = offset + bytesOf(dtype, shape);
    const poison = new Uint8Array(new Uint32Array([POISON]).buffer);
    const touched = content.findIndex((x, i) => (i < offset || i >= end) && x !== poison[i % 4]);
    if (touched >= 0)
      throw new Error(`byte ${touched} was written, the tensor is ${offset}..${end}`);
    return { shape, data: decode(content.subarray(offset, end), dtype) };
  }

  /** Runs a call; returns every output. */
  async run(
    op: KernelCall['op'],
    attributes: KernelCall['attributes'],
    inputs: Readonly<Record<string, Typed | undefined>>,
    stateType: DType,
    { inPlace = false, offset = 0, without = [] }: RunOptions = {},
  ): Promise<Record<string, Tensor64>> {
    const given = Object.fromEntries(
      Object.entries(inputs).flatMap(([name, typed]) =>
        typed
          ? [[name, this.tensor(typed.dtype, typed.tensor.shape, offset, typed.tensor.data)]]
          : [],
      ),
    );
    const shapes = this.kernels.outputShapes({ op, attributes, inputs: given });
    const first = Object.values(given)[0];
    const outputs: Record<string, GpuTensor> = {};
    for (const [name, shape] of Object.entries(shapes)) {
      if (without.includes(name)) continue;
      const dtype = name === 'present_state' ? stateType : first.dtype;
      const shares = inPlace && name === 'present_state' && given.past_state;
      outputs[name] = shares ? given.past_state : this.tensor(dtype, shape, offset);
    }
    const encoder = this.device.createCommandEncoder();
    this.kernels.encode(encoder, { op, attributes, inputs: given, outputs });
    this.device.queue.submit([encoder.finish()]);
    const results: Record<string, Tensor64> = {};
    for (const [name, tensor] of Object.entries(outputs)) results[name] = await this.read(tensor);
    for (const { buffer } of [...Object.values(given), ...Object.values(outputs)]) buffer.destroy();
    return results;
  }
}

import { Tensor } from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import {
  arrayOver,
  type DType,
  dtypeCode,
  dtypeName,
  isNumeric,
  type NumericArray,
} from '../common/dtypes.js';
import { toFlaError } from '../common/errors.js';
import { load, type NativeValue } from './addon.js';

/** Where a tensor's bytes are; the names are those of `ort.Tensor`. */
export type Location = 'cpu' | 'gpu-buffer';

// `ort.InferenceSession.run` takes as a fetch only what is an instance of ort.Tensor, and ort.Tensor's constructor knows
// neither bfloat16 nor native memory: so its prototype without its constructor.
function Base() {}
Base.prototype = Tensor.prototype;
const TensorPrototype = Base as unknown as new () => object;

function guarded<T>(body: () => T): T {
  try {
    return body();
  } catch (thrown) {
    throw toFlaError(thrown);
  }
}

/**
 * A tensor in native memory, the host's or a GPU's: a feed, a preallocated fetch, or both at once (state updated in place) of a session on the
 * `fla` backend. Also the only form in which bfloat16 passes between JavaScript and a session.
 */
export class NativeTensor extends TensorPrototype {
  /** @internal */
  readonly value: NativeValue;
  readonly dims: readonly number[];
  readonly type: DType;
  readonly size: number;
  readonly byteLength: number;
  /** Number of the GPU that holds it, -1 when it is in the host's memory. */
  readonly deviceId: number;
  #location: Location | 'none';
  #data: NumericArray | undefined;

  /** @internal Use `NativeTensor.zeros` or `NativeTensor.from`. */
  constructor(value: NativeValue) {
    super();
    this.value = value;
    this.type = dtypeName(value.type);
    this.dims = value.dims;
    this.size = value.dims.reduce((a, b) => a * b, 1);
    this.byteLength = value.byteLength;
    this.deviceId = value.device;
    this.#location = value.device < 0 ? 'cpu' : 'gpu-buffer';
  }

  /** Allocates zeros in the host's memory; `FlaSession.zeros` does where the session computes. */
  static zeros(type: DType, dims: readonly number[]): NativeTensor {
    if (!isNumeric(type))
      throw new FlaError('invalid_type', 'NativeTensor: type must be numeric, received string');
    return guarded(() => new NativeTensor(new (load().addon.Value)(dtypeCode(type), dims)));
  }

  /** Copies `data`, whose bytes are taken as they are: float16 and bfloat16 as Uint16Array. */
  static from(type: DType, data: ArrayBufferView, dims: readonly number[]): NativeTensor {
    const tensor = NativeTensor.zeros(type, dims);
    tensor.assign(data);
    return tensor;
  }

  get location(): Location | 'none' {
    return this.#location;
  }

  /**
   * The memory itself, not a copy: float16 and bfloat16 as bits, bool as 0 and 1.
   *
   * @throws FlaError `unsupported` for a tensor on a GPU; `getData()` brings a copy.
   */
  get data(): NumericArray {
    this.#assertLive();
    if (this.#location === 'gpu-buffer') {
      throw new FlaError(
        'unsupported',
        `NativeTensor: data must be in the host's memory, it is on GPU ${this.deviceId}; use await getData() or read()`,
      );
    }
    return (this.#data ??= guarded(() =>
      arrayOver(this.type as Exclude<DType, 'string'>, this.value.buffer()),
    ));
  }

  /** As `data`; of a tensor on a GPU a copy, made off the event loop. */
  async getData(): Promise<NumericArray> {
    if (this.#location !== 'gpu-buffer') return this.data;
    try {
      return arrayOver(this.type as Exclude<DType, 'string'>, await this.value.download());
    } catch (thrown) {
      throw toFlaError(thrown);
    }
  }

  /** A copy of a range of bytes; the whole when no range is given. */
  read(byteOffset = 0, byteLength = this.byteLength - byteOffset): ArrayBuffer {
    this.#assertLive();
    return guarded(() => this.value.read(byteOffset, byteLength));
  }

  /** Overwrites a range of bytes. */
  write(data: ArrayBufferView, byteOffset = 0): void {
    this.#assertLive();
    guarded(() =>
      this.value.write(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), byteOffset),
    );
  }

  /** Overwrites all of it. */
  assign(data: ArrayBufferView): void {
    if (data.byteLength !== this.byteLength) {
      throw new FlaError(
        'invalid_shape',
        `NativeTensor: data must have ${this.byteLength} bytes for ${this.type} [${this.dims}], received ${data.byteLength}`,
      );
    }
    this.write(data);
  }

  reshape(): never {
    throw new FlaError(
      'unsupported',
      'NativeTensor: reshape is not supported; make one with the dims you need',
    );
  }

  /** Gives the memory back as soon as no run and no `data` array uses it. Calling it again does nothing. */
  dispose(): void {
    if (this.#location === 'none') return;
    this.#location = 'none';
    this.#data = undefined;
    this.value.dispose();
  }

  #assertLive(): void {
    if (this.#location === 'none')
      throw new FlaError('disposed', 'NativeTensor: used after dispose()');
  }
}

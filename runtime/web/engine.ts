import type { InferenceSession, Tensor } from 'onnxruntime-web';
import type { DType } from '../common/dtypes.js';
import type { DeviceTensor } from './device_tensor.js';

/** What is wanted of an output: a tensor for the caller, one that stays on the device, or to be written into this one. */
export type Wanted = 'host' | 'device' | Tensor;

export type RunOptions = InferenceSession.RunOptions & { readonly signal?: AbortSignal };

/** What runs a model: ONNX Runtime with our kernels on a GPU, or ONNX Runtime alone. */
export interface Engine {
  /** Every output that is wanted, in the form in which it is wanted. Feeds are checked. */
  run(
    feeds: ReadonlyMap<string, Tensor>,
    wanted: ReadonlyMap<string, Wanted>,
    options: RunOptions,
  ): Promise<Map<string, Tensor>>;
  /** Keeps a tensor in the form in which the engine takes it best. */
  keep(tensor: Tensor): DeviceTensor;
  zeros(type: DType, dims: readonly number[]): DeviceTensor;
  startProfiling(): void;
  endProfiling(): void;
  /** To be called inside `exclusive`. */
  dispose(): Promise<void>;
}

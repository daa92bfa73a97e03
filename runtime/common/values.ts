import { FlaError } from '../../ops/error.js';
import type { DType, NumericArray, NumericDType } from './dtypes.js';

/** Name, dtype and shape of one input or output. Symbolic sizes are names, '' when nameless. */
export interface ValueInfo {
  readonly name: string;
  readonly isTensor: boolean;
  readonly type?: DType;
  readonly shape?: readonly (number | string)[];
}

/** What the shared code sees of a tensor of any runtime. */
export interface TensorLike {
  readonly type: string;
  readonly dims: readonly number[];
  readonly size: number;
  readonly data: unknown;
}

/** Makes a tensor of the runtime over an array. */
export type MakeTensor<T extends TensorLike> = (
  type: NumericDType,
  data: NumericArray,
  dims: readonly number[],
) => T;

function fits(dims: readonly number[], shape: readonly (number | string)[]): boolean {
  return (
    dims.length === shape.length &&
    shape.every((size, i) => typeof size === 'string' || size === dims[i])
  );
}

export function showShape(shape: readonly (number | string)[]): string {
  return `[${shape.map((size) => (size === '' ? '?' : size)).join(',')}]`;
}

/** Type and, where the model declares one, shape, before ONNX Runtime sees the tensor. */
export function checkTensor(
  kind: 'input' | 'output',
  tensor: Pick<TensorLike, 'type' | 'dims'>,
  info: ValueInfo,
): void {
  const what = `Session: ${kind} '${info.name}'`;
  if (!info.isTensor)
    throw new FlaError('unsupported', `${what} must be a tensor, the model has a sequence or map`);
  if (tensor.type !== info.type) {
    throw new FlaError('invalid_type', `${what} must be ${info.type}, received ${tensor.type}`);
  }
  // An empty shape is a scalar's or an undeclared one.
  const shape = info.shape ?? [];
  if (shape.length > 0 && !fits(tensor.dims, shape)) {
    throw new FlaError(
      'invalid_shape',
      `${what} must be ${showShape(shape)}, received ${showShape(tensor.dims)}`,
    );
  }
}

import { FlaError } from '../../ops/error.js';

/** ONNX element types that ONNX Runtime moves in and out, by their number in ONNX. */
const NAMES = {
  1: 'float32',
  2: 'uint8',
  3: 'int8',
  4: 'uint16',
  5: 'int16',
  6: 'int32',
  7: 'int64',
  8: 'string',
  9: 'bool',
  10: 'float16',
  11: 'float64',
  12: 'uint32',
  13: 'uint64',
  16: 'bfloat16',
  21: 'uint4',
  22: 'int4',
} as const;

/** Element types of `ort.Tensor`, and bfloat16, which only a NativeTensor can hold. */
export type DType = (typeof NAMES)[keyof typeof NAMES];

const CODES = new Map(Object.entries(NAMES).map(([code, name]) => [name, Number(code)]));

export function dtypeName(code: number): DType {
  const name = (NAMES as Record<number, DType>)[code];
  if (name === undefined)
    throw new FlaError('unsupported', `tensor type ${code} has no JavaScript form`);
  return name;
}

export function dtypeCode(name: string): number {
  const code = CODES.get(name as DType);
  if (code === undefined) {
    throw new FlaError(
      'invalid_type',
      `tensor type must be one of ${[...CODES.keys()].join(' ')}, received ${name}`,
    );
  }
  return code;
}

/** Typed array of a numeric element type: raw bits for float16 and bfloat16, two elements to a byte for 4-bit types. */
const ARRAYS = {
  float32: Float32Array,
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  int32: Int32Array,
  int64: BigInt64Array,
  bool: Uint8Array,
  float16: Uint16Array,
  float64: Float64Array,
  uint32: Uint32Array,
  uint64: BigUint64Array,
  bfloat16: Uint16Array,
  uint4: Uint8Array,
  int4: Int8Array,
} as const;

export type NumericDType = keyof typeof ARRAYS;
export type NumericArray = InstanceType<(typeof ARRAYS)[NumericDType]>;

export function isNumeric(dtype: DType): dtype is NumericDType {
  return dtype !== 'string';
}

/** A typed array over the whole of `buffer`. */
export function arrayOver(dtype: NumericDType, buffer: ArrayBuffer): NumericArray {
  return new ARRAYS[dtype](buffer);
}

/** A zeroed typed array for `size` elements. */
export function zeros(dtype: NumericDType, size: number): NumericArray {
  return new ARRAYS[dtype](dtype.endsWith('int4') ? Math.ceil(size / 2) : size);
}

/** TensorProto.DataType numbers by name. */
export const DATA_TYPE = {
  undefined: 0,
  float32: 1,
  uint8: 2,
  int8: 3,
  uint16: 4,
  int16: 5,
  int32: 6,
  int64: 7,
  string: 8,
  bool: 9,
  float16: 10,
  float64: 11,
  uint32: 12,
  uint64: 13,
  complex64: 14,
  complex128: 15,
  bfloat16: 16,
  float8e4m3fn: 17,
  float8e4m3fnuz: 18,
  float8e5m2: 19,
  float8e5m2fnuz: 20,
  uint4: 21,
  int4: 22,
  float4e2m1: 23,
  float8e8m0: 24,
  uint2: 25,
  int2: 26,
} as const;

export type DTypeName = keyof typeof DATA_TYPE;

const NAMES = new Map<number, DTypeName>(
  Object.entries(DATA_TYPE).map(([name, id]) => [id, name as DTypeName]),
);

/** The name of a TensorProto.DataType number, or `undefined` for one that this version lacks. */
export function dtypeName(id: number | undefined): DTypeName | undefined {
  return NAMES.get(id ?? 0);
}

const BITS: Partial<Record<DTypeName, number>> = {
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
  complex64: 64,
  complex128: 128,
  bfloat16: 16,
  float8e4m3fn: 8,
  float8e4m3fnuz: 8,
  float8e5m2: 8,
  float8e5m2fnuz: 8,
  float8e8m0: 8,
  uint4: 4,
  int4: 4,
  float4e2m1: 4,
  uint2: 2,
  int2: 2,
};

/** Bytes that `count` elements take as raw data (sub-byte types are packed), or undefined. */
export function byteLength(dtype: DTypeName, count: number): number | undefined {
  const bits = BITS[dtype];
  return bits === undefined ? undefined : Math.ceil((count * bits) / 8);
}

/** Is it a floating-point type that attention may run in? */
export function isFloat(dtype: DTypeName | undefined): boolean {
  return dtype === 'float32' || dtype === 'float16' || dtype === 'bfloat16' || dtype === 'float64';
}

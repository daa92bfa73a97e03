import { getFloat16, setFloat16 } from '@petamoriken/float16';
import { FlaError } from '../../ops/error.js';
import { byteLength, DATA_TYPE, type DTypeName, dtypeName } from './dtype.js';
import { type StringStringEntryProto, type TensorProto, toNumber } from './proto.js';

/** Reads `length` bytes at `offset` of an external data file; `length` undefined means to its end. */
export interface ExternalReader {
  read(location: string, offset: number, length: number | undefined): Uint8Array;
}

/** Where a tensor's bytes lie when they are not in the model file. */
export interface ExternalLocation {
  location: string;
  offset: number;
  length: number | undefined;
}

/** The element type of a tensor, by name. @throws FlaError for a number that is no ONNX type */
export function tensorDtype(t: TensorProto): DTypeName {
  const name = dtypeName(t.dataType);
  if (!name) {
    throw new FlaError(
      'invalid_model',
      `tensor '${t.name ?? ''}': data_type must be an ONNX element type, received ${t.dataType}`,
    );
  }
  return name;
}

/** Dimensions as numbers. @throws FlaError `invalid_model` for a negative one */
export function tensorDims(t: TensorProto): number[] {
  const dims = t.dims.map(toNumber);
  if (!dims.some((d) => d < 0)) return dims;
  throw new FlaError(
    'invalid_model',
    `tensor '${t.name ?? ''}': dimensions must not be negative, received [${dims}]`,
  );
}

export function elementCount(dims: readonly number[]): number {
  return dims.reduce((a, b) => a * b, 1);
}

/** The external location of a tensor, or undefined when its data is inline. */
export function externalLocation(t: TensorProto): ExternalLocation | undefined {
  if (t.dataLocation !== 1) return undefined;
  const entry = (key: string) => t.externalData?.find((e) => e.key === key)?.value;
  const location = entry('location');
  const offset = Number(entry('offset') ?? 0);
  const length = entry('length') === undefined ? undefined : Number(entry('length'));
  const ok = (n: number) => Number.isSafeInteger(n) && n >= 0;
  if (!location || !ok(offset) || (length !== undefined && !ok(length))) {
    throw new FlaError(
      'invalid_model',
      `tensor '${t.name ?? ''}': external_data must hold a location and non-negative offset and length, ` +
        `received ${JSON.stringify(t.externalData?.map((e) => [e.key, e.value]))}`,
    );
  }
  return { location, offset, length };
}

/** Points a tensor at external data, dropping inline data. */
export function setExternalLocation(t: TensorProto, where: ExternalLocation): void {
  const entries: StringStringEntryProto[] = [
    { key: 'location', value: where.location },
    { key: 'offset', value: String(where.offset) },
  ];
  if (where.length !== undefined) entries.push({ key: 'length', value: String(where.length) });
  const kept = t.externalData?.filter((e) => !['location', 'offset', 'length'].includes(e.key!));
  t.externalData = [...entries, ...(kept ?? [])];
  t.dataLocation = 1;
  delete t.rawData;
}

/**
 * The little-endian raw bytes of a tensor, whichever field holds them.
 *
 * @throws FlaError `invalid_model` when the amount of data does not fit the shape
 */
export function tensorBytes(t: TensorProto, external?: ExternalReader): Uint8Array {
  const dtype = tensorDtype(t);
  const expected = byteLength(dtype, elementCount(tensorDims(t)));
  const where = externalLocation(t);
  let bytes: Uint8Array;
  if (where) {
    if (!external) {
      throw new FlaError(
        'invalid_model',
        `tensor '${t.name ?? ''}': its data lies in '${where.location}', and the model was given as bytes, without a folder`,
      );
    }
    checkLength(t, dtype, expected, where.length); // before anything is read
    bytes = external.read(where.location, where.offset, where.length ?? expected);
  } else if (t.rawData?.length) {
    bytes = t.rawData;
  } else {
    bytes = packTyped(t, dtype);
  }
  checkLength(t, dtype, expected, bytes.length);
  return bytes;
}

function checkLength(
  t: TensorProto,
  dtype: DTypeName,
  expected: number | undefined,
  received: number | undefined,
): void {
  if (expected === undefined || received === undefined || received === expected) return;
  throw new FlaError(
    'invalid_model',
    `tensor '${t.name ?? ''}': ${dtype}[${tensorDims(t)}] needs ${expected} bytes, received ${received}`,
  );
}

/** Raw bytes from the typed fields (float_data and so on). */
function packTyped(t: TensorProto, dtype: DTypeName): Uint8Array {
  const from = (a: ArrayBufferView) => new Uint8Array(a.buffer, a.byteOffset, a.byteLength);
  const longs = (v: TensorProto['int64Data']) =>
    BigInt64Array.from(v ?? [], (x) => BigInt(typeof x === 'number' ? x : x.toString()));
  switch (dtype) {
    case 'float32':
    case 'complex64':
      return from(Float32Array.from(t.floatData ?? []));
    case 'float64':
    case 'complex128':
      return from(Float64Array.from(t.doubleData ?? []));
    case 'int64':
      return from(longs(t.int64Data));
    case 'uint64':
      return from(longs(t.uint64Data));
    case 'uint32':
      return from(Uint32Array.from(t.uint64Data ?? [], toNumber));
    case 'int32':
      return from(Int32Array.from(t.int32Data ?? []));
    case 'int16':
    case 'uint16':
    case 'float16':
    case 'bfloat16':
      return from(Uint16Array.from(t.int32Data ?? []));
    default:
      return from(Uint8Array.from(t.int32Data ?? []));
  }
}

/**
 * The elements of a numeric tensor as numbers, row-major (int64 loses bits beyond 2^53).
 *
 * @throws FlaError `unsupported` for strings, complex and sub-byte types
 */
export function tensorNumbers(t: TensorProto, external?: ExternalReader): Float64Array {
  const dtype = tensorDtype(t);
  const bytes = tensorBytes(t, external);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const width = byteLength(dtype, 1)!;
  const read = READERS[dtype];
  if (!read) {
    throw new FlaError('unsupported', `tensor '${t.name ?? ''}': cannot read ${dtype} as numbers`);
  }
  const out = new Float64Array(elementCount(tensorDims(t)));
  for (let i = 0; i < out.length; i++) out[i] = read(view, i * width);
  return out;
}

const READERS: Partial<Record<DTypeName, (v: DataView, at: number) => number>> = {
  float32: (v, at) => v.getFloat32(at, true),
  float64: (v, at) => v.getFloat64(at, true),
  float16: (v, at) => getFloat16(v, at, true),
  bfloat16: (v, at) => bfloat16ToNumber(v.getUint16(at, true)),
  int64: (v, at) => Number(v.getBigInt64(at, true)),
  uint64: (v, at) => Number(v.getBigUint64(at, true)),
  int32: (v, at) => v.getInt32(at, true),
  uint32: (v, at) => v.getUint32(at, true),
  int16: (v, at) => v.getInt16(at, true),
  uint16: (v, at) => v.getUint16(at, true),
  int8: (v, at) => v.getInt8(at),
  uint8: (v, at) => v.getUint8(at),
  bool: (v, at) => v.getUint8(at),
};

const WRITERS: Partial<Record<DTypeName, (v: DataView, at: number, x: number) => void>> = {
  float32: (v, at, x) => v.setFloat32(at, x, true),
  float64: (v, at, x) => v.setFloat64(at, x, true),
  float16: (v, at, x) => setFloat16(v, at, x, true),
  bfloat16: (v, at, x) => v.setUint16(at, numberToBfloat16(x), true),
  int64: (v, at, x) =>
    v.setBigInt64(at, x >= 2 ** 63 ? 0x7fffffffffffffffn : BigInt(Math.trunc(x)), true),
  int32: (v, at, x) => v.setInt32(at, x, true),
  bool: (v, at, x) => v.setUint8(at, x ? 1 : 0),
  int8: (v, at, x) => v.setInt8(at, x),
  uint8: (v, at, x) => v.setUint8(at, x),
};

const scratch = new DataView(new ArrayBuffer(4));

/** bfloat16 bits to number. */
export function bfloat16ToNumber(bits: number): number {
  scratch.setUint32(0, bits << 16);
  return scratch.getFloat32(0);
}

/** Number to bfloat16 bits, rounding to nearest even; NaN stays NaN. */
export function numberToBfloat16(x: number): number {
  if (Number.isNaN(x)) return 0x7fc0;
  scratch.setFloat32(0, x);
  const bits = scratch.getUint32(0);
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/**
 * A TensorProto with raw data.
 *
 * @param data raw little-endian bytes, or numbers to be converted to `dtype`
 */
export function makeTensor(
  name: string,
  dtype: DTypeName,
  dims: readonly number[],
  data: Uint8Array | ArrayLike<number>,
): TensorProto {
  const count = elementCount(dims);
  const expected = byteLength(dtype, count);
  let raw: Uint8Array;
  if (data instanceof Uint8Array && data.length === expected) {
    raw = data;
  } else {
    const write = WRITERS[dtype];
    if (!write || data.length !== count) {
      throw new FlaError(
        'invalid_argument',
        `tensor '${name}': ${dtype}[${dims}] needs ${count} values, received ${data.length}`,
      );
    }
    raw = new Uint8Array(expected!);
    const view = new DataView(raw.buffer);
    const width = byteLength(dtype, 1)!;
    for (let i = 0; i < count; i++) write(view, i * width, data[i]!);
  }
  return { name, dataType: DATA_TYPE[dtype], dims: [...dims], rawData: raw };
}

import * as v from 'valibot';
import { FlaError } from '../../ops/error.js';
import { checkShape } from '../check_shape.js';
import { type DTypeName, tensorNumbers } from '../index.js';
import { DATA_TYPE } from '../ir/index.js';
import { readFile } from '../ir/read_file.js';

const DTYPES: Readonly<Record<string, DTypeName>> = {
  F64: 'float64',
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
};

const size = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const entrySchema = v.object({
  dtype: v.string(),
  shape: v.array(size),
  data_offsets: v.tuple([size, size]),
});

/** A tensor of a file; its numbers are read when they are asked for. */
export interface StoredTensor {
  readonly name: string;
  readonly dims: readonly number[];
  /** @throws FlaError `invalid_argument` for element types that are no floats, and for data that are not there */
  numbers(): Float32Array;
}

/**
 * The tensors of a safetensors file, in its own order.
 *
 * @throws FlaError `io`, or `invalid_argument` naming the file and what is wrong with it
 */
export function readSafetensors(file: string): StoredTensor[] {
  const bytes = readFile(file);
  const length = bytes.length >= 8 ? Number(bytes.readBigUInt64LE(0)) : Number.NaN;
  const none = (cause?: unknown) =>
    new FlaError('invalid_argument', `${file}: must be a safetensors file`, { cause });
  if (!(length <= bytes.length - 8)) throw none();
  let header: unknown;
  try {
    header = JSON.parse(bytes.toString('utf8', 8, 8 + length));
  } catch (cause) {
    throw none(cause);
  }
  if (typeof header !== 'object' || header === null || Array.isArray(header)) throw none();
  const data = bytes.subarray(8 + length);
  return Object.entries(header)
    .filter(([name]) => name !== '__metadata__')
    .map(([name, entry]) => storedTensor(file, name, entry, data));
}

function storedTensor(file: string, name: string, entry: unknown, data: Buffer): StoredTensor {
  const where = `${file}: '${name}'`;
  const { dtype, shape, data_offsets } = checkShape(entrySchema, entry, where);
  const [start, end] = data_offsets;
  if (start > end || end > data.length) {
    throw new FlaError(
      'invalid_argument',
      `${where} must lie in the file, received bytes ${start} to ${end}, the file has ${data.length}`,
    );
  }
  const numbers = () => {
    const known = DTYPES[dtype];
    if (!known) {
      throw new FlaError(
        'invalid_argument',
        `${where} must be of F16, BF16, F32 or F64, received ${dtype}`,
      );
    }
    const tensor = {
      name: `${file}: ${name}`,
      dataType: DATA_TYPE[known],
      dims: shape,
      rawData: data.subarray(start, end),
    };
    return Float32Array.from(tensorNumbers(tensor));
  };
  return { name, dims: shape, numbers };
}

/**
 * One matrix of a safetensors file: the one called `name`, or the only one there is.
 *
 * @throws FlaError `io`, or `invalid_argument` naming the file and what is wrong with it
 */
export function loadMatrix(file: string, name: string): { dims: number[]; data: Float32Array } {
  const tensors = readSafetensors(file);
  const tensor =
    tensors.find((t) => t.name === name) ?? (tensors.length === 1 ? tensors[0] : undefined);
  const wrong = (expected: string) => new FlaError('invalid_argument', `${file}: ${expected}`);
  if (!tensor) {
    const names = tensors.map((t) => t.name).join(', ');
    throw wrong(`must hold a tensor '${name}', or only one, received ${names || 'none'}`);
  }
  if (tensor.dims.length !== 2) {
    throw wrong(`'${tensor.name}' must be a matrix, received [${tensor.dims}]`);
  }
  return { dims: [...tensor.dims], data: tensor.numbers() };
}

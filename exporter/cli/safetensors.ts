import { FlaError } from '../../ops/error.js';
import { type DTypeName, tensorNumbers } from '../index.js';
import { DATA_TYPE } from '../ir/index.js';
import { readFile } from '../ir/read_file.js';

const DTYPES: Readonly<Record<string, DTypeName>> = {
  F64: 'float64',
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
};

interface Entry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}

/**
 * One matrix of a safetensors file: the one called `name`, or the only one there is.
 *
 * @throws FlaError `io`, or `invalid_argument` naming the file and what is wrong with it
 */
export function loadMatrix(file: string, name: string): { dims: number[]; data: Float32Array } {
  const bytes = readFile(file);
  const wrong = (expected: string) => new FlaError('invalid_argument', `${file}: ${expected}`);
  const length = bytes.length >= 8 ? Number(bytes.readBigUInt64LE(0)) : Number.NaN;
  if (!(length <= bytes.length - 8)) throw wrong('must be a safetensors file');
  let header: Record<string, Entry>;
  try {
    header = JSON.parse(bytes.toString('utf8', 8, 8 + length));
  } catch (cause) {
    throw new FlaError('invalid_argument', `${file}: must be a safetensors file`, { cause });
  }
  const entries = Object.entries(header).filter(([key]) => key !== '__metadata__');
  const entry =
    entries.find(([key]) => key === name) ?? (entries.length === 1 ? entries[0] : undefined);
  if (!entry) {
    const names = entries.map(([key]) => key).join(', ');
    throw wrong(`must hold a tensor '${name}', or only one, received ${names || 'none'}`);
  }
  const [key, { dtype, shape, data_offsets }] = entry;
  const known = DTYPES[dtype];
  if (!known || shape?.length !== 2) {
    throw wrong(`'${key}' must be a matrix of F16, BF16, F32 or F64, received ${dtype} [${shape}]`);
  }
  const [start, end] = data_offsets.map((at) => 8 + length + at);
  const data = tensorNumbers({
    name: `${file}: ${key}`,
    dataType: DATA_TYPE[known],
    dims: shape,
    rawData: bytes.subarray(start, end),
  });
  return { dims: shape, data: Float32Array.from(data) };
}

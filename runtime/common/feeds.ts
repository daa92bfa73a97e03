import { FlaError } from '../../ops/error.js';
import { isNumeric, type NumericArray, type NumericDType, zeros } from './dtypes.js';
import type { Padding } from './row_lengths.js';
import type { MakeTensor, TensorLike, ValueInfo } from './values.js';

/** Token ids: one, those of one sequence, or one list per sequence of the batch. */
export type Tokens = number | bigint | TokenList | readonly TokenList[];
export type TokenList = ArrayLike<number> | ArrayLike<bigint>;

/** Tensors by input name, time along axis 1. */
export type Feeds<T extends TensorLike> = Readonly<Record<string, T>>;

function isToken(value: unknown): value is number | bigint {
  return typeof value === 'number' || typeof value === 'bigint';
}

/** One list per sequence. */
export function toRows(tokens: Tokens, batch: number): TokenList[] {
  const rows = isToken(tokens) ? [[tokens] as TokenList] : isRows(tokens) ? [...tokens] : [tokens];
  if (rows.length !== batch) {
    throw new FlaError(
      'invalid_shape',
      `StatefulSession: tokens must be ${batch} lists, received ${rows.length}`,
    );
  }
  return rows;
}

function isRows(tokens: TokenList | readonly TokenList[]): tokens is readonly TokenList[] {
  return tokens.length > 0 && !isToken(tokens[0]);
}

/** Zeros of the input's type, and the conversion of a number to its elements. */
function allocate<T extends TensorLike>(
  make: MakeTensor<T>,
  input: ValueInfo,
  dims: readonly number[],
) {
  const type = input.type ?? 'int64';
  if (!isNumeric(type) || type.includes('float16')) {
    throw new FlaError(
      'unsupported',
      `StatefulSession: input '${input.name}' must hold numbers, the model has ${type}`,
    );
  }
  const data = zeros(
    type,
    dims.reduce((a, b) => a * b, 1),
  ) as {
    [index: number]: number | bigint;
    length: number;
    fill(value: number | bigint): unknown;
  };
  const wide = data instanceof BigInt64Array || data instanceof BigUint64Array;
  const convert: (value: number | bigint) => number | bigint = wide ? BigInt : Number;
  return { data, convert, tensor: make(type, data as NumericArray, [...dims]) };
}

/** A tensor of the input's type with whole numbers. */
export function integers<T extends TensorLike>(
  make: MakeTensor<T>,
  input: ValueInfo,
  dims: readonly number[],
  at: (index: number) => number | bigint,
): T {
  const { data, convert, tensor } = allocate(make, input, dims);
  for (let i = 0; i < data.length; i++) data[i] = convert(at(i));
  return tensor;
}

/** Rows of tokens as a [batch, length] tensor for `input`; shorter ones are padded with 0. */
export function tokenTensor<T extends TensorLike>(
  make: MakeTensor<T>,
  input: ValueInfo,
  rows: readonly TokenList[],
  padding: Padding,
): T {
  const length = Math.max(...rows.map((row) => row.length));
  return integers(make, input, [rows.length, length], (i) => {
    const row = rows[Math.floor(i / length)];
    const at = (i % length) - (padding === 'left' ? length - row.length : 0);
    if (at < 0 || at >= row.length) return 0;
    const token = row[at];
    if (typeof token === 'bigint' || Number.isSafeInteger(token)) return token;
    throw new FlaError(
      'invalid_argument',
      `StatefulSession: tokens must be integers, received ${token}`,
    );
  });
}

function isTimed(tensor: TensorLike, length: number): boolean {
  return tensor.dims.length >= 2 && tensor.dims[1] === length;
}

/** Number of tokens in feeds: the size along axis 1 of the first tensor that has one. */
export function feedLength(feeds: Feeds<TensorLike>): number {
  for (const tensor of Object.values(feeds)) if (tensor.dims.length >= 2) return tensor.dims[1];
  throw new FlaError(
    'invalid_shape',
    'StatefulSession: feeds must have a tensor with time along axis 1',
  );
}

/** A range of axis 1. With one sequence it is a view, otherwise a copy. */
function sliceTime<T extends TensorLike>(
  make: MakeTensor<T>,
  tensor: T,
  start: number,
  count: number,
): T {
  const type = tensor.type as NumericDType;
  const [batch, length, ...rest] = tensor.dims;
  const step = rest.reduce((a, b) => a * b, 1);
  const source = tensor.data as NumericArray;
  const dims = [batch, count, ...rest];
  if (batch === 1) return make(type, source.subarray(start * step, (start + count) * step), dims);
  const target = zeros(type, batch * count * step);
  for (let b = 0; b < batch; b++) {
    const from = (b * length + start) * step;
    target.set(source.subarray(from, from + count * step) as never, b * count * step);
  }
  return make(type, target, dims);
}

/** The part of the feeds for tokens [start, start + count); what has no time axis passes whole. */
export function sliceFeeds<T extends TensorLike>(
  make: MakeTensor<T>,
  feeds: Feeds<T>,
  length: number,
  start: number,
  count: number,
): Feeds<T> {
  if (count === length) return feeds;
  return Object.fromEntries(
    Object.entries(feeds).map(([name, tensor]) => [
      name,
      isTimed(tensor, length) ? sliceTime(make, tensor, start, count) : tensor,
    ]),
  );
}

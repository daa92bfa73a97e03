/** Test tensors: seeded random data, conversion between float64 and the ONNX element types, error measures. */
import { Float16Array } from '@petamoriken/float16';
import type { DType } from '../../ops/define.js';
import { sizeOf, type Tensor64 } from '../../ops/tensor64.js';

/** A small seeded generator (mulberry32), so that a case is the same on every run and machine. */
export class Random {
  private state: number;

  constructor(seed: string) {
    this.state = [...seed].reduce(
      (hash, c) => Math.imul(hash ^ c.charCodeAt(0), 0x01000193),
      0x811c9dc5,
    );
  }

  /** Uniform in [0, 1). */
  uniform(): number {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let x = Math.imul(this.state ^ (this.state >>> 15), this.state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  }

  /** Standard normal. */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  tensor(shape: readonly number[], draw: (index: number) => number): Tensor64 {
    return { shape, data: Float64Array.from({ length: sizeOf(shape) }, (_, i) => draw(i)) };
  }
}

/** Little-endian element bytes; values are rounded to nearest, ties to even. */
export function encode(values: Float64Array, dtype: DType): Uint8Array {
  switch (dtype) {
    case 'float64':
      return bytesOf(values);
    case 'float32':
      return bytesOf(Float32Array.from(values));
    case 'float16':
      return bytesOf(Float16Array.from(values));
    case 'bfloat16':
      return bytesOf(Uint16Array.from(Float32Array.from(values), bfloat16Bits));
    case 'bool':
      return Uint8Array.from(values, (value) => (value === 0 ? 0 : 1));
    case 'int64':
      return bytesOf(BigInt64Array.from(Array.from(values, BigInt)));
  }
}

/** The values that `encode` wrote. */
export function decode(bytes: Uint8Array, dtype: DType): Float64Array {
  const { buffer } = Uint8Array.from(bytes); // aligned copy
  switch (dtype) {
    case 'float64':
      return new Float64Array(buffer);
    case 'float32':
      return Float64Array.from(new Float32Array(buffer));
    case 'float16':
      return Float64Array.from(new Float16Array(buffer));
    case 'bfloat16': {
      const words = Uint32Array.from(new Uint16Array(buffer), (bits) => bits << 16);
      return Float64Array.from(new Float32Array(words.buffer));
    }
    case 'bool':
      return Float64Array.from(new Uint8Array(buffer));
    case 'int64':
      return Float64Array.from(new BigInt64Array(buffer), Number);
  }
}

/** The tensor after one trip through `dtype`: what a backend that takes `dtype` really sees. */
export function rounded(tensor: Tensor64, dtype: DType): Tensor64 {
  return { shape: tensor.shape, data: decode(encode(tensor.data, dtype), dtype) };
}

/** Tokens from..to of a [B,T,...] tensor. */
export function sliceTokens({ shape, data }: Tensor64, from: number, to: number): Tensor64 {
  const [B, T, ...rest] = shape;
  const width = sizeOf(rest);
  const rows = Array.from({ length: B }, (_, b) =>
    data.subarray((b * T + from) * width, (b * T + to) * width),
  );
  const out = new Float64Array(B * (to - from) * width);
  for (const [b, row] of rows.entries()) out.set(row, b * (to - from) * width);
  return { shape: [B, to - from, ...rest], data: out };
}

function bytesOf(array: ArrayBufferView): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

const word = new Uint32Array(1);
const single = new Float32Array(word.buffer);

function bfloat16Bits(value: number): number {
  single[0] = value;
  if (Number.isNaN(value)) return 0x7fc0;
  return (word[0] + 0x7fff + ((word[0] >>> 16) & 1)) >>> 16;
}

/** ||actual - expected|| / ||expected||; NaN anywhere gives NaN. Where expected is all zero, the norm of actual. */
export function relativeError(actual: Float64Array, expected: Float64Array): number {
  if (actual.length !== expected.length) return Number.NaN;
  let difference = 0;
  let size = 0;
  for (let i = 0; i < expected.length; i += 1) {
    difference += (actual[i] - expected[i]) ** 2;
    size += expected[i] ** 2;
  }
  return Math.sqrt(size === 0 ? difference : difference / size);
}

/** Largest |actual - expected|. */
export function maxAbsError(actual: Float64Array, expected: Float64Array): number {
  return expected.reduce((worst, value, i) => Math.max(worst, Math.abs(actual[i] - value)), 0);
}

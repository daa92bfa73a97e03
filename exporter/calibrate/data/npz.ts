import fs from 'node:fs';
import { inflateRawSync } from 'node:zlib';
import { getFloat16 } from '@petamoriken/float16';
import { FlaError } from '../../../ops/error.js';
import { readFile } from '../../ir/read_file.js';

/** An array as NumPy writes it. */
export interface NpyArray {
  readonly dims: readonly number[];
  /** Numbers row by row. */
  readonly data: ArrayLike<number>;
}

/** Reads the arrays of an .npz file, by name. @throws FlaError `io` or `invalid_argument`, naming the file */
export function readNpz(file: string): Map<string, NpyArray> {
  const bytes = readFile(file);
  const arrays = new Map<string, NpyArray>();
  try {
    for (const [name, content] of zipEntries(bytes, file)) {
      if (name.endsWith('.npy'))
        arrays.set(name.slice(0, -4), parseNpy(content, `${file}:${name}`));
    }
  } catch (cause) {
    if (cause instanceof FlaError) throw cause;
    // Offsets that lead out of the file, or data that cannot be unpacked.
    const why = (cause as Error).message;
    throw new FlaError('invalid_argument', `${file}: is no .npz file: ${why}`, { cause });
  }
  if (arrays.size === 0) throw new FlaError('invalid_argument', `${file}: holds no arrays`);
  return arrays;
}

/** Reads the array of an .npy file. @throws FlaError `io` or `invalid_argument`, naming the file */
export function readNpy(file: string): NpyArray {
  const bytes = readFile(file);
  if (bytes.length < 12 || bytes.toString('latin1', 0, 6) !== '\x93NUMPY') {
    throw new FlaError('invalid_argument', `${file}: is no .npy file`);
  }
  return parseNpy(bytes, file);
}

/** Writes arrays of 64-bit integers or float32 as .npz, uncompressed. */
export function writeNpz(
  file: string,
  arrays: Readonly<Record<string, { dims: readonly number[]; data: BigInt64Array | Float32Array }>>,
): void {
  const entries = Object.entries(arrays).map(([name, { dims, data }]) => {
    const shape = dims.length === 1 ? `(${dims[0]},)` : `(${dims.join(', ')})`;
    const type = data instanceof Float32Array ? '<f4' : '<i8';
    const text = `{'descr': '${type}', 'fortran_order': False, 'shape': ${shape}, }`;
    const length = Math.ceil((10 + text.length + 1) / 64) * 64 - 10;
    const head = Buffer.from(`\x93NUMPY\x01\x00\0\0${text.padEnd(length - 1)}\n`, 'latin1');
    head.writeUInt16LE(length, 8);
    const body = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    return { name: `${name}.npy`, content: Buffer.concat([head, body]) };
  });
  fs.writeFileSync(file, zip(entries));
}

function zip(entries: readonly { name: string; content: Buffer }[]): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let at = 0;
  for (const { name, content } of entries) {
    const common = Buffer.alloc(26);
    common.writeUInt16LE(20, 0);
    common.writeUInt32LE(crc32(content), 10);
    common.writeUInt32LE(content.length, 14);
    common.writeUInt32LE(content.length, 18);
    common.writeUInt16LE(name.length, 22);
    const local = Buffer.concat([Buffer.from('PK\x03\x04', 'latin1'), common, Buffer.from(name)]);
    const end = Buffer.alloc(14);
    end.writeUInt32LE(at, 10);
    const version = Buffer.from([20, 0]);
    const sign = Buffer.from('PK\x01\x02', 'latin1');
    directory.push(Buffer.concat([sign, version, common, end, Buffer.from(name)]));
    parts.push(local, content);
    at += local.length + content.length;
  }
  const size = directory.reduce((sum, d) => sum + d.length, 0);
  const tail = Buffer.alloc(22);
  tail.write('PK\x05\x06', 'latin1');
  tail.writeUInt16LE(entries.length, 8);
  tail.writeUInt16LE(entries.length, 10);
  tail.writeUInt32LE(size, 12);
  tail.writeUInt32LE(at, 16);
  return Buffer.concat([...parts, ...directory, tail]);
}

function crc32(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let k = 0; k < 8; k++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return (crc ^ 0xffffffff) >>> 0;
}

/** The files in a zip archive, by its central directory. */
function* zipEntries(bytes: Buffer, file: string): Generator<[string, Buffer]> {
  const end = bytes.lastIndexOf('PK\x05\x06', undefined, 'latin1');
  if (end < 0) throw new FlaError('invalid_argument', `${file}: is no .npz file`);
  let at = bytes.readUInt32LE(end + 16);
  for (let left = bytes.readUInt16LE(end + 10); left > 0; left--) {
    const method = bytes.readUInt16LE(at + 10);
    const size = bytes.readUInt32LE(at + 20);
    const lengths = [28, 30, 32].map((o) => bytes.readUInt16LE(at + o)) as [number, number, number];
    const local = bytes.readUInt32LE(at + 42);
    const name = bytes.toString('utf8', at + 46, at + 46 + lengths[0]);
    const start = local + 30 + bytes.readUInt16LE(local + 26) + bytes.readUInt16LE(local + 28);
    const content = bytes.subarray(start, start + size);
    if (method !== 0 && method !== 8) {
      throw new FlaError('invalid_argument', `${file}: ${name} is packed in an unknown way`);
    }
    yield [name, method === 8 ? inflateRawSync(content) : content];
    at += 46 + lengths[0] + lengths[1] + lengths[2];
  }
}

const READERS: Readonly<Record<string, readonly [number, (b: Buffer, at: number) => number]>> = {
  '<f4': [4, (b, at) => b.readFloatLE(at)],
  '<f8': [8, (b, at) => b.readDoubleLE(at)],
  '<f2': [2, (b, at) => getFloat16(new DataView(b.buffer, b.byteOffset), at, true)],
  '<i8': [8, (b, at) => Number(b.readBigInt64LE(at))],
  '<i4': [4, (b, at) => b.readInt32LE(at)],
  '<u4': [4, (b, at) => b.readUInt32LE(at)],
  '<i2': [2, (b, at) => b.readInt16LE(at)],
  '<u2': [2, (b, at) => b.readUInt16LE(at)],
  '|u1': [1, (b, at) => b.readUInt8(at)],
  '|i1': [1, (b, at) => b.readInt8(at)],
  '|b1': [1, (b, at) => b.readUInt8(at)],
};

function parseNpy(bytes: Buffer, where: string): NpyArray {
  const long = bytes[6]! >= 2;
  const start = long ? 12 : 10;
  const length = long ? bytes.readUInt32LE(8) : bytes.readUInt16LE(8);
  const head = bytes.toString('latin1', start, start + length);
  const type = /'descr': *'([^']+)'/.exec(head)?.[1] ?? '';
  const reader = READERS[type];
  const shape = /'shape': *\(([^)]*)\)/.exec(head)?.[1];
  if (!reader || shape === undefined || /'fortran_order': *True/.test(head)) {
    throw new FlaError(
      'invalid_argument',
      `${where}: must be a row-major array of numbers, received ${type || 'no array'}`,
    );
  }
  const dims = shape
    .split(',')
    .filter((d) => d.trim())
    .map(Number);
  if (!dims.every((d) => Number.isSafeInteger(d) && d >= 0)) {
    throw new FlaError('invalid_argument', `${where}: must have a shape, received (${shape})`);
  }
  const count = dims.reduce((a, b) => a * b, 1);
  const [width, read] = reader;
  if (bytes.length < start + length + count * width) {
    throw new FlaError('invalid_argument', `${where}: is cut short`);
  }
  const data = new Float64Array(count);
  for (let i = 0; i < count; i++) data[i] = read(bytes, start + length + i * width);
  return { dims, data };
}

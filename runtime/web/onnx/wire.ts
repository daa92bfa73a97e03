/**
 * Protocol buffers as bytes: enough to take a model apart into views and to put parts of it together again. Nothing is
 * copied while reading; unknown fields survive because messages that are not changed are passed on as the bytes they were.
 */
import { FlaError } from '../../../ops/error.js';

/** Wire types: varint, 64 bit, length-delimited, 32 bit. */
const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;

/** One field of a message, with its place in it. */
export interface Field {
  readonly id: number;
  /** The value of a varint; lengths, enumerations and sizes, exact up to 2^53. */
  readonly value: number;
  /** The content of a length-delimited field, the bytes of a fixed one; empty for a varint. */
  readonly bytes: Uint8Array;
  /** Tag and content. */
  readonly whole: Uint8Array;
}

const NONE: Uint8Array = new Uint8Array(0);
const text = new TextDecoder();
const utf8 = new TextEncoder();

export function toText(bytes: Uint8Array): string {
  return text.decode(bytes);
}

function broken(at: number, length: number, why: string): FlaError {
  return new FlaError(
    'invalid_model',
    `model: not a readable ONNX model: decoding stopped at byte ${at} of ${length}: ${why}`,
  );
}

class Cursor {
  at = 0;
  constructor(readonly bytes: Uint8Array) {}

  /** A varint as a number: exact up to 2^53; negative int64 values come out as such. */
  varint(): number {
    let low = 0;
    let high = 0;
    for (let i = 0; i < 10; i++) {
      if (this.at >= this.bytes.length)
        throw broken(this.at, this.bytes.length, 'a field reaches beyond the end');
      const byte = this.bytes[this.at++];
      if (i < 4) low += (byte & 127) * 2 ** (7 * i);
      else high += (byte & 127) * 2 ** (7 * i - 28);
      if (byte < 128) {
        const value = low + high * 2 ** 28;
        return value >= 2 ** 63
          ? Number(BigInt.asIntN(64, BigInt(low) + (BigInt(high) << 28n)))
          : value;
      }
    }
    throw broken(this.at, this.bytes.length, 'a number of more than 10 bytes');
  }

  take(count: number): Uint8Array {
    if (this.at + count > this.bytes.length)
      throw broken(this.at, this.bytes.length, 'a field reaches beyond the end');
    this.at += count;
    return this.bytes.subarray(this.at - count, this.at);
  }
}

/** The fields of a message, in the order in which they were written. */
export function* fields(message: Uint8Array): Generator<Field> {
  const cursor = new Cursor(message);
  while (cursor.at < message.length) {
    const start = cursor.at;
    const tag = cursor.varint();
    const id = Math.floor(tag / 8);
    const wire = tag % 8;
    let value = 0;
    let bytes = NONE;
    if (wire === VARINT) value = cursor.varint();
    else if (wire === BYTES) bytes = cursor.take(cursor.varint());
    else if (wire === FIXED32) bytes = cursor.take(4);
    else if (wire === FIXED64) bytes = cursor.take(8);
    else throw broken(start, message.length, `wire type ${wire}`);
    if (id === 0) throw broken(start, message.length, 'a field without a number');
    yield { id, value, bytes, whole: message.subarray(start, cursor.at) };
  }
}

/** A repeated integer field's values, written one by one or packed. */
export function* integers(field: Field): Generator<number> {
  if (field.bytes === NONE) yield field.value;
  const cursor = new Cursor(field.bytes);
  while (cursor.at < field.bytes.length) yield cursor.varint();
}

/** A float field. */
export function toFloat({ bytes }: Field): number {
  return new DataView(bytes.buffer, bytes.byteOffset, 4).getFloat32(0, true);
}

/** Puts a message together. */
export class Message {
  readonly #parts: Uint8Array[] = [];
  #length = 0;

  #push(part: Uint8Array): this {
    this.#parts.push(part);
    this.#length += part.length;
    return this;
  }

  #varint(value: number): this {
    const bytes: number[] = [];
    for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
    return this.#push(Uint8Array.of(...bytes, value));
  }

  /** A non-negative integer. */
  integer(id: number, value: number): this {
    return this.#varint(id * 8 + VARINT).#varint(value);
  }

  bytes(id: number, content: Uint8Array): this {
    return this.#varint(id * 8 + BYTES)
      .#varint(content.length)
      .#push(content);
  }

  text(id: number, value: string): this {
    return this.bytes(id, utf8.encode(value));
  }

  message(id: number, content: Message): this {
    this.#varint(id * 8 + BYTES).#varint(content.#length);
    for (const part of content.#parts) this.#push(part);
    return this;
  }

  /** Fields as they were read, tags included. */
  raw(whole: Uint8Array): this {
    return this.#push(whole);
  }

  finish(): Uint8Array {
    const out = new Uint8Array(this.#length);
    let at = 0;
    for (const part of this.#parts) {
      out.set(part, at);
      at += part.length;
    }
    return out;
  }
}

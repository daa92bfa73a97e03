import type { FunctionProto, NodeProto } from '../../exporter/ir/index.js';
import type { OpSchema } from '../define.js';
import { FlaError } from '../error.js';

export type FloatDType = 'float32' | 'float16' | 'bfloat16';

/** `com.microsoft`: around one com.microsoft.LinearAttention node; `standard`: ai.onnx operators only. */
export type FunctionTarget = 'com.microsoft' | 'standard';

export interface FunctionOptions {
  /** Default `auto`: `com.microsoft` where it gives the same result, `standard` otherwise. */
  target?: FunctionTarget | 'auto';
}

/** A function to add to the model, and what its call site needs. */
export interface OpFunction {
  fn: FunctionProto;
  /** The node's `overload`; equal bodies have equal overloads, so call sites share them. */
  overload: string;
  /** Versions that the model must import, by domain: those of the body, and com.fla itself. */
  opsets: Record<string, number>;
}

/** The versions of the default domain that bodies are written for; operators take bfloat16 from 13 on. */
const FIRST_OPSET = { float32: 9, float16: 9, bfloat16: 13 } as const;
const LAST_OPSET = 26;

/** @throws FlaError `unsupported` for a version of the default domain that no body can be written for */
export function checkOpset(op: OpSchema, opset: number, dtype: FloatDType): void {
  const first = FIRST_OPSET[dtype];
  if (Number.isInteger(opset) && opset >= first && opset <= LAST_OPSET) return;
  throw new FlaError(
    'unsupported',
    `${op.name}: the model's opset must be ${first}..${LAST_OPSET} for a ${dtype} function body, received ${opset}`,
  );
}

/** @throws FlaError `unsupported` when a body around com.microsoft operators is asked for, which has none for the op */
export function standardOnly(op: OpSchema, { target }: FunctionOptions): void {
  if (target !== 'com.microsoft') return;
  throw new FlaError('unsupported', `${op.name}: no com.microsoft body: target must be standard`);
}

/** Wraps nodes that read the op's inputs and write its outputs, by their schema names. */
export function opFunction(
  op: OpSchema,
  target: FunctionTarget,
  nodes: NodeProto[],
  opsets: Readonly<Record<string, number>>,
): OpFunction {
  const imports = Object.entries(opsets).map(([domain, version]) => ({ domain, version }));
  const overload = `${target.replace('.', '_')}_${hash(JSON.stringify([imports, nodes], plain))}`;
  const fn: FunctionProto = {
    name: op.name,
    domain: op.domain,
    overload,
    input: op.inputs.map((input) => input.name),
    output: op.outputs.map((output) => output.name),
    attribute: Object.keys(op.attributes),
    node: nodes,
    opsetImport: imports,
  };
  return { fn, overload, opsets: { ...opsets, [op.domain]: op.version } };
}

/** Byte fields as plain arrays, so that the text does not depend on which kind of array holds them. */
const plain = (_key: string, value: unknown) =>
  value instanceof Uint8Array ? Array.from(value) : value;

/** FNV-1a, 64 bits, in hexadecimal. */
function hash(text: string): string {
  let h = 0xcbf29ce484222325n;
  for (const byte of new TextEncoder().encode(text)) {
    h = ((h ^ BigInt(byte)) * 0x100000001b3n) & 0xffffffffffffffffn;
  }
  return h.toString(16).padStart(16, '0');
}

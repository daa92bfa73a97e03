import protobuf from 'protobufjs';
import { FlaError } from '../../ops/error.js';
import { ONNX_SCHEMA } from './schema.js';

/** An int64 field as protobufjs hands it out (Long) or as one may write it (number, Long). */
export type Int64 = number | { low: number; high: number; unsigned: boolean; toNumber(): number };

export interface StringStringEntryProto {
  key?: string;
  value?: string;
}
export interface TensorProto {
  dims: Int64[];
  dataType?: number;
  floatData?: number[];
  int32Data?: number[];
  stringData?: Uint8Array[];
  int64Data?: Int64[];
  name?: string;
  rawData?: Uint8Array;
  doubleData?: number[];
  uint64Data?: Int64[];
  docString?: string;
  externalData?: StringStringEntryProto[];
  dataLocation?: number;
  metadataProps?: StringStringEntryProto[];
}
export interface SparseTensorProto {
  values?: TensorProto;
  indices?: TensorProto;
  dims?: Int64[];
}
export interface AttributeProto {
  name: string;
  f?: number;
  i?: Int64;
  s?: Uint8Array;
  t?: TensorProto;
  g?: GraphProto;
  floats?: number[];
  ints?: Int64[];
  strings?: Uint8Array[];
  tensors?: TensorProto[];
  graphs?: GraphProto[];
  sparseTensor?: SparseTensorProto;
  sparseTensors?: SparseTensorProto[];
  tp?: TypeProto;
  type?: number;
  refAttrName?: string;
}
export interface DimensionProto {
  dimValue?: Int64;
  dimParam?: string;
  denotation?: string;
}
export interface TensorTypeProto {
  elemType?: number;
  shape?: { dim: DimensionProto[] };
}
export interface TypeProto {
  tensorType?: TensorTypeProto;
  sequenceType?: { elemType?: TypeProto };
  optionalType?: { elemType?: TypeProto };
  denotation?: string;
}
export interface ValueInfoProto {
  name: string;
  type?: TypeProto;
  docString?: string;
  metadataProps?: StringStringEntryProto[];
}
export interface NodeProto {
  input: string[];
  output: string[];
  name?: string;
  opType: string;
  attribute: AttributeProto[];
  docString?: string;
  domain?: string;
  overload?: string;
  metadataProps?: StringStringEntryProto[];
}
export interface GraphProto {
  node: NodeProto[];
  name?: string;
  initializer: TensorProto[];
  sparseInitializer?: SparseTensorProto[];
  docString?: string;
  input: ValueInfoProto[];
  output: ValueInfoProto[];
  valueInfo: ValueInfoProto[];
  metadataProps?: StringStringEntryProto[];
}
export interface OperatorSetIdProto {
  domain?: string;
  version: Int64;
}
export interface FunctionProto {
  name: string;
  domain?: string;
  overload?: string;
  input: string[];
  output: string[];
  attribute: string[];
  attributeProto?: AttributeProto[];
  node: NodeProto[];
  docString?: string;
  opsetImport: OperatorSetIdProto[];
  valueInfo?: ValueInfoProto[];
  metadataProps?: StringStringEntryProto[];
}
export interface ModelProto {
  irVersion: Int64;
  producerName?: string;
  producerVersion?: string;
  domain?: string;
  modelVersion?: Int64;
  docString?: string;
  graph: GraphProto;
  opsetImport: OperatorSetIdProto[];
  metadataProps: StringStringEntryProto[];
  functions: FunctionProto[];
}

const root = protobuf.parse(ONNX_SCHEMA).root;
const MODEL = root.lookupType('onnx.ModelProto');

/** AttributeProto.type: which field of an attribute holds its value. */
export const ATTRIBUTE_TYPE = {
  float: 1,
  int: 2,
  string: 3,
  tensor: 4,
  graph: 5,
  floats: 6,
  ints: 7,
  strings: 8,
  tensors: 9,
  graphs: 10,
} as const;

/** Many times the nodes of a real model; a node takes a few bytes of a file, and hundreds of memory. */
export const NODE_LIMIT = 200_000;
const DEPTH_LIMIT = 100; // of messages; deeper ones are refused by the decoder

/** Messages that hold nodes: which field of each holds which message. */
const HOLDS = {
  model: { 7: 'graph', 25: 'function' },
  graph: { 1: 'node' },
  function: { 7: 'node' },
  node: { 5: 'attribute' },
  attribute: { 6: 'graph', 11: 'graph' },
} as const;
type Holder = keyof typeof HOLDS;

/** Counts the nodes of a model, nested ones included, before anything is decoded. @throws FlaError `unsupported` for too many */
function checkNodes(reader: protobuf.Reader, what: string): void {
  let nodes = 0;
  const message = (kind: Holder, end: number, depth: number) => {
    const holds: Readonly<Record<number, Holder>> = HOLDS[kind];
    while (reader.pos < end) {
      const tag = reader.uint32();
      const inner = (tag & 7) === 2 && depth < DEPTH_LIMIT ? holds[tag >>> 3] : undefined;
      if (!inner) reader.skipType(tag & 7);
      else {
        if (inner === 'node' && ++nodes > NODE_LIMIT)
          throw new FlaError(
            'unsupported',
            `${what}: at most ${NODE_LIMIT} nodes expected, received more`,
          );
        const length = reader.uint32();
        message(inner, reader.pos + length, depth + 1);
      }
    }
  };
  message('model', reader.len, 0);
}

/**
 * Decodes a serialized ModelProto; byte fields are views into `bytes`, nothing is copied.
 *
 * @param bytes the file's content
 * @param what how errors name it (a path, say)
 * @throws FlaError `invalid_model` naming `what` and the byte offset where decoding stopped, `unsupported` for more than 200,000 nodes
 */
export function decodeModel(bytes: Uint8Array, what = 'model'): ModelProto {
  const reader = protobuf.Reader.create(bytes);
  reader.discardUnknown = false;
  let model: ModelProto;
  try {
    checkNodes(protobuf.Reader.create(bytes), what);
    model = MODEL.decode(reader) as unknown as ModelProto;
  } catch (error) {
    if (error instanceof FlaError) throw error;
    const why =
      error instanceof RangeError ? 'a field reaches beyond the end' : (error as Error).message;
    throw new FlaError(
      'invalid_model',
      `${what}: not a readable ONNX model: decoding stopped at byte ${reader.pos} of ${bytes.length}: ${why}`,
      { cause: error },
    );
  }
  if (!model.graph || model.opsetImport.length === 0) {
    const missing = model.graph ? 'opset_import' : 'graph';
    throw new FlaError('invalid_model', `${what}: not an ONNX model: it has no ${missing}`);
  }
  return model;
}

/** Serializes a model; unknown fields that were read are written back. */
export function encodeModel(model: ModelProto): Uint8Array {
  return MODEL.encode(model as unknown as protobuf.Message).finish();
}

/** int64 field to number; values beyond 2^53 lose low bits, which only "to the end" markers use. */
export function toNumber(value: Int64 | undefined): number {
  if (value === undefined || value === null) return 0;
  return typeof value === 'number' ? value : value.toNumber();
}

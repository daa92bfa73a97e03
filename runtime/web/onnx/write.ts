import { callKey, type Dim, type GraphNode, type Initializer, type OnnxModel } from './model.js';
import { fields, Message } from './wire.js';

/** The name under which the model's own bytes are given to ONNX Runtime as a file of external data. */
export const MODEL_FILE = 'onnx-fla-model';

/** A value with what is known about it; type 0 leaves finding it to ONNX Runtime. */
export interface TypedValue {
  readonly name: string;
  readonly type: number;
  readonly shape?: readonly Dim[];
  /** The ValueInfoProto where the model has it. */
  readonly raw?: Uint8Array;
}

/** A part of a model. */
export interface Part {
  readonly nodes: readonly GraphNode[];
  readonly initializers: readonly Initializer[];
  readonly inputs: readonly TypedValue[];
  readonly outputs: readonly TypedValue[];
}

function valueInfo({ name, type, shape }: TypedValue): Message {
  const info = new Message().text(1, name);
  if (type === 0) return info;
  const tensor = new Message().integer(1, type);
  if (shape) {
    const dims = new Message();
    for (const size of shape) {
      const dim = new Message();
      if (typeof size === 'number') dim.integer(1, size);
      else if (size !== '') dim.text(2, size);
      dims.message(1, dim);
    }
    tensor.message(2, dims);
  }
  return info.message(2, new Message().message(1, tensor));
}

function entry(key: string, value: string): Message {
  return new Message().text(1, key).text(2, value);
}

/** A TensorProto; large data becomes a reference into the model's bytes. */
function tensor({ name, raw, data }: Initializer, model: OnnxModel): Message {
  const proto = new Message();
  for (const { id, whole } of fields(raw)) {
    if (id !== 8 && !(id === 9 && data)) proto.raw(whole);
  }
  proto.text(8, name);
  if (!data) return proto;
  return proto
    .message(13, entry('location', MODEL_FILE))
    .message(13, entry('offset', String(data.byteOffset - model.bytes.byteOffset)))
    .message(13, entry('length', String(data.length)))
    .integer(14, 1);
}

/** Every function that the nodes reach, in the model's order. */
function reachedFunctions(nodes: readonly GraphNode[], model: OnnxModel): Uint8Array[] {
  const reached = new Set<string>();
  const waiting = nodes.flatMap((node) => node.calls);
  for (let key = waiting.pop(); key !== undefined; key = waiting.pop()) {
    const fn = model.functions.get(key);
    if (!fn || reached.has(key)) continue;
    reached.add(key);
    waiting.push(...fn.calls);
  }
  return [...model.functions.values()].filter(({ key }) => reached.has(key)).map(({ raw }) => raw);
}

/** Whether the model has a body for the node. */
export function hasFunction({ domain, op, overload }: GraphNode, model: OnnxModel): boolean {
  return model.functions.has(callKey(domain, op, overload));
}

/** A part of a model as a model of its own, with the functions that it calls. */
export function writePart(part: Part, model: OnnxModel): Uint8Array {
  const graph = new Message();
  for (const node of part.nodes) graph.bytes(1, node.raw);
  graph.text(2, model.graphName || 'graph');
  for (const constant of part.initializers) {
    if (constant.sparse) graph.bytes(15, constant.raw);
    else graph.message(5, tensor(constant, model));
  }
  for (const input of part.inputs) graph.bytes(11, input.raw ?? valueInfo(input).finish());
  for (const output of part.outputs) graph.bytes(12, output.raw ?? valueInfo(output).finish());
  const file = new Message();
  for (const field of model.header) file.raw(field);
  file.message(7, graph);
  for (const fn of reachedFunctions(part.nodes, model)) file.bytes(25, fn);
  return file.finish();
}

/**
 * A reader of its own beside the rewriter's (exporter/ir), which makes an object of every message: this one takes a model apart into views of
 * its bytes and knows only the fields that cutting needs. With the writer it adds 3 KB to a page, minified and compressed; protobufjs and
 * ONNX's schema would add 36. test/web/onnx.test.ts holds the two against each other.
 */
import { FlaError } from '../../../ops/error.js';
import { fields, integers, toFloat, toText } from './wire.js';

/** Tensors of at least this many bytes are not copied into the models that are cut out. */
const LARGE = 1024;

/** A number, or a name, or '' where nothing is known. */
export type Dim = number | string;

/** An input, output or inner value of a graph, as far as the file tells. */
export interface ValueType {
  readonly name: string;
  /** TensorProto.DataType; 0 when unknown or no tensor. */
  readonly type: number;
  /** Undefined when the file says nothing. */
  readonly shape?: readonly Dim[];
  /** The ValueInfoProto. */
  readonly raw: Uint8Array;
}

/** A constant of the graph: an initializer, or a Constant node that holds a tensor. */
export interface Initializer {
  readonly name: string;
  readonly type: number;
  readonly dims: readonly number[];
  /** The TensorProto; its name may be another when it comes from a Constant node. */
  readonly raw: Uint8Array;
  /** Its raw_data when that is worth not being copied: a view into the model's bytes. */
  readonly data?: Uint8Array;
  /** Where its data lies outside of the model. */
  readonly external?: { readonly location: string; readonly offset: number };
  /** From sparse_initializer: a SparseTensorProto. */
  readonly sparse: boolean;
}

/** A node of the main graph. */
export interface GraphNode {
  readonly op: string;
  readonly domain: string;
  readonly overload: string;
  readonly name: string;
  /** '' where an optional one is left out. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /** What its nested graphs read from outside. */
  readonly captured: readonly string[];
  /** Everything it may call, itself and what is in its nested graphs: `domain:op:overload`. */
  readonly calls: readonly string[];
  /** The NodeProto. */
  readonly raw: Uint8Array;
}

export interface ModelFunction {
  readonly key: string;
  readonly calls: readonly string[];
  readonly raw: Uint8Array;
}

/** A model taken apart; everything is a view into `bytes`. */
export interface OnnxModel {
  readonly bytes: Uint8Array;
  /** Fields of the model that every part of it has, too: versions, opset imports. */
  readonly header: readonly Uint8Array[];
  readonly graphName: string;
  /** Topologically sorted. */
  readonly nodes: readonly GraphNode[];
  readonly initializers: ReadonlyMap<string, Initializer>;
  /** Without those that have an initializer. */
  readonly inputs: readonly ValueType[];
  readonly outputs: readonly ValueType[];
  readonly infos: ReadonlyMap<string, ValueType>;
  readonly functions: ReadonlyMap<string, ModelFunction>;
  readonly metadata: Readonly<Record<string, string>>;
}

/** ai.onnx is the long name of the default domain. */
function normal(domain: string): string {
  return domain === 'ai.onnx' ? '' : domain;
}

export function callKey(domain: string, op: string, overload: string): string {
  return `${normal(domain)}:${op}:${overload}`;
}

/** `raw` is a message with two strings, key 1 and value 2. */
function entry(raw: Uint8Array): [key: string, value: string] {
  let [key, value] = ['', ''];
  for (const { id, bytes } of fields(raw)) {
    if (id === 1) key = toText(bytes);
    else if (id === 2) value = toText(bytes);
  }
  return [key, value];
}

function readDim(raw: Uint8Array): Dim {
  let dim: Dim = '';
  for (const { id, value, bytes } of fields(raw)) {
    if (id === 1) dim = value;
    else if (id === 2) dim = toText(bytes);
  }
  return dim;
}

/** Type and shape out of TypeProto.Tensor. */
function readTensorType(raw: Uint8Array): { type: number; shape?: Dim[] } {
  let type = 0;
  let shape: Dim[] | undefined;
  for (const { id, value, bytes } of fields(raw)) {
    if (id === 1) type = value;
    else if (id === 2)
      shape = [...fields(bytes)].filter((f) => f.id === 1).map((f) => readDim(f.bytes));
  }
  return { type, shape };
}

function readValue(raw: Uint8Array): ValueType {
  let name = '';
  let tensor: { type: number; shape?: Dim[] } = { type: 0 };
  for (const { id, bytes } of fields(raw)) {
    if (id === 1) name = toText(bytes);
    else if (id === 2)
      for (const type of fields(bytes)) if (type.id === 1) tensor = readTensorType(type.bytes);
  }
  return { name, ...tensor, raw };
}

function externalPlace(
  tensor: string,
  { location, offset = '0' }: Readonly<Record<string, string>>,
): Initializer['external'] {
  if (location && /^\d+$/.test(offset)) return { location, offset: Number(offset) };
  throw new FlaError(
    'invalid_model',
    `tensor '${tensor}': external_data must hold a location and a non-negative offset, received '${location ?? ''}' and '${offset}'`,
  );
}

function readTensor(raw: Uint8Array, as?: string): Initializer {
  let name = '';
  let type = 0;
  let data: Uint8Array | undefined;
  let isExternal = false;
  const dims: number[] = [];
  const where: Record<string, string> = {};
  for (const field of fields(raw)) {
    if (field.id === 1) dims.push(...integers(field));
    else if (field.id === 2) type = field.value;
    else if (field.id === 8) name = toText(field.bytes);
    else if (field.id === 9) data = field.bytes;
    else if (field.id === 13) {
      const [key, value] = entry(field.bytes);
      where[key] = value;
    } else if (field.id === 14) isExternal = field.value === 1;
  }
  const external = isExternal ? externalPlace(as ?? name, where) : undefined;
  if (data && data.length < LARGE) data = undefined;
  return { name: as ?? name, type, dims, raw, data, external, sparse: false };
}

function readSparse(raw: Uint8Array): Initializer {
  for (const { id, bytes } of fields(raw)) {
    if (id === 1) return { ...readTensor(bytes), raw, data: undefined, sparse: true };
  }
  throw new FlaError('invalid_model', 'model: a sparse initializer must have values, it has none');
}

/** What a graph's nodes and outputs read that the graph itself does not make. */
interface NestedFacts {
  readonly captured: Set<string>;
  readonly calls: Set<string>;
}

function readNested(raw: Uint8Array): NestedFacts {
  const captured = new Set<string>();
  const calls = new Set<string>();
  const own = new Set<string>();
  for (const { id, bytes } of fields(raw)) {
    if (id === 1) {
      const node = readNode(bytes);
      for (const value of [...node.inputs, ...node.captured]) captured.add(value);
      for (const value of node.outputs) own.add(value);
      for (const call of node.calls) calls.add(call);
    } else if (id === 5) own.add(readTensor(bytes).name);
    else if (id === 15) own.add(readSparse(bytes).name);
    else if (id === 11) own.add(readValue(bytes).name);
    else if (id === 12) captured.add(readValue(bytes).name);
  }
  for (const value of own) captured.delete(value);
  captured.delete('');
  return { captured, calls };
}

/** Graphs in an AttributeProto. */
function nestedGraphs(attribute: Uint8Array): Uint8Array[] {
  return [...fields(attribute)].filter(({ id }) => id === 6 || id === 11).map(({ bytes }) => bytes);
}

function readNode(raw: Uint8Array): GraphNode {
  const inputs: string[] = [];
  const outputs: string[] = [];
  const captured = new Set<string>();
  let [name, op, domain, overload] = ['', '', '', ''];
  const calls = new Set<string>();
  for (const { id, bytes } of fields(raw)) {
    if (id === 1) inputs.push(toText(bytes));
    else if (id === 2) outputs.push(toText(bytes));
    else if (id === 3) name = toText(bytes);
    else if (id === 4) op = toText(bytes);
    else if (id === 7) domain = normal(toText(bytes));
    else if (id === 8) overload = toText(bytes);
    else if (id === 5)
      for (const graph of nestedGraphs(bytes)) {
        const nested = readNested(graph);
        for (const value of nested.captured) captured.add(value);
        for (const call of nested.calls) calls.add(call);
      }
  }
  calls.add(callKey(domain, op, overload));
  return {
    op,
    domain,
    overload,
    name,
    inputs,
    outputs,
    captured: [...captured],
    calls: [...calls],
    raw,
  };
}

/** A node's attributes that are numbers or strings, by name. */
export function scalarAttributes(node: GraphNode): Record<string, number | string> {
  const attributes: Record<string, number | string> = {};
  for (const field of fields(node.raw)) {
    if (field.id !== 5) continue;
    let name = '';
    let value: number | string | undefined;
    for (const part of fields(field.bytes)) {
      if (part.id === 1) name = toText(part.bytes);
      else if (part.id === 2) value = toFloat(part);
      else if (part.id === 3) value = part.value;
      else if (part.id === 4) value = toText(part.bytes);
    }
    if (value !== undefined) attributes[name] = value;
  }
  return attributes;
}

/** The tensor that a Constant node holds, under the name of its output. */
function constantTensor(node: GraphNode): Initializer | undefined {
  if (node.op !== 'Constant' || node.domain !== '') return undefined;
  for (const field of fields(node.raw)) {
    if (field.id !== 5) continue;
    for (const part of fields(field.bytes))
      if (part.id === 5) return readTensor(part.bytes, node.outputs[0]);
  }
  return undefined;
}

function readFunction(raw: Uint8Array): ModelFunction {
  let [name, domain, overload] = ['', '', ''];
  const calls = new Set<string>();
  for (const { id, bytes } of fields(raw)) {
    if (id === 1) name = toText(bytes);
    else if (id === 10) domain = toText(bytes);
    else if (id === 13) overload = toText(bytes);
    else if (id === 7) for (const call of readNode(bytes).calls) calls.add(call);
  }
  return { key: callKey(domain, name, overload), calls: [...calls], raw };
}

/** Nodes in an order in which every value is made before it is read. */
function sorted(nodes: readonly GraphNode[], known: Iterable<string>): GraphNode[] {
  const made = new Set(known);
  made.add('');
  const ready = (node: GraphNode) =>
    node.inputs.every((value) => made.has(value)) &&
    node.captured.every((value) => made.has(value));
  const order: GraphNode[] = [];
  let waiting = nodes;
  while (waiting.length > 0) {
    const late: GraphNode[] = [];
    for (const node of waiting) {
      if (!ready(node)) {
        late.push(node);
        continue;
      }
      for (const value of node.outputs) made.add(value);
      order.push(node);
    }
    if (late.length === waiting.length) {
      const [node] = late;
      const missing = [...node.inputs, ...node.captured].find((value) => !made.has(value));
      throw new FlaError(
        'invalid_model',
        `model: input '${missing}' of node '${node.name}' (${node.op}) must be made by the graph, nothing makes it before`,
      );
    }
    waiting = late;
  }
  return order;
}

interface GraphParts {
  name: string;
  nodes: GraphNode[];
  initializers: Map<string, Initializer>;
  inputs: ValueType[];
  outputs: ValueType[];
  infos: Map<string, ValueType>;
}

function readGraph(raw: Uint8Array): GraphParts {
  const graph: GraphParts = {
    name: '',
    nodes: [],
    initializers: new Map(),
    inputs: [],
    outputs: [],
    infos: new Map(),
  };
  const addConstant = (constant: Initializer) => graph.initializers.set(constant.name, constant);
  for (const { id, bytes } of fields(raw)) {
    if (id === 1) {
      const node = readNode(bytes);
      const constant = constantTensor(node);
      if (constant) addConstant(constant);
      else graph.nodes.push(node);
    } else if (id === 2) graph.name = toText(bytes);
    else if (id === 5) addConstant(readTensor(bytes));
    else if (id === 15) addConstant(readSparse(bytes));
    else if (id === 11) graph.inputs.push(readValue(bytes));
    else if (id === 12) graph.outputs.push(readValue(bytes));
    else if (id === 13) {
      const info = readValue(bytes);
      graph.infos.set(info.name, info);
    }
  }
  graph.inputs = graph.inputs.filter(({ name }) => !graph.initializers.has(name));
  return graph;
}

/** Versions, producer, opset imports: fields 1 to 6 and 8. */
function isHeader(id: number): boolean {
  return id <= 8 && id !== 7;
}

/**
 * Takes a model apart without copying.
 *
 * @throws FlaError `invalid_model` for what is no ONNX model
 */
export function readModel(bytes: Uint8Array): OnnxModel {
  const header: Uint8Array[] = [];
  const metadata: Record<string, string> = {};
  const functions = new Map<string, ModelFunction>();
  let graph: GraphParts | undefined;
  let imports = 0;
  for (const { id, bytes: content, whole } of fields(bytes)) {
    if (id === 7) graph = readGraph(content);
    else if (id === 14) {
      const [key, value] = entry(content);
      metadata[key] = value;
    } else if (id === 25) {
      const fn = readFunction(content);
      functions.set(fn.key, fn);
    } else if (isHeader(id)) header.push(whole);
    if (id === 8) imports++;
  }
  if (!graph || imports === 0) {
    const missing = graph ? 'opset_import' : 'graph';
    throw new FlaError('invalid_model', `model: not an ONNX model: it has no ${missing}`);
  }
  const { name, nodes, initializers, inputs, outputs, infos } = graph;
  const known = [...initializers.keys(), ...inputs.map((input) => input.name)];
  return {
    bytes,
    header,
    graphName: name,
    nodes: sorted(nodes, known),
    initializers,
    inputs,
    outputs,
    infos,
    functions,
    metadata,
  };
}

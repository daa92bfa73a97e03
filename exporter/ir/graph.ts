import { FlaError } from '../../ops/error.js';
import { type DTypeName, dtypeName } from './dtype.js';
import {
  ATTRIBUTE_TYPE,
  type AttributeProto,
  type FunctionProto,
  type GraphProto,
  type ModelProto,
  type NodeProto,
  type TensorProto,
  toNumber,
  type ValueInfoProto,
} from './proto.js';
import { type ExternalReader, tensorDims, tensorDtype, tensorNumbers } from './tensor.js';

/** What may be written as an attribute's value; numbers become ints unless wrapped in `float()`. */
export type AttributeValue =
  | number
  | string
  | { float: number }
  | { floats: readonly number[] }
  | readonly number[]
  | readonly string[]
  | TensorProto
  | { graph: GraphProto }
  | { ref: string; type: keyof typeof ATTRIBUTE_TYPE };

/** A dimension: its length, a symbolic name, or unknown. */
export type Dim = number | string | undefined;

const utf8 = new TextEncoder();
const text = new TextDecoder();

/** Builds an AttributeProto. */
export function makeAttribute(name: string, value: AttributeValue): AttributeProto {
  if (typeof value === 'number') return { name, type: ATTRIBUTE_TYPE.int, i: value };
  if (typeof value === 'string')
    return { name, type: ATTRIBUTE_TYPE.string, s: utf8.encode(value) };
  if (Array.isArray(value)) {
    return typeof value[0] === 'string'
      ? { name, type: ATTRIBUTE_TYPE.strings, strings: value.map((s) => utf8.encode(s)) }
      : { name, type: ATTRIBUTE_TYPE.ints, ints: [...(value as number[])] };
  }
  if ('float' in value) return { name, type: ATTRIBUTE_TYPE.float, f: value.float };
  if ('floats' in value) return { name, type: ATTRIBUTE_TYPE.floats, floats: [...value.floats] };
  if ('graph' in value) return { name, type: ATTRIBUTE_TYPE.graph, g: value.graph };
  if ('ref' in value) return { name, type: ATTRIBUTE_TYPE[value.type], refAttrName: value.ref };
  return { name, type: ATTRIBUTE_TYPE.tensor, t: value as TensorProto };
}

/** Builds a NodeProto; undefined attribute values are left out. */
export function makeNode(
  opType: string,
  input: readonly string[],
  output: readonly string[],
  attrs: Readonly<Record<string, AttributeValue | undefined>> = {},
  more: { domain?: string; name?: string; overload?: string } = {},
): NodeProto {
  const attribute = Object.entries(attrs)
    .filter((e): e is [string, AttributeValue] => e[1] !== undefined)
    .map(([name, value]) => makeAttribute(name, value));
  return { opType, input: [...input], output: [...output], attribute, ...more };
}

/** Builds a ValueInfoProto of a tensor. */
export function makeValueInfo(name: string, dtype: number, dims?: readonly Dim[]): ValueInfoProto {
  const shape = dims && {
    dim: dims.map((d) =>
      typeof d === 'number' ? { dimValue: d } : d === undefined ? {} : { dimParam: d },
    ),
  };
  return { name, type: { tensorType: { elemType: dtype, ...(shape && { shape }) } } };
}

/** The shape that a ValueInfoProto declares, or undefined when it declares no rank. */
export function valueDims(info: ValueInfoProto | undefined): Dim[] | undefined {
  return info?.type?.tensorType?.shape?.dim.map((d) =>
    // A decoded message answers 0 for a field that the file lacks, so ask what it really holds.
    Object.hasOwn(d, 'dimValue') ? toNumber(d.dimValue) : d.dimParam || undefined,
  );
}

/** One node of a graph: a view of its NodeProto, which stays the place where everything is kept. */
export class Node {
  constructor(
    readonly graph: Graph,
    readonly proto: NodeProto,
  ) {}

  get opType(): string {
    return this.proto.opType;
  }
  /** The operator's domain; the default domain is '' however it is spelled in the file. */
  get domain(): string {
    const d = this.proto.domain ?? '';
    return d === 'ai.onnx' ? '' : d;
  }
  get name(): string {
    return this.proto.name || this.proto.output.find((o) => o) || this.opType;
  }
  get inputs(): readonly string[] {
    return this.proto.input;
  }
  get outputs(): readonly string[] {
    return this.proto.output;
  }
  /** `is('Softmax')` or `is('Attention', 'com.microsoft')`. */
  is(opType: string, domain = ''): boolean {
    return this.opType === opType && this.domain === domain;
  }
  attribute(name: string): AttributeProto | undefined {
    return this.proto.attribute.find((a) => a.name === name);
  }
  int(name: string): number | undefined {
    const a = this.attribute(name);
    return a?.i === undefined ? undefined : toNumber(a.i);
  }
  float(name: string): number | undefined {
    return this.attribute(name)?.f;
  }
  string(name: string): string | undefined {
    const s = this.attribute(name)?.s;
    return s && text.decode(s);
  }
  ints(name: string): number[] | undefined {
    return this.attribute(name)?.ints?.map(toNumber);
  }
  tensor(name: string): TensorProto | undefined {
    return this.attribute(name)?.t;
  }
  /** The node that produces input `i`, looked up through outer graphs; undefined for a graph input. */
  producer(i: number): Node | undefined {
    const value = this.inputs[i];
    return value ? this.graph.producer(value) : undefined;
  }
  /** Nested graphs (the bodies of If, Loop, Scan). */
  get subgraphs(): readonly Graph[] {
    return this.graph.subgraphsOf(this);
  }
}

/** One place where a value is read: input `index` of `node`. */
export interface Use {
  node: Node;
  index: number;
}

/**
 * A graph over its GraphProto. Values are named by strings; an index knows each value's producer and
 * its uses, those in nested graphs included. Edit through the methods, so that the index stays true.
 */
export class Graph {
  private producers = new Map<string, Node>();
  private useIndex = new Map<string, Use[]>();
  private initializers = new Map<string, TensorProto>();
  private infos = new Map<string, ValueInfoProto>();
  private nested = new Map<NodeProto, Graph[]>();
  private nodeList: Node[] = [];
  private stale = true;

  constructor(
    readonly proto: GraphProto,
    readonly model: Model,
    readonly parent?: Graph,
  ) {}

  /** All nodes of this graph (not of nested ones), in file order. */
  get nodes(): readonly Node[] {
    this.refresh();
    return this.nodeList;
  }
  get inputs(): readonly ValueInfoProto[] {
    return this.proto.input;
  }
  get outputs(): readonly ValueInfoProto[] {
    return this.proto.output;
  }

  /** The main graph. */
  get root(): Graph {
    return this.parent?.root ?? this;
  }

  /** Every node here and below, outer graphs first. */
  *walk(): Generator<Node> {
    for (const node of this.nodes) {
      yield node;
      for (const sub of node.subgraphs) yield* sub.walk();
    }
  }

  /** The node that produces a value, here or in an outer graph. */
  producer(value: string): Node | undefined {
    this.refresh();
    return this.producers.get(value) ?? this.parent?.producer(value);
  }
  /** Where a value is read, nested graphs included; graph outputs are not uses (see isOutput). */
  uses(value: string): readonly Use[] {
    this.refresh();
    return this.useIndex.get(value) ?? [];
  }
  isOutput(value: string): boolean {
    return this.proto.output.some((o) => o.name === value);
  }
  isInput(value: string): boolean {
    return this.proto.input.some((i) => i.name === value) && !this.initializers.has(value);
  }
  /** The initializer of that name, here or in an outer graph. */
  initializer(value: string): TensorProto | undefined {
    this.refresh();
    return this.initializers.get(value) ?? this.parent?.initializer(value);
  }
  /**
   * The constant behind a value: an initializer, or a Constant node's tensor, looked through Identity.
   * Undefined when the value is computed.
   */
  constant(value: string): TensorProto | undefined {
    const init = this.initializer(value);
    if (init) return init;
    const node = this.producer(value);
    if (node?.is('Identity')) return this.constant(node.inputs[0]!);
    return node?.is('Constant') ? constantTensor(node) : undefined;
  }
  /** A constant's elements as numbers; undefined when it is no numeric constant of at most `limit`. */
  numbers(value: string, limit = 4096): number[] | undefined {
    const t = value ? this.constant(value) : undefined;
    if (!t || tensorDtype(t) === 'string') return undefined;
    if (tensorDims(t).reduce((a, b) => a * b, 1) > limit) return undefined;
    return [...tensorNumbers(t, this.model.external)];
  }
  /** A constant with exactly one element. */
  scalar(value: string): number | undefined {
    const all = this.numbers(value, 1);
    return all?.length === 1 ? all[0] : undefined;
  }
  /** Declared type information of a value (inputs, outputs and value_info). */
  info(value: string): ValueInfoProto | undefined {
    this.refresh();
    return this.infos.get(value) ?? this.parent?.info(value);
  }
  /** Declared or constant shape of a value. */
  dims(value: string): Dim[] | undefined {
    const t = this.constant(value);
    return t ? tensorDims(t) : valueDims(this.info(value));
  }
  /** Declared or constant element type of a value. */
  dtype(value: string): DTypeName | undefined {
    const t = this.constant(value);
    return t ? tensorDtype(t) : dtypeName(this.info(value)?.type?.tensorType?.elemType);
  }
  subgraphsOf(node: Node): readonly Graph[] {
    let subs = this.nested.get(node.proto);
    if (!subs) {
      const protos = node.proto.attribute.flatMap((a) => [
        ...(a.g ? [a.g] : []),
        ...(a.graphs ?? []),
      ]);
      subs = protos.map((g) => new Graph(g, this.model, this));
      this.nested.set(node.proto, subs);
    }
    return subs;
  }

  /** Adds nodes, before node `before` when given, else at the end. */
  insert(nodes: readonly NodeProto[], before?: Node): void {
    const at = before ? this.proto.node.indexOf(before.proto) : this.proto.node.length;
    this.proto.node.splice(at < 0 ? this.proto.node.length : at, 0, ...nodes);
    this.touch();
  }
  remove(nodes: Iterable<Node>): void {
    const gone = new Set([...nodes].map((n) => n.proto));
    this.proto.node = this.proto.node.filter((n) => !gone.has(n));
    this.touch();
  }
  /** Replaces input `index` of a node ('' drops an optional one). */
  setInput(node: Node, index: number, value: string): void {
    while (node.proto.input.length <= index) node.proto.input.push('');
    node.proto.input[index] = value;
    node.graph.touch();
  }
  /** Every reader of `from`, nested graphs included, reads `to` instead; graph outputs keep their names. */
  replaceUses(from: string, to: string, except: (use: Use) => boolean = () => false): void {
    for (const use of [...this.uses(from)]) {
      if (!except(use)) use.node.proto.input[use.index] = to;
    }
    for (const node of this.walk()) {
      for (const sub of node.subgraphs) renameOutputs(sub.proto, from, to);
    }
    this.touch();
  }
  /** Gives the value that `node` produces at `index` a new name, its readers following. */
  renameOutput(node: Node, index: number, name: string): void {
    const old = node.proto.output[index]!;
    node.proto.output[index] = name;
    this.touch();
    this.replaceUses(old, name);
  }
  addInitializer(tensor: TensorProto): string {
    this.proto.initializer.push(tensor);
    this.touch();
    return tensor.name!;
  }
  addInput(info: ValueInfoProto): void {
    this.proto.input.push(info);
    this.touch();
  }
  addOutput(info: ValueInfoProto): void {
    this.proto.output.push(info);
    this.touch();
  }
  removeInput(name: string): void {
    this.proto.input = this.proto.input.filter((i) => i.name !== name);
    this.touch();
  }
  removeOutput(name: string): void {
    this.proto.output = this.proto.output.filter((o) => o.name !== name);
    this.touch();
  }
  /** A value name that nothing in the model uses, starting with `stem`. */
  fresh(stem: string): string {
    return this.model.fresh(stem);
  }

  /** Removes nodes, initializers and value_info that no output depends on. Returns how many nodes. */
  removeDead(): number {
    const live = new Set<NodeProto>();
    const stack = this.proto.output.map((o) => o.name);
    const seen = new Set<string>();
    this.refresh();
    while (stack.length > 0) {
      const value = stack.pop()!;
      if (seen.has(value)) continue;
      seen.add(value);
      const node = this.producers.get(value);
      if (!node || live.has(node.proto)) continue;
      live.add(node.proto);
      stack.push(...node.inputs.filter((v) => v), ...captured(node));
    }
    const before = this.proto.node.length;
    this.proto.node = this.proto.node.filter((n) => live.has(n));
    this.proto.initializer = this.proto.initializer.filter((t) => seen.has(t.name ?? ''));
    const made = new Set([...seen, ...this.proto.node.flatMap((n) => n.output)]);
    this.proto.valueInfo = this.proto.valueInfo.filter((v) => made.has(v.name));
    this.touch();
    return before - this.proto.node.length;
  }

  /** Puts nodes into topological order, otherwise keeping file order. @throws FlaError on a cycle */
  sort(): void {
    this.refresh();
    const state = new Map<NodeProto, 'open' | 'done'>();
    const order: NodeProto[] = [];
    const visit = (first: Node) => {
      const stack: { node: Node; next: string[] }[] = [];
      const open = (node: Node) => {
        state.set(node.proto, 'open');
        stack.push({ node, next: [...node.inputs, ...captured(node)].reverse() });
      };
      open(first);
      while (stack.length > 0) {
        const top = stack[stack.length - 1]!;
        const value = top.next.pop();
        if (value === undefined) {
          state.set(top.node.proto, 'done');
          order.push(top.node.proto);
          stack.pop();
          continue;
        }
        const producer = value ? this.producers.get(value) : undefined;
        if (!producer) continue;
        const s = state.get(producer.proto);
        if (s === 'open') {
          throw new FlaError(
            'invalid_model',
            `graph '${this.proto.name ?? ''}': node '${producer.name}' (${producer.opType}) depends on its own output`,
          );
        }
        if (!s) open(producer);
      }
    };
    for (const node of this.nodeList) if (!state.has(node.proto)) visit(node);
    this.proto.node = order;
    this.touch();
  }

  /** Marks the index as out of date, here and in every outer graph (their uses include ours). */
  touch(): void {
    this.stale = true;
    this.parent?.touch();
  }

  private refresh(): void {
    if (!this.stale) return;
    this.stale = false;
    const old = new Map(this.nodeList.map((n) => [n.proto, n]));
    this.nodeList = this.proto.node.map((p) => old.get(p) ?? new Node(this, p));
    this.producers = new Map();
    this.useIndex = new Map();
    this.initializers = new Map(this.proto.initializer.map((t) => [t.name ?? '', t]));
    this.infos = new Map();
    for (const list of [this.proto.valueInfo, this.proto.input, this.proto.output]) {
      for (const info of list) this.infos.set(info.name, info);
    }
    for (const node of this.nodeList) {
      for (const out of node.outputs) if (out) this.producers.set(out, node);
    }
    for (const node of this.walk()) {
      node.inputs.forEach((value, index) => {
        if (!value) return;
        const uses = this.useIndex.get(value);
        if (uses) uses.push({ node, index });
        else this.useIndex.set(value, [{ node, index }]);
      });
    }
  }
}

/** Values that a node's nested graphs take from outside them. */
export function captured(node: Node): string[] {
  return node.subgraphs.flatMap(free);
}

/** Values that a graph reads and does not have itself; its own may have the names of outer ones, as in Optimum's merged decoders. */
function free(graph: Graph): string[] {
  const { proto } = graph;
  const own = new Set([
    ...proto.input.map((i) => i.name),
    ...proto.initializer.map((t) => t.name),
    ...proto.node.flatMap((n) => n.output),
  ]);
  const read = graph.nodes.flatMap((n) => [...n.inputs.filter((v) => v), ...captured(n)]);
  return [...read, ...proto.output.map((o) => o.name)].filter((v) => !own.has(v));
}

function renameOutputs(graph: GraphProto, from: string, to: string): void {
  // A nested graph may hand an outer value straight through as its output.
  const own = graph.node.some((n) => n.output.includes(from));
  if (own) return;
  for (const out of graph.output) if (out.name === from) out.name = to;
}

/** The tensor a Constant node stands for, in whichever attribute it is written. */
function constantTensor(node: Node): TensorProto | undefined {
  const a = node.proto.attribute[0];
  if (!a) return undefined;
  const name = node.outputs[0]!;
  switch (a.name) {
    case 'value':
      return a.t;
    case 'value_float':
      return { name, dataType: 1, dims: [], floatData: [a.f ?? 0] };
    case 'value_int':
      return { name, dataType: 7, dims: [], int64Data: [a.i ?? 0] };
    case 'value_floats':
      return { name, dataType: 1, dims: [a.floats?.length ?? 0], floatData: a.floats ?? [] };
    case 'value_ints':
      return { name, dataType: 7, dims: [a.ints?.length ?? 0], int64Data: a.ints ?? [] };
    default:
      return undefined;
  }
}

/** A model: its ModelProto, its main graph, and where its external data is read from. */
export class Model {
  readonly graph: Graph;
  private names?: Set<string>;
  private counters = new Map<string, number>();

  /**
   * @param proto decoded model; edited in place
   * @param external reads external tensor data; needed only when the model has some
   */
  constructor(
    readonly proto: ModelProto,
    readonly external?: ExternalReader,
  ) {
    this.graph = new Graph(proto.graph, this);
  }

  /** The version imported of a domain ('' is the default one), or undefined. */
  opset(domain = ''): number | undefined {
    const found = this.proto.opsetImport.find((o) => normal(o.domain) === normal(domain));
    return found && toNumber(found.version);
  }
  /** Imports at least `version` of a domain. */
  requireOpset(domain: string, version: number): void {
    const found = this.proto.opsetImport.find((o) => normal(o.domain) === normal(domain));
    if (!found) this.proto.opsetImport.push({ domain, version });
    else if (toNumber(found.version) < version) found.version = version;
  }
  get functions(): readonly FunctionProto[] {
    return this.proto.functions;
  }
  /** Adds a model-local function unless one of the same domain, name and overload is there. */
  addFunction(fn: FunctionProto): void {
    const same = (f: FunctionProto) =>
      f.name === fn.name && f.domain === fn.domain && (f.overload ?? '') === (fn.overload ?? '');
    if (!this.proto.functions.some(same)) this.proto.functions.push(fn);
  }
  metadata(key: string): string | undefined {
    return this.proto.metadataProps.find((p) => p.key === key)?.value;
  }
  setMetadata(key: string, value: string): void {
    const found = this.proto.metadataProps.find((p) => p.key === key);
    if (found) found.value = value;
    else this.proto.metadataProps.push({ key, value });
  }
  /** A value name that nothing in the model uses yet; remembered as used. */
  fresh(stem: string): string {
    this.names ??= allNames(this.graph);
    if (!this.names.has(stem)) {
      this.names.add(stem);
      return stem;
    }
    let n = this.counters.get(stem) ?? 0;
    let name: string;
    do name = `${stem}_${++n}`;
    while (this.names.has(name));
    this.counters.set(stem, n);
    this.names.add(name);
    return name;
  }
}

function normal(domain: string | undefined): string {
  return domain === 'ai.onnx' ? '' : (domain ?? '');
}

function allNames(graph: Graph): Set<string> {
  const names = new Set<string>();
  const add = (g: Graph) => {
    for (const v of [...g.inputs, ...g.outputs]) names.add(v.name);
    for (const t of g.proto.initializer) names.add(t.name ?? '');
  };
  add(graph);
  for (const node of graph.walk()) {
    for (const v of [...node.inputs, ...node.outputs, node.proto.name ?? '']) names.add(v);
    for (const sub of node.subgraphs) add(sub);
  }
  return names;
}

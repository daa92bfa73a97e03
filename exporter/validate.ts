import { FlaError } from '../ops/error.js';
import { type FunctionProto, Graph, type Model, type Node } from './ir/index.js';

/** Operators of ai.onnx that take any number of inputs, none of which may be left out; ONNX Runtime crashes on some that are. */
const VARIADIC = new Set(['Concat', 'Einsum', 'Max', 'Mean', 'Min', 'SequenceConstruct', 'Sum']);

/**
 * Checks that a model is well formed: every value has one producer, every value read is produced somewhere,
 * every output exists, and no node depends on itself, in the functions of the model too.
 *
 * @throws FlaError `invalid_model` naming the node or value
 */
export function validateModel(model: Model): void {
  checkGraph(model.graph, () => false);
  for (const fn of model.functions) checkGraph(bodyOf(fn, model), () => false);
}

/** The body of a function as a graph. */
function bodyOf(fn: FunctionProto, model: Model): Graph {
  const values = (names: readonly string[]) => names.map((name) => ({ name }));
  const proto = { node: fn.node, initializer: [], valueInfo: [], name: `${fn.domain}.${fn.name}` };
  return new Graph({ ...proto, input: values(fn.input), output: values(fn.output) }, model);
}

function checkGraph(graph: Graph, outer: (value: string) => boolean): void {
  const own = new Set<string>();
  const known = (value: string) => own.has(value) || outer(value);
  const define = (name: string, where: string) => {
    if (own.has(name)) throw invalid(graph, `value '${name}' is produced twice, again by ${where}`);
    own.add(name);
  };
  for (const input of graph.inputs) define(input.name, 'a graph input');
  for (const t of graph.proto.initializer) {
    // Before IR version 4 initializers were listed as inputs too.
    if (!own.has(t.name ?? '')) define(t.name ?? '', 'an initializer');
  }
  for (const t of graph.proto.sparseInitializer ?? [])
    define(t.values?.name ?? '', 'an initializer');
  for (const node of graph.nodes) {
    if (!node.opType) throw invalid(graph, `node '${node.name}' has no op_type`);
    if (VARIADIC.has(node.opType) && node.is(node.opType) && node.inputs.includes('')) {
      throw invalid(graph, `${describe(node)} leaves out an input, all of which it must have`);
    }
    for (const out of node.outputs) if (out) define(out, describe(node));
  }
  for (const node of graph.nodes) {
    for (const value of node.inputs) {
      if (value && !known(value)) {
        throw invalid(graph, `${describe(node)} reads '${value}', which nothing produces`);
      }
    }
    for (const sub of node.subgraphs) checkGraph(sub, known);
  }
  for (const out of graph.outputs) {
    if (!known(out.name)) throw invalid(graph, `output '${out.name}' is not produced by any node`);
  }
  checkCycles(graph);
}

/** Kahn's algorithm: nodes that never become ready lie on, or behind, a cycle. */
function checkCycles(graph: Graph): void {
  const waiting = new Map<Node, number>();
  const readers = new Map<Node, Node[]>();
  for (const node of graph.nodes) {
    let count = 0;
    for (const value of node.valuesRead()) {
      const producer = graph.producer(value);
      if (!producer || producer.graph !== graph) continue;
      count++;
      const known = readers.get(producer);
      if (known) known.push(node);
      else readers.set(producer, [node]);
    }
    waiting.set(node, count);
  }
  const ready = graph.nodes.filter((n) => waiting.get(n) === 0);
  let done = 0;
  for (let node = ready.pop(); node; node = ready.pop()) {
    done++;
    for (const reader of readers.get(node) ?? []) {
      const left = waiting.get(reader)! - 1;
      waiting.set(reader, left);
      if (left === 0) ready.push(reader);
    }
  }
  if (done === graph.nodes.length) return;
  const stuck = graph.nodes.find((n) => waiting.get(n)! > 0)!;
  throw invalid(graph, `${describe(stuck)} depends on its own output`);
}

function describe(node: Node): string {
  return `node '${node.name}' (${node.opType})`;
}

function invalid(graph: Graph, what: string): FlaError {
  return new FlaError('invalid_model', `graph '${graph.proto.name ?? ''}': ${what}`);
}

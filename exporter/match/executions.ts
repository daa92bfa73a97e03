import { type FunctionProto, Graph, type Model, type Node } from '../ir/index.js';

/** The number that a value is known to be. */
type Scalar = (value: string) => number | undefined;

/** Counts how many nodes are run for a node of a model, whose Loops and functions may ask for any number of them. */
export class Executions {
  private readonly functions = new Map<string, FunctionProto>();
  private readonly known = new Map<FunctionProto, number>();

  constructor(private readonly model: Model) {
    for (const fn of model.functions) this.functions.set(key(fn.domain, fn.name, fn.overload), fn);
  }

  /** Itself, or what it calls, and the graphs nested in it as often as a Loop runs them; Infinity where nothing says how often. */
  of(node: Node, scalar: Scalar): number {
    const { domain, opType, overload } = node.proto;
    const fn = this.functions.get(key(domain, opType, overload));
    if (fn) return this.call(fn);
    const times = node.is('Loop') ? (scalar(node.inputs[0] ?? '') ?? Infinity) : 1;
    const inner = node.subgraphs.map((sub) => this.graph(sub, scalar));
    return Math.max(1, times) * Math.max(1, sum(inner));
  }

  private graph(graph: Graph, outer: Scalar): number {
    const scalar = (value: string) => graph.scalar(value) ?? outer(value);
    return sum(graph.nodes.map((node) => this.of(node, scalar)));
  }

  private call(fn: FunctionProto): number {
    let count = this.known.get(fn);
    if (count === undefined) {
      this.known.set(fn, Infinity); // for one that calls itself
      const proto = { node: fn.node, initializer: [], input: [], output: [], valueInfo: [] };
      count = this.graph(new Graph(proto, this.model), () => undefined);
      this.known.set(fn, count);
    }
    return count;
  }
}

function key(domain = '', name = '', overload = ''): string {
  return `${domain === 'ai.onnx' ? '' : domain}|${name}|${overload}`;
}

function sum(counts: readonly number[]): number {
  return counts.reduce((total, n) => total + n, 0);
}

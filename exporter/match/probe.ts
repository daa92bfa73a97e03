import type { Graph, Node } from '../ir/index.js';
import { Facts } from './facts.js';
import type { Runner } from './runner.js';
import { feedsFor, inputShapes, type Situation } from './situation.js';
import { cutOut } from './submodel.js';

/** A computed value: row-major numbers. */
export interface Probed {
  readonly dims: readonly number[];
  readonly data: Float32Array;
}

/** Runs parts of a model on made-up inputs, to learn what its masks and positions are. */
export class Prober {
  constructor(
    readonly graph: Graph,
    readonly runner: Runner,
  ) {}

  /** Which graph inputs the values of `values` depend on (not those of which only the shape matters), or why unknown. */
  inputs(values: readonly string[], s: Situation): readonly string[] | string {
    const sub = this.cut(values, s);
    return typeof sub === 'string' ? sub : sub.inputs;
  }

  /** Computes values in a situation. @returns them in order, or why that is impossible */
  async run(values: readonly string[], s: Situation): Promise<Probed[] | string> {
    const sub = this.cut(values, s);
    if (typeof sub === 'string') return sub;
    const feeds = feedsFor(this.graph, sub.inputs, inputShapes(this.graph, s), s);
    if (typeof feeds === 'string') return feeds;
    const names = values.map((v) => sub.outputs.get(v)!);
    try {
      const results = await this.runner.run(sub.bytes, feeds, names);
      return names.map((n) => ({ dims: results[n]!.dims, data: results[n]!.data as Float32Array }));
    } catch (error) {
      return `it could not be run: ${(error as Error).message.split('\n')[0]}`;
    }
  }

  private cut(values: readonly string[], s: Situation) {
    return cutOut(this.graph, values, new Facts(this.graph, inputShapes(this.graph, s)), heavy);
  }
}

/** Masks and positions are index arithmetic; what multiplies matrices is made from the text itself. */
function heavy(node: Node): string | undefined {
  return /^(Mat|Gemm|Conv|Softmax|Einsum|Attention|LayerNorm|LSTM|GRU|Loop|Scan|If)/.test(
    node.opType,
  ) && !constantInputs(node)
    ? `it depends on hidden states, through ${node.opType} '${node.name}'`
    : undefined;
}

function constantInputs(node: Node): boolean {
  return node.inputs.every((v) => !v || node.graph.constant(v));
}

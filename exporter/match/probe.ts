import { FlaError } from '../../ops/error.js';
import type { Dim, Graph, Node } from '../ir/index.js';
import { Facts } from './facts.js';
import type { Runner } from './runner.js';
import { batchOf, feedsFor, inputShapes, roleOf, type Situation } from './situation.js';
import { cutOut, type Submodel } from './submodel.js';

/** A computed value: row-major numbers. */
export interface Probed {
  readonly dims: readonly number[];
  readonly data: Float32Array;
}

/** Runs parts of a model on made-up inputs, to learn what its masks and positions are. */
export class Prober {
  private readonly factsOf = new Map<string, Facts>();

  constructor(
    readonly graph: Graph,
    readonly runner: Runner,
    private readonly onesHide = false,
  ) {}

  /** The same for mask inputs whose ones hide keys: they get zeros where others get ones, and the other way. */
  turned(): Prober {
    return new Prober(this.graph, this.runner, true);
  }

  /** Which graph inputs the values of `values` depend on (not those of which only the shape matters), or why unknown. */
  inputs(values: readonly string[], s: Situation): readonly string[] | string {
    const sub = this.cut(values, s);
    return typeof sub === 'string' ? sub : sub.valueInputs;
  }

  /** Computes values in a situation. @returns them in order, or why that is impossible */
  async run(values: readonly string[], s: Situation): Promise<Probed[] | string> {
    return this.execute(this.cut(values, s), values, s);
  }

  /** The shape of a value in a situation, as far as it follows from the inputs'. */
  dims(value: string, s: Situation): Dim[] | undefined {
    return this.facts(s).dims(value);
  }

  /** Shapes of values, dimensions that change with batch or length being undefined; or why they are not known. */
  async shapes(values: readonly string[]): Promise<(number | undefined)[][] | string> {
    const runs: Probed[][] = [];
    const cached = this.graph.root.inputs.some(
      ({ name }) => roleOf(this.graph.root, name) === 'past',
    );
    for (const s of [
      { batch: batchOf(this.graph, 2), tokens: 5, past: cached ? 2 : 0 },
      { batch: batchOf(this.graph, 3), tokens: 7, past: cached ? 4 : 0 },
    ]) {
      const sub = cutOut(this.graph, { values, shapes: true }, this.facts(s));
      const run = await this.execute(sub, values, s);
      if (typeof run === 'string') return run;
      runs.push(run);
    }
    const [first, second] = runs;
    return first!.map(({ data }, v) =>
      [...data].map((d, i) => (second![v]!.data[i] === d ? d : undefined)),
    );
  }

  private async execute(
    sub: Submodel | string,
    values: readonly string[],
    s: Situation,
  ): Promise<Probed[] | string> {
    if (typeof sub === 'string') return sub;
    const feeds = feedsFor(this.graph, sub.inputs, inputShapes(this.graph, s), {
      ...s,
      onesHide: this.onesHide,
    });
    if (typeof feeds === 'string') return feeds;
    const names = values.map((v) => sub.outputs.get(v)!);
    try {
      const results = await this.runner.run(sub.bytes, feeds, names);
      return names.map((n) => ({ dims: results[n]!.dims, data: results[n]!.data as Float32Array }));
    } catch (error) {
      if (error instanceof FlaError) throw error; // no runtime, rather than a model it refuses
      return `it could not be run: ${(error as Error).message.split('\n')[0]}`;
    }
  }

  private cut(values: readonly string[], s: Situation): Submodel | string {
    return cutOut(this.graph, { values }, this.facts(s), heavy);
  }

  /** Shapes in a situation; kept, since many values are probed in the same ones. */
  private facts({ batch, tokens, past }: Situation): Facts {
    const key = `${batch},${tokens},${past}`;
    const shapes = () => inputShapes(this.graph, { batch, tokens, past });
    const known = this.factsOf.get(key) ?? Facts.of(this.graph, shapes());
    this.factsOf.set(key, known);
    return known;
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

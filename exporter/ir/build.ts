import { DATA_TYPE, type DTypeName } from './dtype.js';
import { type AttributeValue, type Dim, Model, makeNode, makeValueInfo } from './graph.js';
import type { FunctionProto, GraphProto, NodeProto, TensorProto, ValueInfoProto } from './proto.js';
import { makeTensor } from './tensor.js';

/**
 * Writes nodes one after the other and hands out the names of their outputs, so that a chain of
 * operators reads like an expression:
 *
 *     const e = new Emitter((stem) => graph.fresh(stem), 'attn/');
 *     const y = e.op('MatMul', [e.op('Transpose', [x], { perm: [0, 2, 1] }), w]);
 *     graph.insert(e.nodes, before);
 *
 * Constants become Constant nodes, which are legal in functions and nested graphs alike; equal
 * constants of one emitter are shared.
 */
export class Emitter {
  readonly nodes: NodeProto[] = [];
  private readonly constants = new Map<string, string>();

  /**
   * @param fresh hands out unused value names
   * @param prefix put before every name made here
   */
  constructor(
    private readonly fresh: (stem: string) => string,
    private readonly prefix = '',
  ) {}

  /** Adds a node with one output, which it names (or `output`, when given). */
  op(
    opType: string,
    inputs: readonly string[],
    attrs: Readonly<Record<string, AttributeValue | undefined>> = {},
    more: { domain?: string; overload?: string; output?: string } = {},
  ): string {
    const { output, ...rest } = more;
    const out = output ?? this.name(opType);
    this.nodes.push(
      makeNode(opType, inputs, [out], attrs, { ...rest, name: this.name(`${opType}_node`) }),
    );
    return out;
  }

  /** Adds a node with several outputs: a count (they are named here) or their names ('' = unused). */
  ops(
    opType: string,
    inputs: readonly string[],
    outputs: number | readonly string[],
    attrs: Readonly<Record<string, AttributeValue | undefined>> = {},
    more: { domain?: string; overload?: string } = {},
  ): string[] {
    const outs =
      typeof outputs === 'number'
        ? Array.from({ length: outputs }, (_, i) => this.name(`${opType}_${i}`))
        : [...outputs];
    this.nodes.push(
      makeNode(opType, inputs, outs, attrs, { ...more, name: this.name(`${opType}_node`) }),
    );
    return outs;
  }

  /** A constant tensor; `dims` defaults to a vector of the values, `[]` makes a scalar. */
  constant(
    dtype: DTypeName,
    values: readonly number[],
    dims: readonly number[] = [values.length],
  ): string {
    const key = `${dtype}|${dims}|${values.map((v) => (Object.is(v, -0) ? '-0' : v))}`;
    let name = this.constants.get(key);
    if (!name) {
      name = this.op('Constant', [], { value: makeTensor('', dtype, dims, values) });
      this.constants.set(key, name);
    }
    return name;
  }
  /** An int64 vector constant. */
  ints(...values: number[]): string {
    return this.constant('int64', values);
  }
  /** A scalar constant of a floating-point type. */
  scalar(value: number, dtype: DTypeName = 'float32'): string {
    return this.constant(dtype, [value], []);
  }

  private name(stem: string): string {
    return this.fresh(`${this.prefix}${stem}`);
  }
}

/** Counts names up from a stem: the `fresh` of an emitter for a function or a nested graph. */
export function freshNames(): (stem: string) => string {
  const counts = new Map<string, number>();
  return (stem) => {
    const n = counts.get(stem) ?? 0;
    counts.set(stem, n + 1);
    return n === 0 ? stem : `${stem}_${n}`;
  };
}

/** A value declared with its element type and shape, as in `{ x: ['float32', ['B', 4]] }`. */
export type ValueSpec = readonly [dtype: DTypeName, dims?: readonly Dim[]];

/** What `buildModel` puts together. */
export interface ModelSpec {
  inputs: Readonly<Record<string, ValueSpec>>;
  outputs: Readonly<Record<string, ValueSpec>>;
  nodes: readonly NodeProto[];
  initializers?: readonly TensorProto[];
  functions?: readonly FunctionProto[];
  /** Versions by domain; default `{ '': 17 }`. */
  opsets?: Readonly<Record<string, number>>;
  irVersion?: number;
  name?: string;
  metadata?: Readonly<Record<string, string>>;
}

/** Builds a model from plain parts; nothing is checked. */
export function buildModel(spec: ModelSpec): Model {
  return new Model({
    irVersion: spec.irVersion ?? (spec.functions?.length ? 10 : 8),
    producerName: 'onnx-fla',
    graph: buildGraph(spec),
    opsetImport: Object.entries(spec.opsets ?? { '': 17 }).map(([domain, version]) => ({
      domain,
      version,
    })),
    metadataProps: Object.entries(spec.metadata ?? {}).map(([key, value]) => ({ key, value })),
    functions: [...(spec.functions ?? [])],
  });
}

/** Builds a graph (a main graph, or the body of an If, Loop or Scan) from plain parts. */
export function buildGraph(
  spec: Pick<ModelSpec, 'inputs' | 'outputs' | 'nodes' | 'initializers' | 'name'>,
): GraphProto {
  const infos = (values: Readonly<Record<string, ValueSpec>>): ValueInfoProto[] =>
    Object.entries(values).map(([name, [dtype, dims]]) =>
      makeValueInfo(name, DATA_TYPE[dtype], dims),
    );
  return {
    name: spec.name ?? 'main',
    node: [...spec.nodes],
    initializer: [...(spec.initializers ?? [])],
    input: infos(spec.inputs),
    output: infos(spec.outputs),
    valueInfo: [],
  };
}

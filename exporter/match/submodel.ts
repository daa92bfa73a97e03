import {
  buildModel,
  byteLength,
  DATA_TYPE,
  elementCount,
  externalLocation,
  type Graph,
  makeNode,
  makeTensor,
  modelBytes,
  type Node,
  type NodeProto,
  type TensorProto,
  tensorBytes,
  tensorDims,
  tensorDtype,
  toNumber,
  type ValueSpec,
} from '../ir/index.js';
import { Executions } from './executions.js';
import type { Facts } from './facts.js';

const NODE_LIMIT = 4000;
const RUN_LIMIT = 2 ** 18; // of nodes, each as often as Loops run it
const BYTE_LIMIT = 256 * 2 ** 20; // weights copied into a probe
const ELEMENT_LIMIT = 2 ** 28; // of any value in a probe

/** A small model that computes some values of a larger one. */
export interface Submodel {
  readonly bytes: Uint8Array;
  /** Graph inputs of the larger model that it reads. */
  readonly inputs: readonly string[];
  /** Those among them whose values matter, not only their shape. */
  readonly valueInputs: readonly string[];
  /** Name in the submodel of each value asked for; all of them are float32 there. */
  readonly outputs: ReadonlyMap<string, string>;
}

/** What to cut out: values, or their shapes. */
export interface Wanted {
  readonly values: readonly string[];
  /** Ask for the values' shapes instead. */
  readonly shapes?: boolean;
}

/**
 * Cuts out what computes `values`. Shapes that `facts` knows as numbers become constants, so that what is
 * only needed for its shape is left out, as far as possible.
 *
 * @param refuse names what the values must not depend on (a reason), such as hidden states; shapes may
 * @returns the submodel, or why there is none
 */
export function cutOut(
  graph: Graph,
  wanted: Wanted,
  facts: Facts,
  refuse: (node: Node) => string | undefined = () => undefined,
): Submodel | string {
  const nodes = new Map<NodeProto, NodeProto>();
  const inputs = new Set<string>();
  const valueInputs = new Set<string>();
  const weights = new Map<string, TensorProto>();
  const seen = { value: new Set<string>(), shape: new Set<string>() };
  const stack = wanted.values.map((value) => ({ value, forShape: wanted.shapes ?? false }));
  let bytes = 0;
  let runs = 0;
  const executions = new Executions(graph.model);
  while (stack.length > 0) {
    const { value, forShape } = stack.pop()!;
    if (!value || seen.value.has(value) || (forShape && seen.shape.has(value))) continue;
    (forShape ? seen.shape : seen.value).add(value);
    const init = graph.initializer(value);
    const node = graph.producer(value);
    if (init) {
      if (!weights.has(value))
        bytes += byteLength(tensorDtype(init), elementCount(tensorDims(init))) ?? 0;
      if (bytes > BYTE_LIMIT) return `more than ${BYTE_LIMIT} bytes of weights lie behind it`;
      weights.set(value, inlined(init, graph));
    } else if (!node) {
      inputs.add(value);
      if (!forShape) valueInputs.add(value);
    } else {
      const constant = shapeConstant(node, facts);
      const reason = constant || forShape ? undefined : refuse(node);
      if (reason) return reason;
      nodes.set(node.proto, constant ?? node.proto);
      const huge = node.outputs.find((v) => v && isHuge(v, facts));
      if (huge) return `'${huge}' would be too large: [${facts.dims(huge)}]`;
      if (nodes.size > NODE_LIMIT) return `more than ${NODE_LIMIT} nodes lie behind it`;
      if (constant) continue;
      runs += executions.of(node, (v) => facts.scalar(v));
      if (runs > RUN_LIMIT)
        return `${node.opType} '${node.name}' behind it may run more than ${RUN_LIMIT} nodes`;
      for (const read of node.valuesRead())
        stack.push({ value: read, forShape: forShape || node.is('Shape') });
    }
  }
  const model = assemble(graph, wanted, [...nodes.values()], inputs, weights);
  return typeof model === 'string' ? model : { ...model, valueInputs: [...valueInputs] };
}

function isHuge(value: string, facts: Facts): boolean {
  const dims = facts.dims(value) ?? [];
  return dims.reduce((n: number, d) => n * (typeof d === 'number' ? d : 1), 1) > ELEMENT_LIMIT;
}

function assemble(
  graph: Graph,
  { values, shapes }: Wanted,
  nodes: readonly NodeProto[],
  inputs: ReadonlySet<string>,
  weights: ReadonlyMap<string, TensorProto>,
): Omit<Submodel, 'valueInputs'> | string {
  const unknown = [...inputs].find(
    (i) => graph.dtype(i) === undefined || graph.dtype(i) === 'undefined',
  );
  if (unknown !== undefined) return `'${unknown}' has no declared type`;
  const outputs = new Map(values.map((v, i) => [v, `probe_output_${i}`]));
  const casts = [...outputs].flatMap(([v, name]) => [
    ...(shapes ? [makeNode('Shape', [v], [`${name}_shape`])] : []),
    makeNode('Cast', [shapes ? `${name}_shape` : v], [name], { to: DATA_TYPE.float32 }),
  ]);
  const model = buildModel({
    inputs: Object.fromEntries(
      [...inputs].map((i): [string, ValueSpec] => {
        const dims = graph.dims(i);
        return [
          i,
          [graph.dtype(i)!, dims?.map((d) => (typeof d === 'number' && d >= 0 ? d : undefined))],
        ];
      }),
    ),
    outputs: Object.fromEntries(
      [...outputs.values()].map((o): [string, ValueSpec] => [o, ['float32']]),
    ),
    nodes: [...nodes, ...casts],
    initializers: [...weights.values()],
    opsets: Object.fromEntries(
      graph.model.proto.opsetImport.map((o) => [o.domain ?? '', toNumber(o.version)]),
    ),
    functions: graph.model.functions,
    irVersion: Math.max(8, toNumber(graph.model.proto.irVersion)),
  });
  model.graph.sort();
  return { bytes: modelBytes(model), inputs: [...inputs], outputs };
}

/** A Constant node in place of a Shape whose result is known. */
function shapeConstant(node: Node, facts: Facts): NodeProto | undefined {
  if (!node.is('Shape')) return undefined;
  const items = facts.ints(node.outputs[0]!);
  return (
    items &&
    makeNode('Constant', [], node.outputs, {
      value: makeTensor('', 'int64', [items.length], items),
    })
  );
}

function inlined(tensor: TensorProto, graph: Graph): TensorProto {
  if (!externalLocation(tensor)) return tensor;
  const { name, dataType, dims } = tensor;
  return {
    name: name!,
    dataType: dataType!,
    dims,
    rawData: tensorBytes(tensor, graph.model.external),
  };
}

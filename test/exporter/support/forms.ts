import {
  type Model,
  makeAttribute,
  makeNode,
  modelBytes,
  type NodeProto,
  parseModel,
} from '../../../exporter/index.js';

/** Weights as Constant nodes, as Paddle and TensorFlow exporters write them. */
export function constantNodes(model: Model): Model {
  const { proto } = model.graph;
  const nodes = proto.initializer.map((t) => makeNode('Constant', [], [t.name!], { value: t }));
  proto.node.unshift(...nodes);
  proto.initializer = [];
  model.graph.touch();
  return reread(model);
}

/** The opset that an operator appeared in, or came to take what the families give it. */
const SINCE: Readonly<Record<string, number>> = {
  Attention: 23,
  CumSum: 11,
  Einsum: 12,
  GatherND: 11,
  LessOrEqual: 12,
  Max: 12, // of integers
  Min: 12,
  Mod: 10,
  Range: 11,
  ScatterND: 11,
  Trilu: 14,
};

/** The input that holds what was an attribute before an opset. */
const AXES: Readonly<Record<string, { input: number; name: string; since: number }>> = {
  ReduceMax: { input: 1, name: 'axes', since: 18 },
  ReduceMean: { input: 1, name: 'axes', since: 18 },
  ReduceSum: { input: 1, name: 'axes', since: 13 },
  Split: { input: 1, name: 'split', since: 13 },
  Squeeze: { input: 1, name: 'axes', since: 13 },
  Unsqueeze: { input: 1, name: 'axes', since: 13 },
};

/** A model of opset 17 in another version of the default domain; undefined when it uses what that one lacks. */
export function atOpset(model: Model, opset: number): Model | undefined {
  for (const node of model.graph.nodes) {
    if (node.domain !== '') continue;
    if (opset < needs(node.proto, model)) return undefined;
    if (!moveAxes(node.proto, model, opset)) return undefined;
  }
  const [domain] = model.proto.opsetImport.filter((o) => !o.domain);
  domain!.version = opset;
  model.graph.touch();
  model.graph.sort();
  return reread(model);
}

function needs({ opType, input }: NodeProto, { graph }: Model): number {
  if (opType === 'Gemm' && input.length < 3) return 11;
  if (opType === 'Equal' && graph.dtype(input[1]!)?.startsWith('float')) return 11;
  if (opType === 'Slice' && input.slice(1).some((v) => !graph.constant(v))) return 10;
  return SINCE[opType] ?? 1;
}

function moveAxes(proto: NodeProto, { graph }: Model, opset: number): boolean {
  if (proto.opType === 'Slice' && opset < 10) {
    const names = ['starts', 'ends', 'axes'];
    const values = names.map((_, i) => graph.numbers(proto.input[i + 1]!)!);
    proto.attribute = names.map((name, i) =>
      makeAttribute(
        name,
        values[i]!.map((v) => Math.min(v, 2 ** 31 - 1)),
      ),
    );
    proto.input = [proto.input[0]!];
    return true;
  }
  const form = AXES[proto.opType];
  if (!form) return true;
  const attribute = proto.attribute.find((a) => a.name === form.name);
  if (opset >= form.since && attribute) {
    const name = `${proto.name}_${form.name}`;
    graph.insert([makeNode('Constant', [], [name], { value_ints: attribute.ints!.map(Number) })]);
    proto.attribute = proto.attribute.filter((a) => a !== attribute);
    proto.input = [proto.input[0]!, name];
  } else if (opset < form.since && proto.input[form.input]) {
    const values = graph.numbers(proto.input[form.input]!);
    if (!values) return false;
    proto.attribute = [...proto.attribute, makeAttribute(form.name, values)];
    proto.input = [proto.input[0]!];
  }
  return true;
}

/** The model as it would be read back from a file. */
export function reread(model: Model): Model {
  return parseModel(modelBytes(model));
}

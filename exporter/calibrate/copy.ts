import {
  externalLocation,
  type Graph,
  type Model,
  makeTensor,
  modelBytes,
  parseModel,
  tensorBytes,
  tensorDims,
  tensorDtype,
  tensorNumbers,
} from '../ir/index.js';

/** A model of its own, weights from external files included, so that it can be run from memory. */
export function copyModel(model: Model): Model {
  const copy = parseModel(modelBytes(model));
  const { graph } = copy;
  graph.proto.initializer = graph.proto.initializer.map((t) =>
    externalLocation(t)
      ? makeTensor(t.name ?? '', tensorDtype(t), tensorDims(t), tensorBytes(t, model.external))
      : t,
  );
  graph.touch();
  return copy;
}

/** Shape and numbers of a constant weight, a conversion from another type included. */
export function weightOf(
  graph: Graph,
  value: string,
): { dims: number[]; numbers: () => Float64Array } | undefined {
  const node = graph.producer(value);
  const tensor = graph.constant(node?.is('Cast') ? node.inputs[0]! : value);
  return (
    tensor && {
      dims: tensorDims(tensor),
      numbers: () => tensorNumbers(tensor, graph.model.external),
    }
  );
}

/** Gives the readers of a constant weight new float32 numbers. */
export function replaceWeight(graph: Graph, value: string, data: ArrayLike<number>): void {
  const { dims } = weightOf(graph, value)!;
  const name = graph.addInitializer(
    makeTensor(graph.fresh(`${value}/refit`), 'float32', dims, data),
  );
  graph.replaceUses(value, name);
  graph.removeDead();
}

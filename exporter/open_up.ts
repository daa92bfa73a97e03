import { inlineAttention } from './inline.js';
import { type AttributeProto, type GraphProto, Model } from './ir/index.js';
import { unmergeDecoder } from './merged.js';

/**
 * Brings attention to where it can be rewritten, in place: out of functions, and out of the branches of a merged decoder.
 *
 * @returns whether there was any
 */
export function openUp(model: Model): boolean {
  const taken = unmergeDecoder(model);
  return inlineAttention(model) || taken;
}

/** An opened copy of a model, which shares its tensors; the model itself where there is nothing to open. */
export function openedUp(model: Model): Model {
  const { proto } = model;
  const copied = new Model(
    {
      ...proto,
      graph: copyOf(proto.graph),
      opsetImport: proto.opsetImport.map((o) => ({ ...o })),
      functions: [...proto.functions],
    },
    model.external,
  );
  return openUp(copied) ? copied : model;
}

/** A copy of a graph whose lists, and those of the graphs nested in it, may be changed. */
function copyOf(graph: GraphProto): GraphProto {
  const attribute = (a: AttributeProto): AttributeProto => ({
    ...a,
    ...(a.g && { g: copyOf(a.g) }),
    ...(a.graphs && { graphs: a.graphs.map(copyOf) }),
  });
  return {
    ...graph,
    node: graph.node.map((node) =>
      node.attribute.some((a) => a.g || a.graphs?.length)
        ? { ...node, attribute: node.attribute.map(attribute) }
        : node,
    ),
    initializer: [...graph.initializer],
    input: [...graph.input],
    output: [...graph.output],
    valueInfo: [...graph.valueInfo],
  };
}

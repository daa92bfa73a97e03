import { type AnalysisOptions, analyse } from './analysis.js';
import { inlineAttention } from './inline.js';
import { type AttributeProto, type GraphProto, Model } from './ir/index.js';
import { firstCallOf, unmergeDecoder } from './merged.js';

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
  const copied = copyOfModel(model);
  return openUp(copied) ? copied : model;
}

/**
 * Are the caches of an encoder-decoder that is still merged causal? The branch with the cache was traced with one new token and
 * has no mask then, so that the other one, which reads the first tokens, tells.
 *
 * @returns undefined for any other model
 */
export async function startsCausally(
  model: Model,
  options: AnalysisOptions,
): Promise<boolean | undefined> {
  const copied = copyOfModel(model);
  if (!firstCallOf(copied)) return undefined;
  inlineAttention(copied);
  const { sites } = await analyse(copied, { runner: options.runner, signal: options.signal });
  const attention = sites.filter((s) => s.layer !== null);
  const own = attention.filter((s) => !s.refusal?.reason.startsWith('cross-attention'));
  return own.length > 0 && own.every((s) => s.mask?.kind === 'causal');
}

function copyOfModel(model: Model): Model {
  const { proto } = model;
  return new Model(
    {
      ...proto,
      graph: copyOf(proto.graph),
      opsetImport: proto.opsetImport.map((o) => ({ ...o })),
      functions: [...proto.functions],
    },
    model.external,
  );
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

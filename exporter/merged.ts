import {
  type AttributeProto,
  type GraphProto,
  type Model,
  makeNode,
  type Node,
  type NodeProto,
} from './ir/index.js';

/**
 * Takes a merged decoder apart, in place: Optimum used to write the decoder twice, with and without a cache, into the branches of
 * an If that the input `use_cache_branch` decides. The branch with the cache does what the other one does when it is given a
 * cache of no tokens, so it takes the place of the If, and the input is gone.
 *
 * Decoders with an encoder stay as they are: without a cache, theirs computes the keys of the encoder, too.
 *
 * @returns whether the model was one
 */
export function unmergeDecoder(model: Model): boolean {
  const found = mergedDecoder(model);
  if (!found) return false;
  const { graph } = model;
  const { node, branch, condition } = found;
  const made = new Set(branch.node.flatMap((n) => n.output));
  const names = new Map<string, string>();
  const through: NodeProto[] = [];
  for (const [i, { name }] of branch.output.entries()) {
    const output = node.outputs[i];
    if (!output) continue;
    if (made.has(name) && !names.has(name)) names.set(name, output);
    else through.push(makeNode('Identity', [names.get(name) ?? name], [output]));
  }
  const at = graph.proto.node.indexOf(node.proto);
  graph.proto.node.splice(at, 1, ...branch.node.map((n) => renamed(n, names)), ...through);
  graph.proto.initializer.push(...branch.initializer);
  graph.proto.valueInfo.push(...branch.valueInfo);
  graph.removeInput(condition);
  return true;
}

/** The If of a merged decoder, the branch that has a cache, and the input that decides. */
function mergedDecoder(
  model: Model,
): { node: Node; branch: GraphProto; condition: string } | undefined {
  const { graph } = model;
  const inputs = graph.inputs.map((i) => i.name);
  const condition = inputs.find((name) => /use_cache/i.test(name) && graph.dtype(name) === 'bool');
  if (!condition || inputs.some((name) => /encoder|cross/i.test(name))) return undefined;
  const pasts = inputs.filter((name) => /past|cache/i.test(name) && name !== condition);
  const [use, ...others] = graph.uses(condition);
  if (pasts.length === 0 || !use?.node.is('If') || use.node.graph !== graph || others.length > 0) {
    return undefined;
  }
  const branches = ['then_branch', 'else_branch'].map((name) => use.node.attribute(name)?.g);
  const reading = branches.filter((b) => b && pasts.every((past) => reads(b, past)));
  const [branch] = reading;
  return reading.length === 1 ? { node: use.node, branch: branch!, condition } : undefined;
}

function reads(graph: GraphProto, value: string): boolean {
  return graph.node.some(
    (node) =>
      node.input.includes(value) || subgraphs(node.attribute).some((sub) => reads(sub, value)),
  );
}

function subgraphs(attributes: readonly AttributeProto[]): GraphProto[] {
  return attributes.flatMap((a) => [...(a.g ? [a.g] : []), ...(a.graphs ?? [])]);
}

/** A node that reads and writes values under other names, in the graphs nested in it too. */
function renamed(node: NodeProto, names: ReadonlyMap<string, string>): NodeProto {
  if (names.size === 0) return node;
  const name = (value: string) => names.get(value) ?? value;
  const graph = (g: GraphProto): GraphProto => ({
    ...g,
    node: g.node.map((n) => renamed(n, names)),
    output: g.output.map((v) => ({ ...v, name: name(v.name) })),
  });
  return {
    ...node,
    input: node.input.map(name),
    output: node.output.map(name),
    attribute: node.attribute.map((a) => ({
      ...a,
      ...(a.g && { g: graph(a.g) }),
      ...(a.graphs && { graphs: a.graphs.map(graph) }),
    })),
  };
}

import { withOwnBatch } from './cross_batch.js';
import {
  type AttributeProto,
  type Graph,
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
 * A decoder with an encoder also has caches of the encoder's keys and values, which only the branch without a cache makes. Making
 * them, or handing on those that came in, is what stays in an If; the input stays with it.
 *
 * @returns whether the model was one
 */
export function unmergeDecoder(model: Model): boolean {
  const found = mergedDecoder(model);
  if (!found) return false;
  const { graph } = model;
  const { node, cached, condition, cross } = found;
  const skipped = new Set(cross.map((c) => c.index));
  const [nodes, initializers] = inlined(node, cached, skipped, cross);
  if (cross.length > 0) nodes.unshift(crossCaches(found, graph));
  else graph.removeInput(condition);
  put(graph, node, nodes, initializers, cached);
  return true;
}

/**
 * The same with the branch that has no cache, of a decoder with an encoder.
 *
 * @returns whether the model was one
 */
export function firstCallOf(model: Model): boolean {
  const found = mergedDecoder(model);
  if (!found || found.cross.length === 0) return false;
  const { node, first } = found;
  put(model.graph, node, ...inlined(node, first, new Set(), []), first);
  return true;
}

/** A cache of an encoder's keys or values: the input, the output, and the place of that among the outputs of the If. */
interface CrossCache {
  readonly past: string;
  readonly present: string;
  readonly index: number;
}

interface MergedDecoder {
  readonly node: Node;
  /** The branch that has a cache, and the one that has none. */
  readonly cached: GraphProto;
  readonly first: GraphProto;
  /** The input that decides. */
  readonly condition: string;
  readonly cross: readonly CrossCache[];
}

/** The nodes of a branch under the names of the outputs of its If, and its initializers. */
function inlined(
  node: Node,
  branch: GraphProto,
  skipped: ReadonlySet<number>,
  cross: readonly CrossCache[],
): [NodeProto[], GraphProto['initializer']] {
  const made = new Set(branch.node.flatMap((n) => n.output));
  const names = new Map(cross.map((c) => [c.past, c.present]));
  const through: NodeProto[] = [];
  for (const [i, { name }] of branch.output.entries()) {
    const output = node.outputs[i];
    // Optimum makes constants of no elements for what is skipped, under the names of the If's outputs, which something else makes now.
    if (skipped.has(i) && made.has(name)) names.set(name, node.graph.fresh(`${name}/unused`));
    if (!output || skipped.has(i)) continue;
    if (made.has(name) && !names.has(name)) names.set(name, output);
    else through.push(makeNode('Identity', [names.get(name) ?? name], [output]));
  }
  return [[...branch.node.map((n) => renamed(n, names)), ...through], branch.initializer];
}

function put(
  graph: Graph,
  node: Node,
  nodes: readonly NodeProto[],
  initializers: GraphProto['initializer'],
  branch: GraphProto,
): void {
  const at = graph.proto.node.indexOf(node.proto);
  graph.proto.node.splice(at, 1, ...nodes);
  graph.proto.initializer.push(...initializers);
  graph.proto.valueInfo.push(...branch.valueInfo);
  graph.touch();
}

/** The If that hands on the caches of the encoder's keys and values, or makes them as the branch without a cache did. */
function crossCaches(found: MergedDecoder, graph: Graph): NodeProto {
  const { condition, cross } = found;
  const wanted = cross.map((c) => found.first.output[c.index]!.name);
  const caches = cross.map((c, i) => ({ value: wanted[i]!, present: c.present }));
  const first = withOwnBatch(found.first, caches, graph);
  const needed = ancestors(first, wanted);
  // The other branch, which is part of the main graph now, may have values of the same names.
  const own = [...needed.flatMap((n) => n.output), ...first.initializer.map((t) => t.name ?? '')];
  const names = new Map(own.filter((v) => v).map((v) => [v, graph.fresh(`${v}/first`)]));
  const branch = (
    name: string,
    node: NodeProto[],
    output: string[],
    initializer: GraphProto['initializer'],
  ) => ({
    graph: {
      name,
      node,
      initializer,
      input: [],
      output: output.map((name) => ({ name })),
      valueInfo: [],
    },
  });
  const handedOn = cross.map((c) => graph.fresh(`${c.present}/handed_on`));
  const made = cross.map((c) => graph.fresh(`${c.present}/made`));
  return makeNode(
    'If',
    [condition],
    cross.map((c) => c.present),
    {
      then_branch: branch(
        'handed_on',
        cross.map((c, i) => makeNode('Identity', [c.past], [handedOn[i]!])),
        handedOn,
        [],
      ),
      else_branch: branch(
        'made',
        [
          ...needed.map((n) => renamed(n, names)),
          ...wanted.map((v, i) => makeNode('Identity', [names.get(v) ?? v], [made[i]!])),
        ],
        made,
        first.initializer.map((t) => ({ ...t, name: names.get(t.name ?? '') })),
      ),
    },
  );
}

/** The nodes of a graph that some of its values depend on, in their order. */
function ancestors(graph: GraphProto, values: readonly string[]): NodeProto[] {
  const needed = new Set(values);
  const nodes: NodeProto[] = [];
  for (const node of [...graph.node].reverse()) {
    if (!node.output.some((v) => needed.has(v))) continue;
    nodes.unshift(node);
    for (const value of captured(node)) needed.add(value);
  }
  return nodes;
}

/** Values that a node reads, in the graphs nested in it too. */
function captured(node: NodeProto): string[] {
  const nested = subgraphs(node.attribute).flatMap((g) => [
    ...g.node.flatMap(captured),
    ...g.output.map((o) => o.name),
  ]);
  return [...node.input, ...nested];
}

/** The If of a merged decoder, its branches, and the input that decides. */
function mergedDecoder(model: Model): MergedDecoder | undefined {
  const { graph } = model;
  const inputs = graph.inputs.map((i) => i.name);
  const condition = inputs.find((name) => /use_cache/i.test(name) && graph.dtype(name) === 'bool');
  if (!condition) return undefined;
  const pasts = inputs.filter((name) => /past|cache/i.test(name) && name !== condition);
  const [use, ...others] = graph.uses(condition);
  if (pasts.length === 0 || !use?.node.is('If') || use.node.graph !== graph || others.length > 0) {
    return undefined;
  }
  const branches = ['then_branch', 'else_branch'].map((name) => use.node.attribute(name)?.g);
  const [cached, ...more] = branches.filter((b) => b && pasts.every((past) => reads(b, past)));
  const first = branches.find((b) => b !== cached);
  if (!cached || !first || more.length > 0) return undefined;
  const cross = pasts.filter((p) => ENCODER.test(p)).map((past) => crossCache(past, use.node));
  if (cross.length === 0 && inputs.some((name) => ENCODER.test(name))) return undefined;
  // The branch with the cache must be the one that is run when the input is true.
  if (cross.some((c) => !c) || (cross.length > 0 && cached !== branches[0])) return undefined;
  return { node: use.node, cached, first, condition, cross: cross as CrossCache[] };
}

const ENCODER = /encoder|cross/i;

/** Optimum writes `past_key_values.0.encoder.key` and `present.0.encoder.key`. */
function crossCache(past: string, node: Node): CrossCache | undefined {
  const names = [past.replace('past_key_values', 'present'), past.replace('past', 'present')];
  const index = node.outputs.findIndex((name) => names.includes(name));
  return index < 0 ? undefined : { past, present: node.outputs[index]!, index };
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

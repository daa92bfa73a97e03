import { FlaError } from '../../ops/error.js';
import { BodyEmitter } from '../../ops/function/emitter.js';
import type { Graph, Node } from '../ir/index.js';
import { GRADIENT_RULES } from './gradient_rules.js';

/** What a gradient rule works with. */
export interface GradientContext {
  /** Writes the nodes of the backward pass. */
  readonly e: BodyEmitter;
  /** The shape of a value of the forward pass; training graphs have fixed shapes. */
  dims(value: string): readonly number[];
  /** The elements of an integer value of the forward pass. */
  known(value: string): readonly number[];
  /** Does the loss depend on what is sought through this value? Gradients of others are not needed. */
  isActive(value: string): boolean;
  /** Sums a gradient over the axes along which a value was broadcast. */
  reduceTo(gradient: string, from: readonly number[], to: readonly number[]): string;
  readonly graph: Graph;
}

/**
 * The gradients of a node's inputs, given that of its outputs.
 *
 * @param dy by output; undefined where nothing reads the output
 * @returns by input; undefined for those that need none
 */
export type GradientRule = (
  ctx: GradientContext,
  node: Node,
  dy: readonly (string | undefined)[],
) => readonly (string | undefined)[];

/**
 * Reverse-mode differentiation of an ONNX graph: appends the backward pass of a scalar to the graph.
 *
 * @param loss a value with one element
 * @param wrt values to differentiate by: graph inputs, or anything else in the graph
 * @param facts shapes of values and elements of integer values, as they are in the forward pass
 * @returns the names of the gradients, each of the shape of its value; of zeros where the loss does not depend on it
 * @throws FlaError `unsupported` naming an operator that has no rule
 */
export function appendGradients(
  graph: Graph,
  loss: string,
  wrt: readonly string[],
  facts: Pick<GradientContext, 'dims' | 'known'>,
): string[] {
  graph.sort();
  const e = new BodyEmitter(graph.model.opset() ?? 1, (stem) => graph.fresh(`grad/${stem}`));
  const { active, nodes } = between(graph, loss, wrt);
  const ctx: GradientContext = {
    e,
    graph,
    dims: facts.dims,
    known: facts.known,
    isActive: (value) => active.has(value),
    reduceTo: (gradient, from, to) => reduceTo(e, gradient, from, to),
  };
  const gradients = new Map<string, string[]>();
  const total = (value: string): string | undefined => {
    const parts = gradients.get(value);
    if (!parts) return undefined;
    const sum = parts.length === 1 ? parts[0]! : parts.reduce((a, b) => e.add(a, b));
    gradients.set(value, [sum]);
    return sum;
  };
  if (active.has(loss))
    gradients.set(loss, [e.op('Expand', [e.scalar(1), e.ints(...facts.dims(loss))])]);
  for (const node of [...nodes].reverse()) {
    const dy = node.outputs.map((v) => (v && active.has(v) ? total(v) : undefined));
    if (dy.every((d) => d === undefined)) continue;
    const rule = node.domain === '' ? GRADIENT_RULES[node.opType] : undefined;
    if (!rule) {
      const name = node.domain ? `${node.domain}.${node.opType}` : node.opType;
      throw new FlaError('unsupported', `${name} '${node.name}' has no gradient rule`);
    }
    for (const [i, gradient] of rule(ctx, node, dy).entries()) {
      const value = node.inputs[i];
      if (!value || gradient === undefined || !active.has(value)) continue;
      const parts = gradients.get(value);
      if (parts) parts.push(gradient);
      else gradients.set(value, [gradient]);
    }
  }
  const result = wrt.map(
    (value) => total(value) ?? e.op('Expand', [e.scalar(0), e.ints(...facts.dims(value))]),
  );
  graph.insert(e.nodes);
  return result;
}

/** The nodes and values through which the loss depends on `wrt`, in the order of the graph. */
export function between(graph: Graph, loss: string, wrt: readonly string[]) {
  const forward = new Set(wrt);
  for (const node of graph.nodes) {
    if (node.inputs.some((v) => forward.has(v))) for (const out of node.outputs) forward.add(out);
  }
  const needed = new Set([loss]);
  const nodes: Node[] = [];
  for (const node of [...graph.nodes].reverse()) {
    if (!node.outputs.some((v) => v && needed.has(v) && forward.has(v))) continue;
    nodes.push(node);
    for (const v of node.inputs) if (forward.has(v)) needed.add(v);
  }
  const active = new Set([...needed].filter((v) => v && forward.has(v)));
  return { active, nodes: nodes.reverse() };
}

function reduceTo(
  e: BodyEmitter,
  gradient: string,
  from: readonly number[],
  to: readonly number[],
): string {
  const lead = from.length - to.length;
  let x = gradient;
  for (let axis = from.length - 1; axis >= 0; axis--) {
    const wanted = axis < lead ? 1 : to[axis - lead];
    if (wanted === 1 && from[axis] !== 1) x = e.sum(x, axis);
  }
  return lead > 0 ? e.reshape(x, to) : x;
}

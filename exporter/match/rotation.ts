import type { Graph, Node } from '../ir/index.js';
import type { Heads } from './sdpa.js';

/**
 * The heads before their rotary embedding, x of `x cos + rotated(x) sin`, or undefined when there is none in sight.
 * `rotated` is made of slices of x, in whichever way.
 */
export function beforeRotation(graph: Graph, heads: Heads): Heads | undefined {
  const { rope, ...before } = heads;
  if (rope) return before;
  if (heads.bias || heads.norm || heads.weight || heads.layout === 'stacked') return undefined;
  const node = graph.producer(heads.value);
  if (node?.is('RotaryEmbedding') || node?.is('RotaryEmbedding', 'com.microsoft')) {
    return { ...heads, value: node.inputs[0]! };
  }
  if (!node?.is('Add')) return undefined;
  const [a, b] = [node.producer(0), node.producer(1)];
  if (!a?.is('Mul') || !b?.is('Mul')) return undefined;
  const x =
    [...a.inputs].find((v) => isRotation(graph, b, v)) ??
    [...b.inputs].find((v) => isRotation(graph, a, v));
  return x === undefined ? undefined : { ...heads, value: x };
}

/** Is one factor of a product a concatenation of slices of x, signs aside? */
function isRotation(graph: Graph, product: Node, x: string): boolean {
  return product.inputs.some((factor) => {
    const joined = graph.producer(factor);
    if (!joined?.is('Concat')) return false;
    return joined.inputs.every((part) => {
      let at = graph.producer(part);
      if (at?.is('Neg')) at = at.producer(0);
      return (at?.is('Slice') || at?.is('Split')) === true && at?.inputs[0] === x;
    });
  });
}

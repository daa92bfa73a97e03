import type { Graph } from '../ir/index.js';
import type { Sdpa } from '../match/sdpa.js';
import { weightOf } from './copy.js';
import type { Projection } from './refit.js';

const CARRIES = ['Transpose', 'Reshape', 'Cast', 'Identity', 'Squeeze', 'Unsqueeze'];

/** The product that mixes the heads of a site with a matrix of its own, or undefined when there is none in sight. */
export function outputProjection(graph: Graph, sdpa: Sdpa): Projection | undefined {
  let value = sdpa.output.value;
  for (let hops = 0; hops < 6; hops++) {
    const uses = graph.uses(value).filter((u) => !u.node.is('Shape'));
    const [use] = uses;
    if (uses.length !== 1 || !use || use.index !== 0) return undefined;
    const { node } = use;
    const plain =
      node.is('MatMul') || (node.is('Gemm') && !node.int('transA') && !node.int('transB'));
    if (plain) {
      const weight = node.inputs[1]!;
      const own = weightOf(graph, weight)?.dims.length === 2 && graph.uses(weight).length === 1;
      return own ? { input: value, weight, output: node.outputs[0]! } : undefined;
    }
    if (!CARRIES.includes(node.opType)) return undefined;
    value = node.outputs[0]!;
  }
  return undefined;
}

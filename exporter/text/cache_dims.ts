import type { Model } from '../ir/index.js';
import { Facts } from '../match/facts.js';
import { sizesOf } from '../rules/group_query_attention.js';

/**
 * Sizes of named dimensions that caches declare and only their attention knows: onnxruntime-genai's builder calls the size of a
 * head `kv_cache_dim`, as caches of 4 bits have another.
 */
export function cacheDims({ graph }: Model): Record<string, number> {
  const facts = new Facts(graph);
  const found: Record<string, number> = {};
  for (const node of graph.nodes) {
    if (!node.is('GroupQueryAttention', 'com.microsoft')) continue;
    for (const past of node.inputs.slice(3, 5)) {
      const dims = graph.isInput(past) ? graph.dims(past) : undefined;
      const name = dims?.[3];
      const { dim } = sizesOf(node, facts);
      if (typeof name === 'string' && name !== dims![2] && Number.isInteger(dim) && dim > 0)
        found[name] = dim;
    }
  }
  return found;
}

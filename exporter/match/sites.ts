import type { Graph, Node } from '../ir/index.js';
import type { Facts } from './facts.js';
import type { Rule } from './rule.js';
import type { Refusal, Sdpa } from './sdpa.js';

/** One Softmax or fused node, and what the rules say about it. */
export interface Site {
  readonly node: Node;
  readonly rule: Rule;
  /** Position among the attention sites; null for what is no attention. */
  readonly layer: number | null;
  readonly sdpa?: Sdpa;
  readonly refusal?: Refusal;
  /** Values whose shape would have told more. */
  readonly wanted: readonly string[];
}

/** Applies rules to every anchor of a graph, in graph order; nested graphs are listed as refused. */
export function findSites(graph: Graph, rules: readonly Rule[], facts: Facts): Site[] {
  const sites: Site[] = [];
  let layers = 0;
  for (const node of graph.walk()) {
    const rule = rules.find((r) => r.anchors(node));
    if (!rule) continue;
    facts.wanted.clear();
    const result =
      node.graph === graph
        ? rule.match(node, facts)
        : { reason: 'it lies in a nested graph (the body of If, Loop or Scan)', attention: false };
    const wanted = [...facts.wanted];
    if ('sdpa' in result) sites.push({ node, rule, layer: layers++, sdpa: result.sdpa, wanted });
    else {
      const layer = result.attention ? layers++ : null;
      sites.push({ node, rule, layer, refusal: result, wanted });
    }
  }
  return sites;
}

import { Graph, type Model, type Node } from '../ir/index.js';
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

/**
 * Applies rules to every anchor of a graph, in graph order. Anchors in nested graphs and model-local functions are listed
 * as refused.
 */
export function findSites(graph: Graph, rules: readonly Rule[], facts: Facts): Site[] {
  const sites: Site[] = [];
  let layers = 0;
  for (const node of graph.walk()) {
    const rule = rules.find((r) => r.anchors(node));
    if (!rule) continue;
    if (node.graph !== graph) {
      sites.push(elsewhere(node, rule, 'a nested graph (the body of If, Loop or Scan)'));
      continue;
    }
    facts.wanted.clear();
    const result = rule.match(node, facts);
    const wanted = [...facts.wanted].filter((value) => value); // not what a node lacks
    if ('sdpa' in result) sites.push({ node, rule, layer: layers++, sdpa: result.sdpa, wanted });
    else {
      const layer = result.attention ? layers++ : null;
      sites.push({ node, rule, layer, refusal: result, wanted });
    }
  }
  return [...sites, ...inFunctions(graph.model, rules)];
}

function elsewhere(node: Node, rule: Rule, where: string): Site {
  const refusal = { reason: `it lies in ${where}`, attention: false };
  return { node, rule, layer: null, refusal, wanted: [] };
}

function inFunctions(model: Model, rules: readonly Rule[]): Site[] {
  // Our own functions are bodies of ops, not parts of the model.
  const others = model.functions.filter((fn) => fn.domain !== 'com.fla');
  return others.flatMap((fn) => {
    const proto = { node: fn.node, initializer: [], input: [], output: [], valueInfo: [] };
    return [...new Graph(proto, model).walk()].flatMap((node) => {
      const rule = rules.find((r) => r.anchors(node));
      return rule
        ? [elsewhere(node, rule, `the model-local function ${fn.domain}.${fn.name}`)]
        : [];
    });
  });
}

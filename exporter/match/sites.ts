import { Graph, isFloat, type Model, type Node } from '../ir/index.js';
import type { Facts } from './facts.js';
import { type Rule, unsupported } from './rule.js';
import { scaleTakenOut } from './scale.js';
import type { Refusal, RuleResult, Sdpa } from './sdpa.js';

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
 * Applies rules to every anchor of a graph and of the graphs nested in it, in graph order. Anchors in model-local functions
 * are listed as refused.
 *
 * @param factsOf what is known of each of these graphs
 */
export function findSites(
  graph: Graph,
  rules: readonly Rule[],
  factsOf: (graph: Graph) => Facts,
): Site[] {
  const sites: Site[] = [];
  let layers = 0;
  for (const node of graph.walk()) {
    const rule = rules.find((r) => r.anchors(node));
    if (!rule) continue;
    const facts = factsOf(node.graph);
    facts.wanted.clear();
    const result = inFloats(rule.match(node, facts));
    const wanted = [...facts.wanted].filter((value) => value); // not what a node lacks
    if ('sdpa' in result) {
      const sdpa = scaleTakenOut(result.sdpa, facts);
      sites.push({ node, rule, layer: layers++, sdpa, wanted });
    } else {
      const layer = result.attention ? layers++ : null;
      sites.push({ node, rule, layer, refusal: result, wanted });
    }
  }
  return [...sites, ...inFunctions(graph.model, rules)];
}

/** Integers have no softmax; a site whose types say so is malformed. */
function inFloats(result: RuleResult): RuleResult {
  if (!('sdpa' in result)) return result;
  const { dtype, scoreDtype } = result.sdpa;
  const wrong = [dtype, scoreDtype].find((type) => !isFloat(type));
  return wrong === undefined
    ? result
    : unsupported(`attention must be in floating point, received ${wrong}`);
}

function inFunctions(model: Model, rules: readonly Rule[]): Site[] {
  // Our own functions are bodies of ops, not parts of the model.
  const others = model.functions.filter((fn) => fn.domain !== 'com.fla');
  return others.flatMap((fn) => {
    const proto = { node: fn.node, initializer: [], input: [], output: [], valueInfo: [] };
    return [...new Graph(proto, model).walk()].flatMap((node): Site[] => {
      const rule = rules.find((r) => r.anchors(node));
      const reason = `it lies in the model-local function ${fn.domain}.${fn.name}`;
      const refusal = { reason, attention: false };
      return rule ? [{ node, rule, layer: null, refusal, wanted: [] }] : [];
    });
  });
}

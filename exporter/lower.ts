import { FlaError } from '../ops/error.js';
import type { FunctionTarget } from '../ops/function/define.js';
import { callOf } from './calls.js';
import { inlinedCall } from './inline.js';
import type { FunctionProto, Graph, Model, Node } from './ir/index.js';
import { Facts } from './match/facts.js';
import { missingRunner, type Runner } from './match/runner.js';
import { askShapes, graphsOf, type MovedNode, nameOf } from './raise.js';
import { validateModel } from './validate.js';

export const LOWER_TARGETS = ['com.microsoft', 'ai.onnx', 'standard'] as const;
/** `standard`: operators of ai.onnx up to 26; `ai.onnx`: those of 27, LinearAttention among them. */
export type LowerTarget = (typeof LOWER_TARGETS)[number];

const STANDARD_OPERATORS = 27;
const DOMAIN = 'com.fla';

export interface LowerOptions {
  to: LowerTarget;
  /** Runs small models where a shape is not known otherwise. */
  runner?: Runner;
}

/**
 * Replaces the operators of com.fla by what others have, in place, nested graphs included: `raiseModel` the other way. Feature maps,
 * masks and normalizers become nodes of their own.
 *
 * @throws FlaError `invalid_model` when the graph is malformed; `unsupported` for `ai.onnx` when the model's opset is neither 26 nor 27
 */
export async function lowerModel(model: Model, options: LowerOptions): Promise<MovedNode[]> {
  validateModel(model);
  const opset = model.opset() ?? 1;
  const ownOperator = options.to === 'ai.onnx';
  if (ownOperator && opset < STANDARD_OPERATORS - 1) {
    throw new FlaError(
      'unsupported',
      `lower to ai.onnx: the model's opset must be 26, as operators of older ones changed since, received ${opset}`,
    );
  }
  const moved: MovedNode[] = [];
  for (const graph of graphsOf(model.graph)) {
    const nodes = graph.nodes.filter((n) => n.domain === DOMAIN);
    if (nodes.length === 0) continue;
    graph.sort();
    const facts = new Facts(graph);
    if (graph === model.graph) await askShapes(nodes, facts, options.runner ?? missingRunner);
    for (const node of nodes) moved.push(lower(model, graph, node, facts, opset, options.to));
    graph.sort();
  }
  tidy(model);
  const became = moved.some((m) => m.to !== null);
  if (ownOperator && became) model.requireOpset('', STANDARD_OPERATORS);
  return moved;
}

function lower(
  model: Model,
  graph: Graph,
  node: Node,
  facts: Facts,
  opset: number,
  to: LowerTarget,
): MovedNode {
  const from = nameOf(node);
  const target: FunctionTarget = to === 'standard' ? 'standard' : 'com.microsoft';
  const body = bodyFor(model, node, facts, opset, target);
  if (typeof body === 'string') return { node: node.name, from, to: null, reason: body };
  const nodes = inlinedCall(body, node.proto, model);
  if (to === 'ai.onnx') {
    for (const n of nodes) if (n.domain === 'com.microsoft') n.domain = '';
  }
  graph.insert(nodes, node);
  graph.remove([node]);
  return { node: node.name, from, to, reason: null };
}

/** The function body of a call that is made of what is asked for: the one it has, or another; or why there is none. */
function bodyFor(
  model: Model,
  node: Node,
  facts: Facts,
  opset: number,
  target: FunctionTarget,
): FunctionProto | string {
  const overload = node.proto.overload ?? '';
  const own = model.functions.find(
    (f) => f.domain === DOMAIN && f.name === node.opType && (f.overload ?? '') === overload,
  );
  if (own && overload.startsWith(target.replace('.', '_'))) return own;
  if (node.opType !== 'LinearAttention' && node.opType !== 'CausalConvWithState') {
    return `${nameOf(node)} has no ${target} form`;
  }
  const call = callOf(node, facts, Math.min(opset, STANDARD_OPERATORS - 1));
  if (typeof call === 'string') return call;
  try {
    return call.body({ target }).fn;
  } catch (error) {
    if (error instanceof FlaError) return error.message;
    throw error;
  }
}

/** Functions and imports that nothing calls any more. */
function tidy(model: Model): void {
  const calls = new Set(
    graphsOf(model.graph).flatMap((g) =>
      g.nodes
        .filter((n) => n.domain === DOMAIN)
        .map((n) => `${n.opType} ${n.proto.overload ?? ''}`),
    ),
  );
  model.proto.functions = model.proto.functions.filter(
    (f) => f.domain !== DOMAIN || calls.has(`${f.name} ${f.overload ?? ''}`),
  );
  const domains = new Set(graphsOf(model.graph).flatMap((g) => g.nodes.map((n) => n.domain)));
  for (const fn of model.functions) for (const n of fn.node) domains.add(n.domain ?? '');
  const imports = model.proto.opsetImport.filter(
    ({ domain }) => !['com.fla', 'com.microsoft'].includes(domain ?? '') || domains.has(domain!),
  );
  if (imports.length > 0) model.proto.opsetImport = imports; // a file without any is no model
}

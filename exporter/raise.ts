import { FlaError } from '../ops/error.js';
import { callOf, shapesNeeded, writeCall } from './calls.js';
import { type Graph, type Model, type Node, toNumber } from './ir/index.js';
import { loopShapesNeeded, raiseLoop } from './loops/raise_loop.js';
import { Facts } from './match/facts.js';
import { Prober } from './match/probe.js';
import { missingRunner, type Runner } from './match/runner.js';
import { asOperator, carriedConvs } from './raise_conv.js';
import { validateModel } from './validate.js';

const OPERATORS = new Set(['LinearAttention', 'CausalConvWithState']);
/** What these are written with where a runtime does not have them. */
const PARTS = new Set(['ai.onnx.Scan', 'ai.onnx.Loop', 'ai.onnx.Conv']);
/** The version that these operators came to ai.onnx with; nothing else changed in it. */
const STANDARD_SINCE = 27;

/** What became of one node. */
export interface MovedNode {
  node: string;
  /** The operator before, as `com.microsoft.LinearAttention`. */
  from: string;
  /** What it is now: a domain, or `standard` operators; null when it was left alone. */
  to: string | null;
  /** Why it was left alone; null when it was not. */
  reason: string | null;
}

export interface RaiseOptions {
  /** Runs small models where a shape is not known otherwise. */
  runner?: Runner;
  /** What runs where our library is absent; see RewriteOptions. */
  body?: 'com.microsoft' | 'standard' | 'auto';
}

/**
 * Turns LinearAttention and CausalConvWithState of ai.onnx and com.microsoft, every Scan or Loop that is a recurrence of
 * LinearAttention, and every Conv that is a CausalConvWithState, into calls of com.fla, in place, nested graphs included. They compute the same; what runs them is faster, and ONNX Runtime runs what was ai.onnx at all.
 *
 * @throws FlaError `invalid_model` when the graph is malformed
 */
export async function raiseModel(model: Model, options: RaiseOptions = {}): Promise<MovedNode[]> {
  validateModel(model);
  const opset = Math.min(model.opset() ?? 1, STANDARD_SINCE - 1);
  const moved: MovedNode[] = [];
  const graphs = graphsOf(model.graph);
  for (const graph of graphs.toReversed()) graph.sort(); // inner ones first
  for (const graph of graphs) {
    const nodes = graph.nodes.filter(
      (n) => OPERATORS.has(n.opType) && (n.domain === '' || n.domain === 'com.microsoft'),
    );
    const loops = graph.nodes.filter((n) => n.is('Scan') || n.is('Loop'));
    const convs = graph.nodes.some((n) => n.is('Conv'));
    if (nodes.length + loops.length === 0 && !convs) continue;
    const before = moved.length;
    const facts = new Facts(graph);
    const runner = options.runner ?? missingRunner;
    if (graph === model.graph) await askShapes([...nodes, ...loops], facts, runner);
    for (const node of nodes) moved.push(raise(model, node, facts, opset, options));
    for (const node of loops) {
      const left = await raiseLoop(model, node, facts, runner, options.body ?? 'auto');
      moved.push({
        ...{ node: node.name, from: nameOf(node) },
        ...(left === undefined ? { to: 'com.fla', reason: null } : { to: null, reason: left }),
      });
    }
    for (const conv of carriedConvs(graph, facts)) {
      const written = [...graph.proto.node];
      const became = raise(model, asOperator(conv), facts, opset, options);
      if (became.to === null) graph.proto.node = written;
      graph.touch();
      moved.push({ ...became, from: nameOf(conv.conv) });
    }
    const changed = moved.slice(before).filter((m) => m.to !== null);
    if (changed.length > 0) graph.touch();
    if (changed.some((m) => PARTS.has(m.from))) graph.removeDead();
  }
  const left = moved.some(
    (m) => m.to === null && m.from.startsWith('ai.onnx.') && !PARTS.has(m.from),
  );
  const imported = model.proto.opsetImport.find((o) => !o.domain || o.domain === 'ai.onnx');
  if (imported && !left && toNumber(imported.version) === STANDARD_SINCE && moved.length > 0) {
    imported.version = STANDARD_SINCE - 1;
  }
  return moved;
}

function raise(
  model: Model,
  node: Node,
  facts: Facts,
  opset: number,
  options: RaiseOptions,
): MovedNode {
  const from = nameOf(node);
  const kept = (reason: string): MovedNode => ({ node: node.name, from, to: null, reason });
  const call = callOf(node, facts, opset);
  if (typeof call === 'string') return kept(call);
  try {
    const body = call.body({ target: options.body ?? 'auto' });
    writeCall(model, node, call, body);
  } catch (error) {
    if (error instanceof FlaError) return kept(error.message);
    throw error;
  }
  return { node: node.name, from, to: 'com.fla', reason: null };
}

/** Looks up the shapes that calls depend on by running the model on a few tokens. */
export async function askShapes(
  nodes: readonly Node[],
  facts: Facts,
  runner: Runner,
): Promise<void> {
  const wanted = [...new Set(nodes.flatMap((n) => shapesOf(n, facts)))];
  if (wanted.length === 0) return;
  const shapes = await new Prober(facts.graph, runner).shapes(wanted);
  if (typeof shapes === 'string') return; // each call says what it lacks
  for (const [i, value] of wanted.entries()) facts.assume(value, shapes[i]!);
}

function shapesOf(node: Node, facts: Facts): string[] {
  return node.is('Scan') || node.is('Loop')
    ? loopShapesNeeded(node, facts)
    : shapesNeeded(node, facts);
}

export function nameOf(node: Node): string {
  return `${node.domain || 'ai.onnx'}.${node.opType}`;
}

/** A graph and all that are nested in it. */
export function graphsOf(graph: Graph): Graph[] {
  return [graph, ...graph.nodes.flatMap((n) => n.subgraphs.flatMap(graphsOf))];
}

import type { BodyEmitter } from '../../ops/function/emitter.js';
import { type AttributeProto, type Graph, makeAttribute, type Node } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import type { TokenLoop } from './token_loop.js';
import { bodyGraph, type Form, situationOf, tokenDims } from './trial.js';

/** What is computed from one token alone, for all tokens at once: the way from the tokens [T,...] of a loop to those of its lifted form. */
export interface Lifted {
  readonly loop: TokenLoop;
  readonly form: Form;
  /** Writes it. `tokens` are what the original loop reads, time first; the results are those of the lifted loop, in its order. */
  emit(e: BodyEmitter, tokens: readonly string[]): string[];
}

const UNARY = new Set(
  (
    'Abs Cast Clip Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Log Neg Reciprocal Relu Selu Sigmoid Softplus Softsign ' +
    'Sqrt Tanh'
  ).split(' '),
);
const BINARY = new Set('Add Div Max Min Mul Pow Sub'.split(' '));
const REDUCTIONS = new Set('ReduceL2 ReduceMax ReduceMean ReduceSum'.split(' '));
const VIEWS = new Set('Identity Reshape Squeeze Transpose Unsqueeze'.split(' '));

/**
 * Takes out of a loop what each token goes through before it meets the state, such as projections, activations and norms. Recurrent cells
 * are written that way, and so the recurrence itself stays.
 *
 * @param products take out products of several tokens, too; rules that multiply a key by its beta are recognised without that only
 * @returns nothing when there is nothing to take out
 */
export function lift(
  loop: TokenLoop,
  form: Form,
  outer: Facts,
  products: boolean,
): Lifted | undefined {
  const type = 'float32';
  const inputs = loop.tokens.map(
    (t, i) => [t.name, { type, dims: tokenDims(t, form.tokens[i]!) }] as const,
  );
  const state = [loop.state.before, { type, dims: form.state }] as const;
  const { graph, facts } = bodyGraph(loop, [state, ...inputs], outer, situationOf(form));
  const batch = form.state[0]!;
  const lifted = new Set(inputs.map(([name]) => name));
  const makers = new Map<string, Node>();
  for (const node of graph.nodes) {
    const tokens = new Set(node.inputs.filter((v) => lifted.has(v)));
    if (tokens.size === 0 || (tokens.size > 1 && !products)) continue;
    // Shapes and bounds are written anew.
    const anew = node.is('Reshape') || node.is('Slice');
    const weights = anew ? [] : node.inputs.filter((v) => v && !lifted.has(v));
    if (!weights.every((v) => isConstant(v, graph))) continue;
    if (!isLiftable(node, lifted, facts, batch)) continue;
    for (const value of node.outputs) {
      lifted.add(value);
      makers.set(value, node);
    }
  }
  // Tokens of the lifted loop are what the rest of it reads, looked at before it is only reshaped.
  const asTheyAre = (value: string): string => {
    const maker = makers.get(value);
    return maker && VIEWS.has(maker.opType) ? asTheyAre(maker.inputs[0]!) : value;
  };
  const read = readBehind(graph, [loop.state.after, loop.output.value], lifted);
  const names = [...new Set([...read].map(asTheyAre))];
  if (names.every((name) => !makers.has(name))) return undefined;
  const order = graph.nodes.filter((n) => n.outputs.some((v) => makers.has(v)));
  const above = ancestors(names, makers);
  return {
    loop: {
      ...loop,
      tokens: names.map((name) => ({ value: '', axis: 0, name, kept: false })),
      again: loop.again.filter(([, token]) => names.includes(token)),
      reads: [
        ...loop.reads,
        ...loop.body.nodes.filter((n) => names.some((name) => n.outputs.includes(name))),
      ],
    },
    form: { ...form, tokens: names.map((name) => facts.numeric(name)!) },
    emit(e, tokens) {
      const values = new Map(loop.tokens.map((t, i) => [t.name, withKept(e, t, tokens[i]!)]));
      for (const node of order.filter((n) => above.has(n))) write(e, node, values, facts);
      return names.map((name) => values.get(name)!);
    },
  };
}

function withKept(e: BodyEmitter, { axis, kept }: TokenLoop['tokens'][number], x: string): string {
  return kept ? e.unsqueeze(x, axis + 1) : x;
}

/** Those of `lifted` that values depend on directly; what only their shape is needed for does not count. */
function readBehind(
  graph: Graph,
  values: readonly string[],
  lifted: ReadonlySet<string>,
): Set<string> {
  const read = new Set<string>();
  const seen = new Set<string>();
  const stack = [...values];
  while (stack.length > 0) {
    const value = stack.pop()!;
    if (!value || seen.has(value)) continue;
    seen.add(value);
    if (lifted.has(value)) read.add(value);
    const node = graph.producer(value);
    if (!lifted.has(value) && node && !node.is('Shape')) stack.push(...node.inputs);
  }
  return read;
}

/** The nodes that values are made by. */
function ancestors(names: readonly string[], makers: ReadonlyMap<string, Node>): Set<Node> {
  const found = new Set<Node>();
  const visit = (value: string) => {
    const maker = makers.get(value);
    if (!maker || found.has(maker)) return;
    found.add(maker);
    maker.inputs.forEach(visit);
  };
  names.forEach(visit);
  return found;
}

/** Whether `write` can write the node for all tokens. */
function isLiftable(node: Node, lifted: ReadonlySet<string>, facts: Facts, batch: number): boolean {
  if (node.domain !== '') return false;
  const [a = '', b = ''] = node.inputs;
  const [x, y] = [a, b].map((v) => facts.numeric(v));
  const out = facts.numeric(node.outputs[0]!);
  if (!out || node.inputs.some((v) => lifted.has(v) && !facts.numeric(v))) return false;
  const isFirst = lifted.has(a) && node.inputs.slice(1).every((v) => !lifted.has(v));
  switch (node.opType) {
    case 'MatMul':
      return (x?.length ?? 0) >= 2 && (y?.length ?? 0) >= 2 && (lifted.has(b) || y!.length === 2);
    case 'Gemm': {
      const factors = [node.float('alpha') ?? 1, node.float('beta') ?? 1];
      return isFirst && !node.int('transA') && factors.every((f) => f === 1);
    }
    case 'Reshape':
      return isFirst && x![0] === batch && out[0] === batch;
    case 'Transpose':
      return node.ints('perm') !== undefined;
    case 'Squeeze':
    case 'Unsqueeze':
      return isFirst && facts.axes(node) !== undefined;
    case 'Slice':
      return isFirst && (cutsOf(node, facts)?.every((c) => c.axis > 0) ?? false);
    case 'Split':
      return isFirst && node.outputs.every((v) => facts.numeric(v));
    default:
      if (REDUCTIONS.has(node.opType)) return isFirst && facts.axes(node) !== undefined;
      return BINARY.has(node.opType) || (UNARY.has(node.opType) && isFirst);
  }
}

interface Cut {
  readonly axis: number;
  readonly start: number;
  readonly end: number;
  readonly step: number;
}

/** What a Slice takes; undefined where that is not known, or written in attributes. */
function cutsOf(node: Node, facts: Facts): Cut[] | undefined {
  const rank = facts.rank(node.inputs[0]!)!;
  const cuts = node.inputs.length > 1 ? facts.sliceOf(node) : undefined;
  const isKnown = cuts?.every((c) => typeof c.start === 'number' && typeof c.end === 'number');
  return isKnown
    ? cuts!.map((c) => ({ ...c, axis: c.axis < 0 ? c.axis + rank : c.axis }) as Cut)
    : undefined;
}

/** Writes a node for all tokens: values have one more dimension, in front. */
function write(e: BodyEmitter, node: Node, values: Map<string, string>, facts: Facts): void {
  const { opType } = node;
  const [a = '', b = ''] = node.inputs;
  const rank = (value: string) => facts.rank(value)!;
  const set = (x: string) => values.set(node.outputs[0]!, x);
  const constant = (value: string) => (value ? constantOutside(e, node.graph, value) : '');
  const x = values.get(a) ?? '';
  const shifted = (axes: readonly number[], of: number) =>
    axes.map((d) => (d < 0 ? d + of : d) + 1).sort((m, n) => m - n);
  switch (opType) {
    case 'Gemm': {
      const weight = constant(b);
      const product = e.matmul(x, node.int('transB') ? e.transpose(weight, [1, 0]) : weight);
      set(node.inputs[2] ? e.add(product, constant(node.inputs[2])) : product);
      return;
    }
    case 'Reshape':
      set(e.reshape(x, [0, 0, ...facts.numeric(node.outputs[0]!)!.slice(1)]));
      return;
    case 'Transpose':
      set(e.transpose(x, [0, ...node.ints('perm')!.map((d) => d + 1)]));
      return;
    case 'Unsqueeze':
      set(
        shifted(facts.axes(node)!, rank(node.outputs[0]!)).reduce((v, d) => e.unsqueeze(v, d), x),
      );
      return;
    case 'Squeeze':
      set(shifted(facts.axes(node)!, rank(a)).reduceRight((v, d) => e.squeeze(v, d), x));
      return;
    case 'Slice': {
      const cuts = cutsOf(node, facts)!;
      const ints = (part: (cut: Cut) => number) => e.ints(...cuts.map(part));
      const bounds = [ints((c) => c.start), ints((c) => c.end), ints((c) => c.axis + 1)];
      set(e.op('Slice', [x, ...bounds, ints((c) => c.step)]));
      return;
    }
    case 'Split': {
      const [axis] = shifted([node.int('axis') ?? 0], rank(a));
      const outputs = e.ops(opType, [x, ...(b ? [constant(b)] : [])], node.outputs.length);
      replaceAttributes(e, node, [makeAttribute('axis', axis!)]);
      for (const [i, output] of outputs.entries()) values.set(node.outputs[i]!, output);
      return;
    }
  }
  if (REDUCTIONS.has(opType)) {
    const axes = shifted(facts.axes(node)!, rank(a));
    set(e.op(opType, b ? [x, e.ints(...axes)] : [x]));
    replaceAttributes(e, node, b ? [] : [makeAttribute('axes', axes)]);
    return;
  }
  /** Dimensions that broadcasting adds come behind that of tokens. */
  const most = Math.max(...node.inputs.filter(Boolean).map(rank));
  const inputs = node.inputs.map((value) => {
    let wide = values.get(value);
    if (wide === undefined) return constant(value);
    if (!UNARY.has(opType)) for (let d = rank(value); d < most; d++) wide = e.unsqueeze(wide, 1);
    return wide;
  });
  set(e.op(opType, inputs));
  replaceAttributes(e, node, []);
}

/** Gives the node written last the attributes of another one, some of them changed. */
function replaceAttributes(e: BodyEmitter, from: Node, changed: readonly AttributeProto[]): void {
  const kept = from.proto.attribute.filter((x) => !changed.some((c) => c.name === x.name));
  e.nodes.at(-1)!.attribute = [...kept, ...changed];
}

/** Whether a value is a weight, or a weight that is only looked at in another way. */
function isConstant(value: string, graph: Graph): boolean {
  if (graph.constant(value)) return true;
  const node = graph.producer(value);
  return (
    (node?.is('Transpose') || node?.is('Unsqueeze') || node?.is('Cast') || false) &&
    node!.inputs.every((v) => isConstant(v, graph))
  );
}

/** A constant of the body for the graph around it. */
function constantOutside(e: BodyEmitter, graph: Graph, value: string): string {
  if (graph.parent!.constant(value)) return value;
  const tensor = graph.constant(value);
  if (tensor) return e.op('Constant', [], { value: { ...tensor, name: '' } });
  const node = graph.producer(value)!;
  const copy = e.op(
    node.opType,
    node.inputs.map((v) => constantOutside(e, graph, v)),
  );
  replaceAttributes(e, node, []);
  return copy;
}

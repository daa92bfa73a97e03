import { type Graph, makeNode, type Node, tensorNumbers } from './ir/index.js';
import type { Facts } from './match/facts.js';

/** A depthwise convolution over the inputs of this call behind those that were carried, and what it is written with. */
interface CarriedConv {
  readonly conv: Node;
  readonly input: string;
  /** '' for zeros. */
  readonly past: string;
  readonly output: string;
  readonly activation: 'none' | 'silu';
  /** The last inputs, carried on. */
  readonly present: Node;
}

/**
 * The convolutions of a graph that are a CausalConvWithState, as its function body and decoders of Mamba and Gated DeltaNet write
 * them: Conv over the Concat of a state, or of zeros, and the inputs; SiLU behind it or not; the last inputs sliced off as the next state.
 */
export function carriedConvs(graph: Graph, facts: Facts): CarriedConv[] {
  return graph.nodes.flatMap((node) => carriedConv(node, facts) ?? []);
}

function carriedConv(conv: Node, facts: Facts): CarriedConv | undefined {
  if (!conv.is('Conv')) return undefined;
  const { graph } = conv;
  const [padded = '', weight = ''] = conv.inputs;
  const [channels, one, width] = facts.dims(weight) ?? [];
  if (facts.rank(weight) !== 3 || one !== 1 || typeof width !== 'number' || width < 2)
    return undefined;
  const plain =
    conv.int('group') === channels &&
    (conv.string('auto_pad') ?? 'NOTSET') === 'NOTSET' &&
    (conv.ints('pads') ?? []).every((p) => p === 0) &&
    [...(conv.ints('strides') ?? []), ...(conv.ints('dilations') ?? [])].every((s) => s === 1);
  const concat = graph.producer(padded);
  const axis = concat?.int('axis');
  if (!plain || !concat?.is('Concat') || concat.inputs.length !== 2 || (axis !== 2 && axis !== -1))
    return undefined;
  const [before, input] = concat.inputs as [string, string];
  if (facts.dims(before)?.[2] !== width - 1 && !isZeros(before, width - 1, facts)) return undefined;
  const present = graph
    .uses(padded)
    .map((u) => u.node)
    .find((n) => n.graph === graph && isLast(n, padded, width - 1, facts));
  if (!present) return undefined;
  const past = isZeros(before, width - 1, facts) ? '' : before;
  return { conv, input, past, present, ...activated(conv) };
}

/** Zeros of a length, of the type of another value. */
function isZeros(value: string, length: number, facts: Facts): boolean {
  const node = facts.graph.producer(value);
  if (node?.is('CastLike') || node?.is('Cast') || node?.is('Identity'))
    return isZeros(node.inputs[0]!, length, facts);
  if (!node?.is('ConstantOfShape')) return false;
  const filled = node.tensor('value');
  return facts.dims(value)?.[2] === length && (!filled || tensorNumbers(filled)[0] === 0);
}

/** Whether a node slices the last `count` steps off. */
function isLast(node: Node, padded: string, count: number, facts: Facts): boolean {
  if (!node.is('Slice') || node.inputs[0] !== padded) return false;
  const [part, more] = facts.sliceOf(node) ?? [];
  if (part && !more && (part.axis === 2 || part.axis === -1) && part.step === 1) {
    const { start, end } = part;
    if (start === -count && typeof end === 'number' && end >= 2 ** 31 - 1) return true;
  }
  const [, start = '', end = '', axes = '', step = ''] = node.inputs;
  const [axis] = facts.ints(axes) ?? [];
  if ((axis !== 2 && axis !== -1) || (step && facts.scalar(step) !== 1)) return false;
  const from = facts.graph.producer(start);
  const length = (value: string) => isLength(value, padded, facts);
  return (
    from?.is('Sub') === true &&
    length(from.inputs[0]!) &&
    facts.scalar(from.inputs[1]!) === count &&
    (length(end) || (facts.scalar(end) ?? 0) >= 2 ** 31 - 1)
  );
}

/** Whether a value is the number of steps that `padded` has. */
function isLength(value: string, padded: string, facts: Facts): boolean {
  const node = facts.graph.producer(value);
  if (node?.is('Shape'))
    return (
      node.inputs[0] === padded &&
      node.int('start') === 2 &&
      [3, undefined].includes(node.int('end'))
    );
  if (node?.is('Unsqueeze')) return isLength(node.inputs[0]!, padded, facts);
  const shape = node?.is('Gather') ? node.producer(0) : undefined;
  return !!shape?.is('Shape') && shape.inputs[0] === padded && facts.scalar(node!.inputs[1]!) === 2;
}

/** The convolution's output, SiLU included where that is all that reads it; SiLU may be computed in another type. */
function activated(conv: Node): Pick<CarriedConv, 'output' | 'activation'> {
  const { graph } = conv;
  const [output] = conv.outputs as [string];
  const readers = (value: string) =>
    graph.isOutput(value) ? [] : [...new Set(graph.uses(value).map((u) => u.node))];
  const plain = { output, activation: 'none' } as const;
  const direct = readers(output);
  const cast = direct.find((n) => n.is('Cast'));
  const x = cast?.outputs[0] ?? output;
  const around = readers(x);
  const sigmoid = around.find((n) => n.is('Sigmoid'));
  const gate = sigmoid?.outputs[0] ?? '';
  const product = around.find(
    (n) => n.is('Mul') && n.inputs.includes(gate) && n.inputs.includes(x),
  );
  if (!product || around.length !== 2 || readers(gate).length !== 1) return plain;
  if (!cast) return { output: product.outputs[0]!, activation: 'silu' };
  const [back, more] = readers(product.outputs[0]!);
  const isBack = back?.is('CastLike') && back.inputs[1] === output && !more;
  return isBack && direct.every((n) => n === cast || n === back)
    ? { output: back.outputs[0]!, activation: 'silu' }
    : plain;
}

/** Puts the operator of ai.onnx in the place of what it is written with. */
export function asOperator(found: CarriedConv): Node {
  const { conv, input, past, output, activation, present } = found;
  const { graph } = conv;
  const [, weight = '', bias = ''] = conv.inputs;
  const made = graph.producer(output)!;
  const proto = makeNode(
    'CausalConvWithState',
    [input, weight, bias, past],
    [output, present.outputs[0]!],
    { activation },
    { name: conv.name },
  );
  graph.insert([proto], conv);
  graph.remove(new Set([conv, made, present]));
  return graph.nodes.find((n) => n.proto === proto)!;
}

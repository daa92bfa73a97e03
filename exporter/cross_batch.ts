import { type Graph, type GraphProto, makeNode, makeTensor, type NodeProto } from './ir/index.js';
import { toNumber } from './ir/proto.js';

/**
 * The branch of a merged decoder that makes caches of an encoder's keys and values, without what only tells it the batch.
 *
 * PyTorch's Whisper, BART and Marian write [B,S,H*D] as [B,S,H,D] with the batch of the decoder's hidden states, so that a whole decoder
 * hangs on a number. Where the model declares one name for the batch of what the encoder gave and that of the cache, the number is
 * the first length of what is reshaped, which Reshape says with a 0.
 *
 * @param caches a value of the branch and the output of the model that it becomes
 */
export function withOwnBatch(
  branch: GraphProto,
  caches: readonly { value: string; present: string }[],
  graph: Graph,
): GraphProto {
  const makers = new Map(branch.node.flatMap((n) => n.output.map((v) => [v, n] as const)));
  const replaced = new Map<NodeProto, NodeProto[]>();
  for (const { value, present } of caches) {
    const dims = graph.dims(present);
    const reshape = reshapeOf(value, makers);
    const shape = reshape && makers.get(reshape.input[1]!);
    if (!dims || !reshape || !shape || replaced.has(reshape)) continue;
    const each = shape.opType === 'Concat' && shape.input.length === dims.length; // one length each
    const batch = batchOf(reshape.input[0]!, { makers, branch, graph });
    if (!each || typeof dims[0] !== 'string' || batch !== dims[0]) continue;
    const [zero, lengths] = ['batch', 'lengths'].map((w) => graph.fresh(`${value}/${w}`));
    replaced.set(reshape, [
      makeNode('Constant', [], [zero!], { value: makeTensor('', 'int64', [1], [0]) }),
      { ...shape, name: lengths!, input: [zero!, ...shape.input.slice(1)], output: [lengths!] },
      { ...reshape, input: [reshape.input[0]!, lengths!] },
    ]);
  }
  return { ...branch, node: branch.node.flatMap((n) => replaced.get(n) ?? [n]) };
}

type Makers = ReadonlyMap<string, NodeProto>;

/** The Reshape that a value is, its first axis where it was, with a 0 meaning a length of its input. */
function reshapeOf(value: string, makers: Makers): NodeProto | undefined {
  const node = makers.get(value);
  if (!node) return undefined;
  if (node.opType === 'Reshape') {
    return toNumber(attribute(node, 'allowzero')?.i) === 0 ? node : undefined;
  }
  const perm = attribute(node, 'perm')?.ints ?? [];
  const same = node.opType === 'Transpose' && perm.length > 0 && toNumber(perm[0]) === 0;
  return same || isThrough(node) ? reshapeOf(node.input[0]!, makers) : undefined;
}

/** The name of the first length of a value that is projected from an input of rank 3. */
function batchOf(
  value: string,
  where: { makers: Makers; branch: GraphProto; graph: Graph },
): string | undefined {
  const { makers, branch, graph } = where;
  const node = makers.get(value);
  const rankOf = (name: string) =>
    (graph.constant(name) ?? branch.initializer.find((t) => t.name === name))?.dims.length;
  if (!node) {
    const dims = graph.isInput(value) ? graph.dims(value) : undefined;
    return dims?.length === 3 && typeof dims[0] === 'string' ? dims[0] : undefined;
  }
  const [a, b] = node.input as [string, string?];
  if (isThrough(node)) return batchOf(a, where);
  if (node.opType === 'MatMul' && b && rankOf(b) === 2) return batchOf(a, where);
  if (node.opType !== 'Add' || !b) return undefined;
  if (rankOf(b) === 1) return batchOf(a, where);
  return rankOf(a) === 1 ? batchOf(b, where) : undefined;
}

function isThrough({ opType }: NodeProto): boolean {
  return opType === 'Identity' || opType === 'Cast';
}

function attribute(node: NodeProto, name: string) {
  return node.attribute.find((a) => a.name === name);
}

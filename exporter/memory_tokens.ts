import { FlaError } from '../ops/error.js';
import { BodyEmitter } from '../ops/function/emitter.js';
import {
  type DTypeName,
  dtypeName,
  type Graph,
  isFloat,
  type Model,
  makeTensor,
  type Node,
  type TensorProto,
  tensorDims,
  tensorNumbers,
} from './ir/index.js';
import { roleOf } from './match/situation.js';
import { STATE_KEY } from './metadata.js';
import { addState, batchDim, type StatePair } from './states.js';
import { validateModel } from './validate.js';

const SEGMENT_KEY = 'onnx_fla.segment';

export interface MemoryTokensOptions {
  /** How many memory tokens, m. */
  tokens: number;
  /** Tokens of text in a segment, n; the model reads m + n + m at a time. */
  segment: number;
  /** The memory before the first segment, [m, hidden], as it was trained; default: embeddings of the first m tokens of the vocabulary. */
  vectors?: { readonly dims: readonly number[]; readonly data: Float32Array };
}

export interface MemoryTokensReport {
  tokens: number;
  segment: number;
  hidden: number;
  state: StatePair;
}

/**
 * Gives a language model without KV cache the memory of a Recurrent Memory Transformer, in place: each call reads one segment, between two
 * copies of m memory vectors; what the last layer makes of the second copy is the memory of the next call. Logits are those of the text alone.
 *
 *     [memory | tokens | memory] -> model -> [... | logits | present_memory]
 *
 * Zeros as `past_memory` stand for the memory before the first segment. Positions are counted from the start of each segment, so that
 * a text may be longer than any table of positions. (Bulatov et al. 2022, https://arxiv.org/abs/2207.06881)
 *
 * @throws FlaError `invalid_argument` for sizes that do not fit, `unsupported` for a model whose embeddings or head are not found
 */
export function addMemoryTokens(model: Model, options: MemoryTokensOptions): MemoryTokensReport {
  validateModel(model);
  const { graph } = model;
  const { tokens: m, segment } = options;
  for (const [name, value] of [
    ['tokens', m],
    ['segment', segment],
  ] as const) {
    if (!Number.isInteger(value) || value < 1) {
      throw new FlaError('invalid_argument', `${name} must be an integer >= 1, received ${value}`);
    }
  }
  const roles = inputRoles(graph);
  const ids = roles.tokens;
  const embedding = embeddingOf(graph, ids);
  const table = weightBehind(graph, embedding.inputs[0]!);
  const hidden = tensorDims(table)[1]!;
  const initial = initialMemory(model, table, options, hidden);
  const head = headOf(graph);
  const e = new BodyEmitter(model.opset() ?? 1, (stem) => model.fresh(`memory/${stem}`));
  const state: StatePair = {
    past: model.fresh('past_memory'),
    present: model.fresh('present_memory'),
    shape: [batchDim(graph, ids), m, hidden],
    dtype: 'float32',
    in_place: false,
  };
  for (const [role, name] of Object.entries(roles)) {
    const wide = { tokens: widenIds, mask: widenMask, positions: widenPositions }[role as WideRole];
    graph.replaceUses(name, wide(e, name, graph.dtype(name)!, m));
  }
  // Nodes of ours were not in the graph yet, so they go on reading the inputs as they are.
  const text = embedding.outputs[0]!;
  const memory = startedFrom(e, state.past, initial, floatTypeOf(graph, embedding.inputs[0]!)!);
  const joined = e.op('Concat', [memory, e.slice(text, 1, m, -m), memory], { axis: 1 });
  graph.replaceUses(text, joined);
  const last = head.inputs[0]!;
  e.cast(e.slice(last, 1, -m), 'float32', state.present);
  graph.setInput(head, 0, e.slice(last, 1, m, -m));
  graph.insert(e.nodes);
  graph.proto.valueInfo = []; // lengths that are none any more
  addState(graph, state);
  graph.sort();
  model.setMetadata('onnx_fla.version', '1');
  model.setMetadata(STATE_KEY, JSON.stringify([state]));
  model.setMetadata(SEGMENT_KEY, JSON.stringify({ tokens: m, segment }));
  return { tokens: m, segment, hidden, state };
}

/** Segments of a model that `addMemoryTokens` made, or undefined. */
export function segmentOf(model: Model): { tokens: number; segment: number } | undefined {
  const text = model.metadata(SEGMENT_KEY);
  if (text === undefined) return undefined;
  try {
    const { tokens, segment } = JSON.parse(text) as { tokens: unknown; segment: unknown };
    if (Number.isInteger(tokens) && Number.isInteger(segment) && (segment as number) > 0) {
      return { tokens: tokens as number, segment: segment as number };
    }
  } catch {
    // Said below.
  }
  throw new FlaError(
    'invalid_model',
    `model: metadata ${SEGMENT_KEY} must be {"tokens", "segment"}, received ${text.slice(0, 60)}`,
  );
}

type WideRole = 'tokens' | 'mask' | 'positions';

/** The inputs that hold one value a token. */
function inputRoles(graph: Graph): { tokens: string } & Partial<Record<WideRole, string>> {
  const roles: Partial<Record<WideRole, string>> = {};
  for (const { name } of graph.inputs) {
    if (!graph.isInput(name)) continue;
    const role = roleOf(graph, name);
    if (role === 'past') throw unsupported(`it has a KV cache, '${name}'`);
    if (role === 'data' || role === 'lengths')
      throw unsupported(`nothing is known about its input '${name}'`);
    if (roles[role])
      throw unsupported(`it has two inputs of ${role}, '${roles[role]}' and '${name}'`);
    roles[role] = name;
  }
  const { tokens } = roles;
  if (!tokens) throw unsupported('it has no input of token ids [B,T]');
  return { ...roles, tokens };
}

/** The Gather that looks up the embeddings of the tokens. */
function embeddingOf(graph: Graph, ids: string): Node {
  const stack = [ids];
  const found: Node[] = [];
  for (let value = stack.pop(); value !== undefined; value = stack.pop()) {
    for (const { node, index } of graph.uses(value)) {
      if (node.is('Gather') && index === 1 && (node.int('axis') ?? 0) === 0) found.push(node);
      else if (['Reshape', 'Cast', 'Identity'].includes(node.opType) && index === 0) {
        stack.push(node.outputs[0]!);
      }
    }
  }
  const tables = found.filter((n) => isFloat(floatTypeOf(graph, n.inputs[0]!)));
  if (tables.length !== 1 || tables[0]!.graph !== graph) {
    throw unsupported(
      `the embeddings of '${ids}' must be looked up once, received ${tables.length} times`,
    );
  }
  return tables[0]!;
}

/** The type of a weight, told by a Cast that it comes from. */
function floatTypeOf(graph: Graph, value: string): DTypeName | undefined {
  const cast = graph.producer(value);
  return cast?.is('Cast') ? dtypeName(cast.int('to')) : graph.dtype(value);
}

/** The product that makes logits of the last hidden states. */
function headOf(graph: Graph): Node {
  const output = graph.outputs.find((o) => /logits/i.test(o.name)) ?? graph.outputs[0]!;
  const others = graph.outputs.filter((o) => o !== output);
  if (others.length > 0)
    throw unsupported(`it has outputs beside '${output.name}': '${others[0]!.name}'`);
  let node = graph.producer(output.name);
  while (node && ['Cast', 'Identity', 'Add', 'Mul', 'Div', 'Tanh'].includes(node.opType)) {
    const made = node.inputs.find((v) => graph.producer(v) && !graph.constant(v));
    node = made ? graph.producer(made) : undefined;
  }
  if (!node?.is('MatMul')) {
    throw unsupported(
      `'${output.name}' must come from a MatMul, received ${node?.opType ?? 'an input'}`,
    );
  }
  return node;
}

/** The [vocabulary,hidden] weight that a value is, perhaps in another type. */
function weightBehind(graph: Graph, value: string): TensorProto {
  let name = value;
  for (let node = graph.producer(name); node?.is('Cast'); node = graph.producer(name)) {
    name = node.inputs[0]!;
  }
  const weight = graph.constant(name);
  if (weight?.dims.length === 2) return weight;
  throw unsupported(`the embedding table '${value}' must be a weight [vocabulary,hidden]`);
}

/** The memory before the first segment, an initializer [1,m,hidden]. */
function initialMemory(
  model: Model,
  table: TensorProto,
  { tokens: m, vectors }: MemoryTokensOptions,
  hidden: number,
): string {
  if (
    vectors &&
    (vectors.dims.length !== 2 || vectors.dims[0] !== m || vectors.dims[1] !== hidden)
  ) {
    throw new FlaError(
      'invalid_argument',
      `memory must be [${m},${hidden}], received [${vectors.dims}]`,
    );
  }
  const data = vectors?.data ?? tensorNumbers(table, model.external).slice(0, m * hidden);
  if (data.length !== m * hidden) {
    throw new FlaError(
      'invalid_argument',
      `tokens must be at most the vocabulary's ${data.length / hidden}, received ${m}`,
    );
  }
  return model.graph.addInitializer(
    makeTensor(model.fresh('memory/initial'), 'float32', [1, m, hidden], data),
  );
}

/** What was carried; the initial memory in rows where that is nothing but zeros. */
function startedFrom(e: BodyEmitter, past: string, initial: string, dtype: DTypeName): string {
  const used = e.max(e.max(e.op('Abs', [past]), 2), 1); // [B,1,1]
  const fresh = e.op('Equal', [e.cast(used, 'float32'), e.scalar(0)]);
  return e.cast(e.op('Where', [fresh, initial, past]), dtype);
}

/** [B,T] between m columns of `value` on either side. */
function between(e: BodyEmitter, x: string, dtype: DTypeName, m: number, value: number): string {
  const column = e.op('Expand', [e.constant(dtype, [value], [1, 1]), e.shape([e.dim(x, 0), m])]);
  return e.op('Concat', [column, x, column], { axis: 1 });
}

function widenIds(e: BodyEmitter, x: string, dtype: DTypeName, m: number): string {
  return between(e, x, dtype, m, 0);
}
function widenMask(e: BodyEmitter, x: string, dtype: DTypeName, m: number): string {
  return between(e, x, dtype, m, 1);
}
/** Positions of the text start after the first copy of the memory, and the second copy goes on after them. */
function widenPositions(e: BodyEmitter, x: string, dtype: DTypeName, m: number): string {
  const count = Array.from({ length: m }, (_, i) => i);
  const moved = e.add(x, e.constant(dtype, [m], [1, 1]));
  const first = e.sub(
    e.slice(moved, 1, 0, 1),
    e.constant(
      dtype,
      count.map((i) => m - i),
      [1, m],
    ),
  );
  const last = e.add(
    e.slice(moved, 1, -1),
    e.constant(
      dtype,
      count.map((i) => i + 1),
      [1, m],
    ),
  );
  return e.op('Concat', [first, moved, last], { axis: 1 });
}

function unsupported(why: string): FlaError {
  return new FlaError(
    'unsupported',
    `memory tokens need a language model without KV cache, and its embeddings and head: ${why}`,
  );
}

import type { GraphNode, Initializer, OnnxModel } from './onnx/model.js';

/**
 * A node that our kernels compute.
 *
 * `inputs` and `outputs` are names of values by names of the operator's arguments; what is left out is absent.
 */
export interface KernelNode {
  readonly node: GraphNode;
  readonly attributes: Readonly<Record<string, number | string>>;
  readonly inputs: Readonly<Record<string, string>>;
  readonly outputs: Readonly<Record<string, string>>;
}

/** Nodes that ONNX Runtime computes in one session. */
export interface Piece {
  readonly kind: 'piece';
  /** Those that compute constants from constants included. */
  readonly nodes: readonly GraphNode[];
  readonly initializers: readonly Initializer[];
  /** Values that come from the caller or from other steps. */
  readonly inputs: readonly string[];
  /** Values that other steps or the caller want. */
  readonly outputs: readonly string[];
}

/** Nodes of ours that can be recorded one after the other without ONNX Runtime in between. */
export interface KernelStep {
  readonly kind: 'kernels';
  readonly nodes: readonly KernelNode[];
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
}

export type Step = Piece | KernelStep;

/** What to do in which order. */
export interface Plan {
  readonly steps: readonly Step[];
  /** Computes what our kernels or the caller want and what depends on no input: run once. */
  readonly constants?: Piece;
  /** Initializers that are wanted as they are, and can be brought to the GPU without ONNX Runtime. */
  readonly uploads: readonly Initializer[];
}

/** TensorProto.DataType of floating point. */
const FLOATS: ReadonlySet<number> = new Set([1, 10, 11, 16]);

/** Those of it that tensors on the GPU may have, with their bytes. */
const FLOATS_ON_GPU: ReadonlyMap<number, number> = new Map([
  [1, 4],
  [10, 2],
]);

/** Nodes whose result is another one in every run, though nothing goes in. */
const RANDOM = /^(Random|Multinomial$|Bernoulli$)/;

/** Tensors of at least this many bytes are worth being held only once. */
const SHARED_BYTES = 2 ** 20;

/** Operators to which it is all the same whether a matrix is a constant: to others it may not be. */
const TAKES_ANY_MATRIX: ReadonlySet<string> = new Set([':Gather', ':MatMul', ':Gemm']);

/** Everything a node reads: its inputs, and what its nested graphs take from outside. */
function reads({ inputs, captured }: GraphNode): string[] {
  return [...inputs, ...captured].filter((value) => value !== '');
}

/** The nodes that outputs of the model depend on. */
function liveNodes(model: OnnxModel): GraphNode[] {
  const wanted = new Set(model.outputs.map(({ name }) => name));
  const live: GraphNode[] = [];
  for (const node of model.nodes.toReversed()) {
    if (!node.outputs.some((value) => wanted.has(value))) continue;
    for (const value of reads(node)) wanted.add(value);
    live.push(node);
  }
  return live.reverse();
}

/** Values that depend on no input, and the nodes that make them. */
class Constants {
  readonly #makers = new Map<string, GraphNode>();

  constructor(
    readonly model: OnnxModel,
    nodes: readonly GraphNode[],
    kernels: ReadonlySet<GraphNode>,
  ) {
    for (const node of nodes) {
      const constant =
        !kernels.has(node) &&
        !RANDOM.test(node.op) &&
        reads(node).every((value) => this.has(value));
      if (constant) for (const value of node.outputs) this.#makers.set(value, node);
    }
  }

  has(value: string): boolean {
    return this.model.initializers.has(value) || this.#makers.has(value);
  }

  /** The nodes, in the model's order, and initializers that are needed to have these constants. */
  closure(values: Iterable<string>): { nodes: Set<GraphNode>; initializers: Set<Initializer> } {
    const nodes = new Set<GraphNode>();
    const initializers = new Set<Initializer>();
    const waiting = [...values];
    for (let value = waiting.pop(); value !== undefined; value = waiting.pop()) {
      const initializer = this.model.initializers.get(value);
      const maker = this.#makers.get(value);
      if (initializer) initializers.add(initializer);
      else if (maker && !nodes.has(maker)) {
        nodes.add(maker);
        waiting.push(...reads(maker));
      }
    }
    return { nodes, initializers };
  }
}

/**
 * Large constants that several pieces read, such as an embedding that is also the last projection. As a part of each they would be in the GPU's
 * memory several times: they become values that the pieces are fed.
 */
function sharedConstants(
  model: OnnxModel,
  nodes: readonly GraphNode[],
  pieces: readonly (readonly GraphNode[])[],
): Set<string> {
  const isLarge = ({ type, dims, sparse }: Initializer) =>
    !sparse && dims.reduce((a, b) => a * b, FLOATS_ON_GPU.get(type) ?? 0) >= SHARED_BYTES;
  const shared = [...model.initializers.values()].filter(isLarge).filter(({ name }) => {
    const readers = nodes.filter((node) => reads(node).includes(name));
    const isIndifferent = readers.every(
      ({ domain, op, captured }) =>
        TAKES_ANY_MATRIX.has(`${domain}:${op}`) && !captured.includes(name),
    );
    const users = pieces.filter((piece) => readers.some((node) => piece.includes(node)));
    return isIndifferent && users.length > 1;
  });
  return new Set(shared.map(({ name }) => name));
}

/** Whether an initializer's bytes are those of a tensor on the GPU. */
function isPlain({ type, data, external, sparse }: Initializer): boolean {
  return FLOATS_ON_GPU.has(type) && !sparse && (data !== undefined || external !== undefined);
}

/** A piece that makes these constants and nothing else. */
function constantPiece(values: readonly string[], constants: Constants): Piece | undefined {
  if (values.length === 0) return undefined;
  const { nodes, initializers } = constants.closure(values);
  return {
    kind: 'piece',
    nodes: constants.model.nodes.filter((node) => nodes.has(node)),
    initializers: [...initializers],
    inputs: [],
    outputs: values,
  };
}

/**
 * Splits the model's main graph at the kernels' nodes. A node belongs to the first step in which everything that it reads is there, so
 * that between two steps of kernels there is at most one piece. What depends on constants only is put into every piece
 * that reads it, where ONNX Runtime folds it away.
 */
export function partition(model: OnnxModel, kernels: readonly KernelNode[]): Plan {
  const ours = new Map(kernels.map((kernel) => [kernel.node, kernel]));
  const nodes = liveNodes(model);
  const constants = new Constants(model, nodes, new Set(ours.keys()));
  const levels = new Map<string, number>();
  const pieces: GraphNode[][] = [];
  const kernelSteps: KernelNode[][] = [];
  for (const node of nodes) {
    if (node.outputs.every((value) => value === '' || constants.has(value))) continue;
    const level = Math.max(0, ...reads(node).map((value) => levels.get(value) ?? 0));
    const kernel = ours.get(node);
    if (kernel) (kernelSteps[level] ??= []).push(kernel);
    else (pieces[level] ??= []).push(node);
    for (const value of node.outputs) levels.set(value, kernel ? level + 1 : level);
  }
  const shared = sharedConstants(model, nodes, pieces);
  return assemble(model, constants, pieces, kernelSteps, shared);
}

function assemble(
  model: OnnxModel,
  constants: Constants,
  pieces: readonly (readonly GraphNode[])[],
  kernelSteps: readonly (readonly KernelNode[])[],
  shared: ReadonlySet<string>,
): Plan {
  const read = new Map<string, number>();
  const groups: { nodes: readonly GraphNode[]; kernels?: readonly KernelNode[] }[] = [];
  for (let level = 0; level < Math.max(pieces.length, kernelSteps.length); level++) {
    const [piece, kernels] = [pieces[level], kernelSteps[level]];
    if (piece) groups.push({ nodes: piece });
    if (kernels) groups.push({ nodes: kernels.map(({ node }) => node), kernels });
  }
  for (const { name } of model.outputs) read.set(name, 1);
  const inputsOf = groups.map(({ nodes }) => {
    const made = new Set(nodes.flatMap((node) => node.outputs));
    const inputs = new Set(nodes.flatMap(reads).filter((value) => !made.has(value)));
    for (const value of inputs) read.set(value, (read.get(value) ?? 0) + 1);
    return inputs;
  });
  const steps = groups.map(({ nodes, kernels }, i): Step => {
    const outputs = nodes.flatMap((node) => node.outputs).filter((value) => read.has(value));
    if (kernels) return { kind: 'kernels', nodes: kernels, inputs: [...inputsOf[i]], outputs };
    const closure = constants.closure(nodes.flatMap(reads).filter((value) => !shared.has(value)));
    const all = new Set([...nodes, ...closure.nodes]);
    return {
      kind: 'piece',
      nodes: model.nodes.filter((node) => all.has(node)),
      initializers: [...closure.initializers],
      inputs: [...inputsOf[i]].filter((value) => !constants.has(value) || shared.has(value)),
      outputs,
    };
  });
  const wanted = [
    ...groups.flatMap(({ kernels }, i) => (kernels ? [...inputsOf[i]] : [])),
    ...model.outputs.map(({ name }) => name),
    ...shared,
  ];
  const fixed = [...new Set(wanted)].filter((value) => constants.has(value));
  const uploads = fixed.flatMap((value) => {
    const initializer = model.initializers.get(value);
    return initializer && isPlain(initializer) ? [initializer] : [];
  });
  const plain = new Set(uploads.map(({ name }) => name));
  const computed = fixed.filter((value) => !plain.has(value));
  return { steps, constants: constantPiece(computed, constants), uploads };
}

/** The part of the model that these values depend on, with large constants as inputs: to ask for types. */
export function ancestors(
  model: OnnxModel,
  values: readonly string[],
): Pick<Piece, 'nodes' | 'initializers'> {
  const wanted = new Set(values);
  const nodes: GraphNode[] = [];
  for (const node of model.nodes.toReversed()) {
    if (!node.outputs.some((value) => wanted.has(value))) continue;
    for (const value of reads(node)) wanted.add(value);
    nodes.push(node);
  }
  const initializers = [...model.initializers.values()].filter(({ name }) => wanted.has(name));
  return { nodes: nodes.reverse(), initializers };
}

/** Whether a value is computed from integers all the way: ONNX Runtime keeps such values in the host's memory. */
export function isIntegerDerived(model: OnnxModel, value: string): boolean {
  const makers = new Map(
    model.nodes.flatMap((node) => node.outputs.map((output) => [output, node] as const)),
  );
  const seen = new Set<string>();
  const waiting = [value];
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    if (seen.has(next)) continue;
    seen.add(next);
    const node = makers.get(next);
    const input = model.inputs.find(({ name }) => name === next);
    if (input && FLOATS.has(input.type)) return false;
    if (!node || node.op === 'Shape' || node.op === 'Size') continue;
    if (node.domain === 'com.fla') return false;
    waiting.push(...reads(node));
  }
  return true;
}

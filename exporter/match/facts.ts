import {
  type Dim,
  type DTypeName,
  dtypeName,
  type Graph,
  type Node,
  tensorNumbers,
} from '../ir/index.js';
import { einsumLetters } from './einsum.js';
import {
  BINARY,
  INTEGERS,
  type Known,
  map1,
  map2,
  roundHalfEven,
  settled,
  UNARY,
} from './known.js';
import {
  asLength,
  broadcast,
  concat,
  convolved,
  gather,
  gemm,
  matmul,
  merge,
  quotient,
  sliceLength,
  squeeze,
  transposed,
  unnamedDim,
  unsqueeze,
} from './shapes.js';

const LIMIT = 64; // elements of a constant worth following

const SAME_SHAPE = new Set(
  (
    'Abs Cast Ceil Clip Cos CumSum DequantizeLinear Dropout DynamicQuantizeLinear Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsNaN ' +
    'LayerNormalization LeakyRelu Log LogSoftmax Neg Not QuantizeLinear Reciprocal Relu Round RMSNormalization Selu Sigmoid ' +
    'SimplifiedLayerNormalization Sin Softmax Softplus Sqrt Tanh Trilu BatchNormalization QuickGelu FastGelu ' +
    'RotaryEmbedding ScatterElements ScatterND Sign BiasGelu'
  ).split(' '),
);
const BROADCAST = new Set(
  'Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow Sub Where Xor'.split(
    ' ',
  ),
);
const BOOLEAN = new Set(
  'And Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Not Or Xor'.split(' '),
);
/** Operators on integers whose result has the type of their third input: a table, scales, or values. */
const TYPE_OF_THIRD = new Set(
  'EmbedLayerNormalization GatherBlockQuantized MatMulIntegerToFloat OneHot'.split(' '),
);

/**
 * Shapes, element types and small known values of a graph, found by one pass over its nodes. Wherever
 * the file declares a number and inference has none, the declaration counts. A dimension that neither tells is
 * named after its value, so that shape arithmetic can follow it: `Reshape(x, [Shape(x)[0], Shape(x)[1], -1, 4])`.
 */
export class Facts {
  private readonly shapes = new Map<string, Dim[]>();
  private readonly knowns = new Map<string, Known | undefined>();
  private readonly types = new Map<string, DTypeName | undefined>();
  /** Values whose shape a rule asked for in vain. */
  readonly wanted = new Set<string>();

  /**
   * @param graph a graph whose nodes are in topological order
   * @param inputDims shapes of graph inputs to assume; given, symbols of value_info are not used
   * @param outer what is known of the graph around it
   */
  constructor(
    readonly graph: Graph,
    private readonly inputDims?: Readonly<Record<string, readonly number[]>>,
    private readonly outer?: Facts,
  ) {
    for (const node of graph.nodes) this.visit(node);
  }

  /** Facts of a graph and all graphs around it. */
  static of(graph: Graph, inputDims?: Readonly<Record<string, readonly number[]>>): Facts {
    const outer = graph.parent && Facts.of(graph.parent, inputDims);
    return new Facts(graph, inputDims, outer);
  }

  dims(value: string): Dim[] | undefined {
    return this.shapes.get(value) ?? this.outer?.dims(value) ?? this.declared(value);
  }
  rank(value: string): number | undefined {
    return this.dims(value)?.length;
  }
  /** All dimensions as numbers, or undefined. */
  numeric(value: string): number[] | undefined {
    const dims = this.dims(value);
    return dims?.every((d) => typeof d === 'number') ? (dims as number[]) : undefined;
  }
  dtype(value: string): DTypeName | undefined {
    return this.types.get(value) ?? this.outer?.dtype(value) ?? this.declaredType(value);
  }
  private declaredType(value: string): DTypeName | undefined {
    const dtype = this.graph.dtype(value);
    return dtype === 'undefined' ? undefined : dtype;
  }
  /** A small constant or shape computation, as far as it is known. */
  known(value: string): Known | undefined {
    if (!this.knowns.has(value)) {
      this.knowns.set(value, this.outer?.known(value) ?? this.constant(value));
    }
    return this.knowns.get(value);
  }
  /** The only element of a known tensor. */
  scalar(value: string): number | undefined {
    const k = this.known(value);
    return k?.items.length === 1 && typeof k.items[0] === 'number' ? k.items[0] : undefined;
  }
  /** Known integers, all of them numbers. */
  ints(value: string): number[] | undefined {
    const items = this.known(value)?.items;
    return items?.every((d) => typeof d === 'number') ? (items as number[]) : undefined;
  }

  /** Notes a shape that was found in another way; the rules see it from now on. */
  assume(value: string, found: readonly (number | undefined)[]): void {
    const known = this.dims(value);
    const dims = found.map((d, i) => d ?? (known?.length === found.length ? known[i] : undefined));
    this.shapes.set(value, dims);
  }

  private declared(value: string): Dim[] | undefined {
    const given =
      this.inputDims && Object.hasOwn(this.inputDims, value) ? this.inputDims[value] : undefined;
    if (given) return [...given];
    const dims = this.graph.dims(value);
    // Some exporters write -1 for an open dimension.
    return dims?.map((d) =>
      typeof d === 'number' ? (d < 0 ? undefined : d) : this.inputDims ? undefined : d,
    );
  }

  private constant(value: string): Known | undefined {
    const t = value ? this.graph.constant(value) : undefined;
    const dims = t && this.graph.dims(value);
    if (!t || !dims || dims.length > 1) {
      // Exporters write scalars as [1,1,1] too.
      const one = t && dims?.every((d) => d === 1) ? this.graph.scalar(value) : undefined;
      return one === undefined ? undefined : { rank: 0, items: [one], integer: this.isInt(value) };
    }
    const items = this.graph.numbers(value, LIMIT);
    return items && { rank: dims.length as 0 | 1, items, integer: this.isInt(value) };
  }
  private isInt(value: string): boolean {
    return this.graph.dtype(value)?.includes('int') ?? false;
  }

  private visit(node: Node): void {
    const out = node.outputs[0];
    if (!out) return;
    for (const [i, dims] of this.infer(node).entries()) {
      const name = node.outputs[i];
      const merged = merge(dims?.map(asLength), name ? this.declared(name) : undefined);
      if (name && merged)
        this.shapes.set(
          name,
          merged.map((d, axis) => d ?? unnamedDim(name, axis)),
        );
    }
    for (const name of node.outputs)
      this.types.set(name, this.declaredType(name) ?? this.typeOf(node));
    if (node.is('Split')) this.splitKnown(node);
    else if (!node.is('Constant')) this.knowns.set(out, settled(this.evaluate(node)));
  }

  private typeOf(node: Node): DTypeName | undefined {
    if (node.is('Cast')) return dtypeName(node.int('to'));
    if (node.is('Shape') || node.is('Size') || node.is('NonZero')) return 'int64';
    if (BOOLEAN.has(node.opType)) return 'bool';
    if (node.is('ConstantOfShape')) return dtypeName(node.tensor('value')?.dataType ?? 1);
    if (node.is('MatMulInteger')) return 'int32';
    if (node.is('DynamicQuantizeLinear')) return 'uint8';
    if (node.is('QuantizeLinear')) return node.inputs[2] ? this.dtype(node.inputs[2]) : 'uint8';
    // The type of the scale.
    if (node.is('DequantizeLinear')) return this.dtype(node.inputs[1]!);
    if (TYPE_OF_THIRD.has(node.opType)) return this.dtype(node.inputs[2] ?? '');
    const first = node.is('Where') ? 1 : 0;
    return node.inputs[first] ? this.dtype(node.inputs[first]!) : undefined;
  }

  /** Shapes of a node's outputs, as far as they follow from its inputs. */
  private infer(node: Node): (Dim[] | undefined)[] {
    const [a, b] = node.inputs;
    const x = a ? this.dims(a) : undefined;
    if (SAME_SHAPE.has(node.opType)) return [x];
    if (BROADCAST.has(node.opType)) return [broadcast(node.inputs.map((v) => this.dims(v)))];
    switch (node.opType) {
      case 'Shape':
        return [[x && partOf(x, node).length]];
      case 'SkipLayerNormalization':
      case 'SkipSimplifiedLayerNormalization': {
        const same = merge(x, b ? this.dims(b) : undefined);
        return [same, undefined, undefined, same];
      }
      case 'Conv': {
        const weight = b ? this.dims(b) : undefined;
        return [x && [x[0], weight?.[0], ...convolved(x.slice(2), weight?.slice(2), node)]];
      }
      case 'AveragePool':
      case 'MaxPool':
        return [x && [x[0], x[1], ...convolved(x.slice(2), node.ints('kernel_shape'), node)]];
      case 'GlobalAveragePool':
        return [x && [x[0], x[1], ...x.slice(2).map(() => 1)]];
      case 'InstanceNormalization':
      case 'GroupNormalization':
        return [x];
      case 'MatMul':
      case 'FusedMatMul':
      case 'MatMulInteger':
      case 'DynamicQuantizeMatMul':
      case 'MatMulIntegerToFloat':
        return [matmul(x, b ? this.dims(b) : undefined, node)];
      case 'Attention':
      case 'MultiHeadAttention':
      case 'GroupQueryAttention':
        return [this.attention(node, x)];
      case 'QLinearMatMul':
        return [matmul(x, this.dims(node.inputs[3] ?? ''), node)];
      case 'MatMulBnb4':
      case 'MatMulNBits':
        return [x && [...x.slice(0, -1), node.int('N')]];
      case 'Einsum':
        return [this.einsum(node)];
      case 'Gemm':
        return [gemm(x, b ? this.dims(b) : undefined, node)];
      case 'Transpose':
        return [x && transposed(x, node)];
      case 'Reshape':
        return [this.reshape(x, b ? this.known(b) : undefined, node.int('allowzero') === 1)];
      case 'Range':
        return [[this.rangeLength(node)]];
      case 'NonZero':
        return [[x?.length, undefined]];
      case 'Flatten':
        return [[undefined, undefined]];
      case 'Expand': {
        const target = b ? this.known(b) : undefined;
        return [target && x ? broadcast([x, [...target.items]]) : undefined];
      }
      case 'ConstantOfShape': {
        const target = a ? this.known(a) : undefined;
        return [target && [...target.items]];
      }
      case 'Unsqueeze':
        return [unsqueeze(x, this.axes(node))];
      case 'Squeeze':
        return [squeeze(x, this.axes(node))];
      case 'Pad':
        return [this.padded(node, x)];
      case 'Concat':
        return [
          concat(
            node.inputs.map((v) => this.dims(v)),
            node.int('axis') ?? 0,
          ),
        ];
      case 'GatherElements':
        return [b ? this.dims(b) : undefined];
      case 'TopK': {
        const axis = node.int('axis') ?? -1;
        const chosen = x?.map((d, i) =>
          i === (axis + x.length) % x.length ? (b ? this.scalar(b) : undefined) : d,
        );
        return [chosen, chosen];
      }
      case 'Gather':
        return [gather(x, b ? this.dims(b) : undefined, node.int('axis') ?? 0)];
      case 'Slice':
        return [this.slice(node, x)];
      case 'Split':
        return this.split(node, x);
      case 'ReduceMean':
      case 'ReduceSum':
      case 'ReduceMax':
        return [this.reduce(node, x)];
      default:
        return [];
    }
  }

  /** The axes of Squeeze, Unsqueeze or a reduction: an attribute in old opsets, an input in new ones. */
  axes(node: Node): number[] | undefined {
    return node.ints('axes')?.length ? node.ints('axes') : this.ints(node.inputs[1] ?? '');
  }

  private reshape(x: Dim[] | undefined, target: Known | undefined, zeroIsZero: boolean) {
    if (!target) return undefined;
    const out = target.items.map((d, i) => (d === 0 && !zeroIsZero ? x?.[i] : d));
    const open = out.indexOf(-1);
    if (open < 0) return out;
    // Known factors cancel; whatever is left must be one dimension.
    const rest = out.filter((_, i) => i !== open);
    out[open] = x ? quotient(x, rest) : undefined;
    return out;
  }

  private rangeLength(node: Node): Dim {
    const [start, limit, step] = node.inputs.map((v) => this.scalar(v));
    if (start === undefined || limit === undefined || !step) return undefined;
    return Math.max(0, Math.ceil((limit - start) / step));
  }

  private attention(node: Node, x: Dim[] | undefined): Dim[] | undefined {
    const v = node.inputs[2] ? this.dims(node.inputs[2]) : undefined;
    const times = (a: Dim, b: Dim) =>
      typeof a === 'number' && typeof b === 'number' ? a * b : undefined;
    if (!x) return undefined;
    if (node.is('MultiHeadAttention', 'com.microsoft')) {
      return [x[0], x[1], x.length === 5 ? times(x[2], x[4]) : v?.length === 3 ? v[2] : x[2]];
    }
    if (node.is('GroupQueryAttention', 'com.microsoft')) {
      const [queries, keys] = [node.int('num_heads') ?? 0, node.int('kv_num_heads') ?? 0];
      const width = x[2];
      if (node.inputs[1] || typeof width !== 'number') return [x[0], x[1], node.inputs[1] && width];
      return [x[0], x[1], (width * queries) / (queries + 2 * keys)];
    }
    if (node.is('Attention', 'com.microsoft')) {
      const columns = this.dims(node.inputs[1] ?? '')?.[1];
      return [x[0], x[1], node.ints('qkv_hidden_sizes')?.[2] ?? times(columns, 1 / 3)];
    }
    if (!node.is('Attention')) return undefined;
    if (x.length === 4) return [x[0], x[1], x[2], v?.[3]];
    const [queries, values] = [node.int('q_num_heads'), node.int('kv_num_heads')];
    const width = v?.[2];
    const dim = typeof width === 'number' && values ? width / values : undefined;
    return [x[0], x[1], times(queries, dim)];
  }

  private einsum(node: Node): Dim[] | undefined {
    const letters = einsumLetters(node);
    if (!letters) return undefined;
    const lengths = new Map<string, Dim>();
    for (const [i, operand] of letters.inputs.entries()) {
      const dims = this.dims(node.inputs[i]!);
      if (dims?.length !== operand.length) return undefined;
      for (const [axis, letter] of [...operand].entries()) {
        const known = lengths.get(letter);
        lengths.set(letter, typeof known === 'number' ? known : (dims[axis] ?? known));
      }
    }
    return [...letters.output].map((letter) => lengths.get(letter));
  }

  /** Start, end and step of each sliced axis; undefined when one is not known. */
  sliceOf(node: Node): { axis: number; start: Dim; end: Dim; step: number }[] | undefined {
    const list = (attr: string, input: number): readonly Dim[] | undefined =>
      node.attribute(attr) ? node.ints(attr) : this.known(node.inputs[input] ?? '')?.items;
    const starts = list('starts', 1);
    const ends = list('ends', 2);
    if (!starts || !ends) return undefined;
    const axes = list('axes', 3) ?? starts.map((_, i) => i);
    const steps = list('steps', 4) ?? starts.map(() => 1);
    if (![...axes, ...steps].every((n) => typeof n === 'number')) return undefined;
    return starts.map((start, i) => ({
      axis: axes[i] as number,
      start,
      end: ends[i],
      step: steps[i] as number,
    }));
  }

  private slice(node: Node, x: Dim[] | undefined): Dim[] | undefined {
    const parts = x && this.sliceOf(node);
    if (!x) return undefined;
    if (!parts) {
      const axes = this.ints(node.inputs[3] ?? '');
      return (
        axes && x.map((d, i) => (axes.some((a) => (a + x.length) % x.length === i) ? undefined : d))
      );
    }
    const out = [...x];
    for (const { axis, start, end, step } of parts) {
      const at = (axis + x.length) % x.length;
      out[at] = sliceLength(x[at], start, end, step);
    }
    return out;
  }

  private padded(node: Node, x: Dim[] | undefined): Dim[] | undefined {
    const pads = node.ints('pads')?.length ? node.ints('pads') : this.ints(node.inputs[1] ?? '');
    const axes = node.inputs[3] ? this.ints(node.inputs[3]) : x?.map((_, i) => i);
    if (!x || !pads || !axes) return x?.map(() => undefined);
    const added = new Map(
      axes.map((a, i) => [(a + x.length) % x.length, pads[i]! + pads[i + axes.length]!]),
    );
    return x.map((d, i) => {
      const more = added.get(i) ?? 0;
      return more === 0 ? d : typeof d === 'number' ? d + more : undefined;
    });
  }

  private split(node: Node, x: Dim[] | undefined): (Dim[] | undefined)[] {
    if (!x) return [];
    const axis = ((node.int('axis') ?? 0) + x.length) % x.length;
    const parts = node.ints('split')?.length ? node.ints('split') : this.ints(node.inputs[1] ?? '');
    const whole = x[axis];
    return node.outputs.map((_, i) => {
      const even = typeof whole === 'number' ? Math.ceil(whole / node.outputs.length) : undefined;
      const length = parts?.[i] ?? even;
      return x.map((d, j) => (j === axis ? length : d));
    });
  }

  /** ONNX Runtime's optimizer takes shapes apart with Split. */
  private splitKnown(node: Node): void {
    const x = this.known(node.inputs[0]!);
    let at = 0;
    for (const out of node.outputs) {
      const length = this.shapes.get(out)?.[0];
      if (x?.rank !== 1 || typeof length !== 'number') return;
      this.knowns.set(out, { ...x, items: x.items.slice(at, at + length) });
      at += length;
    }
  }

  private reduce(node: Node, x: Dim[] | undefined): Dim[] | undefined {
    const axes = this.axes(node)?.map((a) => (x ? (a + x.length) % x.length : a));
    if (!x || !axes) return undefined;
    return (node.int('keepdims') ?? 1) === 1
      ? x.map((d, i) => (axes.includes(i) ? 1 : d))
      : x.filter((_, i) => !axes.includes(i));
  }

  /** Evaluates shape arithmetic on small vectors. */
  private evaluate(node: Node): Known | undefined {
    const [a, b] = node.inputs;
    const x = a ? this.known(a) : undefined;
    const y = b ? this.known(b) : undefined;
    switch (node.opType) {
      case 'Shape': {
        const dims = a ? this.dims(a) : undefined;
        return dims && { rank: 1, items: partOf(dims, node), integer: true };
      }
      case 'Identity':
        return x;
      case 'Cast': {
        const to = dtypeName(node.int('to'));
        const integer = to?.includes('int') ?? false;
        return x && { ...(integer ? map1(x, Math.trunc) : x), integer };
      }
      case 'Unsqueeze':
        return x?.rank === 0 ? { ...x, rank: 1 } : undefined;
      case 'Squeeze':
        return x?.items.length === 1 ? { ...x, rank: 0 } : undefined;
      case 'Reshape':
        return x && y?.items.length === 1 ? { ...x, rank: 1 } : undefined;
      case 'Concat': {
        const parts = node.inputs.map((v) => this.known(v));
        if (parts.length === 0) return undefined;
        if (!parts.every((p) => p !== undefined)) {
          // A part that is unknown but has one element leaves a gap.
          const gap = parts.map((p, i) =>
            p ? p.items : this.dims(node.inputs[i]!)?.[0] === 1 ? [undefined] : undefined,
          );
          return gap.every((g) => g !== undefined) && this.isShapeLike(node)
            ? { rank: 1, items: gap.flat(), integer: true }
            : undefined;
        }
        const items = parts.flatMap((p) => p.items);
        return items.length <= LIMIT ? { rank: 1, items, integer: parts[0]!.integer } : undefined;
      }
      case 'Gather': {
        if (x?.rank !== 1 || !y) return undefined;
        const items = y.items.map((i) => (typeof i === 'number' ? x.items.at(i) : undefined));
        return { rank: y.rank, items, integer: x.integer };
      }
      case 'Slice': {
        const [part] = (x && this.sliceOf(node)) ?? [];
        if (!x || !part || typeof part.start !== 'number' || typeof part.end !== 'number')
          return undefined;
        return part.step === 1 ? { ...x, items: x.items.slice(part.start, part.end) } : undefined;
      }
      case 'ConstantOfShape': {
        // An empty shape is that of one number.
        const count = x?.items.length;
        const n = count === 0 ? 1 : count === 1 ? x!.items[0] : undefined;
        if (!x?.integer || typeof n !== 'number' || n < 0 || n > LIMIT) return undefined;
        const t = node.tensor('value');
        const value = t ? tensorNumbers(t, this.graph.model.external)[0] : 0;
        const rank = x.items.length as 0 | 1;
        return { rank, items: Array(n).fill(value), integer: t?.dataType === 7 };
      }
      case 'QuantizeLinear':
      case 'DequantizeLinear':
        return x && this.quantised(node, x);
      case 'Sqrt':
      case 'Neg':
      case 'Reciprocal':
      case 'Floor':
        return x && map1(x, UNARY[node.opType]!);
      case 'Add':
      case 'Sub':
      case 'Mul':
      case 'Div':
      case 'Mod':
      case 'Pow':
      case 'Equal':
        return x && y && map2(x, y, BINARY[node.opType]!);
      case 'Where': {
        const z = this.known(node.inputs[2] ?? '');
        if (!x || !y || !z || x.items.length !== y.items.length) return undefined;
        return {
          ...y,
          items: x.items.map((c, i) =>
            c === undefined ? undefined : c ? y.items[i] : z.items[z.items.length === 1 ? 0 : i],
          ),
        };
      }
      default:
        return undefined;
    }
  }
  /** A constant that is written as 8 bits and back. */
  private quantised(node: Node, x: Known): Known | undefined {
    const scale = this.scalar(node.inputs[1] ?? '');
    const zero = node.inputs[2] ? this.scalar(node.inputs[2]) : 0;
    if (!scale || zero === undefined) return undefined;
    if (node.is('DequantizeLinear'))
      return { ...map1(x, (v) => (v - zero) * scale), integer: false };
    const [low, high] = INTEGERS[this.dtype(node.outputs[0]!) ?? ''] ?? [];
    if (low === undefined) return undefined;
    const steps = map1(x, (v) => Math.min(Math.max(roundHalfEven(v / scale) + zero, low), high!));
    return { ...steps, integer: true };
  }
  private isShapeLike(node: Node): boolean {
    return node.inputs.every((v) => this.dtype(v) === 'int64' || this.dtype(v) === 'int32');
  }
}

/** The dimensions that a Shape gives. */
function partOf(dims: readonly Dim[], node: Node): readonly Dim[] {
  return dims.slice(node.int('start') ?? 0, node.int('end') ?? undefined);
}

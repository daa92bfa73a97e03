import {
  buildModel,
  DATA_TYPE,
  Emitter,
  freshNames,
  type Model,
  makeTensor,
  type TensorProto,
  type ValueSpec,
} from '../../../exporter/index.js';
import { type Layer, makeLayer } from './layer.js';

/** Writes a model of one attention layer, node by node as an exporter would. */
export class Writer extends Emitter {
  readonly weights: TensorProto[] = [];
  readonly inputs: Record<string, ValueSpec> = {};
  readonly outputs: Record<string, ValueSpec> = {};

  constructor(
    readonly layer: Layer,
    readonly dtype: 'float32' | 'float16' = 'float32',
  ) {
    super(freshNames());
    this.inputs.x = [dtype, ['batch', 'sequence', layer.hidden]];
    this.outputs.y = [dtype, ['batch', 'sequence', layer.hidden]];
  }

  override scalar(value: number): string {
    return super.scalar(value, this.dtype);
  }

  weight(name: string, dims: readonly number[], values: ArrayLike<number>): string {
    this.weights.push(makeTensor(name, this.dtype, dims, values));
    return name;
  }
  maskInput(dims: readonly (string | number)[] = ['batch', 'sequence']): string {
    this.inputs.attention_mask = ['int64', dims];
    return 'attention_mask';
  }
  /** x W + b as torch writes a Linear over rank-3 input. */
  linear(what: 'q' | 'k' | 'v', x = 'x'): string {
    const { hidden } = this.layer;
    const w = this.layer[`w${what}`];
    const b = this.layer[`b${what}`];
    const product = this.op('MatMul', [x, this.weight(`w${what}`, [hidden, b.length], w)]);
    return this.op('Add', [this.weight(`b${what}`, [b.length], b), product]);
  }
  /** [B,T,H*D] to [B,T,H,D], the shape put together from Shape, Gather, Unsqueeze, Concat. */
  split(x: string, heads: number): string {
    const shape = this.op(
      'Concat',
      [this.dim(x, 0), this.dim(x, 1), this.ints(heads), this.ints(this.layer.dim)],
      {
        axis: 0,
      },
    );
    return this.op('Reshape', [x, shape]);
  }
  /** [B,H,T,D] */
  heads(x: string, heads: number): string {
    return this.op('Transpose', [this.split(x, heads)], { perm: [0, 2, 1, 3] });
  }
  dim(x: string, axis: number): string {
    const size = this.op('Gather', [this.op('Shape', [x]), this.constant('int64', [axis], [])], {
      axis: 0,
    });
    return this.op('Unsqueeze', [size, this.ints(0)]);
  }
  /** Output of the heads [B,H,T,D] through Transpose, Reshape and the output projection. */
  finish(heads: string): Model {
    const turned = this.op('Transpose', [heads], { perm: [0, 2, 1, 3] });
    const shape = this.op('Concat', [this.dim(turned, 0), this.dim(turned, 1), this.ints(-1)], {
      axis: 0,
    });
    return this.project(this.op('Reshape', [turned, shape]));
  }
  project(packed: string): Model {
    const { heads, dim, hidden, wo } = this.layer;
    this.op('MatMul', [packed, this.weight('wo', [heads * dim, hidden], wo)], {}, { output: 'y' });
    return this.build();
  }
  build(opset = 17): Model {
    return buildModel({
      inputs: this.inputs,
      outputs: this.outputs,
      nodes: this.nodes,
      initializers: this.weights,
      opsets: { '': opset, 'com.microsoft': 1 },
    });
  }
  /** Softmax(scores) v, keys already transposed. */
  weighted(scores: string, v: string): string {
    return this.op('MatMul', [this.op('Softmax', [scores], { axis: -1 }), v]);
  }
  /** BERT's extended mask: (1 - mask[:, None, None, :]) * -10000. */
  extendedMask(mask = this.maskInput()): string {
    const wide = this.op('Unsqueeze', [this.op('Unsqueeze', [mask, this.ints(1)]), this.ints(2)]);
    const float = this.op('Cast', [wide], { to: DATA_TYPE[this.dtype] });
    return this.op('Mul', [this.op('Sub', [this.scalar(1), float]), this.scalar(-10000)]);
  }
  /** bool [1,1,T,T], true on and below the diagonal: a buffer cut to length, as in GPT-2. */
  causalBuffer(like: string, limit = 64): string {
    const tril = Array.from({ length: limit * limit }, (_, i) =>
      i % limit <= Math.floor(i / limit) ? 1 : 0,
    );
    this.weights.push(makeTensor('bias_buffer', 'bool', [1, 1, limit, limit], tril));
    const end = this.dim(like, 2);
    const rows = this.op('Slice', ['bias_buffer', this.ints(0), end, this.ints(2)]);
    return this.op('Slice', [rows, this.ints(0), end, this.ints(3)]);
  }
}

export type Visible = 'all' | 'causal' | { window: number };

/** A family of exported attention: how it is written, and what it computes. */
export interface Family {
  readonly name: string;
  readonly build: (w: Writer) => Model;
  readonly layer?: () => Layer;
  readonly visible: Visible;
  readonly padding: boolean;
  /** The mask's name in the report. */
  readonly mask: string;
  readonly pattern?: string;
  /** ONNX Runtime has no CPU kernel for the original, and says so in these words. */
  readonly noKernel?: RegExp;
}

const qkv = (w: Writer) => {
  const { heads, kvHeads } = w.layer;
  return [
    w.heads(w.linear('q'), heads),
    w.heads(w.linear('k'), kvHeads),
    w.heads(w.linear('v'), kvHeads),
  ] as const;
};
const transposed = (w: Writer, k: string) => w.op('Transpose', [k], { perm: [0, 1, 3, 2] });
const scaled = (w: Writer, scores: string) =>
  w.op('Div', [scores, w.scalar(Math.sqrt(w.layer.dim))]);
const rootScale = (w: Writer, q: string) => {
  const size = w.op('Slice', [w.op('Shape', [q]), w.ints(-1), w.ints(2 ** 53), w.ints(0)]);
  const root = w.op('Sqrt', [w.op('Cast', [size], { to: DATA_TYPE[w.dtype] })]);
  return w.op('Sqrt', [w.op('Div', [w.scalar(1), root])]);
};

/** repeat_kv of transformers: Unsqueeze, Expand (its shape chosen by Where), Reshape. */
function repeat(w: Writer, x: string): string {
  const { heads, kvHeads, dim } = w.layer;
  const groups = heads / kvHeads;
  const [batch, tokens] = [w.dim(x, 0), w.dim(x, 2)];
  const wanted = w.op('Concat', [batch, w.ints(kvHeads), w.ints(groups), tokens, w.ints(dim)], {
    axis: 0,
  });
  const flat = w.op('Reshape', [wanted, w.ints(-1)]);
  const ones = w.op('ConstantOfShape', [w.op('Shape', [flat])], {
    value: makeTensor('', 'int64', [1], [1]),
  });
  const minus = w.op('Mul', [ones, w.constant('int64', [-1], [])]);
  const target = w.op('Where', [w.op('Equal', [flat, minus]), ones, flat]);
  const expanded = w.op('Expand', [w.op('Unsqueeze', [x, w.ints(2)]), target]);
  const shape = w.op('Concat', [batch, w.ints(heads), tokens, w.ints(dim)], { axis: 0 });
  return w.op('Reshape', [expanded, shape]);
}

/** int64 [T]: 0, 1, 2, ... */
function range(w: Writer, like: string): string {
  const count = w.op('Squeeze', [w.dim(like, 1), w.ints(0)]);
  return w.op('Range', [w.constant('int64', [0], []), count, w.constant('int64', [1], [])]);
}

export const FAMILIES: readonly Family[] = [
  {
    name: 'BERT: Div, Add of an extended mask',
    visible: 'all',
    padding: true,
    mask: 'padding',
    build(w) {
      const [q, k, v] = qkv(w);
      const scores = scaled(w, w.op('MatMul', [q, transposed(w, k)]));
      return w.finish(w.weighted(w.op('Add', [scores, w.extendedMask()]), v));
    },
  },
  {
    name: 'BERT, the mask first in Add, Dropout after Softmax',
    visible: 'all',
    padding: true,
    mask: 'padding',
    build(w) {
      const [q, k, v] = qkv(w);
      const scores = w.op('Mul', [
        w.scalar(1 / Math.sqrt(w.layer.dim)),
        w.op('MatMul', [q, transposed(w, k)]),
      ]);
      const weights = w.op('Softmax', [w.op('Add', [w.extendedMask(), scores])], { axis: -1 });
      return w.finish(w.op('MatMul', [w.op('Dropout', [weights]), v]));
    },
  },
  {
    name: 'DistilBERT: scale on q, Where(mask == 0)',
    visible: 'all',
    padding: true,
    mask: 'padding',
    build(w) {
      const [q, k, v] = qkv(w);
      const query = w.op('Div', [q, w.scalar(Math.sqrt(w.layer.dim))]);
      const scores = w.op('MatMul', [query, transposed(w, k)]);
      const zero = w.op('Equal', [w.maskInput(), w.constant('int64', [0], [])]);
      const shape = w.op(
        'Concat',
        [w.dim('attention_mask', 0), w.ints(1), w.ints(1), w.dim(k, 2)],
        { axis: 0 },
      );
      const wide = w.op('Expand', [w.op('Reshape', [zero, shape]), w.op('Shape', [scores])]);
      const fill = w.op('Cast', [w.scalar(-3.4028234663852886e38)], { to: DATA_TYPE[w.dtype] });
      return w.finish(w.weighted(w.op('Where', [wide, fill, scores]), v));
    },
  },
  {
    name: 'GPT-2: packed projection by Gemm and Split, causal buffer by Where',
    visible: 'causal',
    padding: false,
    mask: 'causal',
    build(w) {
      const [q, k, v] = packedByGemm(w);
      const scores = scaled(w, w.op('MatMul', [q, transposed(w, k)]));
      const masked = w.op('Where', [w.causalBuffer(k), scores, w.scalar(-3.4028234663852886e38)]);
      return w.finish(w.weighted(masked, v));
    },
  },
  {
    name: 'GPT-2 with padding: Add after Where',
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    build(w) {
      const [q, k, v] = packedByGemm(w);
      const scores = scaled(w, w.op('MatMul', [q, transposed(w, k)]));
      const masked = w.op('Where', [w.causalBuffer(k), scores, w.scalar(-10000)]);
      return w.finish(w.weighted(w.op('Add', [masked, w.extendedMask()]), v));
    },
  },
  {
    name: 'Llama with grouped heads: repeat_kv, Add of a causal mask',
    layer: () => makeLayer(12, 6, 2, 4),
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    build(w) {
      const [q, k, v] = qkv(w);
      const mask = causalPadding(w);
      const scores = scaled(w, w.op('MatMul', [q, transposed(w, repeat(w, k))]));
      return w.finish(w.weighted(w.op('Add', [scores, mask]), repeat(w, v)));
    },
  },
  {
    name: 'scaled_dot_product_attention: root of the scale on q and k, Trilu',
    visible: 'causal',
    padding: false,
    mask: 'causal',
    build(w) {
      const [q, k, v] = qkv(w);
      const root = rootScale(w, q);
      const keys = w.op('Mul', [transposed(w, k), root]);
      const scores = w.op('MatMul', [w.op('Mul', [q, root]), keys]);
      const shape = w.op('Concat', [w.dim(q, 2), w.dim(k, 2)], { axis: 0 });
      const ones = w.op('Expand', [w.constant(w.dtype, [1], [1, 1]), shape]);
      const tril = w.op('Trilu', [ones], { upper: 0 });
      const blocked = w.op('Equal', [tril, w.scalar(0)]);
      const bias = w.op('Where', [blocked, w.scalar(Number.NEGATIVE_INFINITY), w.scalar(0)]);
      const softmax = w.op('Softmax', [w.op('Add', [scores, bias])], { axis: -1 });
      const safe = w.op('Where', [w.op('IsNaN', [softmax]), w.scalar(0), softmax]);
      return w.finish(w.op('MatMul', [safe, v]));
    },
  },
  {
    name: 'ViT: separate projections, no mask',
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    build(w) {
      const [q, k, v] = qkv(w);
      return w.finish(w.weighted(scaled(w, w.op('MatMul', [q, transposed(w, k)])), v));
    },
  },
  {
    name: 'ViT (timm): packed [B,T,3,H,D] transposed and gathered, scale on q',
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    build(w) {
      const { heads, dim } = w.layer;
      const all = packed(w);
      const shape = w.op(
        'Concat',
        [w.dim('x', 0), w.dim('x', 1), w.ints(3), w.ints(heads), w.ints(dim)],
        { axis: 0 },
      );
      const turned = w.op('Transpose', [w.op('Reshape', [all, shape])], { perm: [2, 0, 3, 1, 4] });
      const [q, k, v] = [0, 1, 2].map((i) =>
        w.op('Gather', [turned, w.constant('int64', [i], [])], { axis: 0 }),
      );
      const query = w.op('Mul', [q!, w.scalar(1 / Math.sqrt(dim))]);
      return w.finish(w.weighted(w.op('MatMul', [query, transposed(w, k!)]), v!));
    },
  },
  {
    name: 'ViT (timm): packed, split over the first axis',
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    build(w) {
      const { heads, dim } = w.layer;
      const shape = w.op(
        'Concat',
        [w.dim('x', 0), w.dim('x', 1), w.ints(3), w.ints(heads), w.ints(dim)],
        { axis: 0 },
      );
      const turned = w.op('Transpose', [w.op('Reshape', [packed(w), shape])], {
        perm: [2, 0, 3, 1, 4],
      });
      const parts = w.ops('Split', [turned, w.ints(1, 1, 1)], 3, { axis: 0 });
      const [q, k, v] = parts.map((p) => w.op('Squeeze', [p, w.ints(0)]));
      const query = w.op('Mul', [q!, w.scalar(1 / Math.sqrt(dim))]);
      return w.finish(w.weighted(w.op('MatMul', [query, transposed(w, k!)]), v!));
    },
  },
  {
    name: 'keys transposed by perm 0231, no scale at all',
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    layer: () => makeLayer(12, 4, 4, 1),
    build(w) {
      const { heads } = w.layer;
      const q = w.heads(w.linear('q'), heads);
      const keys = w.op('Transpose', [w.split(w.linear('k'), heads)], { perm: [0, 2, 3, 1] });
      const v = w.heads(w.linear('v'), heads);
      return w.finish(w.weighted(w.op('MatMul', [q, keys]), v));
    },
  },
  {
    name: 'keys transposed as rank 3 between two Reshapes',
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    build(w) {
      const { heads, dim } = w.layer;
      const [q, k, v] = qkv(w);
      const flat = w.op('Reshape', [
        k,
        w.op('Concat', [w.ints(-1), w.dim(k, 2), w.ints(dim)], { axis: 0 }),
      ]);
      const turned = w.op('Transpose', [flat], { perm: [0, 2, 1] });
      const back = w.op('Concat', [w.dim(k, 0), w.ints(heads), w.ints(dim), w.dim(k, 2)], {
        axis: 0,
      });
      const keys = w.op('Reshape', [turned, back]);
      return w.finish(w.weighted(scaled(w, w.op('MatMul', [q, keys])), v));
    },
  },
  {
    name: 'BART: scale on q before the heads are split, [B*H,T,D], mask between two Reshapes',
    visible: 'all',
    padding: true,
    mask: 'padding',
    build(w) {
      const { heads, dim } = w.layer;
      const flat = (x: string) =>
        w.op('Reshape', [
          w.heads(x, heads),
          w.op('Concat', [w.op('Mul', [w.dim('x', 0), w.ints(heads)]), w.ints(-1), w.ints(dim)], {
            axis: 0,
          }),
        ]);
      const q = flat(w.op('Mul', [w.linear('q'), w.scalar(1 / Math.sqrt(dim))]));
      const [k, v] = [flat(w.linear('k')), flat(w.linear('v'))];
      const scores = w.op('MatMul', [q, w.op('Transpose', [k], { perm: [0, 2, 1] })]);
      const tokens = w.dim('x', 1);
      const wide = w.op('Reshape', [
        scores,
        w.op('Concat', [w.dim('x', 0), w.ints(heads), tokens, tokens], { axis: 0 }),
      ]);
      const masked = w.op('Add', [wide, w.extendedMask()]);
      const narrow = w.op('Reshape', [
        masked,
        w.op('Concat', [w.op('Mul', [w.dim('x', 0), w.ints(heads)]), tokens, tokens], { axis: 0 }),
      ]);
      const out = w.weighted(narrow, v);
      const shape = w.op('Concat', [w.dim('x', 0), w.ints(heads), tokens, w.ints(dim)], {
        axis: 0,
      });
      return w.finish(w.op('Reshape', [out, shape]));
    },
  },
  ...[
    { size: 3, table: 0 },
    { size: 20, table: 0 },
    { size: 20, table: 64 },
  ].map(
    ({ size, table }): Family => ({
      name: `Mistral: causal window of ${size} from Range and comparisons${table ? ', cut from a table' : ''}`,
      visible: { window: size },
      padding: false,
      mask: `window ${size}`,
      build(w) {
        const [q, k, v] = qkv(w);
        const at = range(w, 'x');
        const [rows, columns] = [
          w.op('Unsqueeze', [at, w.ints(1)]),
          w.op('Unsqueeze', [at, w.ints(0)]),
        ];
        const past = w.op('LessOrEqual', [columns, rows]);
        const near = w.op('Greater', [
          columns,
          w.op('Sub', [rows, w.constant('int64', [size], [])]),
        ]);
        const seen = w.op('And', [past, near]);
        const bias = w.op('Where', [
          table ? w.op('And', [seen, fromTable(w, table)]) : seen,
          w.scalar(0),
          w.scalar(-3.4028234663852886e38),
        ]);
        const scores = scaled(w, w.op('MatMul', [q, transposed(w, k)]));
        return w.finish(w.weighted(w.op('Add', [scores, bias]), v));
      },
    }),
  ),
  {
    name: 'DETR: something is added to the input of queries and keys only',
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    build(w) {
      const { heads } = w.layer;
      const placed = w.op('Add', ['x', w.scalar(0)]);
      const [q, k] = [w.heads(w.linear('q', placed), heads), w.heads(w.linear('k', placed), heads)];
      const v = w.heads(w.linear('v'), heads);
      return w.finish(w.weighted(scaled(w, w.op('MatMul', [q, transposed(w, k)])), v));
    },
  },
  {
    name: 'torch.nn.MultiheadAttention: tokens first, [T,B*H,D]',
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    build(w) {
      const { heads, hidden, dim } = w.layer;
      const x = w.op('Transpose', ['x'], { perm: [1, 0, 2] });
      const split = (what: 'q' | 'k' | 'v') => {
        const rows = w.op('Mul', [w.dim(x, 1), w.ints(heads)]);
        const shape = w.op('Concat', [w.dim(x, 0), rows, w.ints(dim)], { axis: 0 });
        return w.op('Reshape', [w.linear(what, x), shape]);
      };
      const swap = (value: string) => w.op('Transpose', [value], { perm: [1, 0, 2] });
      const keys = w.op('Transpose', [split('k')], { perm: [1, 2, 0] });
      const scores = w.op('MatMul', [scaled(w, swap(split('q'))), keys]);
      const out = swap(w.weighted(scores, swap(split('v'))));
      const flat = w.op('Reshape', [
        out,
        w.op('Concat', [w.ints(-1), w.ints(heads * dim)], { axis: 0 }),
      ]);
      const product = w.op('Gemm', [flat, w.weight('wo', [heads * dim, hidden], w.layer.wo)]);
      const shape = w.op('Concat', [w.dim(x, 0), w.dim(x, 1), w.ints(hidden)], { axis: 0 });
      w.op('Transpose', [w.op('Reshape', [product, shape])], { perm: [1, 0, 2] }, { output: 'y' });
      return w.build();
    },
  },
  {
    name: 'the shape of the weights is read afterwards',
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    build(w) {
      const { heads, dim } = w.layer;
      const [q, k, v] = qkv(w);
      const scores = scaled(w, w.op('MatMul', [q, transposed(w, k)]));
      const weights = w.op('Softmax', [scores], { axis: -1 });
      const out = w.op('Transpose', [w.op('MatMul', [weights, v])], { perm: [0, 2, 1, 3] });
      const shape = w.op('Concat', [w.dim(weights, 0), w.dim(weights, 3), w.ints(heads * dim)], {
        axis: 0,
      });
      return w.project(w.op('Reshape', [out, shape]));
    },
  },
  {
    name: 'heads that only a run of the model shows',
    layer: () => makeLayer(12, 4, 2, 3),
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    build(w) {
      const { heads, kvHeads, dim } = w.layer;
      const split = (x: string, count: number) => {
        const hidden = w.op('Max', [w.ints(count), w.ints(1)]);
        const shape = w.op(
          'Concat',
          [w.dim(x, 0), w.dim(x, 1), hidden, w.op('Max', [w.ints(dim)])],
          { axis: 0 },
        );
        return w.op('Transpose', [w.op('Reshape', [x, shape])], { perm: [0, 2, 1, 3] });
      };
      const [k, v] = [split(w.linear('k'), kvHeads), split(w.linear('v'), kvHeads)];
      const scores = w.op('MatMul', [split(w.linear('q'), heads), transposed(w, repeat(w, k))]);
      return w.finish(w.weighted(scaled(w, scores), repeat(w, v)));
    },
  },
  {
    name: 'one head, no head axis',
    layer: () => makeLayer(8, 1, 1, 6),
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    build(w) {
      const [q, k, v] = [w.linear('q'), w.linear('k'), w.linear('v')];
      const scores = scaled(w, w.op('MatMul', [q, w.op('Transpose', [k], { perm: [0, 2, 1] })]));
      return w.project(w.weighted(scores, v));
    },
  },
  ...[23, 24].map(
    (opset): Family => ({
      name: `ai.onnx Attention of opset ${opset}, packed rank 3, grouped heads, causal`,
      layer: () => makeLayer(12, 6, 2, 4),
      pattern: 'ai.onnx.Attention',
      visible: 'causal',
      padding: false,
      mask: 'causal',
      build(w) {
        const { heads, kvHeads } = w.layer;
        const inputs = [w.linear('q'), w.linear('k'), w.linear('v')];
        const attrs = { q_num_heads: heads, kv_num_heads: kvHeads, is_causal: 1 };
        w.project(w.op('Attention', inputs, attrs));
        return w.build(opset);
      },
    }),
  ),
  {
    name: 'ai.onnx Attention, rank 4, boolean mask',
    pattern: 'ai.onnx.Attention',
    visible: 'all',
    padding: true,
    mask: 'padding',
    build(w) {
      const [q, k, v] = qkv(w);
      const seen = w.op('Cast', [w.maskInput()], { to: DATA_TYPE.bool });
      const wide = w.op('Unsqueeze', [w.op('Unsqueeze', [seen, w.ints(1)]), w.ints(2)]);
      // ONNX Runtime wants the mask's token dimensions in full.
      const shape = w.op('Concat', [w.ints(1), w.ints(1), w.dim(q, 2), w.ints(1)], { axis: 0 });
      w.finish(w.op('Attention', [q, k, v, w.op('Expand', [wide, shape])]));
      return w.build(23);
    },
  },
  {
    name: 'com.microsoft.MultiHeadAttention, bias and key padding',
    pattern: 'com.microsoft.MultiHeadAttention',
    visible: 'all',
    padding: true,
    mask: 'padding',
    build(w) {
      const { heads, bq, bk, bv } = w.layer;
      const product = (what: 'q' | 'k' | 'v') =>
        w.op('MatMul', [
          'x',
          w.weight(`w${what}`, [w.layer.hidden, w.layer[`b${what}`].length], w.layer[`w${what}`]),
        ]);
      const bias = w.weight('bias', [bq.length * 3], [...bq, ...bk, ...bv]);
      const mask = w.op('Cast', [w.maskInput()], { to: DATA_TYPE.int32 });
      const inputs = [product('q'), product('k'), product('v'), bias, mask];
      return w.project(
        w.op('MultiHeadAttention', inputs, { num_heads: heads }, { domain: 'com.microsoft' }),
      );
    },
  },
  {
    name: 'com.microsoft.MultiHeadAttention, packed QKV, causal',
    noKernel: /Packed QKV/,
    pattern: 'com.microsoft.MultiHeadAttention',
    visible: 'causal',
    padding: false,
    mask: 'causal',
    build(w) {
      const { heads, dim } = w.layer;
      const parts = (['q', 'k', 'v'] as const).map((p) =>
        w.op('Unsqueeze', [w.split(w.linear(p), heads), w.ints(3)]),
      );
      const all = w.op('Concat', parts, { axis: 3 });
      const attrs = { num_heads: heads, unidirectional: 1, scale: { float: 1 / Math.sqrt(dim) } };
      return w.project(w.op('MultiHeadAttention', [all], attrs, { domain: 'com.microsoft' }));
    },
  },
];

/** bool [T,T], all true, cut from a table of `size` rows and columns: longer texts have no mask. */
function fromTable(w: Writer, size: number): string {
  const tokens = w.op('Min', [w.dim('x', 1), w.constant('int64', [size], [])]);
  const end = w.op('Concat', [tokens, tokens], { axis: 0 });
  const all = w.constant('bool', Array(size * size).fill(1), [size, size]);
  return w.op('Slice', [all, w.ints(0, 0), end, w.ints(0, 1)]);
}

/** x W + b for query, key and value at once: [B,T,3*H*D]. */
function packed(w: Writer): string {
  const { hidden, bq, bk, bv, wq, wk, wv } = w.layer;
  const n = bq.length;
  const rows = Array.from({ length: hidden }, (_, r) =>
    [wq, wk, wv].flatMap((m) => m.slice(r * n, (r + 1) * n)),
  );
  const product = w.op('MatMul', ['x', w.weight('wqkv', [hidden, 3 * n], rows.flat())]);
  return w.op('Add', [product, w.weight('bqkv', [3 * n], [...bq, ...bk, ...bv])]);
}

/** GPT-2's Conv1D: Reshape to rank 2, Gemm, Reshape back, Split. */
export function packedByGemm(w: Writer): [string, string, string] {
  const { hidden, heads, bq, bk, bv, wq, wk, wv } = w.layer;
  const n = bq.length;
  const rows = Array.from({ length: hidden }, (_, r) =>
    [wq, wk, wv].flatMap((m) => m.slice(r * n, (r + 1) * n)),
  );
  const flat = w.op('Reshape', ['x', w.ints(-1, hidden)]);
  const gemm = w.op('Gemm', [
    flat,
    w.weight('c_attn', [hidden, 3 * n], rows.flat()),
    w.weight('c_attn_bias', [3 * n], [...bq, ...bk, ...bv]),
  ]);
  const shape = w.op('Concat', [w.dim('x', 0), w.dim('x', 1), w.ints(3 * n)], { axis: 0 });
  const parts = w.ops('Split', [w.op('Reshape', [gemm, shape]), w.ints(n, n, n)], 3, { axis: 2 });
  return parts.map((p) => w.heads(p, heads)) as [string, string, string];
}

/** Llama's mask: 0 where the key is earlier and no padding, the smallest float elsewhere; [B,1,T,T]. */
export function causalPadding(w: Writer, like = 'x'): string {
  const at = range(w, like);
  const past = w.op('LessOrEqual', [
    w.op('Unsqueeze', [at, w.ints(0)]),
    w.op('Unsqueeze', [at, w.ints(1)]),
  ]);
  const keys = w.op('Unsqueeze', [w.op('Unsqueeze', [w.maskInput(), w.ints(1)]), w.ints(2)]);
  const seen = w.op('And', [past, w.op('Greater', [keys, w.constant('int64', [0], [])])]);
  return w.op('Where', [seen, w.scalar(0), w.scalar(-3.4028234663852886e38)]);
}

export { qkv, range, repeat, scaled, transposed };

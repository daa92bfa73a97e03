import { DATA_TYPE } from '../../../../exporter/index.js';
import { makeLayer } from '../layer.js';
import {
  causalPadding,
  type Family,
  packed,
  packedByGemm,
  qkv,
  range,
  repeat,
  rootScale,
  scaled,
  transposed,
  type Writer,
} from './writer.js';

/** MatMul, Softmax, MatMul, as exporters write it. */
export const DECOMPOSED: readonly Family[] = [
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
];

/** bool [T,T], all true, cut from a table of `size` rows and columns: longer texts have no mask. */
function fromTable(w: Writer, size: number): string {
  const tokens = w.op('Min', [w.dim('x', 1), w.constant('int64', [size], [])]);
  const end = w.op('Concat', [tokens, tokens], { axis: 0 });
  const all = w.constant('bool', Array(size * size).fill(1), [size, size]);
  return w.op('Slice', [all, w.ints(0, 0), end, w.ints(0, 1)]);
}

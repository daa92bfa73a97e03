import { makeTensor } from '../../../../exporter/index.js';
import { makeLayer } from '../layer.js';
import { rmsNorm, ropeTable, rotated } from './rope.js';
import {
  causalPadding,
  type Family,
  packed,
  qkv,
  range,
  repeat,
  scaled,
  transposed,
  type Writer,
} from './writer.js';

/** The smallest float, which masks are filled with. */
export const LOWEST = -3.4028234663852886e38;
const slice = (w: Writer, x: string, axis: number, from: number, to: number) =>
  w.op('Slice', [x, w.ints(from), w.ints(to), w.ints(axis)]);

/** cos or sin [1,1,T,R], gathered from a table of halves and doubled, as transformers does. */
function angles(w: Writer, what: 'cos' | 'sin', rotary: number): string {
  const table = w.weight(`${what}_table`, [32, rotary / 2], ropeTable(what, { rotary }));
  const half = w.op('Gather', [table, range(w, 'x')], { axis: 0 });
  return w.op('Unsqueeze', [w.op('Concat', [half, half], { axis: -1 }), w.ints(0, 1)]);
}

/** x cos + rotate_half(x) sin over the first `rotary` elements of heads [B,H,T,D]. */
function rope(w: Writer, x: string, rotary: number, cos: string, sin: string): string {
  const { dim } = w.layer;
  const part = rotary === dim ? x : slice(w, x, 3, 0, rotary);
  const [low, high] = [slice(w, part, 3, 0, rotary / 2), slice(w, part, 3, rotary / 2, 2 ** 53)];
  const turned = w.op('Concat', [w.op('Neg', [high]), low], { axis: -1 });
  const sum = w.op('Add', [w.op('Mul', [part, cos]), w.op('Mul', [turned, sin])]);
  if (rotary === dim) return sum;
  return w.op('Concat', [sum, slice(w, x, 3, rotary, 2 ** 53)], { axis: -1 });
}
/** Queries and keys [B,H,T,D], rotated. */
export const roped = (w: Writer, q: string, k: string, rotary = w.layer.dim) => {
  const [cos, sin] = [angles(w, 'cos', rotary), angles(w, 'sin', rotary)];
  return [rope(w, q, rotary, cos, sin), rope(w, k, rotary, cos, sin)] as const;
};
/** The same of one head, for the reference. */
export const turning = (rotary: number) => (x: readonly number[], at: number) =>
  rotated(x, at, { rotary });

/** RMSNorm as transformers writes it: Pow, ReduceMean, Add, Sqrt, Reciprocal. */
export function rms(w: Writer, x: string, weight: string): string {
  const mean = w.op('ReduceMean', [w.op('Pow', [x, w.scalar(2)])], { axes: [-1], keepdims: 1 });
  const root = w.op('Sqrt', [w.op('Add', [mean, w.scalar(1e-6)])]);
  return w.op('Mul', [weight, w.op('Mul', [x, w.op('Reciprocal', [root])])]);
}
const GAIN = Array.from({ length: 4 }, (_, i) => 0.75 + i / 4);

/** [B,H,T,D] to [B*H,T,D]. */
const flat = (w: Writer, x: string) =>
  w.op('Reshape', [
    x,
    w.op(
      'Concat',
      [w.op('Mul', [w.dim(x, 0), w.ints(w.layer.heads)]), w.ints(-1), w.ints(w.layer.dim)],
      { axis: 0 },
    ),
  ]);
/** [B*H,X,Y] to [B,H,X,Y]. */
const wide = (w: Writer, x: string, last: string) =>
  w.op('Reshape', [
    x,
    w.op('Concat', [w.dim('x', 0), w.ints(w.layer.heads), w.dim('x', 1), last], { axis: 0 }),
  ]);

/** Language models as transformers exports them. */
export const LANGUAGE: readonly Family[] = [
  {
    name: 'Qwen2: rotary embedding, grouped heads, bias on q, k, v',
    layer: () => ({ ...makeLayer(12, 6, 2, 4), turn: turning(4) }),
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    build(w) {
      const [q, k, v] = qkv(w);
      const [query, key] = roped(w, q, k);
      const scores = scaled(w, w.op('MatMul', [query, transposed(w, repeat(w, key))]));
      const masked = w.op('Add', [scores, causalPadding(w)]);
      return w.finish(w.weighted(masked, repeat(w, v)));
    },
  },
  {
    name: 'Qwen3: norms of heads before the rotary embedding',
    layer: () => ({
      ...makeLayer(12, 6, 2, 4),
      turn: (x, at) => rotated(rmsNorm(x, GAIN), at, { rotary: 4 }),
    }),
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    build(w) {
      const { heads, kvHeads } = w.layer;
      const normed = (what: 'q' | 'k', count: number) =>
        w.op(
          'Transpose',
          [rms(w, w.split(w.linear(what), count), w.weight(`${what}_norm`, [4], GAIN))],
          { perm: [0, 2, 1, 3] },
        );
      const v = w.heads(w.linear('v'), kvHeads);
      const [query, key] = roped(w, normed('q', heads), normed('k', kvHeads));
      const scores = w.op('Mul', [
        w.op('MatMul', [query, transposed(w, repeat(w, key))]),
        w.scalar(0.5),
      ]);
      return w.finish(w.weighted(w.op('Add', [scores, causalPadding(w)]), repeat(w, v)));
    },
  },
  {
    name: 'Phi-3: packed projection cut by Slice, rotary embedding',
    layer: () => ({ ...makeLayer(12, 4, 2, 4), turn: turning(4) }),
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    build(w) {
      const { heads, kvHeads, dim } = w.layer;
      const all = packed(w);
      const ends = [0, heads * dim, (heads + kvHeads) * dim, (heads + 2 * kvHeads) * dim];
      const [q, k, v] = [heads, kvHeads, kvHeads].map((count, i) =>
        w.heads(slice(w, all, 2, ends[i]!, ends[i + 1]!), count),
      );
      const [query, key] = roped(w, q!, k!);
      const scores = scaled(w, w.op('MatMul', [query, transposed(w, repeat(w, key))]));
      const weights = w.op('Softmax', [w.op('Add', [scores, causalPadding(w)])], { axis: -1 });
      return w.finish(w.op('MatMul', [w.op('Dropout', [weights]), repeat(w, v!)]));
    },
  },
  {
    name: 'GPT-NeoX: [B,T,H,3*D] cut by Slice, a quarter rotated, [B*H,T,D], causal buffer',
    layer: () => ({ ...makeLayer(12, 3, 3, 8), turn: turning(2) }),
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    build(w) {
      const { heads, dim } = w.layer;
      const parts = (['q', 'k', 'v'] as const).map((p) =>
        w.op('Unsqueeze', [w.split(w.linear(p), heads), w.ints(3)]),
      );
      const stacked = w.op('Concat', parts, { axis: 3 });
      const shape = w.op('Concat', [w.dim('x', 0), w.dim('x', 1), w.ints(heads, 3 * dim)], {
        axis: 0,
      });
      const all = w.op('Reshape', [stacked, shape]);
      const [q, k, v] = [0, 1, 2].map((i) =>
        w.op('Transpose', [slice(w, all, 3, i * dim, i < 2 ? (i + 1) * dim : 2 ** 53)], {
          perm: [0, 2, 1, 3],
        }),
      );
      const [query, key] = roped(w, q!, k!, 2);
      // baddbmm(zeros, q, k', beta=1, alpha=1/sqrt(d))
      const keys = w.op('Transpose', [flat(w, key)], { perm: [0, 2, 1] });
      const product = w.op('MatMul', [flat(w, query), keys]);
      const scores = wide(w, w.op('Mul', [product, w.scalar(1 / Math.sqrt(dim))]), w.dim('x', 1));
      const masked = w.op('Where', [w.causalBuffer(key), scores, w.scalar(LOWEST)]);
      return w.finish(w.weighted(w.op('Add', [masked, w.extendedMask()]), v!));
    },
  },
  {
    name: 'OPT: scale on q before the heads are split, Max with the lowest number, [B*H,T,D]',
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    build(w) {
      const { heads, dim } = w.layer;
      const q = w.op('Mul', [w.linear('q'), w.scalar(1 / Math.sqrt(dim))]);
      const [query, key, value] = [q, w.linear('k'), w.linear('v')].map((x) =>
        flat(w, w.heads(x, heads)),
      );
      const keys = w.op('Transpose', [key!], { perm: [0, 2, 1] });
      const scores = wide(w, w.op('MatMul', [query!, keys]), w.dim('x', 1));
      const masked = w.op('Max', [w.op('Add', [scores, causalPadding(w)]), w.scalar(LOWEST)]);
      const out = w.weighted(flat3(w, masked), value!);
      return w.finish(wide(w, out, w.ints(dim)));
    },
  },
  {
    name: 'Gemma: window mask by Where over a causal one, scale from the configuration',
    layer: () => ({ ...makeLayer(12, 4, 1, 4), turn: turning(4) }),
    visible: { window: 4 },
    padding: false,
    mask: 'window 4',
    build(w) {
      const [q, k, v] = qkv(w);
      const [query, key] = roped(w, q, k);
      const product = w.op('MatMul', [query, transposed(w, repeat(w, key))]);
      const scores = w.op('Mul', [product, w.scalar(0.5)]);
      const at = range(w, 'x');
      const [rows, columns] = [
        w.op('Unsqueeze', [at, w.ints(1)]),
        w.op('Unsqueeze', [at, w.ints(0)]),
      ];
      const causal = w.op('Where', [
        w.op('LessOrEqual', [columns, rows]),
        w.scalar(0),
        w.scalar(LOWEST),
      ]);
      const far = w.op('LessOrEqual', [columns, w.op('Sub', [rows, w.constant('int64', [4], [])])]);
      const mask = w.op('Unsqueeze', [
        w.op('Where', [far, w.scalar(LOWEST), causal]),
        w.ints(0, 1),
      ]);
      return w.finish(w.weighted(w.op('Add', [scores, mask]), repeat(w, v)));
    },
  },
  {
    name: 'GPT-J: Where over a buffer with a fill made of Cast',
    visible: 'causal',
    padding: false,
    mask: 'causal',
    build(w) {
      const [q, k, v] = qkv(w);
      const scores = w.op('MatMul', [q, transposed(w, k)]);
      const fill = w.op('Cast', [w.scalar(LOWEST)], { to: 1 });
      const masked = w.op('Where', [
        w.causalBuffer(k),
        w.op('Div', [scores, w.scalar(Math.sqrt(w.layer.dim))]),
        fill,
      ]);
      return w.finish(w.weighted(masked, v));
    },
  },
  {
    name: 'CodeGen, Falcon: one key/value head for all query heads, broadcast by MatMul',
    layer: () => makeLayer(12, 4, 1, 3),
    visible: 'causal',
    padding: false,
    mask: 'causal',
    build(w) {
      const [q, k, v] = qkv(w);
      const scores = scaled(w, w.op('MatMul', [q, transposed(w, k)]));
      const masked = w.op('Where', [w.causalBuffer(k), scores, w.scalar(LOWEST)]);
      return w.finish(w.weighted(masked, v));
    },
  },
  {
    name: 'Llama: Expand, Reshape and products of rank 3',
    exporter: 'PyTorch, dynamo',
    layer: () => ({ ...makeLayer(12, 4, 2, 4), turn: turning(4) }),
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    build(w) {
      const { heads, dim } = w.layer;
      const [q, k, v] = qkv(w);
      const [query, key] = roped(w, q, k);
      const tokens = w.dim('x', 1);
      const rank3 = (x: string, rows: string, columns: string) => {
        const same = w.op('Expand', [
          x,
          w.op('Concat', [w.dim('x', 0), w.ints(heads), rows, columns], { axis: 0 }),
        ]);
        const lengths = [w.op('Mul', [w.dim('x', 0), w.ints(heads)]), rows, columns];
        return w.op('Reshape', [same, w.op('Concat', lengths, { axis: 0 })]);
      };
      const keys = rank3(transposed(w, repeat(w, key)), w.ints(dim), tokens);
      const product = w.op('MatMul', [rank3(query, tokens, w.ints(dim)), keys]);
      const scores = w.op('Mul', [wide(w, product, tokens), w.scalar(0.5)]);
      const weights = w.op('Softmax', [w.op('Add', [scores, causalPadding(w)])], { axis: -1 });
      const values = rank3(repeat(w, v), tokens, w.ints(dim));
      const out = w.op('MatMul', [rank3(weights, tokens, tokens), values]);
      return w.finish(wide(w, out, w.ints(dim)));
    },
  },
  {
    name: 'Llama: scaled_dot_product_attention, constant roots, Where of a boolean mask',
    exporter: 'PyTorch, dynamo',
    layer: () => ({ ...makeLayer(12, 4, 2, 4), turn: turning(4) }),
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    build(w) {
      const [q, k, v] = qkv(w);
      const [query, key] = roped(w, q, k);
      const root = w.scalar(Math.sqrt(0.5));
      const keys = w.op('Mul', [transposed(w, repeat(w, key)), root]);
      const scores = w.op('MatMul', [w.op('Mul', [query, root]), keys]);
      const at = range(w, 'x');
      const past = w.op('LessOrEqual', [
        w.op('Unsqueeze', [at, w.ints(0)]),
        w.op('Unsqueeze', [at, w.ints(1)]),
      ]);
      const batch = w.op('Range', [
        w.constant('int64', [0], []),
        w.op('Squeeze', [w.dim('x', 0), w.ints(0)]),
        w.constant('int64', [1], []),
      ]);
      // attention_mask[batch, keys], as vmap writes it: GatherND of an index grid.
      const shape = w.op('Concat', [w.dim('x', 0), w.ints(1, 1), w.dim('x', 1), w.ints(1)], {
        axis: 0,
      });
      const index = w.op(
        'Concat',
        [
          w.op('Expand', [w.op('Unsqueeze', [batch, w.ints(1, 2, 3, 4)]), shape]),
          w.op('Expand', [w.op('Unsqueeze', [at, w.ints(0, 1, 2, 4)]), shape]),
        ],
        { axis: -1 },
      );
      const mask = w.op('Cast', [w.maskInput()], { to: 9 });
      const seen = w.op('And', [past, w.op('GatherND', [mask, index])]);
      const bias = w.op('Where', [seen, w.scalar(0), w.scalar(Number.NEGATIVE_INFINITY)]);
      const softmax = w.op('Softmax', [w.op('Add', [scores, bias])], { axis: -1 });
      return w.finish(w.op('MatMul', [softmax, repeat(w, v)]));
    },
  },
  {
    name: 'grouped heads: repeated by Gather and by Tile',
    layer: () => makeLayer(12, 4, 2, 3),
    visible: 'causal',
    padding: false,
    mask: 'causal',
    build(w) {
      const [q, k, v] = qkv(w);
      const index = w.constant('int64', [0, 0, 1, 1]);
      const keys = w.op('Gather', [k, index], { axis: 1 });
      const tiled = w.op('Tile', [w.op('Unsqueeze', [v, w.ints(2)]), w.ints(1, 1, 2, 1, 1)]);
      const shape = w.op('Concat', [w.dim('x', 0), w.ints(4), w.dim('x', 1), w.ints(3)], {
        axis: 0,
      });
      const values = w.op('Reshape', [tiled, shape]);
      const scores = scaled(w, w.op('MatMul', [q, transposed(w, keys)]));
      const masked = w.op('Where', [w.causalBuffer(k), scores, w.scalar(LOWEST)]);
      return w.finish(w.weighted(masked, values));
    },
  },
  {
    name: 'causal mask: by ConstantOfShape, Trilu and ScatterND, as transformers makes it',
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    build(w) {
      const [q, k, v] = qkv(w);
      const scores = scaled(w, w.op('MatMul', [q, transposed(w, k)]));
      const [batch, tokens] = [w.dim('x', 0), w.dim('x', 1)];
      const square = w.op('Concat', [tokens, tokens], { axis: 0 });
      const lowest = w.op('ConstantOfShape', [square], {
        value: makeTensor('', w.dtype, [1], [LOWEST]),
      });
      const upper = w.op('Trilu', [lowest, w.constant('int64', [1], [])], { upper: 1 });
      const target = w.op('Concat', [batch, w.ints(1), tokens, tokens], { axis: 0 });
      const causal = w.op('Expand', [w.op('Unsqueeze', [upper, w.ints(0, 1)]), target]);
      const keys = w.op('Unsqueeze', [w.maskInput(), w.ints(1, 2)]);
      const sum = w.op('Add', [causal, w.op('Cast', [keys], { to: 1 })]);
      const padding = w.op('Equal', [sum, w.scalar(0)]);
      const filled = w.op('Where', [padding, w.scalar(LOWEST), causal]);
      // causal[:, :, :, :length] = filled
      const range4 = [w.dim(filled, 0), w.dim(filled, 1), w.dim(filled, 2), w.dim(filled, 3)];
      const all = w.op('Concat', range4, { axis: 0 });
      const indices = w.op('Transpose', [
        w.op('NonZero', [
          w.op('ConstantOfShape', [all], { value: makeTensor('', 'int64', [1], [1]) }),
        ]),
      ]);
      const updates = w.op('Reshape', [filled, w.ints(-1)]);
      const mask = w.op('ScatterND', [causal, indices, updates]);
      return w.finish(w.weighted(w.op('Add', [scores, mask]), v));
    },
  },
];

/** [B,H,T,T] to [B*H,T,T]. */
function flat3(w: Writer, x: string): string {
  const tokens = w.dim('x', 1);
  const rows = w.op('Mul', [w.dim('x', 0), w.ints(w.layer.heads)]);
  return w.op('Reshape', [x, w.op('Concat', [rows, tokens, tokens], { axis: 0 })]);
}

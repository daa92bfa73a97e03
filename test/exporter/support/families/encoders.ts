import { DATA_TYPE } from '../../../../exporter/index.js';
import { makeLayer } from '../layer.js';
import {
  causalPadding,
  type Family,
  packed,
  qkv,
  repeat,
  scaled,
  transposed,
  type Writer,
} from './writer.js';

const LOWEST = -3.4028234663852886e38;
const join = (w: Writer, ...parts: string[]) => w.op('Concat', parts, { axis: 0 });

/** [B,H,T,D] to [B*H,T,D]. */
const flat = (w: Writer, x: string) =>
  w.op('Reshape', [
    x,
    join(w, w.op('Mul', [w.dim(x, 0), w.ints(w.layer.heads)]), w.ints(-1), w.ints(w.layer.dim)),
  ]);

/** bool [B,1,1,T], true for padding. */
const hidden = (w: Writer) => {
  const wide = w.op('Unsqueeze', [w.maskInput(), w.ints(1, 2)]);
  return w.op('Equal', [wide, w.constant('int64', [0], [])]);
};

interface EinsumForm {
  readonly name: string;
  readonly exporter?: string;
  readonly scores: string;
  readonly sum: string;
  /** Operands as the equations want them. */
  readonly layout: 'bhtd' | 'bthd' | 'ntd';
  /** Keys come first in the scores. */
  readonly keysFirst?: boolean;
  /** The result is [B,T,H,D]. */
  readonly turned?: boolean;
}

const EINSUM: EinsumForm[] = [
  { name: 'UNet of diffusers', scores: 'bid,bjd->bij', sum: 'bij,bjd->bid', layout: 'ntd' },
  {
    name: 'lucidrains',
    scores: 'b h i d, b h j d -> b h i j',
    sum: 'bhij,bhjd->bhid',
    layout: 'bhtd',
  },
  {
    name: 'Keras MultiHeadAttention',
    exporter: 'tf2onnx',
    scores: 'aecd,abcd->acbe',
    sum: 'acbe,aecd->abcd',
    layout: 'bthd',
    keysFirst: true,
    turned: true,
  },
  {
    name: 'flax',
    exporter: 'jax2onnx',
    scores: 'bqhd,bkhd->bhqk',
    sum: 'bhqk,bkhd->bqhd',
    layout: 'bthd',
    turned: true,
  },
];

function einsum({ name, exporter, scores, sum, layout, keysFirst, turned }: EinsumForm): Family {
  return {
    name: `${name}: Einsum ${scores}`,
    ...(exporter && { exporter }),
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    build(w) {
      const { heads, dim } = w.layer;
      const [q, k, v] = (['q', 'k', 'v'] as const).map((p) => {
        const apart = w.split(w.linear(p), heads);
        if (layout === 'bthd') return apart;
        const turnedHeads = w.op('Transpose', [apart], { perm: [0, 2, 1, 3] });
        return layout === 'ntd' ? flat(w, turnedHeads) : turnedHeads;
      });
      const product = w.op('Einsum', keysFirst ? [k!, q!] : [q!, k!], { equation: scores });
      const weights = w.op('Softmax', [scaled(w, product)], { axis: -1 });
      const out = w.op('Einsum', [weights, v!], { equation: sum });
      if (turned) {
        return w.project(
          w.op('Reshape', [out, join(w, w.dim('x', 0), w.dim('x', 1), w.ints(heads * dim))]),
        );
      }
      if (layout !== 'ntd') return w.finish(out);
      return w.finish(
        w.op('Reshape', [out, join(w, w.dim('x', 0), w.ints(heads), w.dim('x', 1), w.ints(dim))]),
      );
    },
  };
}

/** Encoders: of text, of images, of sound. */
export const ENCODERS: readonly Family[] = [
  {
    name: 'RoBERTa: scaled_dot_product_attention, mask expanded to [B,1,T,T]',
    visible: 'all',
    padding: true,
    mask: 'padding',
    build(w) {
      const [q, k, v] = qkv(w);
      const wide = w.op('Expand', [
        w.op('Unsqueeze', [w.maskInput(), w.ints(1, 2)]),
        join(w, w.dim('x', 0), w.ints(1), w.dim('x', 1), w.dim('x', 1)),
      ]);
      const inverted = w.op('Sub', [w.scalar(1), w.op('Cast', [wide], { to: DATA_TYPE[w.dtype] })]);
      const mask = w.op('Where', [
        w.op('Cast', [inverted], { to: DATA_TYPE.bool }),
        w.scalar(LOWEST),
        inverted,
      ]);
      const root = w.scalar(w.layer.dim ** -0.25);
      const scores = w.op('MatMul', [
        w.op('Mul', [q, root]),
        w.op('Mul', [transposed(w, k), root]),
      ]);
      return w.finish(w.weighted(w.op('Add', [scores, mask]), v));
    },
  },
  {
    name: 'CLIP: [B*H,T,D], scale on q, causal mask between two Reshapes',
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    build(w) {
      const { heads, dim } = w.layer;
      const tokens = w.dim('x', 1);
      const q = w.op('Mul', [w.linear('q'), w.scalar(1 / Math.sqrt(dim))]);
      const [query, key, value] = [q, w.linear('k'), w.linear('v')].map((x) =>
        flat(w, w.heads(x, heads)),
      );
      const keys = w.op('Transpose', [key!], { perm: [0, 2, 1] });
      const product = w.op('MatMul', [query!, keys]);
      const wide = w.op('Reshape', [
        product,
        join(w, w.dim('x', 0), w.ints(heads), tokens, tokens),
      ]);
      const masked = w.op('Add', [wide, causalPadding(w)]);
      const rows = w.op('Mul', [w.dim('x', 0), w.ints(heads)]);
      const narrow = w.op('Reshape', [masked, join(w, rows, tokens, tokens)]);
      const out = w.op('Reshape', [
        w.weighted(narrow, value!),
        join(w, w.dim('x', 0), w.ints(heads), tokens, w.ints(dim)),
      ]);
      return w.finish(out);
    },
  },
  {
    name: 'Whisper, encoder: scale on q, no bias on k',
    layer: () => {
      const layer = makeLayer();
      return { ...layer, bk: layer.bk.map(() => 0) };
    },
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    build(w) {
      const { heads, dim } = w.layer;
      const q = w.heads(w.op('Mul', [w.linear('q'), w.scalar(dim ** -0.5)]), heads);
      const [k, v] = [w.heads(w.product('k'), heads), w.heads(w.linear('v'), heads)];
      return w.finish(w.weighted(w.op('MatMul', [q, transposed(w, k)]), v));
    },
  },
  {
    name: 'Conformer (ESPnet, WeNet): Where before Softmax and with 0 after it',
    visible: 'all',
    padding: true,
    mask: 'padding',
    build(w) {
      const [q, k, v] = qkv(w);
      const scores = scaled(w, w.op('MatMul', [q, transposed(w, k)]));
      const padding = hidden(w);
      const masked = w.op('Where', [padding, w.scalar(LOWEST), scores]);
      const softmax = w.op('Softmax', [masked], { axis: -1 });
      const weights = w.op('Where', [padding, w.scalar(0), softmax]);
      return w.finish(w.op('MatMul', [weights, v]));
    },
  },
  {
    name: 'nn.TransformerEncoder: packed in_proj, three entries of [3,T,B,E] by Gather, tokens first',
    visible: 'all',
    padding: true,
    mask: 'padding',
    build(w) {
      const { heads, dim, hidden: width, wo } = w.layer;
      const [batch, tokens] = [w.dim('x', 0), w.dim('x', 1)];
      const rows = w.op('Mul', [batch, w.ints(heads)]);
      const first = w.op('Transpose', [packed(w)], { perm: [1, 0, 2] });
      const apart = w.op('Unsqueeze', [
        w.op('Reshape', [first, join(w, tokens, batch, w.ints(3, heads * dim))]),
        w.ints(0),
      ]);
      const three = w.op('Squeeze', [
        w.op('Transpose', [apart], { perm: [3, 1, 2, 0, 4] }),
        w.ints(3),
      ]);
      const [q, k, v] = [0, 1, 2].map((i) => {
        const one = w.op('Gather', [three, w.constant('int64', [i], [])], { axis: 0 });
        const narrow = w.op('Reshape', [one, join(w, tokens, rows, w.ints(dim))]);
        return w.op('Transpose', [narrow], { perm: [1, 0, 2] });
      });
      const wide = (x: string) =>
        w.op('Reshape', [x, join(w, batch, w.ints(heads), tokens, w.ints(dim))]);
      const [query, key, value] = [wide(q!), wide(k!), wide(v!)];
      const float = w.op('Where', [hidden(w), w.scalar(Number.NEGATIVE_INFINITY), w.scalar(0)]);
      const root = w.scalar(dim ** -0.25);
      const scores = w.op('MatMul', [
        w.op('Mul', [query, root]),
        w.op('Mul', [transposed(w, key), root]),
      ]);
      const out = w.weighted(w.op('Add', [scores, float]), value);
      const turned = w.op('Transpose', [out], { perm: [2, 0, 1, 3] });
      const flatOut = w.op('Reshape', [
        turned,
        join(w, w.op('Mul', [tokens, batch]), w.ints(heads * dim)),
      ]);
      const product = w.op('Gemm', [flatOut, w.weight('wo', [heads * dim, width], wo)]);
      const back = w.op('Reshape', [product, join(w, tokens, batch, w.ints(width))]);
      w.op('Transpose', [back], { perm: [1, 0, 2] }, { output: 'y' });
      return w.build();
    },
  },
  {
    name: 'Segformer, PVT and BEiT: q and k upcast by Cast, Softmax in float32',
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    build(w) {
      const [q, k, v] = qkv(w);
      const cast = (x: string) => w.op('Cast', [x], { to: DATA_TYPE.float32 });
      const scores = scaled(w, w.op('MatMul', [cast(q), cast(transposed(w, k))]));
      return w.finish(w.weighted(scores, cast(v)));
    },
  },
  {
    name: 'one head of keys: repeated by Expand',
    layer: () => makeLayer(12, 4, 1, 3),
    visible: 'all',
    padding: true,
    mask: 'padding',
    build(w) {
      const [q, k, v] = qkv(w);
      const scores = scaled(w, w.op('MatMul', [q, transposed(w, repeat(w, k))]));
      return w.finish(w.weighted(w.op('Add', [scores, w.extendedMask()]), repeat(w, v)));
    },
  },
  ...EINSUM.map(einsum),
];

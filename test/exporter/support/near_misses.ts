import { DATA_TYPE, type Model, makeTensor } from '../../../exporter/index.js';
import {
  genaiLengths,
  packedWeights,
  qkv,
  range,
  repeat,
  scaled,
  transposed,
  type Writer,
} from './families.js';

/** Near misses: what looks like attention that can be rewritten, and is not. */
export interface NearMiss {
  readonly name: string;
  readonly build: (w: Writer) => Model;
  readonly reason: RegExp;
  /** No attention at all. */
  readonly nothing?: boolean;
  readonly grouped?: boolean;
  readonly dim?: number;
}

const plain = (w: Writer) => {
  const [q, k, v] = qkv(w);
  return { q, k, v, scores: scaled(w, w.op('MatMul', [q, transposed(w, k)])) };
};
const attend = (w: Writer, bias: string) => {
  const { scores, v } = plain(w);
  return w.finish(w.weighted(w.op('Add', [scores, bias]), v));
};
/** int64 [T,T]: key position - query position. */
const offsets = (w: Writer) => {
  const at = range(w, 'x');
  return w.op('Sub', [w.op('Unsqueeze', [at, w.ints(0)]), w.op('Unsqueeze', [at, w.ints(1)])]);
};

/** A bias of distances (0, -1, -2, ..) times a slope, behind a causal mask. */
const causalBias = (w: Writer, bent: (distance: string) => string, slope: number) => {
  const distance = bent(w.op('Cast', [offsets(w)], { to: DATA_TYPE.float32 }));
  const later = w.op('Greater', [offsets(w), w.constant('int64', [0], [])]);
  const bias = w.op('Mul', [distance, w.scalar(slope)]);
  return attend(w, w.op('Where', [later, w.scalar(-3.4e38), bias]));
};
const withoutLast = (w: Writer, x: string) =>
  w.op('Slice', [x, w.ints(0), w.ints(-1), w.ints(3), w.ints(1)]);

const MICROSOFT = { domain: 'com.microsoft' };
type Attributes = Readonly<Record<string, number | string | { float: number }>>;
/** GroupQueryAttention of a prompt. */
const grouped = (w: Writer, attrs: Attributes, more: string[] = []) => {
  const [seqlens, total] = genaiLengths(w);
  const inputs = [w.linear('q'), w.linear('k'), w.linear('v'), '', '', seqlens, total, ...more];
  const heads = { num_heads: 4, kv_num_heads: 4 };
  return w.project(w.op('GroupQueryAttention', inputs, { ...heads, ...attrs }, MICROSOFT));
};
/** How a cache that TensorScatter writes is not understood. */
interface Scattered {
  readonly mode?: string;
  readonly axis?: number;
  readonly causal?: number;
  readonly mask?: boolean;
  readonly apart?: boolean;
  readonly read?: boolean;
  readonly bare?: boolean;
}

const scattered = (w: Writer, { mode = 'linear', axis = 2, causal = 1, ...more }: Scattered) => {
  const { heads, dim } = w.layer;
  w.inputs.nonpad_kv_seqlen = ['int64', ['batch']];
  const [q, k, v] = qkv(w);
  const written = [k, v].map((x, i) => {
    if (more.bare) return x;
    const name = i === 0 ? 'key' : 'value';
    const at = more.apart ? `write_indices_${i}` : 'write_indices';
    w.inputs[at] = ['int64', ['batch']];
    for (const which of ['past', 'present'] as const) {
      const values = which === 'past' ? w.inputs : w.outputs;
      values[`${which}_${name}`] = ['float32', ['batch', heads, 32, dim]];
    }
    const attrs = { axis, ...(mode !== 'linear' && { mode }) };
    return w.op('TensorScatter', [`past_${name}`, x, at], attrs, { output: `present_${name}` });
  });
  if (more.read) {
    w.outputs.most = ['float32', undefined];
    w.op('ReduceMax', ['present_key'], {}, { output: 'most' });
  }
  const mask = more.mask ? w.extendedMask() : '';
  const inputs = [q, ...written, mask, '', '', 'nonpad_kv_seqlen'];
  w.finish(w.op('Attention', inputs, { is_causal: causal }));
  return w.build(24);
};

/** A node that has the projections inside. */
const inside = (w: Writer, opType: string, attrs: Attributes) => {
  const { weight, bias } = packedWeights(w);
  return w.project(w.op(opType, ['x', weight, bias], { num_heads: 4, ...attrs }, MICROSOFT));
};

export const NEAR_MISSES: readonly NearMiss[] = [
  {
    name: 'a classifier',
    nothing: true,
    reason: /constant weight 'head' \[12,5\]: a classifier/,
    build(w) {
      const logits = w.op('MatMul', ['x', w.weight('head', [12, 5], Array(60).fill(0.1))]);
      w.outputs.y = ['float32', ['batch', 'sequence', 5]];
      w.op('Softmax', [logits], { axis: -1 }, { output: 'y' });
      return w.build();
    },
  },
  {
    name: 'a router of experts, whose weights are multiplied with outputs',
    nothing: true,
    reason: /constant weight 'gate'/,
    build(w) {
      const logits = w.op('MatMul', ['x', w.weight('gate', [12, 12], Array(144).fill(0.1))]);
      const weights = w.op('Softmax', [logits], { axis: -1 });
      w.op(
        'MatMul',
        [weights, w.weight('experts', [12, 12], Array(144).fill(0.2))],
        {},
        { output: 'y' },
      );
      return w.build();
    },
  },
  {
    name: 'Softmax over another axis',
    nothing: true,
    reason: /last axis, received axis 2/,
    build(w) {
      const { scores, v } = plain(w);
      return w.finish(w.op('MatMul', [w.op('Softmax', [scores], { axis: 2 }), v]));
    },
  },
  {
    name: 'Softmax of what is no product',
    nothing: true,
    reason: /no attention scores behind it: 'Sigmoid_node' must be/,
    build(w) {
      const { q, v } = plain(w);
      const scores = w.op('Sigmoid', [w.op('MatMul', [q, transposed(w, v)])]);
      return w.finish(w.weighted(scores, v));
    },
  },
  {
    name: 'weights that no values are multiplied with',
    nothing: true,
    reason: /not multiplied with values: it goes to ReduceMean/,
    build(w) {
      const { scores } = plain(w);
      w.outputs.y = ['float32', undefined];
      w.op(
        'ReduceMean',
        [w.op('Softmax', [scores], { axis: -1 })],
        { keepdims: 0 },
        { output: 'y' },
      );
      return w.build();
    },
  },
  {
    name: 'weights that are a graph output',
    reason: /'attentions' \(Softmax\) is a graph output/,
    build(w) {
      const { scores, v } = plain(w);
      w.outputs.attentions = ['float32', undefined];
      w.op('Softmax', [scores], { axis: -1 }, { output: 'attentions' });
      return w.finish(w.op('MatMul', ['attentions', v]));
    },
  },
  {
    name: 'scores that something else reads',
    reason: /\(Div\) is also read by ReduceMax/,
    build(w) {
      const { scores, v } = plain(w);
      w.outputs.peak = ['float32', undefined];
      w.op('ReduceMax', [scores], { keepdims: 0 }, { output: 'peak' });
      return w.finish(w.weighted(scores, v));
    },
  },
  {
    name: 'cross-attention',
    reason: /cross-attention: queries are made from x, values from encoder/,
    build(w) {
      const { heads } = w.layer;
      w.inputs.encoder = ['float32', ['batch', 'source', w.layer.hidden]];
      const q = w.heads(w.linear('q'), heads);
      const [k, v] = [
        w.heads(w.linear('k', 'encoder'), heads),
        w.heads(w.linear('v', 'encoder'), heads),
      ];
      return w.finish(w.weighted(scaled(w, w.op('MatMul', [q, transposed(w, k)])), v));
    },
  },
  {
    name: 'ALiBi both ways',
    reason: /adds up to .* to keys that are seen: a bias .* bias 'drop' leaves it out/,
    build(w) {
      const distance = w.op('Abs', [w.op('Cast', [offsets(w)], { to: DATA_TYPE.float32 })]);
      return attend(w, w.op('Mul', [distance, w.scalar(-0.25)]));
    },
  },
  {
    name: 'ALiBi that no longer grows beyond 20 tokens',
    reason: /adds up to .* to keys that are seen: a bias/,
    build: (w) => causalBias(w, (d) => w.op('Max', [d, w.scalar(-20)]), 0.25),
  },
  {
    name: 'a bias that prefers far keys',
    reason: /adds up to .* to keys that are seen: a bias/,
    build: (w) => causalBias(w, (d) => d, -0.25),
  },
  {
    name: 'softcap of masked scores',
    reason: /scores go through Tanh after a mask or another Tanh/,
    build(w) {
      const { scores, v } = plain(w);
      const masked = w.op('Where', [w.causalBuffer(v), scores, w.scalar(-1e9)]);
      const capped = w.op('Tanh', [masked]);
      return w.finish(w.weighted(w.op('Mul', [capped, w.scalar(50)]), v));
    },
  },
  {
    name: 'scores that Tanh turns round',
    reason: /scores behind Tanh must be multiplied by a positive number, received -50/,
    build(w) {
      const { scores, v } = plain(w);
      return w.finish(w.weighted(w.op('Mul', [w.op('Tanh', [scores]), w.scalar(-50)]), v));
    },
  },
  {
    name: 'a sink that depends on the query',
    reason: /sink '.*' must hold 4 numbers, one for each head, received \[batch,4,sequence,1\]/,
    build(w) {
      const { q, scores, v } = plain(w);
      const key = w.weight('sink_key', [w.layer.dim, 1], Array(w.layer.dim).fill(0.5));
      const all = w.op('Concat', [scores, w.op('MatMul', [q, key])], { axis: -1 });
      const weights = w.op('Softmax', [all], { axis: -1 });
      return w.finish(w.op('MatMul', [withoutLast(w, weights), v]));
    },
  },
  {
    name: 'a sink that is not cut off',
    reason: /the column 'sinks' of the weights is multiplied with values/,
    build(w) {
      const { heads } = w.layer;
      const { scores, v } = plain(w);
      const column = w.op('Expand', [
        w.weight('sinks', [1, heads, 1, 1], [0, 1, 2, 3]),
        w.op('Concat', [w.dim('x', 0), w.ints(1), w.dim('x', 1), w.ints(1)], { axis: 0 }),
      ]);
      const all = w.op('Concat', [scores, column], { axis: -1 });
      const padded = w.op('Pad', [v, w.ints(0, 0, 0, 0, 0, 0, 1, 0)]);
      return w.finish(w.weighted(all, padded));
    },
  },
  {
    name: 'weights without those of the last key',
    reason: /the last column of the weights is cut off, and is that of a key/,
    build(w) {
      const { scores, v } = plain(w);
      const weights = withoutLast(w, w.op('Softmax', [scores], { axis: -1 }));
      const values = w.op('Slice', [v, w.ints(0), w.ints(-1), w.ints(2)]);
      return w.finish(w.op('MatMul', [weights, values]));
    },
  },
  {
    name: 'Conformer with relative positions (Transformer-XL): a product of queries is added to the scores',
    reason: /depends on hidden states, through MatMul/,
    build(w) {
      const { heads, dim } = w.layer;
      const [q, k, v] = qkv(w);
      const table = w.weight('pos', [1, heads, dim, 7], Array(heads * dim * 7).fill(0.1));
      const bias = w.weight('pos_bias', [heads, 1, dim], Array(heads * dim).fill(0.2));
      const relative = w.op('MatMul', [w.op('Add', [q, bias]), table]);
      const both = w.op('Add', [w.op('MatMul', [q, transposed(w, k)]), relative]);
      return w.finish(w.weighted(scaled(w, both), v));
    },
  },
  {
    name: 'Swin: a learned bias [1,H,T,T]',
    reason: /a bias \(relative positions\), not a mask; bias 'drop' leaves it out/,
    build(w) {
      const { scores, v } = plain(w);
      const size = w.layer.heads * 25;
      const table = w.weight(
        'bias',
        [1, w.layer.heads, 5, 5],
        Array.from({ length: size }, (_, i) => (i % 7) / 7),
      );
      w.inputs.x = ['float32', ['batch', 5, w.layer.hidden]];
      return w.finish(w.weighted(w.op('Add', [scores, table]), v));
    },
  },
  {
    name: 'weights set to 0 where nothing was masked',
    reason: /weights are set to 0 by 'Equal', which is not what masks the scores/,
    build(w) {
      const { scores, v } = plain(w);
      const wide = w.op('Unsqueeze', [w.maskInput(), w.ints(1, 2)]);
      const padding = w.op('Equal', [wide, w.constant('int64', [0], [])]);
      const weights = w.op('Softmax', [scores], { axis: -1 });
      return w.finish(w.op('MatMul', [w.op('Where', [padding, w.scalar(0), weights]), v]));
    },
  },
  {
    name: 'grouped heads as [B,Hkv,G,T,D]',
    grouped: true,
    reason: /must be transposed by perm 0132, 0231, 021 or 120, received 01243/,
    build(w) {
      const { heads, kvHeads, dim } = w.layer;
      const [q, k, v] = qkv(w);
      const apart = [w.dim('x', 0), w.ints(kvHeads, heads / kvHeads), w.dim('x', 1), w.ints(dim)];
      const query = w.op('Reshape', [q, w.op('Concat', apart, { axis: 0 })]);
      const [key, value] = [k, v].map((x) => w.op('Unsqueeze', [x, w.ints(2)]));
      const keys = w.op('Transpose', [key!], { perm: [0, 1, 2, 4, 3] });
      const out = w.weighted(scaled(w, w.op('MatMul', [query, keys])), value!);
      const back = [w.dim('x', 0), w.ints(heads), w.dim('x', 1), w.ints(dim)];
      return w.finish(w.op('Reshape', [out, w.op('Concat', back, { axis: 0 })]));
    },
  },
  {
    name: 'an Einsum over more than the head',
    nothing: true,
    reason: /\(bhid,bhjd->bij\) must be queries times keys/,
    build(w) {
      const [q, k, v] = qkv(w);
      const scores = w.op('Einsum', [q, k], { equation: 'bhid,bhjd->bij' });
      const weights = w.op('Softmax', [scores], { axis: -1 });
      return w.finish(w.op('MatMul', [w.op('Unsqueeze', [weights, w.ints(1)]), v]));
    },
  },
  {
    name: 'T5: a learned bias by relative position',
    reason: /a bias \(relative positions\), not a mask; bias 'drop' leaves it out/,
    build(w) {
      const bucket = w.op('Clip', [
        w.op('Abs', [offsets(w)]),
        w.constant('int64', [0], []),
        w.constant('int64', [3], []),
      ]);
      const table = w.weight(
        'relative',
        [4, 4],
        Array.from({ length: 16 }, (_, i) => i / 8),
      );
      const bias = w.op('Transpose', [w.op('Gather', [table, bucket])], { perm: [2, 0, 1] });
      return attend(w, w.op('Unsqueeze', [bias, w.ints(0)]));
    },
  },
  {
    name: 'a mask with holes',
    reason: /no causal mask and no window/,
    build(w) {
      const odd = w.op('Mod', [w.op('Abs', [offsets(w)]), w.constant('int64', [2], [])]);
      const early = w.op('LessOrEqual', [offsets(w), w.constant('int64', [0], [])]);
      const even = w.op('Equal', [odd, w.constant('int64', [0], [])]);
      return attend(w, w.op('Where', [w.op('And', [even, early]), w.scalar(0), w.scalar(-1e9)]));
    },
  },
  {
    name: 'an anti-causal mask',
    reason: /neither causal nor open to all keys/,
    build(w) {
      const early = w.op('Less', [offsets(w), w.constant('int64', [0], [])]);
      return attend(w, w.op('Where', [early, w.scalar(-1e9), w.scalar(0)]));
    },
  },
  {
    name: 'a mask made from hidden states',
    reason: /depends on hidden states, through MatMul/,
    build(w) {
      const { q, k, v, scores } = plain(w);
      const other = w.op('MatMul', [k, transposed(w, q)]);
      return w.finish(w.weighted(w.op('Add', [scores, other]), v));
    },
  },
  {
    name: 'a mask made from token ids',
    reason: /depends on the values of graph input 'input_ids'/,
    build(w) {
      w.inputs.input_ids = ['int64', ['batch', 'sequence']];
      const pad = w.op('Equal', ['input_ids', w.constant('int64', [0], [])]);
      const wide = w.op('Unsqueeze', [pad, w.ints(1, 2)]);
      return attend(w, w.op('Where', [wide, w.scalar(-1e9), w.scalar(0)]));
    },
  },
  {
    name: 'a mask that the caller supplies whole',
    reason: /depends on the values of graph input 'bias'/,
    build(w) {
      w.inputs.bias = ['float32', ['batch', 1, 'sequence', 'sequence']];
      return attend(w, 'bias');
    },
  },
  {
    name: 'a factor between mask and Softmax',
    reason: /multiplied by 0\.5 after a mask/,
    build(w) {
      const { scores, v } = plain(w);
      const masked = w.op('Where', [w.causalBuffer(v), scores, w.scalar(-1e9)]);
      return w.finish(w.weighted(w.op('Mul', [masked, w.scalar(0.5)]), v));
    },
  },
  {
    name: 'keys that are not transposed',
    dim: 4,
    reason: /must be transposed by perm 0132, 0231, 021 or 120, received 0213/,
    build(w) {
      const [q, k, v] = qkv(w);
      const keys = w.op('Transpose', [k], { perm: [0, 2, 1, 3] });
      return w.finish(w.weighted(w.op('MatMul', [q, keys]), v));
    },
  },
  {
    name: 'heads repeated in the wrong order',
    grouped: true,
    reason: /keys .* must|keys and values must have as many heads|key heads must divide/,
    build(w) {
      const [q, k, v] = qkv(w);
      const tiled = w.op('Tile', [k, w.ints(1, 2, 1, 1)]);
      const scores = scaled(w, w.op('MatMul', [q, transposed(w, tiled)]));
      return w.finish(w.weighted(scores, repeat(w, v)));
    },
  },
  {
    name: 'keys of a prefix that is a weight',
    reason: /concatenated with 'prefix', which is not a graph input/,
    build(w) {
      const { heads, dim } = w.layer;
      const [q, k, v] = qkv(w);
      w.weights.push(
        makeTensor('prefix', 'float32', [1, heads, 2, dim], Array(2 * heads * dim).fill(0.5)),
      );
      const rows = w.op('Concat', [w.dim('x', 0), w.ints(heads), w.ints(2), w.ints(dim)], {
        axis: 0,
      });
      const keys = w.op('Concat', ['prefix', k], { axis: 2 });
      const values = w.op('Concat', [w.op('Expand', ['prefix', rows]), v], { axis: 2 });
      return w.finish(w.weighted(scaled(w, w.op('MatMul', [q, transposed(w, keys)])), values));
    },
  },
  ...[0, 1, 2, 3].map(
    (mode): NearMiss => ({
      name: `ai.onnx Attention with qk_matmul_output_mode ${mode}`,
      reason: /qk_matmul_output\) are used/,
      build(w) {
        const inputs = [w.linear('q'), w.linear('k'), w.linear('v')];
        w.outputs.scores = ['float32', undefined];
        const attrs = { q_num_heads: 4, kv_num_heads: 4, qk_matmul_output_mode: mode };
        w.ops('Attention', inputs, ['att', '', '', 'scores'], attrs);
        w.project('att');
        return w.build(23);
      },
    }),
  ),
  ...(
    [
      [
        'writes in a circle',
        /must be written linearly, received mode circular/,
        { mode: 'circular' },
      ],
      ['writes along the heads', /written along its tokens, axis 2, received 1/, { axis: 1 }],
      ['writes, beside a mask', /nonpad_kv_seqlen beside attn_mask/, { mask: true }],
      ['writes, not causal', /needs is_causal 1, received 0/, { causal: 0 }],
      ['writes elsewhere for values', /written at the same places/, { apart: true }],
      ['writes and something else reads', /is also read by ReduceMax/, { read: true }],
    ] as [string, RegExp, Scattered][]
  ).map(
    ([what, reason, more]): NearMiss => ({
      name: `ai.onnx Attention over a cache that TensorScatter ${what}`,
      reason,
      build: (w) => scattered(w, more),
    }),
  ),
  {
    name: 'ai.onnx Attention with nonpad_kv_seqlen and no TensorScatter',
    reason: /must be a cache that TensorScatter writes, received Transpose/,
    build: (w) => scattered(w, { bare: true }),
  },
  {
    name: 'ai.onnx Attention with a window of its own',
    reason: /left_window_size and right_window_size must be -1, received 3 and -1/,
    build(w) {
      w.finish(w.op('Attention', [...qkv(w)], { is_causal: 1, left_window_size: 3 }));
      return w.build(25);
    },
  },
  {
    name: 'ai.onnx Attention whose scores are used',
    reason: /qk_matmul_output\) are used/,
    build(w) {
      const inputs = [w.linear('q'), w.linear('k'), w.linear('v')];
      w.outputs.scores = ['float32', undefined];
      w.ops('Attention', inputs, ['att', '', '', 'scores'], { q_num_heads: 4, kv_num_heads: 4 });
      w.project('att');
      return w.build(23);
    },
  },
  {
    name: 'MultiHeadAttention with cumulated lengths',
    reason: /key_padding_mask must be \[B,T\], \[B,Tq,Tk\] or \[B\], received \[lengths\]/,
    build(w) {
      w.inputs.lengths = ['int32', ['lengths']];
      const inputs = [w.linear('q'), w.linear('k'), w.linear('v'), '', 'lengths'];
      return w.project(w.op('MultiHeadAttention', inputs, { num_heads: 4 }, MICROSOFT));
    },
  },
  {
    name: 'MultiHeadAttention of an encoder',
    reason: /cross-attention: queries are made from x, values from encoder/,
    build(w) {
      w.inputs.encoder = ['float32', ['batch', 'source', w.layer.hidden]];
      const inputs = [w.linear('q'), w.linear('k', 'encoder'), w.linear('v', 'encoder')];
      return w.project(w.op('MultiHeadAttention', inputs, { num_heads: 4 }, MICROSOFT));
    },
  },
  ...(
    [
      [
        'a negative softcap',
        { softcap: { float: -50 } },
        /softcap must not be negative, received -50/,
      ],
      ['no causal mask', { causal: 0 }, /causal must be 1, received 0/],
      [
        'a cache that forgets',
        { sliding_window_cache: 1, local_window_size: 4 },
        /sliding_window_cache must be 0, received 1: its cache forgets tokens/,
      ],
      ['a quantised cache', { k_quant_type: 'PER_TENSOR' }, /k_quant_type must be NONE/],
    ] as const
  ).map(
    ([what, attrs, reason]): NearMiss => ({
      name: `GroupQueryAttention with ${what}`,
      reason,
      build: (w) => grouped(w, attrs),
    }),
  ),
  {
    name: 'Attention with a buffer of unknown length',
    reason: /past_sequence_length must be given where past and present share a buffer/,
    build: (w) => inside(w, 'Attention', { past_present_share_buffer: 1 }),
  },
  {
    name: 'Attention with tables of its own',
    reason: /do_rotary must be 0, received 1/,
    build: (w) => inside(w, 'Attention', { do_rotary: 1 }),
  },
  {
    name: 'DecoderMaskedMultiHeadAttention with beams',
    reason: /cache_indirection 'indirection': beams that share a cache/,
    build(w) {
      const { heads, dim } = w.layer;
      for (const name of ['key', 'value']) {
        w.inputs[`past_${name}`] = ['float32', ['batch', heads, 32, dim]];
        w.outputs[`present_${name}`] = ['float32', ['batch', heads, 32, dim]];
      }
      w.inputs.past_sequence_length = ['int32', [1]];
      w.inputs.indirection = ['int32', ['batch', 2, 32]];
      const two = w.constant('int32', [2]);
      const past = ['past_key', 'past_value', 'past_sequence_length'];
      const inputs = [w.linear('q'), w.linear('k'), w.linear('v'), '', '', ...past, two];
      const attrs = { num_heads: heads, past_present_share_buffer: 1 };
      w.ops(
        'DecoderMaskedMultiHeadAttention',
        [...inputs, 'indirection'],
        ['att', 'present_key', 'present_value'],
        attrs,
        MICROSOFT,
      );
      return w.project('att');
    },
  },
];

import * as ort from 'onnxruntime-node';
import { DATA_TYPE } from '../../../../exporter/index.js';
import { makeLayer } from '../layer.js';
import { type RopeSpec, rmsNorm, ropeTable, rotated } from './rope.js';
import {
  ALIBI_NOTES,
  alibi,
  type Family,
  packed,
  packedWeights,
  SHARED_SLOPES,
  SLOPES,
  type Writer,
} from './writer.js';

const MICROSOFT_DOMAIN = { domain: 'com.microsoft' };
const PATTERN = {
  attention: 'com.microsoft.Attention',
  multiHead: 'com.microsoft.MultiHeadAttention',
  grouped: 'com.microsoft.GroupQueryAttention',
};

/** int32 [B]: visible tokens of each row, as a graph makes it of the mask. */
const lengths = (w: Writer) =>
  w.op('Cast', [w.op('ReduceSum', [w.maskInput(), w.ints(1)], { keepdims: 0 })], {
    to: DATA_TYPE.int32,
  });
const counts = (rows: readonly (readonly number[])[], less = 0) =>
  new ort.Tensor(
    'int32',
    Int32Array.from(rows, (row) => row.filter((m) => m).length - less),
    [rows.length],
  );

const multiHead: Family[] = [
  {
    name: 'com.microsoft.MultiHeadAttention, bias and key padding',
    pattern: PATTERN.multiHead,
    visible: 'all',
    padding: true,
    mask: 'padding',
    build(w) {
      const { heads, bq, bk, bv } = w.layer;
      const bias = w.weight('bias', [bq.length * 3], [...bq, ...bk, ...bv]);
      const mask = w.op('Cast', [w.maskInput()], { to: DATA_TYPE.int32 });
      const inputs = [w.product('q'), w.product('k'), w.product('v'), bias, mask];
      const attrs = { num_heads: heads };
      return w.project(w.op('MultiHeadAttention', inputs, attrs, MICROSOFT_DOMAIN));
    },
  },
  {
    name: 'com.microsoft.MultiHeadAttention, packed QKV, causal',
    noKernel: /Packed QKV/,
    pattern: PATTERN.multiHead,
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
      return w.project(w.op('MultiHeadAttention', [all], attrs, MICROSOFT_DOMAIN));
    },
  },
  {
    name: 'com.microsoft.MultiHeadAttention, packed KV',
    noKernel: /Packed KV/,
    pattern: PATTERN.multiHead,
    visible: 'all',
    padding: false,
    mask: 'bidirectional',
    build(w) {
      const { heads } = w.layer;
      const parts = (['k', 'v'] as const).map((p) =>
        w.op('Unsqueeze', [w.split(w.linear(p), heads), w.ints(3)]),
      );
      const inputs = [w.linear('q'), w.op('Concat', parts, { axis: 3 })];
      const attrs = { num_heads: heads };
      return w.project(w.op('MultiHeadAttention', inputs, attrs, MICROSOFT_DOMAIN));
    },
  },
  {
    name: 'com.microsoft.MultiHeadAttention, keys and values [B,H,T,D], attention_bias',
    pattern: PATTERN.multiHead,
    visible: 'all',
    padding: true,
    mask: 'padding',
    build(w) {
      const { heads } = w.layer;
      const shape = [w.ints(1), w.ints(1), w.dim('x', 1), w.ints(1)];
      const bias = w.op('Expand', [w.extendedMask(), w.op('Concat', shape, { axis: 0 })]);
      const [k, v] = [w.heads(w.linear('k'), heads), w.heads(w.linear('v'), heads)];
      const inputs = [w.linear('q'), k, v, '', '', bias];
      const attrs = { num_heads: heads };
      return w.project(w.op('MultiHeadAttention', inputs, attrs, MICROSOFT_DOMAIN));
    },
  },
  {
    name: 'com.microsoft.MultiHeadAttention, ALiBi in attention_bias, unidirectional, key padding',
    layer: () => ({ ...makeLayer(), slopes: SLOPES }),
    pattern: PATTERN.multiHead,
    visible: 'causal',
    padding: true,
    mask: 'causal+padding+ALiBi',
    notes: ALIBI_NOTES,
    build(w) {
      const mask = w.op('Cast', [w.maskInput()], { to: DATA_TYPE.int32 });
      const inputs = [w.linear('q'), w.linear('k'), w.linear('v'), '', mask, alibi(w)];
      const attrs = { num_heads: w.layer.heads, unidirectional: 1 };
      return w.project(w.op('MultiHeadAttention', inputs, attrs, MICROSOFT_DOMAIN));
    },
  },
  {
    name: 'com.microsoft.MultiHeadAttention, lengths of rows from the mask',
    pattern: PATTERN.multiHead,
    visible: 'all',
    padding: 'right',
    mask: 'padding',
    build(w) {
      const inputs = [w.linear('q'), w.linear('k'), w.linear('v'), '', lengths(w)];
      const attrs = { num_heads: w.layer.heads };
      return w.project(w.op('MultiHeadAttention', inputs, attrs, MICROSOFT_DOMAIN));
    },
  },
];

/** Attention with the projections inside. */
function packedInside(
  w: Writer,
  more: readonly string[],
  attrs: Readonly<Record<string, number>> = {},
) {
  const { heads } = w.layer;
  const { weight, bias } = packedWeights(w);
  const all = { num_heads: heads, ...attrs };
  return w.project(w.op('Attention', ['x', weight, bias, ...more], all, MICROSOFT_DOMAIN));
}

const attention: Family[] = [
  {
    name: 'com.microsoft.Attention, mask [B,T]',
    pattern: PATTERN.attention,
    visible: 'all',
    padding: true,
    mask: 'padding',
    build: (w) => packedInside(w, [w.op('Cast', [w.maskInput()], { to: DATA_TYPE.int32 })]),
  },
  {
    name: 'com.microsoft.Attention, unidirectional, mask [B,T,T]',
    pattern: PATTERN.attention,
    visible: 'causal',
    padding: true,
    mask: 'causal+padding',
    build(w) {
      const wide = w.op('Unsqueeze', [w.maskInput(), w.ints(1)]);
      const shape = w.op('Concat', [w.ints(1), w.dim('x', 1), w.ints(1)], { axis: 0 });
      const mask = w.op('Cast', [w.op('Expand', [wide, shape])], { to: DATA_TYPE.int32 });
      return packedInside(w, [mask], { unidirectional: 1 });
    },
  },
  {
    name: 'com.microsoft.Attention, lengths of rows as an input, attention_bias',
    pattern: PATTERN.attention,
    visible: 'all',
    padding: 'right',
    mask: 'padding',
    feeds: (rows) => ({ mask_index: counts(rows) }),
    build(w) {
      w.inputs.mask_index = ['int32', ['batch']];
      const shape = w.op('Concat', [w.ints(1), w.ints(1), w.dim('x', 1), w.dim('x', 1)], {
        axis: 0,
      });
      const bias = w.op('Expand', [w.scalar(0), shape]);
      return packedInside(w, ['mask_index', '', bias]);
    },
  },
];

interface Grouped {
  readonly name: string;
  readonly rope?: RopeSpec;
  readonly packed?: boolean;
  readonly norm?: boolean;
  readonly window?: number;
  /** The lengths are inputs of the model, rather than counted from its mask. */
  readonly told?: boolean;
  /** Positions are an input. */
  readonly positions?: boolean;
  readonly softcap?: number;
  /** `zero`: smooth_softmax. */
  readonly sinks?: readonly number[] | 'zero';
  readonly alibi?: boolean;
  readonly notes?: readonly string[];
  readonly noKernel?: RegExp;
}

const NORMS = { q: 0.8, k: 1.2 };
const gains = (what: 'q' | 'k', dim: number) =>
  Array.from({ length: dim }, (_, i) => Math.fround(NORMS[what] + i / 64));

/** GroupQueryAttention of a prompt, as onnxruntime-genai's builder writes it. */
function grouped(spec: Grouped): Family {
  const { rope, window } = spec;
  const dim = rope && rope.rotary > 16 ? rope.rotary : 16;
  return {
    name: `com.microsoft.GroupQueryAttention: ${spec.name}`,
    pattern: PATTERN.grouped,
    visible: window ? { window } : 'causal',
    padding: 'right',
    mask: `${window ? `window ${window}` : 'causal'}+padding${spec.alibi ? '+ALiBi' : ''}`,
    ...(spec.notes && { notes: spec.notes }),
    ...(spec.noKernel && { noKernel: spec.noKernel }),
    layer: () => ({
      ...makeLayer(12, 4, 2, dim),
      turn: (x, position, what) => {
        const normed = spec.norm ? rmsNorm(x, gains(what, dim)) : [...x];
        return rope ? rotated(normed, position, rope) : normed;
      },
      ...(spec.softcap && { softcap: spec.softcap }),
      ...(spec.sinks && { sinks: spec.sinks === 'zero' ? Array(4).fill(0) : spec.sinks }),
      ...(spec.alibi && { slopes: SHARED_SLOPES }),
    }),
    feeds: (rows): Record<string, ort.Tensor> => {
      const [batch, tokens] = [rows.length, rows[0]!.length];
      const at = BigInt64Array.from({ length: batch * tokens }, (_, i) => BigInt(i % tokens));
      return {
        ...(spec.told && {
          seqlens_k: counts(rows, 1),
          total_sequence_length: new ort.Tensor('int32', [tokens], []),
        }),
        ...(spec.positions && { position_ids: new ort.Tensor('int64', at, [batch, tokens]) }),
      };
    },
    build(w) {
      const { heads, kvHeads } = w.layer;
      const qkv = spec.packed ? [packed(w), '', ''] : [w.linear('q'), w.linear('k'), w.linear('v')];
      const tables = rope
        ? (['cos', 'sin'] as const).map((t) =>
            w.weight(`${t}_cache`, [32, rope.rotary / 2], ropeTable(t, rope)),
          )
        : ['', ''];
      if (spec.positions) w.inputs.position_ids = ['int64', ['batch', 'sequence']];
      const norms = spec.norm
        ? (['q', 'k'] as const).map((t) => w.weight(`${t}_norm`, [dim], gains(t, dim)))
        : [];
      const inputs = [
        ...qkv,
        '',
        '',
        ...(spec.told ? toldLengths(w) : genaiLengths(w)),
        ...tables,
        spec.positions ? 'position_ids' : '',
        spec.alibi ? alibi(w, SHARED_SLOPES) : '',
        Array.isArray(spec.sinks) ? w.weight('sinks', [heads], spec.sinks) : '',
        ...(norms.length > 0 ? ['', '', ...norms] : []),
      ];
      const [y] = w.ops(
        'GroupQueryAttention',
        inputs,
        3,
        {
          num_heads: heads,
          kv_num_heads: kvHeads,
          do_rotary: rope ? 1 : 0,
          rotary_interleaved: rope?.interleaved ? 1 : 0,
          local_window_size: window ?? -1,
          ...(spec.softcap && { softcap: { float: spec.softcap } }),
          ...(spec.sinks === 'zero' && { smooth_softmax: 1 }),
        },
        MICROSOFT_DOMAIN,
      );
      return w.project(y!);
    },
  };
}

/** seqlens_k and total_sequence_length, made of attention_mask as onnxruntime-genai's builder does. */
export function genaiLengths(w: Writer, mask = w.maskInput()): [string, string] {
  const sum = w.op('ReduceSum', [mask, w.ints(1)], { keepdims: 0 });
  const seqlens = w.op('Cast', [w.op('Sub', [sum, w.ints(1)])], { to: DATA_TYPE.int32 });
  const width = w.op('Gather', [w.op('Shape', [mask]), w.constant('int64', [1], [])], { axis: 0 });
  return [seqlens, w.op('Cast', [width], { to: DATA_TYPE.int32 })];
}

function toldLengths(w: Writer): [string, string] {
  w.inputs.seqlens_k = ['int32', ['batch']];
  w.inputs.total_sequence_length = ['int32', []];
  return ['seqlens_k', 'total_sequence_length'];
}

const SINK_NOTES = ['the sink becomes a constant in the denominator'];
const groupQuery: Family[] = (
  [
    { name: 'no rotary embedding' },
    { name: 'rotary embedding', rope: { rotary: 16 } },
    { name: 'rotary embedding of interleaved pairs', rope: { rotary: 16, interleaved: true } },
    { name: 'rotary embedding, position_ids', rope: { rotary: 16 }, positions: true },
    { name: 'packed QKV, rotary embedding', rope: { rotary: 16 }, packed: true },
    { name: 'packed QKV, lengths as inputs', packed: true, told: true },
    { name: 'lengths as inputs, rotary embedding', rope: { rotary: 16 }, told: true },
    { name: 'window of 3', window: 3, rope: { rotary: 16 } },
    { name: 'window of 20', window: 20 },
    {
      name: 'softcap',
      softcap: 0.5,
      rope: { rotary: 16 },
      notes: ['the softcap of 0.5 is left out'],
    },
    { name: 'sinks', sinks: [0.5, -1, 2, 0], rope: { rotary: 16 }, notes: SINK_NOTES },
    { name: 'smooth softmax', sinks: 'zero', notes: SINK_NOTES },
    { name: 'ALiBi in attention_bias', alibi: true, notes: ALIBI_NOTES },
    {
      name: 'q and k norms',
      rope: { rotary: 16 },
      norm: true,
      noKernel: /q_norm_weight \/ k_norm_weight inputs are not supported/,
    },
  ] satisfies Grouped[]
).map(grouped);

/** Fused nodes of com.microsoft. */
export const MICROSOFT: readonly Family[] = [...multiHead, ...attention, ...groupQuery];

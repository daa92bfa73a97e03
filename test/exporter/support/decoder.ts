import {
  DATA_TYPE,
  Model,
  makeNode,
  makeTensor,
  makeValueInfo,
  type NodeProto,
} from '../../../exporter/index.js';
import { type RopeSpec, ropeTable } from './families/rope.js';
import {
  alibiFromMask,
  causalPadding,
  genaiLengths,
  packedWeights,
  repeat,
  SHARED_SLOPES,
  scaled,
  transposed,
  Writer,
} from './families.js';
import { makeLayer } from './layer.js';
import { random } from './run.js';

export const VOCABULARY = 23;

/** A decoder of one layer over token ids, with the KV cache that exporters give it or without one. */
export interface DecoderSpec {
  readonly attention:
    | 'decomposed'
    | 'Attention'
    | 'MultiHeadAttention'
    | 'com.microsoft.Attention'
    | 'GroupQueryAttention';
  readonly cache: boolean;
  /** Where position embeddings come from: the cache's length, the cumulative mask, an input, or none. */
  readonly positions: 'cache' | 'mask' | 'input' | 'none';
  /** `right`: in the first call only, as GroupQueryAttention wants it. */
  readonly padding: boolean | 'right';
  /** GroupQueryAttention: rotary embedding inside. */
  readonly rope?: RopeSpec;
  /** GroupQueryAttention: seqlens_k and total_sequence_length are inputs, in place of the mask. */
  readonly told?: boolean;
  readonly window?: number;
  /** Attention: rank of caches of 32 tokens that TensorScatter writes. */
  readonly buffer?: 3 | 4;
  /** GroupQueryAttention. */
  readonly softcap?: number;
  readonly sinks?: boolean;
  /** Decomposed: ALiBi before the mask, cut from a table as in MPT, or made of the mask and added to [B*H,T,total] as in BLOOM. */
  readonly alibi?: 'table' | 'mask';
}

export function decoder(spec: DecoderSpec, dtype: 'float32' | 'float16' = 'float32'): Model {
  const grouped = !/^(com|Multi)/.test(spec.attention);
  const size = spec.attention === 'GroupQueryAttention' ? 16 : 3;
  const w = new Writer(makeLayer(12, 4, grouped ? 2 : 4, size), dtype);
  const { heads, kvHeads, hidden, dim } = w.layer;
  delete w.inputs.x;
  w.inputs.input_ids = ['int64', ['batch', 'sequence']];
  if (spec.padding) w.maskInput(['batch', spec.cache ? 'total_sequence' : 'sequence']);
  if (spec.positions === 'input') w.inputs.position_ids = ['int64', ['batch', 'sequence']];
  const stacked = spec.attention === 'com.microsoft.Attention';
  if (spec.cache && stacked) {
    const dims = (tokens: string) => [dtype, [2, 'batch', heads, tokens, dim]] as const;
    w.inputs.past_0 = dims('past_sequence');
    w.outputs.present_0 = dims('total_sequence');
  } else if (spec.cache && spec.buffer) {
    const dims = ['batch', ...(spec.buffer === 4 ? [kvHeads, 32, dim] : [32, kvHeads * dim])];
    for (const what of ['key', 'value']) {
      w.inputs[`past_key_values.0.${what}`] = [dtype, dims];
      w.outputs[`present.0.${what}`] = [dtype, dims];
    }
    for (const told of ['write_indices', 'nonpad_kv_seqlen']) w.inputs[told] = ['int64', ['batch']];
  } else if (spec.cache) {
    for (const what of ['key', 'value']) {
      const dims = (tokens: string) => [dtype, ['batch', kvHeads, tokens, dim]] as const;
      w.inputs[`past_key_values.0.${what}`] = dims('past_sequence');
      w.outputs[`present.0.${what}`] = dims('total_sequence');
    }
  }
  const next = random(5);
  const table = (n: number) => Array.from({ length: n * hidden }, () => Math.fround(next()));
  const x = embed(w, spec, table);
  if (stacked) return packedDecoder(w, spec, x);
  const q = w.linear('q', x);
  const [k, v] = [w.linear('k', x), w.linear('v', x)];
  if (spec.attention === 'decomposed') {
    const all = (name: string, value: string) => {
      const current = w.heads(value, kvHeads);
      if (!spec.cache) return current;
      const output = `present.0.${name}`;
      return w.op('Concat', [`past_key_values.0.${name}`, current], { axis: 2 }, { output });
    };
    const [keys, values] = [all('key', k), all('value', v)];
    if (spec.alibi === 'mask') return bloom(w, spec, w.heads(q, heads), keys, values);
    const product = scaled(w, w.op('MatMul', [w.heads(q, heads), transposed(w, repeat(w, keys))]));
    const scores = spec.alibi ? w.op('Add', [product, alibi(w, keys)]) : product;
    return w.finish(w.weighted(w.op('Add', [scores, mask(w, spec)]), repeat(w, values)));
  }
  const past = spec.cache ? ['past_key_values.0.key', 'past_key_values.0.value'] : ['', ''];
  const present = spec.cache ? ['present.0.key', 'present.0.value'] : ['', ''];
  if (spec.attention === 'Attention' && spec.buffer) return bufferDecoder(w, spec, [q, k, v]);
  if (spec.attention === 'Attention') {
    const bias = spec.padding ? mask(w, spec) : '';
    const attrs = { q_num_heads: heads, kv_num_heads: kvHeads, is_causal: spec.padding ? 0 : 1 };
    w.ops('Attention', [q, k, v, bias, ...past], ['att', ...present], attrs);
    w.project('att');
    return w.build(23);
  }
  if (spec.attention === 'GroupQueryAttention') {
    groupQuery(w, spec, [q, k, v, ...past], present);
    return w.project('att');
  }
  const padding = spec.padding ? w.op('Cast', ['attention_mask'], { to: DATA_TYPE.int32 }) : '';
  const inputs = [q, k, v, '', padding, '', ...past];
  w.ops(
    'MultiHeadAttention',
    inputs,
    ['att', ...present],
    { num_heads: heads, unidirectional: 1 },
    {
      domain: 'com.microsoft',
    },
  );
  return w.project('att');
}

/** float [H,1,total]: slope times (key - last key), as MPT cuts it from a table. */
function alibi(w: Writer, keys: string): string {
  const table = SHARED_SLOPES.flatMap((s) => Array.from({ length: 64 }, (_, j) => s * (j - 63)));
  const start = w.op('Sub', [w.ints(64), w.dim(keys, 2)]);
  const whole = w.weight('alibi', [w.layer.heads, 1, 64], table);
  return w.op('Slice', [whole, start, w.ints(2 ** 31), w.ints(2)]);
}

/** baddbmm over [B*H,T,D], the heads apart again for mask and Softmax. */
function bloom(w: Writer, spec: DecoderSpec, q: string, keys: string, values: string): Model {
  const { heads, dim } = w.layer;
  const rows = w.op('Mul', [w.dim(q, 0), w.ints(heads)]);
  const flat = (x: string, last: string) =>
    w.op('Reshape', [x, w.op('Concat', [rows, w.ints(-1), last], { axis: 0 })]);
  const [key, value] = [keys, values].map((x) => flat(repeat(w, x), w.ints(dim)));
  const turned = w.op('Transpose', [key!], { perm: [0, 2, 1] });
  const product = scaled(w, w.op('MatMul', [flat(q, w.ints(dim)), turned]));
  const scores = w.op('Add', [product, alibiFromMask(w, q, SHARED_SLOPES, 'attention_mask')]);
  const apart = [w.dim(q, 0), w.ints(heads), w.dim(q, 2)];
  const wide = w.op('Reshape', [scores, w.op('Concat', [...apart, w.ints(-1)], { axis: 0 })]);
  const weights = w.op('Softmax', [w.op('Add', [wide, mask(w, spec)])], { axis: -1 });
  const out = w.op('MatMul', [flat(weights, w.dim(keys, 2)), value!]);
  return w.finish(w.op('Reshape', [out, w.op('Concat', [...apart, w.ints(dim)], { axis: 0 })]));
}

function packedDecoder(w: Writer, spec: DecoderSpec, x: string): Model {
  const { weight, bias } = packedWeights(w);
  const padding = spec.padding ? w.op('Cast', ['attention_mask'], { to: DATA_TYPE.int32 }) : '';
  w.ops(
    'Attention',
    [x, weight, bias, padding, spec.cache ? 'past_0' : ''],
    ['att', ...(spec.cache ? ['present_0'] : [])],
    { num_heads: w.layer.heads, unidirectional: 1 },
    { domain: 'com.microsoft' },
  );
  return w.project('att');
}

/** Attention of opset 24 over caches that are written before it; without a cache, over its own tokens. */
function bufferDecoder(w: Writer, { cache, buffer }: DecoderSpec, qkv: readonly string[]): Model {
  const { heads, kvHeads } = w.layer;
  const apart = qkv.map((x, i) => (buffer === 4 ? w.heads(x, i === 0 ? heads : kvHeads) : x));
  const written = ['key', 'value'].map((what, i) =>
    cache
      ? w.op(
          'TensorScatter',
          [`past_key_values.0.${what}`, apart[i + 1]!, 'write_indices'],
          { axis: buffer === 4 ? 2 : 1 },
          { output: `present.0.${what}` },
        )
      : apart[i + 1]!,
  );
  const told = cache ? ['', '', '', 'nonpad_kv_seqlen'] : [];
  const counts = buffer === 3 && { q_num_heads: heads, kv_num_heads: kvHeads };
  const inputs = [apart[0]!, ...written, ...told];
  const att = w.op('Attention', inputs, { is_causal: 1, ...counts });
  if (buffer === 4) w.finish(att);
  else w.project(att);
  return w.build(24);
}

function groupQuery(
  w: Writer,
  { told, rope, window, padding, softcap, sinks }: DecoderSpec,
  inputs: readonly string[],
  present: readonly string[],
): void {
  const { heads, kvHeads } = w.layer;
  if (told) {
    w.inputs.seqlens_k = ['int32', ['batch']];
    w.inputs.total_sequence_length = ['int32', []];
  }
  const lengths = told
    ? ['seqlens_k', 'total_sequence_length']
    : genaiLengths(w, padding ? 'attention_mask' : w.maskInput(['batch', 'total_sequence']));
  const tables = rope
    ? (['cos', 'sin'] as const).map((t) =>
        w.weight(`${t}_cache`, [64, rope.rotary / 2], ropeTable(t, rope, 64)),
      )
    : [];
  const blanks = Array(4 - tables.length).fill('');
  const head = () => w.weight('sinks', [heads], [0.5, -1, 2, 0]);
  w.ops(
    'GroupQueryAttention',
    [...inputs, ...lengths, ...tables, ...(sinks ? [...blanks, head()] : [])],
    ['att', ...present.map((p, i) => p || `present_${i}`)],
    {
      num_heads: heads,
      kv_num_heads: kvHeads,
      do_rotary: rope ? 1 : 0,
      rotary_interleaved: rope?.interleaved ? 1 : 0,
      local_window_size: window ?? -1,
      ...(softcap && { softcap: { float: softcap } }),
    },
    { domain: 'com.microsoft' },
  );
}

function embed(w: Writer, spec: DecoderSpec, table: (n: number) => number[]): string {
  const { hidden } = w.layer;
  const tokens = w.op('Gather', [
    w.weight('wte', [VOCABULARY, hidden], table(VOCABULARY)),
    'input_ids',
  ]);
  if (spec.positions === 'none') return tokens;
  const places = w.weight('wpe', [64, hidden], table(64));
  return w.op('Add', [tokens, w.op('Gather', [places, positions(w, spec)])]);
}

function positions(w: Writer, spec: DecoderSpec): string {
  if (spec.positions === 'input') return 'position_ids';
  const scalar = (value: number) => w.constant('int64', [value], []);
  if (spec.positions === 'cache') {
    // GPT-2: arange(past, past + T), viewed as [1,T].
    const past = spec.cache ? pastLength(w) : scalar(0);
    const end = w.op('Add', [past, w.op('Squeeze', [w.dim('input_ids', 1), w.ints(0)])]);
    const row = w.op('Unsqueeze', [w.op('Range', [past, end, scalar(1)]), w.ints(0)]);
    return w.op('Reshape', [row, w.op('Concat', [w.ints(-1), w.dim('input_ids', 1)], { axis: 0 })]);
  }
  // OPT: (cumsum(mask) * mask - 1)[:, past:] + 2
  const seen = w.op('Mul', [w.op('CumSum', ['attention_mask', scalar(1)]), 'attention_mask']);
  const at = w.op('Sub', [seen, scalar(1)]);
  const start = spec.cache ? w.op('Unsqueeze', [pastLength(w), w.ints(0)]) : w.ints(0);
  const cut = w.op('Slice', [at, start, w.ints(2 ** 31), w.ints(1)]);
  return w.op('Add', [cut, scalar(2)]);
}

function pastLength(w: Writer): string {
  const stacked = 'past_0' in w.inputs;
  const shape = w.op('Shape', [stacked ? 'past_0' : 'past_key_values.0.key']);
  return w.op('Gather', [shape, w.constant('int64', [stacked ? 3 : 2], [])], { axis: 0 });
}

/** float [B|1,1,T,total]: causal behind the cache, padding hidden if there is any. */
function mask(w: Writer, spec: DecoderSpec): string {
  if (!spec.cache && spec.padding) return causalPadding(w, 'input_ids');
  const scalar = (value: number) => w.constant('int64', [value], []);
  const past = spec.cache ? pastLength(w) : scalar(0);
  const end = w.op('Add', [past, w.op('Squeeze', [w.dim('input_ids', 1), w.ints(0)])]);
  const rows = w.op('Unsqueeze', [w.op('Range', [past, end, scalar(1)]), w.ints(1)]);
  const columns = w.op('Unsqueeze', [w.op('Range', [scalar(0), end, scalar(1)]), w.ints(0)]);
  const early = w.op('LessOrEqual', [columns, rows]);
  let seen = w.op('Unsqueeze', [early, w.ints(0, 1)]);
  if (spec.padding) {
    const keys = w.op('Unsqueeze', ['attention_mask', w.ints(1, 2)]);
    seen = w.op('And', [seen, w.op('Cast', [keys], { to: DATA_TYPE.bool })]);
  }
  return w.op('Where', [seen, w.scalar(0), w.scalar(-3.4028234663852886e38)]);
}

const SPECS: DecoderSpec[] = [
  { attention: 'decomposed', cache: true, positions: 'cache', padding: false },
  { attention: 'decomposed', cache: true, positions: 'mask', padding: true },
  { attention: 'decomposed', cache: true, positions: 'input', padding: true },
  { attention: 'decomposed', cache: true, positions: 'none', padding: false },
  { attention: 'decomposed', cache: true, positions: 'none', padding: true, alibi: 'table' },
  { attention: 'decomposed', cache: true, positions: 'none', padding: true, alibi: 'mask' },
  { attention: 'Attention', cache: true, positions: 'none', padding: false },
  { attention: 'Attention', cache: true, positions: 'mask', padding: true },
  { attention: 'MultiHeadAttention', cache: true, positions: 'cache', padding: false },
  { attention: 'MultiHeadAttention', cache: true, positions: 'none', padding: true },
  { attention: 'com.microsoft.Attention', cache: true, positions: 'cache', padding: false },
  { attention: 'com.microsoft.Attention', cache: true, positions: 'mask', padding: true },
];

/** Decoders with a cache that grows. */
export const DECODERS = SPECS.map((spec) => ({
  name: `${spec.attention}, positions: ${spec.positions}${spec.padding ? ', padded' : ''}${spec.alibi ? `, ALiBi from a ${spec.alibi}` : ''}`,
  spec,
}));

const buffer = { attention: 'Attention', cache: true, positions: 'input', padding: false } as const;
/** Decoders with a cache of fixed length, which TensorScatter writes. */
export const BUFFERS: readonly { name: string; spec: DecoderSpec }[] = [
  { name: 'Attention, TensorScatter, [B,H,T,D]', spec: { ...buffer, buffer: 4 } },
  { name: 'Attention, TensorScatter, [B,T,H*D]', spec: { ...buffer, buffer: 3 } },
];

const base = { attention: 'GroupQueryAttention', cache: true, padding: 'right' } as const;
/** GroupQueryAttention with its cache. */
export const GROUPED: readonly { name: string; spec: DecoderSpec }[] = [
  { name: 'lengths from the mask', spec: { ...base, positions: 'none' } },
  {
    name: 'rotary embedding, lengths from the mask',
    spec: { ...base, positions: 'none', rope: { rotary: 16 } },
  },
  {
    name: 'interleaved rotary embedding',
    spec: { ...base, positions: 'none', rope: { rotary: 16, interleaved: true } },
  },
  {
    name: 'rotary embedding, lengths as inputs',
    spec: { ...base, padding: false, told: true, positions: 'none', rope: { rotary: 16 } },
  },
  {
    name: 'rotary embedding, a window of 3',
    spec: { ...base, positions: 'none', rope: { rotary: 16 }, window: 3 },
  },
  { name: 'softcap and sinks', spec: { ...base, positions: 'none', softcap: 0.5, sinks: true } },
];

/** A decoder with a cache as Optimum merged it: an If decides by an input whether the cache is used. */
export function merged(spec: DecoderSpec): Model {
  const { graph, proto } = decoder(spec);
  const outputs = graph.outputs.map((o) => o.name);
  const branch = (nodes: readonly NodeProto[], suffix: string) => {
    const own = new Set(nodes.flatMap((n) => n.output));
    const name = (v: string) => (own.has(v) ? `${v}${suffix}` : v);
    return {
      graph: {
        name: suffix,
        node: nodes.map((n) => ({
          ...n,
          name: `${n.name}${suffix}`,
          input: n.input.map(name),
          output: n.output.map(name),
        })),
        initializer: [],
        input: [],
        output: outputs.map((o) => ({ name: name(o) })),
        valueInfo: [],
      },
    };
  };
  // Without a cache: what is concatenated with it is taken as it is, and its length is 0.
  const bare = graph.proto.node.map((n) => {
    const [past] = n.input;
    if (!past?.startsWith('past_key_values')) return n;
    const dims = [1, 1, 0, 1];
    return n.opType === 'Concat'
      ? makeNode('Identity', [n.input[1]!], n.output, {}, { name: n.name ?? '' })
      : makeNode('Constant', [], n.output, { value: makeTensor('', 'int64', [4], dims) });
  });
  const nodes = [...graph.proto.node];
  graph.proto.node = [
    makeNode('If', ['use_cache_branch'], outputs, {
      then_branch: branch(nodes, '_with_past'),
      else_branch: branch(bare, '_without'),
    }),
  ];
  graph.proto.input.push(makeValueInfo('use_cache_branch', DATA_TYPE.bool, [1]));
  graph.touch();
  return new Model(proto);
}

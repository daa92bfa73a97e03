import { type AttributeInput, type AttributesOf, defineOp } from '../define.js';

export const linearAttention = defineOp({
  name: 'LinearAttention',
  domain: 'com.fla',
  version: 1,
  summary:
    'Attention whose whole past is one matrix per head: constant memory per token, linear time in the length. ' +
    'A superset of `ai.onnx` LinearAttention (opset 27) and of `com.microsoft` LinearAttention: their inputs, attributes ' +
    'and defaults keep their meaning, so a model moves between the domains by changing the domain of its nodes. Stricter in one thing: ' +
    'decay and beta must be absent where the update rule has no use for them.',
  semantics: [
    'Per batch row and value head, with state `S` (K x V, zeros or `past_state` before the first token), for every token in order, ' +
      '`q`, `k`, `v` being the head vectors and `g`, `beta` the decay and beta of that token, `update_rule` says how the state changes:',
    [
      "- `linear`: `S += k v'`",
      "- `gated`: `S = exp(g) S + k v'`",
      "- `delta`: `S += beta k (v - S' k)'`",
      '- `gated_delta`: `S = exp(g) S`, then the delta step on the decayed `S`',
    ].join('\n'),
    "The token's output is `o = scale * S' q`, with the state after the token (`read=after`) or before it, undecayed " +
      '(`read=before`: the token does not see itself). `read=bonus` reads the state before the token plus the token itself, ' +
      "weighed by `u` = `bonus` per key dimension: `o = scale * (S + diag(u) k v')' q` (RWKV-6). " +
      '`exp(g)` scales the rows of `S`: one factor for all of them when decay is ' +
      '[B,T,HV], one per key dimension when it is [B,T,HV*K]. When K = 1 the two are the same.',
    '**Heads.** HQ and HV are `q_num_heads` and `kv_num_heads`; K = last dimension of query / HQ, HK = last dimension of key / K, ' +
      'V = last dimension of value / HV. States belong to the HV value heads. If HQ >= HV, query head i reads state i / (HQ/HV) and there are ' +
      'HQ output heads; if HV > HQ, state h is read by query head h / (HV/HQ) and there are HV output heads. State h is written ' +
      'with key head h / (HV/HK).',
    '**Features.** `feature_map` is applied to every query and key head vector, then, if `qk_l2norm` is 1, both are divided by ' +
      '`sqrt(sum x^2 + 1e-6)`. `elu1` is `x + 1` for x > 0 and `exp(x)` otherwise, `exp` is `exp(min(x, 80))`, ' +
      '`l2norm` is the same division as `qk_l2norm`, `softmax` runs over the head dimension.',
    '**Normalize.** With `normalize=1` the recurrence runs on `[v, 1]` instead of `v`. The additional column of the state is `z`; it ' +
      'is the last column of `past_state` and `present_state`, which are then [B,HV,K,V+1]. The output is ' +
      "`scale * S' q / (scale * z' q + 1e-6)`.",
    '**Mask.** A token whose mask is false or 0 is invisible: its key features are 0, its log decay 0 and its beta 0, so the state ' +
      'passes it unchanged. Its own output is still what its query reads.',
    '**Bidirectional.** With `causal=0` every token reads the state after the last token. Only `update_rule=linear` allows it, and no ' +
      '`past_state`; `present_state` is that final state.',
    '**Precision.** All arithmetic is in float32; query, key, value, decay, beta and past_state are read, output and present_state ' +
      'written, in their own types. With T = 0 the output is empty and `present_state` equals `past_state`. ' +
      '`present_state` may share memory with `past_state`.',
    '**Beyond the standard:** `mask`, `bonus`, `feature_map`, `normalize`, `causal`, `qk_l2norm`, `read`, bfloat16, float32 decay and beta beside 16-bit ' +
      'tensors. **Not in version 1:** `state_window` of newer `com.microsoft` versions.',
  ],
  papers: [
    {
      title: 'Katharopoulos et al. 2020, Transformers are RNNs (linear, elu1, normalize)',
      url: 'https://arxiv.org/abs/2006.16236',
    },
    {
      title: 'Choromanski et al. 2020, Rethinking Attention with Performers',
      url: 'https://arxiv.org/abs/2009.14794',
    },
    {
      title: 'Sun et al. 2023, Retentive Network (gated, constant decay)',
      url: 'https://arxiv.org/abs/2307.08621',
    },
    {
      title: 'Yang et al. 2023, Gated Linear Attention (gated, decay per key dimension)',
      url: 'https://arxiv.org/abs/2312.06635',
    },
    {
      title:
        'Peng et al. 2024, Eagle and Finch (RWKV-6: gated, decay per key dimension, read=bonus)',
      url: 'https://arxiv.org/abs/2404.05892',
    },
    {
      title: 'Dao and Gu 2024, Transformers are SSMs (Mamba-2; gated, decay per head)',
      url: 'https://arxiv.org/abs/2405.21060',
    },
    {
      title: 'Yang et al. 2024, Parallelizing Linear Transformers with the Delta Rule (delta)',
      url: 'https://arxiv.org/abs/2406.06484',
    },
    {
      title: 'Yang et al. 2024, Gated Delta Networks (gated_delta, decay per head)',
      url: 'https://arxiv.org/abs/2412.06464',
    },
    {
      title: 'Kimi Team 2025, Kimi Linear (KDA: gated_delta, decay per key dimension)',
      url: 'https://arxiv.org/abs/2510.26692',
    },
  ],
  types: {
    T: ['float32', 'float16', 'bfloat16'],
    S: ['T', 'float32'],
    TD: ['T', 'float32'],
    TB: ['T', 'float32'],
    M: ['bool', 'float32'],
    TU: ['T', 'float32'],
  },
  aliases: { HQ: 'q_num_heads', HV: 'kv_num_heads' },
  maxima: { HO: ['HQ', 'HV'] },
  positive: ['K', 'V', 'HK'],
  inputs: [
    {
      name: 'query',
      type: 'T',
      shapes: [['B', 'T', 'HQ*K']],
      doc: 'Query heads, packed: the bytes of a contiguous [B,T,HQ,K].',
    },
    {
      name: 'key',
      type: 'T',
      shapes: [['B', 'T', 'HK*K']],
      doc: 'Key heads, packed; HK divides HV.',
    },
    { name: 'value', type: 'T', shapes: [['B', 'T', 'HV*V']], doc: 'Value heads, packed.' },
    {
      name: 'past_state',
      type: 'S',
      shapes: [['B', 'HV', 'K', 'V+normalize']],
      optional: true,
      doc: 'State before the first token; zeros when absent. With normalize=1 the last column is z.',
    },
    {
      name: 'decay',
      type: 'TD',
      shapes: [
        ['B', 'T', 'HV'],
        ['B', 'T', 'HV*K'],
      ],
      optional: true,
      doc: 'Natural logarithm of the factor on the state, <= 0; per head or per key dimension. For gated and gated_delta only.',
    },
    {
      name: 'beta',
      type: 'TB',
      shapes: [
        ['B', 'T', 'HV'],
        ['B', 'T', '1'],
      ],
      optional: true,
      doc: 'Step size of the delta step, already through its sigmoid; per head or shared. For delta and gated_delta only.',
    },
    {
      name: 'mask',
      type: 'M',
      shapes: [['B', 'T']],
      optional: true,
      doc: 'False or 0 makes a token invisible: padding on either side.',
    },
    {
      name: 'bonus',
      type: 'TU',
      shapes: [['HV*K']],
      optional: true,
      doc: 'Weight of a token in its own output, per head and key dimension. For read=bonus only.',
    },
  ],
  outputs: [
    {
      name: 'output',
      type: 'T',
      shape: ['B', 'T', 'HO*V'],
      doc: 'Output heads, packed; HO is the larger of HQ and HV.',
    },
    {
      name: 'present_state',
      type: 'S',
      shape: ['B', 'HV', 'K', 'V+normalize'],
      optional: true,
      inPlaceOf: 'past_state',
      doc: 'State after the last token. Its type is that of past_state, and T when there is none.',
    },
  ],
  attributes: {
    q_num_heads: { type: 'int', min: 1, doc: 'Number of query heads, HQ.' },
    kv_num_heads: {
      type: 'int',
      min: 1,
      doc: 'Number of value heads (and states), HV. HQ divides HV or HV divides HQ.',
    },
    update_rule: {
      type: 'string',
      default: 'gated_delta',
      allowed: ['linear', 'gated', 'delta', 'gated_delta'],
      doc: 'How a token changes the state.',
    },
    scale: { type: 'float', default: 0, doc: 'Factor on the output; 0 means 1/sqrt(K).' },
    chunk_size: {
      type: 'int',
      default: 64,
      min: 1,
      doc: 'Hint for chunked implementations; never changes the result beyond rounding. The CPU kernels choose their own.',
    },
    feature_map: {
      type: 'string',
      default: 'identity',
      allowed: ['identity', 'elu1', 'relu', 'exp', 'silu', 'l2norm', 'softmax'],
      doc: 'Map applied to queries and keys.',
    },
    normalize: {
      type: 'int',
      default: 0,
      allowed: [0, 1],
      doc: '1 divides each output by the sum of its weights, and carries z in the state.',
    },
    causal: {
      type: 'int',
      default: 1,
      allowed: [0, 1],
      doc: '0 lets every token read the final state.',
    },
    qk_l2norm: {
      type: 'int',
      default: 0,
      allowed: [0, 1],
      doc: '1 normalizes queries and keys to unit length, after the feature map.',
    },
    read: {
      type: 'string',
      default: 'after',
      allowed: ['after', 'before', 'bonus'],
      doc: 'Whether a token reads the state after its own update, before it, or before it plus its own bonus.',
    },
  },
  constraints: [
    { argument: 'query', kind: 'nested', left: 'HQ', right: 'HV' },
    { argument: 'key', kind: 'divides', left: 'HK', right: 'HV' },
  ],
  rules: [
    { attribute: 'update_rule', is: ['gated', 'gated_delta'], needs: ['decay'] },
    { attribute: 'update_rule', is: ['linear', 'delta'], refuses: ['decay'] },
    { attribute: 'update_rule', is: ['delta', 'gated_delta'], needs: ['beta'] },
    { attribute: 'update_rule', is: ['linear', 'gated'], refuses: ['beta'] },
    {
      attribute: 'read',
      is: ['bonus'],
      requires: { update_rule: ['linear', 'gated'] },
      needs: ['bonus'],
    },
    { attribute: 'read', is: ['after', 'before'], refuses: ['bonus'] },
    {
      attribute: 'causal',
      is: [0],
      requires: { update_rule: ['linear'], read: ['after'] },
      refuses: ['past_state'],
    },
  ],
  constants: {
    normalize_eps: { value: 1e-6, doc: 'Added to the denominator when normalize=1.' },
    l2norm_eps: { value: 1e-6, doc: 'Added to the sum of squares before the square root.' },
    exp_clamp: { value: 80, doc: 'Largest argument of the exp feature map.' },
  },
});

export type LinearAttentionAttributes = AttributesOf<typeof linearAttention>;
export type LinearAttentionAttributeInput = AttributeInput<typeof linearAttention>;
export type UpdateRule = LinearAttentionAttributes['update_rule'];
export type FeatureMap = LinearAttentionAttributes['feature_map'];

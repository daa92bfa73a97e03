import { type AttributeInput, type AttributesOf, defineOp } from '../define.js';

export const hybridAttention = defineOp({
  name: 'HybridAttention',
  domain: 'com.fla',
  version: 1,
  summary:
    'Softmax attention that is exact for the first `sinks` and the last `window` tokens and linear for those in between, with one ' +
    'denominator for both: constant memory per token, linear time in the length. The feature maps of the linear part are ' +
    'parameters per head, so that they can be fitted to the attention of a given model.',
  semantics: [
    'The **visible** tokens of a batch row (all of them unless `mask` hides some) are numbered 0, 1, 2, ..., over all calls that a state ' +
      'was carried through. For token t of query head h, whose key head is g = h / (HQ/HV), the tokens j <= t are **near** if j < sinks or ' +
      'j > t - window (or if the cache holds j, see below), and **far** otherwise:',
    [
      "- near: `w_tj = exp(s_tj)`, `s_tj = cap(scale * q_t' (k_j - mean_g)) - slope_h * (t - j) + bias_h[min(t - j, window)]`",
      "- far: `w_tj = exp(alpha_h + decay_g * (t - window - j)) * phi_h(q_t)' phi_g(k_j)`",
      '- `output_t = sum_j w_tj v_j / sum_j w_tj`',
    ].join('\n'),
    'The far tokens are one matrix per head: when a token t comes, `S = exp(decay_g) S`, then token j = t - window, which leaves the window, is ' +
      "written if it is no sink, `S += phi_g(k_j) [v_j, 1]'`. The last column of `S` is the normalizer. Weights must be positive for the " +
      'denominator to be one; feature maps `identity` and `relu` do not see to that by themselves.',
    '`cap(x)` is `softcap * tanh(x / softcap)`, or x when `softcap` is 0. `mean` is `key_mean`, `slope` is `alibi_slopes`, `bias` is ' +
      '`distance_bias`; each parameter counts as 0 when it is absent. `key_mean` changes only how the near part weighs against the far one: ' +
      'the near scores of a token all shift by the same amount.',
    "**Features.** `u = x' W` with x = q or k, or the vectors of `query_features` and `key_features` where those are given (keys before their rotary " +
      'embedding, say), and W = `query_weight` of head h or `key_weight` of head g; `u = x` without weights. Then `phi(x) = map(u + b)`, or with ' +
      '`signs=2`, `phi(x) = map([u; -u] + b)`, b = `query_bias` or `key_bias`. `feature_map` is `exp`, `exp(min(x, 40))`; `elu1`, `x + 1` ' +
      'for x > 0 and `exp(x)` otherwise; `relu`; `softmax` over all features of a token; or `identity`. The default with weights is ' +
      "Hedgehog's map; `softmax` with two signs is that of LoLCATs.",
    '**Biases that map exactly.** ALiBi is `alibi_slopes`, `decay_g = -slope_h` and `alpha_h` lowered by `slope_h * window` (one slope per key ' +
      'head then). A T5 bias whose last bucket begins at or before distance `window` is `distance_bias`, and `alpha_h` raised by its ' +
      'last entry.',
    '**Cache.** With `cache` = C > 0, a token that leaves the window goes into the cache, and is near from then on, as long as that has fewer ' +
      "than C tokens. After that, of these C tokens and the leaving one, the one that the state recalls best is written to `S`: that with the least `|v - S' phi / z' phi|^2`, " +
      'z being the last column of `S`, and 0 standing for a quotient by 0 (of equals, the first in the cache, the leaving one last). If it was in the cache, the ' +
      'leaving token takes its place. This is LoLA.',
    '**Mask.** A token whose mask is false or 0 is as if it were not there: nothing sees it, and it has no number. Its output is 0. Padding may ' +
      'stand on either side, and differently in each batch row.',
    '**State.** `present_state` is `S`, [B,HV,M*signs,V+1]. `present_window` is [B,HV,sinks+window+cache+1,K+V+E]. Each row holds a key, its ' +
      'value, and its vector of `key_features` (E = D elements, or none: E = 0). Token j < sinks is row j; the others share the ring after them: token j is row ' +
      'sinks + (j - sinks) mod window. Then come the rows of the cache, in the order in which they were first taken. Rows that hold nothing yet are not read. The last row ' +
      'counts the tokens in base 256: its first four elements are the digits, the lowest first, exact in every type. States of zeros ' +
      'are the states before the first token. So a call with T tokens is the same as T calls with one, or any calls in between. When the ' +
      'count reaches 2^32, it is lowered by `window` times the integer part of 2^31 / `window`, which changes nothing but the distance ' +
      'between a token and the sinks.',
    '**Precision.** All arithmetic is in float32; query, key, value, the features, the parameters and past_window are read, output and ' +
      'present_window written, in their own types. Keys and values are carried unchanged; `S` is float32. Every sum of weights is taken ' +
      'relative to the larger of its two parts, so that neither overflows, however large `alpha` and the scores are. With T = 0 the output is empty and the ' +
      'present states equal the past ones. `present_window` may share memory with `past_window`, and `present_state` with `past_state`.',
    '**Providers.** There is a CPU kernel, and a function body in standard operators, which does not know `cache`. There is no CUDA and no ' +
      'WebGPU kernel: in a session on a GPU, ONNX Runtime runs this operator on the CPU and copies what it needs; in the browser the ' +
      'function body runs.',
  ],
  papers: [
    {
      title: 'Zhang et al. 2024, LoLCATs (window and linear attention with one denominator)',
      url: 'https://arxiv.org/abs/2410.10254',
    },
    {
      title:
        'Zhang et al. 2024, The Hedgehog and the Porcupine (feature maps fitted to softmax attention)',
      url: 'https://arxiv.org/abs/2402.04347',
    },
    {
      title: 'Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks',
      url: 'https://arxiv.org/abs/2309.17453',
    },
    {
      title: 'McDermott et al. 2025, LoLA (the cache)',
      url: 'https://arxiv.org/abs/2505.23666',
    },
    {
      title: 'Press et al. 2021, Train Short, Test Long (ALiBi)',
      url: 'https://arxiv.org/abs/2108.12409',
    },
  ],
  types: {
    T: ['float32', 'float16', 'bfloat16'],
    R: ['T', 'float32'],
    M: ['bool', 'float32'],
    W: ['T', 'float32'],
    S: ['float32'],
  },
  aliases: { HQ: 'q_num_heads', HV: 'kv_num_heads' },
  maxima: {},
  presence: {
    D: { input: 'query_features', absent: 'K' },
    E: { input: 'key_features', given: 'D', absent: '0' },
    M: { input: 'query_weight', absent: 'D' },
  },
  together: [
    ['query_features', 'key_features'],
    ['query_weight', 'key_weight'],
  ],
  positive: ['K', 'V', 'D', 'M'],
  inputs: [
    {
      name: 'query',
      type: 'T',
      shapes: [['B', 'T', 'HQ*K']],
      doc: 'Query heads, packed: the bytes of a contiguous [B,T,HQ,K].',
    },
    { name: 'key', type: 'T', shapes: [['B', 'T', 'HV*K']], doc: 'Key heads, packed.' },
    { name: 'value', type: 'T', shapes: [['B', 'T', 'HV*V']], doc: 'Value heads, packed.' },
    {
      name: 'query_features',
      type: 'T',
      shapes: [['B', 'T', 'HQ*D']],
      optional: true,
      doc: 'What the feature map of the queries is applied to; query when absent, and D = K.',
    },
    {
      name: 'key_features',
      type: 'T',
      shapes: [['B', 'T', 'HV*D']],
      optional: true,
      doc: 'What the feature map of the keys is applied to; key when absent.',
    },
    {
      name: 'mask',
      type: 'M',
      shapes: [['B', 'T']],
      optional: true,
      doc: 'False or 0 makes a token invisible: padding on either side.',
    },
    {
      name: 'query_weight',
      type: 'W',
      shapes: [['HQ', 'D', 'M']],
      optional: true,
      doc: 'W of the queries; the identity when absent, and M = D.',
    },
    {
      name: 'key_weight',
      type: 'W',
      shapes: [['HV', 'D', 'M']],
      optional: true,
      doc: 'W of the keys; the identity when absent.',
    },
    {
      name: 'query_bias',
      type: 'W',
      shapes: [['HQ', 'M*signs']],
      optional: true,
      doc: 'b of the queries.',
    },
    {
      name: 'key_bias',
      type: 'W',
      shapes: [['HV', 'M*signs']],
      optional: true,
      doc: 'b of the keys.',
    },
    {
      name: 'alpha',
      type: 'W',
      shapes: [['HQ']],
      optional: true,
      doc: 'Logarithm of the factor on far weights; -Infinity leaves the far part out.',
    },
    {
      name: 'key_mean',
      type: 'W',
      shapes: [['HV', 'K']],
      optional: true,
      doc: 'Subtracted from the keys in near scores.',
    },
    {
      name: 'alibi_slopes',
      type: 'W',
      shapes: [['HQ']],
      optional: true,
      doc: 'What a distance of one token takes from a near score, per query head; >= 0.',
    },
    {
      name: 'distance_bias',
      type: 'W',
      shapes: [['HQ', 'window+1']],
      optional: true,
      doc: 'Added to near scores by distance 0..window-1; the last entry serves all larger distances.',
    },
    {
      name: 'decay',
      type: 'W',
      shapes: [['HV']],
      optional: true,
      doc: 'Natural logarithm of the factor that far weights take per token, <= 0.',
    },
    {
      name: 'past_window',
      type: 'R',
      shapes: [['B', 'HV', 'sinks+window+cache+1', 'K+V+E']],
      optional: true,
      doc: 'Keys and values before the first token, and their count; zeros when absent.',
    },
    {
      name: 'past_state',
      type: 'S',
      shapes: [['B', 'HV', 'M*signs', 'V+1']],
      optional: true,
      doc: 'State of the far tokens before the first token; zeros when absent.',
    },
  ],
  outputs: [
    { name: 'output', type: 'T', shape: ['B', 'T', 'HQ*V'], doc: 'Output heads, packed.' },
    {
      name: 'present_window',
      type: 'R',
      shape: ['B', 'HV', 'sinks+window+cache+1', 'K+V+E'],
      optional: true,
      inPlaceOf: 'past_window',
      doc: 'The same after the last token. Its type is that of past_window, and T when there is none.',
    },
    {
      name: 'present_state',
      type: 'S',
      shape: ['B', 'HV', 'M*signs', 'V+1'],
      optional: true,
      inPlaceOf: 'past_state',
      doc: 'State of the far tokens after the last token.',
    },
  ],
  attributes: {
    q_num_heads: { type: 'int', min: 1, doc: 'Number of query heads, HQ; a multiple of HV.' },
    kv_num_heads: {
      type: 'int',
      min: 1,
      doc: 'Number of key and value heads (and states), HV.',
    },
    window: {
      type: 'int',
      min: 1,
      doc: 'How many tokens a token sees exactly, counted back from itself.',
    },
    sinks: {
      type: 'int',
      default: 0,
      min: 0,
      doc: 'How many of the first tokens all see exactly.',
    },
    cache: {
      type: 'int',
      default: 0,
      min: 0,
      doc: 'How many of the tokens in between all see exactly: those that the state recalls worst.',
    },
    scale: { type: 'float', default: 0, doc: 'Factor on near scores; 0 means 1/sqrt(K).' },
    softcap: {
      type: 'float',
      default: 0,
      doc: 'Bound on near scores before biases; 0 means none.',
    },
    feature_map: {
      type: 'string',
      default: 'exp',
      allowed: ['identity', 'elu1', 'relu', 'exp', 'softmax'],
      doc: 'Map applied to x W + b.',
    },
    signs: {
      type: 'int',
      default: 2,
      allowed: [1, 2],
      doc: '2 makes features of x W and of -x W.',
    },
  },
  constraints: [
    { argument: 'query', kind: 'divides', left: 'HV', right: 'HQ' },
    { argument: 'value', kind: 'atLeast', left: 'K+V', right: '4' },
  ],
  rules: [{ attribute: 'cache', atLeast: 1, refuses: ['alibi_slopes', 'decay'] }],
  constants: {
    exp_clamp: { value: 40, doc: 'Largest argument of the exp feature map.' },
    count_base: { value: 256, doc: 'Base of the digits in which tokens are counted.' },
  },
});

export type HybridAttentionAttributes = AttributesOf<typeof hybridAttention>;
export type HybridAttentionAttributeInput = AttributeInput<typeof hybridAttention>;
export type HybridFeatureMap = HybridAttentionAttributes['feature_map'];

import { type AttributeInput, type AttributesOf, defineOp } from '../define.js';

export const windowAttention = defineOp({
  name: 'WindowAttention',
  domain: 'com.fla',
  version: 1,
  summary:
    'Exact softmax attention to the first `sinks` tokens and the last `window` tokens. What it carries from call to call has a fixed ' +
    'size: those keys and values, and how many tokens there were. The logarithm of the sum of weights is an output, so that the result ' +
    'can be merged with attention to other tokens.',
  semantics: [
    'The **visible** tokens of a batch row (all of them unless `mask` hides some) are numbered 0, 1, 2, ..., over all calls that a state ' +
      'was carried through. Token t of query head h, whose key head is g = h / (HQ/HV), sees the tokens j <= t with j < sinks or ' +
      'j > t - window, itself included:',
    [
      "- `s_tj = cap(scale * q_t' k_j) - slope_h * (t - j) + bias_h[min(t - j, window)]`",
      '- `output_t = sum_j exp(s_tj) v_j / sum_j exp(s_tj)`, `lse_t = log(sum_j exp(s_tj))`',
    ].join('\n'),
    '`cap(x)` is `softcap * tanh(x / softcap)`, or x when `softcap` is 0. `slope` is `alibi_slopes`, `bias` is `distance_bias`; either ' +
      'counts as 0 when it is absent. Its last entry serves every distance of `window` or more, which only sinks have. ALiBi is ' +
      'exact with its slopes; a T5 bias is exact if its last bucket begins at or before distance `window`, or if there are no sinks.',
    '**Mask.** A token whose mask is false or 0 is as if it were not there: nothing sees it, and it has no number. Its output is 0 and its lse ' +
      '-Infinity. Padding may stand on either side, and differently in each batch row.',
    '**State.** `present_window` is [B,HV,sinks+window+1,K+V]. Each row holds a key, then its value. Token j < sinks is row j; the ' +
      'others share the ring after them: token j is row sinks + (j - sinks) mod window. Rows of tokens that have not come yet are not ' +
      'read. The last row counts the tokens in base 256: its first four elements are the digits, the lowest first, exact in every type. ' +
      'A state of zeros is the state before the first token. So a call with T tokens is the same as T calls with one, or any ' +
      'calls in between. When the count reaches 2^32, it is lowered by `window` times the integer part of 2^31 / `window`, which changes ' +
      'nothing but the distance between a token and the sinks.',
    '**Precision.** All arithmetic is in float32; query, key, value, past_window and the parameters are read, output and present_window ' +
      'written, in their own types. Keys and values are carried unchanged. With T = 0 the output is empty and `present_window` equals ' +
      '`past_window`. `present_window` may share memory with `past_window`.',
    '**Providers.** There is a CPU kernel, and a function body in standard operators. There is no CUDA and no WebGPU kernel: in a session ' +
      'on a GPU, ONNX Runtime runs this operator on the CPU and copies what it needs; in the browser the function body runs.',
  ],
  papers: [
    {
      title: 'Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks',
      url: 'https://arxiv.org/abs/2309.17453',
    },
    {
      title: 'Beltagy et al. 2020, Longformer (sliding windows)',
      url: 'https://arxiv.org/abs/2004.05150',
    },
    {
      title: 'Press et al. 2021, Train Short, Test Long (ALiBi)',
      url: 'https://arxiv.org/abs/2108.12409',
    },
    {
      title: 'Raffel et al. 2019, T5 (bias by relative position)',
      url: 'https://arxiv.org/abs/1910.10683',
    },
    { title: 'Gemma Team 2024, Gemma 2 (softcap)', url: 'https://arxiv.org/abs/2408.00118' },
  ],
  types: {
    T: ['float32', 'float16', 'bfloat16'],
    R: ['T', 'float32'],
    M: ['bool', 'float32'],
    W: ['T', 'float32'],
    L: ['float32'],
  },
  aliases: { HQ: 'q_num_heads', HV: 'kv_num_heads' },
  maxima: {},
  positive: ['K', 'V'],
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
      name: 'mask',
      type: 'M',
      shapes: [['B', 'T']],
      optional: true,
      doc: 'False or 0 makes a token invisible: padding on either side.',
    },
    {
      name: 'alibi_slopes',
      type: 'W',
      shapes: [['HQ']],
      optional: true,
      doc: 'What a distance of one token takes from a score, per query head; >= 0.',
    },
    {
      name: 'distance_bias',
      type: 'W',
      shapes: [['HQ', 'window+1']],
      optional: true,
      doc: 'Added to scores by distance 0..window-1; the last entry serves all larger distances.',
    },
    {
      name: 'past_window',
      type: 'R',
      shapes: [['B', 'HV', 'sinks+window+1', 'K+V']],
      optional: true,
      doc: 'Keys and values before the first token, and their count; zeros when absent.',
    },
  ],
  outputs: [
    { name: 'output', type: 'T', shape: ['B', 'T', 'HQ*V'], doc: 'Output heads, packed.' },
    {
      name: 'lse',
      type: 'L',
      shape: ['B', 'T', 'HQ'],
      optional: true,
      doc: 'Logarithm of the sum of weights.',
    },
    {
      name: 'present_window',
      type: 'R',
      shape: ['B', 'HV', 'sinks+window+1', 'K+V'],
      optional: true,
      inPlaceOf: 'past_window',
      doc: 'The same after the last token. Its type is that of past_window, and T when there is none.',
    },
  ],
  attributes: {
    q_num_heads: { type: 'int', min: 1, doc: 'Number of query heads, HQ; a multiple of HV.' },
    kv_num_heads: { type: 'int', min: 1, doc: 'Number of key and value heads, HV.' },
    window: {
      type: 'int',
      min: 1,
      doc: 'How many tokens a token sees, counted back from itself.',
    },
    sinks: { type: 'int', default: 0, min: 0, doc: 'How many of the first tokens all see.' },
    scale: { type: 'float', default: 0, doc: 'Factor on the scores; 0 means 1/sqrt(K).' },
    softcap: { type: 'float', default: 0, doc: 'Bound on the scores before biases; 0 means none.' },
  },
  constraints: [
    { argument: 'query', kind: 'divides', left: 'HV', right: 'HQ' },
    { argument: 'value', kind: 'atLeast', left: 'K+V', right: '4' },
  ],
  rules: [],
  constants: {
    count_base: { value: 256, doc: 'Base of the digits in which tokens are counted.' },
  },
});

export type WindowAttentionAttributes = AttributesOf<typeof windowAttention>;
export type WindowAttentionAttributeInput = AttributeInput<typeof windowAttention>;

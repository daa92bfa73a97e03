import { type AttributeInput, type AttributesOf, defineOp } from '../define.js';

export const causalConvWithState = defineOp({
  name: 'CausalConvWithState',
  domain: 'com.fla',
  version: 1,
  summary:
    'The short causal depthwise convolution that stands before most linear-attention layers, with the last inputs carried from call ' +
    'to call. Same interface as `ai.onnx` CausalConvWithState (opset 27), plus bfloat16.',
  semantics: [
    'Per batch row b and channel d, with `x` the carried W-1 inputs (zeros when `past_state` is absent) followed by the T new ones:',
    '`output[b,d,t] = act(bias[d] + sum_w weight[d,0,w] * x[t + w])` for t in 0..T-1, w in 0..W-1; ' +
      '`present_state[b,d,:]` is the last W-1 values of `x`.',
    '`activation` `silu` (alias `swish`) is `y / (1 + exp(-y))`. Sums are in float32. With T = 0 the output is empty and ' +
      '`present_state` equals `past_state`. `present_state` may share memory with `past_state`.',
  ],
  papers: [
    {
      title: 'Gu and Dao 2023, Mamba',
      url: 'https://arxiv.org/abs/2312.00752',
    },
    {
      title: 'Yang et al. 2024, Gated Delta Networks',
      url: 'https://arxiv.org/abs/2412.06464',
    },
  ],
  types: { T: ['float32', 'float16', 'bfloat16'] },
  aliases: {},
  maxima: {},
  positive: ['D', 'W'],
  inputs: [
    { name: 'input', type: 'T', shapes: [['B', 'D', 'T']], doc: 'Channels first.' },
    {
      name: 'weight',
      type: 'T',
      shapes: [['D', '1', 'W']],
      doc: 'One filter of W taps per channel.',
    },
    { name: 'bias', type: 'T', shapes: [['D']], optional: true, doc: 'Zeros when absent.' },
    {
      name: 'past_state',
      type: 'T',
      shapes: [['B', 'D', 'W-1']],
      optional: true,
      doc: 'The W-1 inputs before the first; zeros when absent.',
    },
  ],
  outputs: [
    { name: 'output', type: 'T', shape: ['B', 'D', 'T'], doc: 'Same shape as input.' },
    {
      name: 'present_state',
      type: 'T',
      shape: ['B', 'D', 'W-1'],
      optional: true,
      inPlaceOf: 'past_state',
      doc: 'The last W-1 inputs, `past_state` included.',
    },
  ],
  attributes: {
    activation: {
      type: 'string',
      default: 'none',
      allowed: ['none', 'silu', 'swish'],
      doc: 'Applied to the convolution plus bias.',
    },
  },
  constraints: [],
  rules: [],
  constants: {},
});

export type CausalConvWithStateAttributes = AttributesOf<typeof causalConvWithState>;
export type CausalConvWithStateAttributeInput = AttributeInput<typeof causalConvWithState>;

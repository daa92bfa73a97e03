import { describe, expect, it } from 'vitest';
import {
  causalConvWithState,
  checkCall,
  type DType,
  FlaError,
  type FlaErrorCode,
  hybridAttention,
  linearAttention,
  type OpSchema,
  windowAttention,
  zeros,
} from '../../ops/index.js';
import { refusalOf } from '../support/kernels.js';

interface BadCall {
  readonly code: FlaErrorCode;
  readonly message: string;
  readonly attributes?: Readonly<Record<string, number | string>>;
  /** Shapes by input name; undefined takes one away. */
  readonly shapes?: Readonly<Record<string, readonly number[] | undefined>>;
}

const heads = { q_num_heads: 2, kv_num_heads: 4 };
const good = {
  query: [2, 3, 10],
  key: [2, 3, 10],
  value: [2, 3, 12],
  past_state: [2, 4, 5, 3],
  decay: [2, 3, 4],
  beta: [2, 3, 4],
};

const badCalls: readonly BadCall[] = [
  {
    code: 'invalid_shape',
    message: 'query must be [B,T,HQ*K] = [B,T,2*K], received [2,3,11]',
    shapes: { query: [2, 3, 11] },
  },
  {
    code: 'invalid_shape',
    message: 'query must be [B,T,HQ*K] = [B,T,2*K], received [2,3,2,5]',
    shapes: { query: [2, 3, 2, 5] },
  },
  {
    code: 'invalid_shape',
    message: 'query must be [B,T,HQ*K] = [B,T,2*K], received [2,3,0]',
    shapes: { query: [2, 3, 0] },
  },
  {
    code: 'invalid_shape',
    message: 'key must be [B,T,HK*K] = [2,3,HK*5], received [2,4,10]',
    shapes: { key: [2, 4, 10] },
  },
  {
    code: 'invalid_shape',
    message: 'key must be [B,T,HK*K] = [2,3,HK*5], received [2,3,12]',
    shapes: { key: [2, 3, 12] },
  },
  {
    code: 'invalid_shape',
    message: 'key must be such that HK divides HV = 4, received HK = 3',
    shapes: { key: [2, 3, 15] },
  },
  {
    code: 'invalid_shape',
    message: 'query must be such that one of HQ and HV = 4 divides the other, received HQ = 3',
    attributes: { q_num_heads: 3 },
    shapes: { query: [2, 3, 15] },
  },
  {
    code: 'invalid_shape',
    message: 'value must be [B,T,HV*V] = [2,3,4*V], received [2,3,13]',
    shapes: { value: [2, 3, 13] },
  },
  {
    code: 'invalid_shape',
    message: 'past_state must be [B,HV,K,V+normalize] = [2,4,5,3], received [2,4,5,4]',
    shapes: { past_state: [2, 4, 5, 4] },
  },
  {
    code: 'invalid_shape',
    message: 'past_state must be [B,HV,K,V+normalize] = [2,4,5,4], received [2,4,5,3]',
    attributes: { normalize: 1 },
  },
  {
    code: 'invalid_shape',
    message: 'decay must be [B,T,HV] = [2,3,4] or [B,T,HV*K] = [2,3,20], received [2,3,5]',
    shapes: { decay: [2, 3, 5] },
  },
  {
    code: 'invalid_shape',
    message: 'beta must be [B,T,HV] = [2,3,4] or [B,T,1] = [2,3,1], received [2,3,2]',
    shapes: { beta: [2, 3, 2] },
  },
  {
    code: 'invalid_shape',
    message: 'mask must be [B,T] = [2,3], received [2,1,3]',
    shapes: { mask: [2, 1, 3] },
  },
  {
    code: 'invalid_shape',
    message: 'bonus must be [HV*K] = [20], received [4,5]',
    attributes: { update_rule: 'gated', read: 'bonus' },
    shapes: { beta: undefined, bonus: [4, 5] },
  },
  {
    code: 'missing_input',
    message: 'decay must be given when update_rule=gated_delta, received none',
    shapes: { decay: undefined },
  },
  {
    code: 'missing_input',
    message: 'beta must be given when update_rule=delta, received none',
    attributes: { update_rule: 'delta' },
    shapes: { decay: undefined, beta: undefined },
  },
  {
    code: 'unexpected_input',
    message: 'decay must be absent when update_rule=linear, received [2,3,4]',
    attributes: { update_rule: 'linear' },
    shapes: { beta: undefined },
  },
  {
    code: 'unexpected_input',
    message: 'beta must be absent when update_rule=gated, received [2,3,4]',
    attributes: { update_rule: 'gated' },
  },
  {
    code: 'unexpected_input',
    message: 'past_state must be absent when causal=0, received [2,4,5,3]',
    attributes: { update_rule: 'linear', causal: 0 },
    shapes: { decay: undefined, beta: undefined },
  },
  {
    code: 'invalid_attribute',
    message: 'update_rule must be linear when causal=0, received gated_delta',
    attributes: { causal: 0 },
  },
  {
    code: 'invalid_attribute',
    message: 'update_rule must be one of linear, gated, delta, gated_delta, received rwkv',
    attributes: { update_rule: 'rwkv' },
  },
  {
    code: 'invalid_attribute',
    message: 'normalize must be one of 0, 1, received 2',
    attributes: { normalize: 2 },
  },
  {
    code: 'invalid_attribute',
    message: 'q_num_heads must be at least 1, received 0',
    attributes: { q_num_heads: 0 },
  },
  {
    code: 'invalid_attribute',
    message:
      'feature_map must be one of identity, elu1, relu, exp, silu, l2norm, softmax, received 3',
    attributes: { feature_map: 3 },
  },
];

const badConvolutions: readonly BadCall[] = [
  {
    code: 'invalid_shape',
    message: 'weight must be [D,1,W] = [6,1,W], received [6,2,4]',
    shapes: { weight: [6, 2, 4] },
  },
  {
    code: 'invalid_shape',
    message: 'weight must be [D,1,W] = [6,1,W], received [6,1,0]',
    shapes: { weight: [6, 1, 0] },
  },
  {
    code: 'invalid_shape',
    message: 'past_state must be [B,D,W-1] = [2,6,3], received [2,6,4]',
    shapes: { past_state: [2, 6, 4] },
  },
  {
    code: 'invalid_shape',
    message: 'bias must be [D] = [6], received [5]',
    shapes: { bias: [5] },
  },
  {
    code: 'invalid_attribute',
    message: 'activation must be one of none, silu, swish, received gelu',
    attributes: { activation: 'gelu' },
  },
];

const badWindows: readonly BadCall[] = [
  {
    code: 'invalid_shape',
    message: 'key must be [B,T,HV*K] = [2,3,10], received [2,3,20]',
    shapes: { key: [2, 3, 20] },
  },
  {
    code: 'invalid_shape',
    message: 'query must be such that HV divides HQ = 3, received HV = 2',
    attributes: { q_num_heads: 3 },
    shapes: { query: [2, 3, 15] },
  },
  {
    code: 'invalid_shape',
    message: 'value must be such that K+V is at least 4, received K+V = 3',
    shapes: { query: [2, 3, 8], key: [2, 3, 4], value: [2, 3, 2], past_window: undefined },
  },
  {
    code: 'invalid_shape',
    message: 'past_window must be [B,HV,sinks+window+1,K+V] = [2,2,11,8], received [2,2,10,8]',
    shapes: { past_window: [2, 2, 10, 8] },
  },
  {
    code: 'invalid_shape',
    message: 'distance_bias must be [HQ,window+1] = [4,9], received [4,8]',
    shapes: { distance_bias: [4, 8] },
  },
  {
    code: 'invalid_shape',
    message: 'alibi_slopes must be [HQ] = [4], received [2]',
    shapes: { alibi_slopes: [2] },
  },
  {
    code: 'invalid_shape',
    message: 'mask must be [B,T] = [2,3], received [2,4]',
    shapes: { mask: [2, 4] },
  },
  {
    code: 'invalid_attribute',
    message: 'window must be at least 1, received 0',
    attributes: { window: 0 },
  },
  {
    code: 'invalid_attribute',
    message: 'sinks must be at least 0, received -1',
    attributes: { sinks: -1 },
  },
];

const badHybrids: readonly BadCall[] = [
  {
    code: 'invalid_shape',
    message: 'query_weight must be [HQ,D,M] = [4,5,M], received [4,6,7]',
    shapes: { query_weight: [4, 6, 7] },
  },
  {
    code: 'invalid_shape',
    message: 'key_weight must be [HV,D,M] = [2,5,7], received [2,5,6]',
    shapes: { key_weight: [2, 5, 6] },
  },
  {
    code: 'invalid_shape',
    message: 'key_bias must be [HV,M*signs] = [2,14], received [2,7]',
    shapes: { key_bias: [2, 7] },
  },
  {
    code: 'invalid_shape',
    message: 'past_state must be [B,HV,M*signs,V+1] = [2,2,14,4], received [2,2,14,3]',
    shapes: { past_state: [2, 2, 14, 3] },
  },
  {
    code: 'invalid_shape',
    message: 'past_state must be [B,HV,M*signs,V+1] = [2,2,7,4], received [2,2,14,4]',
    attributes: { signs: 1 },
  },
  {
    code: 'invalid_shape',
    message:
      'past_window must be [B,HV,sinks+window+cache+1,K+V+E] = [2,2,15,8], received [2,2,11,8]',
    attributes: { cache: 4 },
  },
  {
    code: 'missing_input',
    message: 'key_features must be given when query_features is, received none',
    shapes: { query_features: [2, 3, 20] },
  },
  {
    code: 'missing_input',
    message: 'key_weight must be given when query_weight is, received none',
    shapes: { key_weight: undefined },
  },
  {
    code: 'unexpected_input',
    message: 'decay must be absent when cache=4, received [2]',
    attributes: { cache: 4 },
    shapes: { decay: [2], past_window: [2, 2, 15, 8] },
  },
  {
    code: 'invalid_attribute',
    message: 'signs must be one of 1, 2, received 4',
    attributes: { signs: 4 },
  },
  {
    code: 'invalid_attribute',
    message: 'feature_map must be one of identity, elu1, relu, exp, softmax, received silu',
    attributes: { feature_map: 'silu' },
  },
];

const windowHeads = { q_num_heads: 4, kv_num_heads: 2, window: 8, sinks: 2 };
const goodWindow = {
  query: [2, 3, 20],
  key: [2, 3, 10],
  value: [2, 3, 6],
  past_window: [2, 2, 11, 8],
};
/** A call of every op that its bad calls break. */
const goodCalls: Record<string, Pick<Call, 'attributes' | 'shapes'>> = {
  LinearAttention: { attributes: heads, shapes: good },
  CausalConvWithState: { attributes: {}, shapes: { input: [2, 6, 9], weight: [6, 1, 4] } },
  WindowAttention: { attributes: windowHeads, shapes: goodWindow },
  HybridAttention: {
    attributes: windowHeads,
    shapes: {
      ...goodWindow,
      query_weight: [4, 5, 7],
      key_weight: [2, 5, 7],
      past_state: [2, 2, 14, 4],
    },
  },
};

interface Call {
  readonly op: OpSchema;
  readonly attributes: Record<string, number | string>;
  readonly shapes: Record<string, readonly number[]>;
}

function callOf(op: OpSchema, bad: BadCall): Call {
  const { attributes, shapes } = goodCalls[op.name];
  const given = Object.entries({ ...shapes, ...bad.shapes }).filter(([, shape]) => shape);
  return {
    op,
    attributes: { ...attributes, ...bad.attributes },
    shapes: Object.fromEntries(given) as Record<string, readonly number[]>,
  };
}

function thrownBy(run: () => unknown): FlaError {
  try {
    run();
  } catch (error) {
    if (error instanceof FlaError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

const specs = (shapes: Call['shapes'], dtype: DType = 'float32') =>
  Object.fromEntries(Object.entries(shapes).map(([name, shape]) => [name, { dtype, shape }]));

describe.each([
  [linearAttention, badCalls],
  [causalConvWithState, badConvolutions],
  [windowAttention, badWindows],
  [hybridAttention, badHybrids],
] as const)('$name', (op, calls) => {
  it.each(calls)('checkCall and the library say: $message', async (bad) => {
    const { attributes, shapes } = callOf(op, bad);
    const error = thrownBy(() => checkCall(op, attributes, specs(shapes)));
    expect(error.message).toBe(`${op.name}: ${bad.message}`);
    expect(error.code).toBe(bad.code);

    const tensors = Object.entries(shapes).map(([name, shape]) => [name, zeros(shape)]);
    const dtypes = Object.keys(shapes).map((name) => [name, name === 'mask' ? 'bool' : 'float32']);
    const refusal = await refusalOf({
      op,
      attributes,
      inputs: Object.fromEntries(tensors),
      dtypes: Object.fromEntries(dtypes),
    });
    // A wrongly typed attribute looks absent to the C API; the library then names the types.
    const expected = bad.message.endsWith('received 3')
      ? 'feature_map must be of type string, received int'
      : bad.message;
    expect(refusal).toContain(`${op.name}: ${expected}`);
  });
});

describe('checkCall alone', () => {
  const call = callOf(linearAttention, { code: 'invalid_type', message: '' });

  it('accepts the call that all of these break', () => {
    expect(checkCall(linearAttention, heads, specs(good)).dims).toEqual({
      ...{ B: 2, T: 3, HQ: 2, HK: 2, HV: 4, HO: 4, K: 5, V: 3 },
      ...{ q_num_heads: 2, kv_num_heads: 4, chunk_size: 64, normalize: 0, causal: 1, qk_l2norm: 0 },
    });
  });

  it('names required inputs and attributes', () => {
    const { query, ...rest } = specs(call.shapes);
    expect(query).toBeDefined();
    expect(thrownBy(() => checkCall(linearAttention, heads, rest)).message).toBe(
      'LinearAttention: query must be given, received none',
    );
    expect(thrownBy(() => checkCall(linearAttention, { q_num_heads: 2 }, rest)).message).toBe(
      'LinearAttention: kv_num_heads must be of type int, received none',
    );
  });

  it('names unknown attributes', () => {
    const attributes = { ...heads, update_rul: 'linear' };
    expect(thrownBy(() => checkCall(linearAttention, attributes, specs(good))).message).toMatch(
      /^LinearAttention: update_rul must be one of the attributes q_num_heads, .*, received an unknown name$/,
    );
  });

  it('names types and what binds them', () => {
    const typed = {
      ...specs(good, 'float16'),
      decay: { dtype: 'bfloat16' as const, shape: good.decay },
    };
    const error = thrownBy(() => checkCall(linearAttention, heads, typed));
    expect(error.message).toBe(
      'LinearAttention: decay must be of type TD = float16 or float32, received bfloat16',
    );
    expect(error.code).toBe('invalid_type');
    expect(thrownBy(() => checkCall(linearAttention, heads, specs(good, 'float64'))).message).toBe(
      'LinearAttention: query must be of type T = float32 or float16 or bfloat16, received float64',
    );
  });

  it('reports the type each variable took', () => {
    const typed = {
      ...specs(good, 'float16'),
      past_state: { dtype: 'float32' as const, shape: good.past_state },
    };
    expect(checkCall(linearAttention, heads, typed).types).toEqual({
      T: 'float16',
      S: 'float32',
      TD: 'float16',
      TB: 'float16',
    });
  });
});

/** Models with com.fla calls in awkward places. */
import {
  buildGraph,
  buildModel,
  Emitter,
  freshNames,
  type Model,
  makeNode,
  makeTensor,
  type NodeProto,
} from '../../../exporter/index.js';
import type { FunctionProto } from '../../../exporter/ir/index.js';
import { causalConvWithStateFunction } from '../../../ops/causal_conv_with_state/function.js';
import { checkAttributes, type OpSchema } from '../../../ops/define.js';
import { causalConvWithState, linearAttention } from '../../../ops/index.js';
import { linearAttentionFunction } from '../../../ops/linear_attention/function.js';
import { Random } from '../../cases/tensors.js';

const OPSET = 17;

interface Call {
  readonly node: NodeProto;
  readonly fn: FunctionProto;
  readonly opsets: Readonly<Record<string, number>>;
}

function callNode(
  op: OpSchema,
  name: string,
  attributes: Record<string, number | string>,
  inputs: Readonly<Record<string, string | undefined>>,
  outputs: readonly string[],
  overload: string,
): NodeProto {
  const values = Object.entries(attributes).map(([key, value]) => {
    const isFloat = op.attributes[key].type === 'float';
    return [key, isFloat ? { float: value as number } : value] as const;
  });
  return makeNode(
    op.name,
    op.inputs.map((input) => inputs[input.name] ?? ''),
    outputs,
    Object.fromEntries(values),
    { domain: op.domain, overload, name },
  );
}

/** A call of LinearAttention with 2 heads, float32, and its function body. */
export function attentionCall(
  name: string,
  given: Record<string, number | string>,
  inputs: Readonly<Record<string, string | undefined>>,
  outputs: readonly [string, string],
): Call {
  const attributes = checkAttributes(linearAttention, {
    q_num_heads: 2,
    kv_num_heads: 2,
    ...given,
  });
  const { fn, overload, opsets } = linearAttentionFunction({
    attributes,
    present: {
      past_state: !!inputs.past_state,
      decay: !!inputs.decay,
      beta: !!inputs.beta,
      mask: !!inputs.mask,
    },
    decayKind: 'head',
    dtype: 'float32',
    stateDtype: 'float32',
    opset: OPSET,
  });
  const node = callNode(linearAttention, name, attributes as never, inputs, outputs, overload);
  return { node, fn, opsets };
}

function convCall(
  name: string,
  inputs: Readonly<Record<string, string | undefined>>,
  outputs: readonly [string, string],
): Call {
  const attributes = checkAttributes(causalConvWithState, { activation: 'silu' });
  const { fn, overload, opsets } = causalConvWithStateFunction(
    {
      attributes,
      present: { bias: false, past_state: !!inputs.past_state },
      dtype: 'float32',
      opset: OPSET,
      width: 4,
    } as never,
    { target: 'standard' },
  );
  return {
    node: callNode(causalConvWithState, name, attributes, inputs, outputs, overload),
    fn,
    opsets,
  };
}

/** Width of `hardModel`: its weights are large enough not to be copied. */
export const WIDTH = 16;

/**
 * Two calls in a row and a convolution before them; weights that several pieces read; a shape computed before the calls and used after; a
 * constant that is computed from a half-precision weight; an If whose branches read outer values, one of them with a call inside; a
 * function that calls another; calls whose results are outputs of the model; outputs that are an initializer or
 * computed from constants.
 *
 * x [B,T,16], wide bool [], past_conv [B,16,3], past.N [B,2,8,8] -> y [B,T,16], z [B*T,16], attended [B,T,16], present_conv, present.N,
 * weight [16,16], fixed [16]
 */
export function hardModel(): Model {
  const random = new Random('hard model');
  const e = new Emitter(freshNames());
  const weights = makeTensor(
    'weight',
    'float32',
    [WIDTH, WIDTH],
    Float32Array.from({ length: WIDTH * WIDTH }, () => random.normal() / 4),
  );
  const taps = makeTensor(
    'taps',
    'float16',
    [WIDTH, 1, 4],
    Float32Array.from({ length: WIDTH * 4 }, () => random.normal() / 2),
  );
  const conv = convCall('conv', { input: 'channels', weight: 'taps32', past_state: 'past_conv' }, [
    'convolved',
    'present_conv',
  ]);
  const first = attentionCall(
    'first',
    { update_rule: 'gated', feature_map: 'elu1' },
    { query: 'q0', key: 'k0', value: 'v0', past_state: 'past.0', decay: 'decay', mask: 'mask' },
    ['attended', 'present.0'],
  );
  const second = attentionCall(
    'second',
    { update_rule: 'linear' },
    { query: 'q1', key: 'attended', value: 'x', past_state: 'past.1' },
    ['o1', 'present.1'],
  );
  const inner = attentionCall(
    'inner',
    { update_rule: 'linear', feature_map: 'relu' },
    { query: 'o1', key: 'projected', value: 'x', past_state: 'past.1' },
    ['branch_then', ''],
  );

  e.op('Cast', ['taps'], { to: 1 }, { output: 'taps32' });
  const shape = e.op('Shape', ['x']);
  const size = (axis: number) => e.op('Gather', [shape, e.ints(axis)]);
  const rows = e.op('Mul', [size(0), size(1)]);
  const flat = e.op('Concat', [rows, e.ints(WIDTH)], { axis: 0 });
  e.op('Transpose', ['x'], { perm: [0, 2, 1] }, { output: 'channels' });
  e.nodes.push(conv.node);
  e.op('Transpose', ['convolved'], { perm: [0, 2, 1] }, { output: 'c' });
  e.op('MatMul', ['c', 'weight'], {}, { output: 'q0' });
  e.op('Tanh', ['c'], {}, { output: 'k0' });
  e.op('Sigmoid', ['x'], {}, { output: 'v0' });
  const gates = e.op('Slice', ['c', e.ints(0), e.ints(2), e.ints(2)]);
  e.op('Neg', [e.op('Abs', [gates])], {}, { output: 'decay' });
  const total = e.op('ReduceSum', ['x', e.ints(2)], { keepdims: 0 });
  e.op('Less', [total, e.scalar(4)], {}, { output: 'mask' });
  e.nodes.push(first.node);
  e.op('MatMul', ['attended', 'weight'], {}, { output: 'q1' });
  e.nodes.push(second.node);
  e.op('MatMul', ['o1', 'weight'], {}, { output: 'projected' });
  const branch = (nodes: NodeProto[], output: string) => ({
    graph: buildGraph({
      inputs: {},
      outputs: { [output]: ['float32', ['B', 'T', WIDTH]] },
      nodes,
      name: output,
    }),
  });
  e.op(
    'If',
    ['wide'],
    {
      then_branch: branch([inner.node], 'branch_then'),
      else_branch: branch(
        [makeNode('MatMul', ['projected', 'weight'], ['branch_else'])],
        'branch_else',
      ),
    },
    { output: 'chosen' },
  );
  e.op('Outer', ['chosen'], {}, { domain: 'local', output: 'y' });
  e.op('Reshape', ['chosen', flat], {}, { output: 'z' });
  e.op(
    'Mul',
    [e.constant('float32', [2], []), e.op('ReduceMax', ['weight'], { axes: [0], keepdims: 0 })],
    {},
    { output: 'fixed' },
  );

  const local = (name: string, nodes: NodeProto[]): FunctionProto => ({
    name,
    domain: 'local',
    input: ['a'],
    output: ['b'],
    attribute: [],
    node: nodes,
    opsetImport: [
      { domain: '', version: OPSET },
      { domain: 'local', version: 1 },
    ],
  });
  const calls = [conv, first, second, inner];
  return buildModel({
    inputs: {
      x: ['float32', ['B', 'T', WIDTH]],
      wide: ['bool', []],
      past_conv: ['float32', ['B', WIDTH, 3]],
      'past.0': ['float32', ['B', 2, 8, 8]],
      'past.1': ['float32', ['B', 2, 8, 8]],
    },
    outputs: {
      y: ['float32', ['B', 'T', WIDTH]],
      z: ['float32', ['rows', WIDTH]],
      attended: ['float32', ['B', 'T', WIDTH]],
      present_conv: ['float32', ['B', WIDTH, 3]],
      'present.0': ['float32', ['B', 2, 8, 8]],
      'present.1': ['float32', ['B', 2, 8, 8]],
      weight: ['float32', [WIDTH, WIDTH]],
      fixed: ['float32', [WIDTH]],
    },
    nodes: e.nodes,
    initializers: [weights, taps],
    functions: [
      local('Outer', [
        makeNode('Inner', ['a'], ['c'], {}, { domain: 'local' }),
        makeNode('Neg', ['c'], ['b']),
      ]),
      local('Inner', [makeNode('Tanh', ['a'], ['d']), makeNode('Add', ['d', 'a'], ['b'])]),
      ...new Map(calls.map(({ fn }) => [`${fn.name}:${fn.overload}`, fn])).values(),
    ],
    opsets: Object.assign({ '': OPSET, 'com.fla': 1, local: 1 }, ...calls.map((c) => c.opsets)),
    irVersion: 10,
  });
}

/**
 * The smallest model with a memory: x [B,T,16], past_state [B,2,8,8] -> y [B,T,16], present_state. A step of it is a few dispatches.
 */
export function smallModel(): Model {
  const random = new Random('small model');
  const weight = (name: string) =>
    makeTensor(
      name,
      'float32',
      [WIDTH, WIDTH],
      Float32Array.from({ length: WIDTH * WIDTH }, () => random.normal() / 4),
    );
  const call = attentionCall(
    'memory',
    { update_rule: 'linear', feature_map: 'elu1' },
    { query: 'q', key: 'x', value: 'x', past_state: 'past_state' },
    ['o', 'present_state'],
  );
  return buildModel({
    inputs: { x: ['float32', ['B', 'T', WIDTH]], past_state: ['float32', ['B', 2, 8, 8]] },
    outputs: { y: ['float32', ['B', 'T', WIDTH]], present_state: ['float32', ['B', 2, 8, 8]] },
    nodes: [
      makeNode('MatMul', ['x', 'wq'], ['q']),
      call.node,
      makeNode('MatMul', ['o', 'wo'], ['y']),
    ],
    initializers: [weight('wq'), weight('wo')],
    functions: [call.fn],
    opsets: { '': OPSET, 'com.fla': 1, ...call.opsets },
    irVersion: 10,
  });
}

/** x [B,T,16] -> y [B,T,16] through BiasAdd, which ONNX Runtime has on GPUs only, and a call. */
export function gpuOnlyModel(): Model {
  const call = attentionCall(
    'call',
    { update_rule: 'linear' },
    { query: 'q', key: 'x', value: 'x' },
    ['y', ''],
  );
  return buildModel({
    inputs: { x: ['float32', ['B', 'T', WIDTH]] },
    outputs: { y: ['float32', ['B', 'T', WIDTH]] },
    nodes: [
      makeNode('BiasAdd', ['x', 'bias', 'x'], ['q'], {}, { domain: 'com.microsoft' }),
      call.node,
    ],
    initializers: [makeTensor('bias', 'float32', [WIDTH], new Float32Array(WIDTH).fill(0.5))],
    functions: [call.fn],
    opsets: { '': OPSET, 'com.fla': 1, 'com.microsoft': 1, ...call.opsets },
    irVersion: 10,
  });
}

/** Width of `tiedModel`, whose weight is a mebibyte. */
export const TIED_WIDTH = 512;

/** x [B,T,512] -> y [B,T,512]: a large weight before a call, and again after it. */
export function tiedModel(): Model {
  const random = new Random('tied model');
  const values = () => random.normal() / 30;
  const weight = Float32Array.from({ length: TIED_WIDTH * TIED_WIDTH }, values);
  const call = attentionCall(
    'call',
    { update_rule: 'linear' },
    { query: 'q', key: 'x', value: 'x' },
    ['o', ''],
  );
  return buildModel({
    inputs: { x: ['float32', ['B', 'T', TIED_WIDTH]] },
    outputs: { y: ['float32', ['B', 'T', TIED_WIDTH]] },
    nodes: [
      makeNode('MatMul', ['x', 'w'], ['q']),
      call.node,
      makeNode('MatMul', ['o', 'w'], ['y']),
    ],
    initializers: [makeTensor('w', 'float32', [TIED_WIDTH, TIED_WIDTH], weight)],
    functions: [call.fn],
    opsets: { '': OPSET, 'com.fla': 1, ...call.opsets },
    irVersion: 10,
  });
}

import {
  type CausalConvWithStateCall,
  causalConvWithStateFunction,
} from '../ops/causal_conv_with_state/function.js';
import { causalConvWithState } from '../ops/causal_conv_with_state/schema.js';
import type { AttributesOf, OpSchema } from '../ops/define.js';
import type { FloatDType, FunctionOptions, OpFunction } from '../ops/function/define.js';
import {
  type LinearAttentionCall,
  linearAttentionFunction,
} from '../ops/linear_attention/function.js';
import { linearAttention } from '../ops/linear_attention/schema.js';
import { type AttributeValue, type Model, makeAttribute, type Node, toNumber } from './ir/index.js';
import type { Facts } from './match/facts.js';

const FLOATS: readonly FloatDType[] = ['float32', 'float16', 'bfloat16'];

/** A call of an operator that ai.onnx, com.microsoft and com.fla all have, as com.fla writes it. */
export interface StandardCall {
  readonly schema: OpSchema;
  readonly attributes: Readonly<Record<string, number | string>>;
  /** The function body for runtimes without our library. */
  readonly body: (options: FunctionOptions) => OpFunction;
}

/** Values of which the shape decides, and that a model must be asked for when inference does not know it. */
export function shapesNeeded(node: Node, facts: Facts): string[] {
  const [query, decay, beta] = [0, 4, 5].map((i) => node.inputs[i] ?? '');
  if (node.opType === 'CausalConvWithState') {
    const weight = node.inputs[1] ?? '';
    return facts.dims(weight)?.[2] === undefined ? [weight] : [];
  }
  return [query, decay, beta].filter(
    (value) => value && typeof facts.dims(value!)?.at(-1) !== 'number',
  ) as string[];
}

/**
 * What a node of `LinearAttention` or `CausalConvWithState` in any of the three domains computes.
 *
 * @returns the call, or why it cannot be told
 */
export function callOf(node: Node, facts: Facts, opset: number): StandardCall | string {
  return node.opType === 'LinearAttention'
    ? linearAttentionCall(node, facts, opset)
    : causalConvCall(node, facts, opset);
}

function linearAttentionCall(node: Node, facts: Facts, opset: number): StandardCall | string {
  const [query = '', , , past = '', decay = '', beta = '', mask = ''] = node.inputs;
  const attributes = attributesOf(node, linearAttention);
  if (typeof attributes === 'string') return attributes;
  const dtype = floatOf(query, facts);
  if (!dtype) return typeUnknown(query);
  const stateDtype = past ? floatOf(past, facts) : dtype;
  if (!stateDtype) return typeUnknown(past);
  const HV = attributes.kv_num_heads;
  const [K, decays, betas] = [query, decay, beta].map((value) => {
    const last = value ? facts.dims(value)?.at(-1) : undefined;
    return typeof last === 'number' ? last : undefined;
  });
  if (decay && decays === undefined) return lengthUnknown(decay);
  if (beta && betas === undefined) return lengthUnknown(beta);
  const call: LinearAttentionCall = {
    attributes,
    present: {
      past_state: past !== '',
      decay: decay !== '',
      beta: beta !== '',
      mask: mask !== '',
    },
    ...(decay && { decayKind: decays === HV ? 'head' : 'key' }),
    ...(beta && { betaKind: betas === HV ? 'head' : 'shared' }),
    dtype,
    stateDtype,
    opset,
    ...(K !== undefined && { headDimK: K / attributes.q_num_heads }),
  };
  return {
    schema: linearAttention,
    attributes,
    body: (options) => linearAttentionFunction(call, options),
  };
}

function causalConvCall(node: Node, facts: Facts, opset: number): StandardCall | string {
  const [input = '', weight = '', bias = '', past = ''] = node.inputs;
  const attributes = attributesOf(node, causalConvWithState);
  if (typeof attributes === 'string') return attributes;
  const dtype = floatOf(input, facts);
  if (!dtype) return typeUnknown(input);
  const width = facts.dims(weight)?.[2];
  if (typeof width !== 'number') return lengthUnknown(weight);
  const call: CausalConvWithStateCall = {
    attributes,
    present: { bias: bias !== '', past_state: past !== '' },
    dtype,
    opset,
    width,
  };
  return {
    schema: causalConvWithState,
    attributes,
    body: (options) => causalConvWithStateFunction(call, options),
  };
}

const typeUnknown = (value: string) =>
  `the type of '${value}' must be float32, float16 or bfloat16, and known`;
const lengthUnknown = (value: string) => `the last dimension of '${value}' must be known`;

function floatOf(value: string, facts: Facts): FloatDType | undefined {
  return FLOATS.find((dtype) => dtype === facts.dtype(value));
}

/** All attributes of an operator, defaults for what the node leaves out; or what is wrong with them. */
function attributesOf<O extends OpSchema>(node: Node, op: O): AttributesOf<O> | string {
  const values: Record<string, number | string> = {};
  for (const [name, spec] of Object.entries(op.attributes)) {
    const value = node[spec.type](name) ?? spec.default;
    if (value === undefined) return `attribute ${name} must be given`;
    values[name] = value;
  }
  const known = new Set(Object.keys(op.attributes));
  const unknown = node.proto.attribute.find((a) => !known.has(a.name));
  return unknown
    ? `attribute ${unknown.name} is none of ${op.domain}.${op.name}`
    : (values as AttributesOf<O>);
}

/** Turns a node into the call of com.fla, in place, and adds its function body to the model. */
export function writeCall(model: Model, node: Node, call: StandardCall, body: OpFunction): void {
  const { proto } = node;
  proto.domain = call.schema.domain;
  proto.overload = body.overload;
  proto.attribute = Object.entries(call.schema.attributes).map(([name, { type }]) => {
    const value = call.attributes[name] as AttributeValue;
    return makeAttribute(name, type === 'float' ? { float: value as number } : value);
  });
  while (proto.output.length < call.schema.outputs.length) proto.output.push('');
  declareFunction(model, body);
}

/** Adds a function body, and what the model must import for it. */
export function declareFunction(model: Model, body: OpFunction): void {
  for (const [domain, version] of Object.entries(body.opsets)) model.requireOpset(domain, version);
  model.addFunction(body.fn);
  // Overloads came with IR version 10.
  if (toNumber(model.proto.irVersion) < 10) model.proto.irVersion = 10;
}

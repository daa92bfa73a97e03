/** Runs function bodies the way a stock runtime meets them: in a model whose com.fla nodes have nothing but their bodies. */
import { expect } from 'vitest';
import {
  buildModel,
  DATA_TYPE,
  Emitter,
  freshNames,
  type Model,
  makeNode,
  modelBytes,
  type NodeProto,
  type ValueSpec,
} from '../../exporter/ir/index.js';
import { checkAttributes, type DType, type OpSchema } from '../../ops/define.js';
import type { FunctionOptions, OpFunction } from '../../ops/function/define.js';
import { linearAttentionFunction } from '../../ops/linear_attention/function.js';
import {
  type LinearAttentionAttributes,
  linearAttention,
} from '../../ops/linear_attention/schema.js';
import type { Tensor64 } from '../../ops/tensor64.js';
import {
  type CaseTypes,
  dtypeOf,
  expectedOf,
  inputsIn,
  type LinearAttentionCase,
  tolerance,
} from '../cases/linear_attention.js';
import { relativeError } from '../cases/tensors.js';

/** A call of an op, as a node of a model meets it. */
export interface Site {
  readonly op: OpSchema;
  readonly attributes: Readonly<Record<string, number | string>>;
  /** Element types by input name; absent inputs are missing. */
  readonly types: Readonly<Record<string, DType>>;
  readonly inputs: Readonly<Record<string, Tensor64>>;
}

/** The com.fla node of a call: all attributes, all outputs. */
export function siteNode(
  { op, attributes, types }: Pick<Site, 'op' | 'attributes' | 'types'>,
  overload: string,
  outputs: readonly string[] = op.outputs.map((output) => typed(output.name)),
): NodeProto {
  const values = Object.entries(attributes).map(([name, value]) => {
    const isFloat = op.attributes[name].type === 'float';
    return [name, isFloat ? { float: value as number } : value] as const;
  });
  const inputs = op.inputs.map(({ name }) => (types[name] ? typed(name) : ''));
  return makeNode(op.name, inputs, outputs, Object.fromEntries(values), {
    domain: op.domain,
    overload,
    name: 'site',
  });
}

const typed = (name: string) => `${name}/typed`;
const outside = (dtype: DType) => (dtype === 'bool' ? 'bool' : 'float32');

/** A model around one call. Its own inputs and outputs are float32 (or bool), since JavaScript has no bfloat16 tensors. */
export function siteModel(
  site: Site,
  body: OpFunction,
  node: NodeProto = siteNode(site, body.overload),
): Model {
  const e = new Emitter(freshNames(), 'call/');
  const inputs: Record<string, ValueSpec> = {};
  const outputs: Record<string, ValueSpec> = {};
  const cast = (x: string, dtype: DType, output: string) =>
    e.op('Cast', [x], { to: DATA_TYPE[dtype] }, { output });
  for (const [name, dtype] of Object.entries(site.types)) {
    const rank = site.inputs[name].shape.length;
    inputs[name] = [outside(dtype), Array.from({ length: rank }, (_, i) => `${name}_${i}`)];
    cast(name, dtype, typed(name));
  }
  e.nodes.push(node);
  for (const { name } of site.op.outputs) {
    if (!node.output.includes(typed(name))) continue;
    cast(typed(name), 'float32', name);
    outputs[name] = ['float32'];
  }
  return buildModel({
    inputs,
    outputs,
    nodes: e.nodes,
    functions: [body.fn],
    opsets: body.opsets,
  });
}

/** What onnxruntime-node and onnxruntime-web share. */
export type Ort = Pick<typeof import('onnxruntime-common'), 'InferenceSession' | 'Tensor'>;

/** Loads a model, runs it once on the inputs of a site, and gives its outputs by name. */
export async function runOnce(
  ort: Ort,
  model: Model,
  { inputs, types }: Pick<Site, 'inputs' | 'types'>,
  options: object = {},
): Promise<Record<string, Tensor64>> {
  const session = await ort.InferenceSession.create(modelBytes(model), {
    logSeverityLevel: 4,
    ...options,
  });
  try {
    const results = await session.run(feedsOf(ort, inputs, types));
    return Object.fromEntries(
      Object.entries(results).map(([name, { dims, data }]) => [
        name,
        { shape: dims, data: Float64Array.from(data as Float32Array) },
      ]),
    );
  } finally {
    await session.release();
  }
}

function feedsOf(ort: Ort, inputs: Site['inputs'], types: Site['types']) {
  const feeds = Object.entries(inputs).map(([name, { data, shape }]) => [
    name,
    types[name] === 'bool'
      ? new ort.Tensor('bool', Uint8Array.from(data), [...shape])
      : new ort.Tensor('float32', Float32Array.from(data), [...shape]),
  ]);
  return Object.fromEntries(feeds);
}

/** One of the shared cases, in some types, as a call. */
export interface LinearAttentionSite extends Site {
  readonly attributes: LinearAttentionAttributes;
  readonly testCase: LinearAttentionCase;
  readonly caseTypes: CaseTypes;
}

export const FLOAT32: CaseTypes = {
  T: 'float32',
  S: 'float32',
  TD: 'float32',
  TB: 'float32',
  M: 'bool',
  TU: 'float32',
};

export function linearAttentionSite(
  testCase: LinearAttentionCase,
  caseTypes: CaseTypes = FLOAT32,
): LinearAttentionSite {
  const inputs = inputsIn(testCase, caseTypes) as unknown as Record<string, Tensor64>;
  return {
    op: linearAttention,
    attributes: checkAttributes(linearAttention, testCase.attributes),
    types: Object.fromEntries(Object.keys(inputs).map((name) => [name, dtypeOf(name, caseTypes)])),
    inputs,
    testCase,
    caseTypes,
  };
}

/** The body for such a call in a model of the given opset. */
export function bodyOf(
  { attributes, inputs, testCase, caseTypes }: LinearAttentionSite,
  opset: number,
  options?: FunctionOptions,
): OpFunction {
  const present = {
    past_state: Boolean(inputs.past_state),
    decay: Boolean(inputs.decay),
    beta: Boolean(inputs.beta),
    mask: Boolean(inputs.mask),
  };
  const kinds = { decayKind: testCase.decay?.per, betaKind: testCase.beta };
  const dtypes = { dtype: caseTypes.T, stateDtype: caseTypes.S };
  return linearAttentionFunction({ attributes, present, ...kinds, ...dtypes, opset }, options);
}

/** Runs the case through a body and compares with the float64 reference. */
export async function checkBody(
  ort: Ort,
  site: LinearAttentionSite,
  opset: number,
  options: FunctionOptions,
): Promise<void> {
  compare(site, await runOnce(ort, siteModel(site, bodyOf(site, opset, options)), site));
}

/** Throws unless the results have the reference's shapes and, within the case's tolerance, its values. */
export function compare(site: LinearAttentionSite, actual: Record<string, Tensor64>): void {
  const { testCase, caseTypes, inputs } = site;
  const expected = expectedOf(testCase, inputs as never);
  for (const [name, { shape, data }, dtype] of [
    ['output', expected.output, caseTypes.T],
    ['present_state', expected.presentState, caseTypes.S],
  ] as const) {
    const what = `${testCase.name}: ${name}`;
    expect(actual[name].shape, what).toEqual(shape);
    expect(relativeError(actual[name].data, data), what).toBeLessThan(tolerance(testCase, dtype));
  }
}

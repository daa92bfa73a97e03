/** Runs a function body the way a stock runtime meets it: a model whose only com.fla node has nothing but its body. */
import {
  buildModel,
  Emitter,
  freshNames,
  type Model,
  makeNode,
  modelBytes,
  type ValueSpec,
} from '../../exporter/ir/index.js';
import type { DType, OpSchema } from '../../ops/define.js';
import type { OpFunction } from '../../ops/function/define.js';
import type { Tensor64 } from '../../ops/tensor64.js';

export interface CallSite {
  op: OpSchema;
  attributes: Readonly<Record<string, number | string>>;
  /** Element type of each input of the op; an absent input is missing. Bool stays bool, the rest is float32 outside. */
  inputs: Readonly<Record<string, DType>>;
  opset: number;
  /** Outputs that are connected; default all. */
  outputs?: readonly string[];
}

/** A model around one call: float32 (or bool) inputs, cast to the call's types and back, since JavaScript has no bfloat16 tensors. */
export function callModel(site: CallSite, body: OpFunction): Model {
  const e = new Emitter(freshNames(), 'call/');
  const wanted = site.outputs ?? site.op.outputs.map((output) => output.name);
  const cast = (x: string, to: number, output: string) => e.op('Cast', [x], { to }, { output });
  const inputs: Record<string, ValueSpec> = {};
  const args = site.op.inputs.map(({ name }) => {
    const dtype = site.inputs[name];
    if (!dtype) return '';
    const outside = dtype === 'bool' ? 'bool' : 'float32';
    const rank = RANKS[name] ?? 3;
    inputs[name] = [outside, Array.from({ length: rank }, (_, i) => `${name}_${i}`)];
    return cast(name, TYPES[dtype], `${name}/typed`);
  });
  const results = site.op.outputs.map(({ name }) => (wanted.includes(name) ? `${name}/typed` : ''));
  const attributes = Object.entries(site.attributes).map(([name, value]) => {
    const isFloat = site.op.attributes[name].type === 'float';
    return [name, isFloat ? { float: value as number } : value] as const;
  });
  e.nodes.push(
    makeNode(site.op.name, args, results, Object.fromEntries(attributes), {
      domain: site.op.domain,
      overload: body.overload,
      name: 'site',
    }),
  );
  for (const name of wanted) cast(`${name}/typed`, TYPES.float32, name);
  return buildModel({
    inputs,
    outputs: Object.fromEntries(wanted.map((name) => [name, ['float32'] as const])),
    nodes: e.nodes,
    functions: [body.fn],
    opsets: body.opsets,
  });
}

const TYPES = { float32: 1, float16: 10, bfloat16: 16, bool: 9, float64: 11, int64: 7 } as const;
const RANKS: Readonly<Record<string, number>> = { mask: 2, bias: 1, past_state: 4 };

/** The part of onnxruntime-node and onnxruntime-web that is used here. */
export type Ort = Pick<typeof import('onnxruntime-common'), 'InferenceSession' | 'Tensor'>;

/** Runs a model of `callModel`; `inputs` by the op's names. */
export async function runModel(
  ort: Ort,
  bytes: Uint8Array,
  inputs: Readonly<Record<string, { tensor: Tensor64; dtype: DType }>>,
  options: Record<string, unknown> = {},
): Promise<Record<string, Tensor64>> {
  const session = await ort.InferenceSession.create(bytes, { logSeverityLevel: 4, ...options });
  try {
    return await runSession(ort, session, inputs);
  } finally {
    await session.release();
  }
}

export async function runSession(
  ort: Ort,
  session: Awaited<ReturnType<Ort['InferenceSession']['create']>>,
  inputs: Readonly<Record<string, { tensor: Tensor64; dtype: DType }>>,
): Promise<Record<string, Tensor64>> {
  const feeds = Object.entries(inputs).map(([name, { tensor, dtype }]) => [
    name,
    dtype === 'bool'
      ? new ort.Tensor('bool', Uint8Array.from(tensor.data), [...tensor.shape])
      : new ort.Tensor('float32', Float32Array.from(tensor.data), [...tensor.shape]),
  ]);
  const results = await session.run(Object.fromEntries(feeds));
  return Object.fromEntries(
    Object.entries(results).map(([name, tensor]) => [
      name,
      { shape: tensor.dims, data: Float64Array.from(tensor.data as Float32Array) },
    ]),
  );
}

export const bytesOfModel = modelBytes;

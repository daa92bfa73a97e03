/** Runs one operator call through libfla_ops: a one-node model, raw bytes in, poisoned buffers out. */
import { buildModel, DATA_TYPE, makeNode, modelBytes } from '../../exporter/ir/index.js';
import { checkCall, type DType, type OpSchema, outputShape } from '../../ops/define.js';
import { sizeOf, type Tensor64 } from '../../ops/tensor64.js';
import { nativeFile, OPS_LIBRARY } from '../../runtime/native.js';
import { load, type NativeSession, type TensorView } from '../../runtime/node/addon.js';
import { decode, encode } from '../cases/tensors.js';

export interface KernelCall {
  readonly op: OpSchema;
  readonly attributes: Readonly<Record<string, number | string>>;
  /** The inputs that are connected. */
  readonly inputs: Readonly<Record<string, Tensor64>>;
  readonly dtypes: Readonly<Record<string, DType>>;
  /** Declared shapes of the model's inputs, where they should differ from the actual ones. */
  readonly declared?: Readonly<Record<string, readonly (number | string)[]>>;
  /** The node's outputs ('' = unused); default all. */
  readonly outputs?: readonly string[];
}

/** The model with nothing but the call's node. */
export function callModel(call: KernelCall): Uint8Array {
  const { op, attributes, inputs, dtypes, declared = {} } = call;
  const names = Object.keys(inputs);
  const outputs = call.outputs ?? op.outputs.map(({ name }) => name);
  const last = Math.max(...op.inputs.map(({ name }, i) => (inputs[name] ? i : -1)));
  const nodeInputs = op.inputs.slice(0, last + 1).map(({ name }) => (inputs[name] ? name : ''));
  const values = Object.entries(attributes).map(([name, value]) => [
    name,
    op.attributes[name]?.type === 'float' ? { float: value as number } : value,
  ]);
  return modelBytes(
    buildModel({
      opsets: { '': 17, [op.domain]: op.version },
      inputs: Object.fromEntries(
        names.map((name) => [name, [dtypes[name], declared[name] ?? inputs[name].shape]]),
      ),
      outputs: Object.fromEntries(
        outputs.filter(Boolean).map((name) => [name, [outputType(call, name)]]),
      ),
      nodes: [
        makeNode(op.name, nodeInputs, outputs, Object.fromEntries(values), { domain: op.domain }),
      ],
    }),
  );
}

/** The type of an output: that of an input with the same type variable, else the variable's first choice. */
function outputType({ op, dtypes, inputs }: KernelCall, name: string): DType {
  const { type } = op.outputs.find((output) => output.name === name)!;
  const bound = (variable: string) =>
    op.inputs.find((input) => input.type === variable && inputs[input.name]);
  const [first] = op.types[type];
  const twin = bound(type) ?? bound(first);
  return twin ? dtypes[twin.name] : (first as DType);
}

export interface SessionSettings {
  readonly threads?: number;
  /** ONNX Runtime's: 3 prints errors, 4 only fatal ones. */
  readonly logSeverityLevel?: number;
  readonly optimizedModelFilePath?: string;
  /** A GPU to run on. */
  readonly cudaDevice?: number;
}

export async function openCall(
  call: KernelCall,
  settings: SessionSettings = {},
): Promise<NativeSession> {
  return load().addon.createSession(callModel(call), {
    library: nativeFile(OPS_LIBRARY),
    logSeverityLevel: settings.logSeverityLevel ?? 3,
    intraOpNumThreads: settings.threads ?? 2,
    optimizedModelFilePath: settings.optimizedModelFilePath,
    ...(settings.cudaDevice !== undefined && {
      cuda: [['device_id', String(settings.cudaDevice)]],
      cudaDevice: settings.cudaDevice,
    }),
  });
}

/** Runs the call; outputs are written into buffers of 0xFF bytes (NaN in every float type). */
export async function runCall(
  call: KernelCall,
  settings: SessionSettings = {},
): Promise<Record<string, Tensor64>> {
  const session = await openCall(call, settings);
  try {
    return await runIn(session, call);
  } finally {
    session.dispose();
  }
}

export async function runIn(
  session: NativeSession,
  call: KernelCall,
  /** inPlace: outputs that may reuse an input's memory are written where the input is read. */
  { inPlace = false } = {},
): Promise<Record<string, Tensor64>> {
  const { op, attributes, inputs, dtypes } = call;
  const specs = Object.entries(inputs).map(([name, { shape }]) => [
    name,
    { dtype: dtypes[name], shape },
  ]);
  const { dims } = checkCall(op, attributes, Object.fromEntries(specs));
  const feeds = session.inputs.map(({ name }) =>
    view(dtypes[name], inputs[name].shape, inputs[name]),
  );
  const fetches = session.outputs.map(({ name }) => {
    const reused = op.outputs.find((output) => output.name === name)?.inPlaceOf;
    const feed = feeds[session.inputs.findIndex((input) => input.name === reused)];
    return inPlace && feed ? feed : view(outputType(call, name), outputShape(op, name, dims));
  });
  await session.run(
    feeds.map((_, i) => i),
    feeds,
    fetches.map((_, i) => i),
    fetches,
  );
  return Object.fromEntries(
    session.outputs.map(({ name }, i) => [
      name,
      {
        shape: fetches[i].dims,
        data: decode(fetches[i].data as Uint8Array, outputType(call, name)),
      },
    ]),
  );
}

/** The message of a call that the library must refuse, whose model declares no sizes. */
export async function refusalOf(call: KernelCall): Promise<string> {
  const declared = Object.fromEntries(
    Object.entries(call.inputs).map(([name, { shape }]) => [
      name,
      shape.map((_, i) => `${name}_${i}`),
    ]),
  );
  try {
    const session = await openCall({ ...call, declared }, { logSeverityLevel: 4 });
    const feeds = session.inputs.map(({ name }) =>
      view(call.dtypes[name], call.inputs[name].shape, call.inputs[name]),
    );
    const outputs = session.outputs.map((_, i) => i);
    await session.run(
      feeds.map((_, i) => i),
      feeds,
      outputs,
      outputs.map(() => undefined),
    );
  } catch (error) {
    return (error as Error).message;
  }
  return 'it was accepted';
}

/** The tensor's bytes, or poison. */
function view(dtype: DType, shape: readonly number[], tensor?: Tensor64): TensorView {
  const bytes = encode(new Float64Array(sizeOf(shape)), dtype).fill(0xff);
  return { type: DATA_TYPE[dtype], dims: shape, data: tensor ? encode(tensor.data, dtype) : bytes };
}

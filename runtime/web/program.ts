import { checkAttributes, type OpSchema } from '../../ops/define.js';
import { FlaError } from '../../ops/error.js';
import type { GpuTensor, KernelCall } from '../../wgsl/kernels.js';
import { KERNEL_SCHEMAS } from '../../wgsl/schemas.js';
import { dtypeName } from '../common/dtypes.js';
import type { OnnxModel } from './onnx/model.js';
import { scalarAttributes } from './onnx/model.js';
import { hasFunction, type TypedValue, writePart } from './onnx/write.js';
import {
  isIntegerDerived,
  type KernelNode,
  type Piece,
  type Plan,
  partition,
} from './partition.js';
import { findTypes, type Types } from './types.js';

const DOMAIN = 'com.fla';

/** Types that ONNX Runtime keeps in GPU buffers. */
const ON_GPU: ReadonlySet<string> = new Set([
  'float32',
  'float16',
  'int32',
  'uint32',
  'uint8',
  'bool',
]);

/** Of those, the ones that it computes there, whatever they come from. */
export const FLOATS: ReadonlySet<string> = new Set(['float32', 'float16']);

/** A size that stands for one that is not known, where a call is looked at before there are tensors. */
const SAMPLE_SIZE = 2;
/** And a buffer that everything fits into. */
const SAMPLE_BUFFER = { size: Number.MAX_SAFE_INTEGER } as GPUBuffer;

/** A model that ONNX Runtime runs for us. */
export interface Part {
  /** Without its large tensors, which it finds as external data. */
  readonly bytes: Uint8Array;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /** Those of its outputs that come in the host's memory. */
  readonly onHost: ReadonlySet<string>;
  /** Whether it has large tensors at all. */
  readonly hasData: boolean;
}

/** A call that our kernels compute. */
export interface Call {
  readonly name: string;
  readonly op: KernelCall['op'];
  readonly attributes: Readonly<Record<string, number | string>>;
  /** Names of values by names of arguments; what is absent is left out. */
  readonly inputs: Readonly<Record<string, string>>;
  readonly outputs: Readonly<Record<string, string>>;
  /** Element types of the outputs, by the names of their values. */
  readonly types: ReadonlyMap<string, string>;
  /** The same by its function body, for sizes that the kernels do not take. */
  readonly body?: Part;
}

export type ProgramStep =
  | {
      readonly kind: 'piece';
      readonly part: Part;
      readonly inputs: readonly string[];
      readonly outputs: readonly string[];
    }
  | {
      readonly kind: 'calls';
      readonly calls: readonly Call[];
      readonly inputs: readonly string[];
      readonly outputs: readonly string[];
    };

/** A model in the form in which it is run. Holds nothing of the model's large tensors. */
export interface Program {
  readonly steps: readonly ProgramStep[];
  /** To be run once: its outputs are values as any others. */
  readonly constants?: Part;
  /** Names of initializers that are values as any others. */
  readonly uploads: readonly string[];
  /** The model's inputs. */
  readonly inputs: readonly string[];
}

const SCHEMAS: Readonly<Record<string, OpSchema>> = KERNEL_SCHEMAS;

/** The model's calls of operators that kernels may compute. */
export function kernelNodes(model: OnnxModel): KernelNode[] {
  return model.nodes.flatMap((node) => {
    const schema = node.domain === DOMAIN ? SCHEMAS[node.op] : undefined;
    if (!schema) return [];
    const named = (names: readonly { name: string }[], values: readonly string[]) =>
      Object.fromEntries(
        names.flatMap(({ name }, i) => (values[i] ? [[name, values[i]] as const] : [])),
      );
    return [
      {
        node,
        attributes: checkAttributes(schema, scalarAttributes(node)),
        inputs: named(schema.inputs, node.inputs),
        outputs: named(schema.outputs, node.outputs),
      },
    ];
  });
}

/** Values that are known only between steps. */
function innerValues(plan: Plan, model: OnnxModel): string[] {
  const inputs = new Set(model.inputs.map(({ name }) => name));
  const all = [...plan.steps, ...(plan.constants ? [plan.constants] : [])].flatMap((step) => [
    ...step.inputs,
    ...step.outputs,
  ]);
  return [...new Set(all)].filter((value) => !inputs.has(value));
}

/** The call as far as the model's types tell; undefined when that is too little. */
function sampleCall({ node, ...kernel }: KernelNode, types: Types): KernelCall | undefined {
  const inputs: Record<string, GpuTensor> = {};
  for (const [argument, value] of Object.entries(kernel.inputs)) {
    const { shape, type } = types.get(value)!;
    if (!shape) return undefined;
    // Heads lie side by side in the last axis of attention, which therefore cannot be guessed.
    if (node.op === 'LinearAttention' && typeof shape.at(-1) !== 'number') return undefined;
    const sizes = shape.map((size) => (typeof size === 'number' ? size : SAMPLE_SIZE));
    inputs[argument] = {
      buffer: SAMPLE_BUFFER,
      dtype: dtypeName(type) as GpuTensor['dtype'],
      shape: sizes,
    };
  }
  return { op: node.op as KernelCall['op'], attributes: kernel.attributes, inputs, outputs: {} };
}

/** Why the kernels do not take a call, as far as can be told without tensors. */
function refusal(kernel: KernelNode, types: Types, supports: Supports): string | undefined {
  const call = sampleCall(kernel, types);
  try {
    return call && supports(call);
  } catch (thrown) {
    // Sizes that stand for others do not fit together: the call is looked at again when it has tensors.
    if (thrown instanceof FlaError && thrown.code === 'invalid_shape') return undefined;
    throw thrown;
  }
}

/** The refusal of a call that can be run in no way. */
export function unsupported(name: string, op: string, reason: string): FlaError {
  return new FlaError(
    'unsupported',
    `Session: node '${name}' (${DOMAIN}.${op}) must be one that the WebGPU kernels take, or have a function body in the model: ${reason}`,
  );
}

/** Why a call is not for the kernels, or undefined. */
type Supports = (call: KernelCall) => string | undefined;

/** Makes the parts of one model. */
class Parts {
  readonly #outputs: ReadonlyMap<string, TypedValue>;

  constructor(
    readonly model: OnnxModel,
    readonly types: Types,
  ) {
    this.#outputs = new Map(model.outputs.map((output) => [output.name, output]));
  }

  part({ nodes, initializers, inputs, outputs }: Omit<Piece, 'kind'>): Part {
    const typed = (name: string) =>
      this.#outputs.get(name) ?? this.types.get(name) ?? { name, type: 0 };
    const values = {
      inputs: inputs.map((name) => this.types.get(name)!),
      outputs: outputs.map(typed),
    };
    return {
      bytes: writePart({ nodes, initializers, ...values }, this.model),
      inputs,
      outputs,
      onHost: new Set(outputs.filter((value) => !this.#staysOnGpu(value))),
      hasData: initializers.some(({ data, external }) => data || external),
    };
  }

  #staysOnGpu(value: string): boolean {
    const type = dtypeName(this.types.get(value)!.type);
    return FLOATS.has(type) || (ON_GPU.has(type) && !isIntegerDerived(this.model, value));
  }

  call({ node, attributes, inputs, outputs }: KernelNode): Call {
    // Outputs that nothing reads have no types, and are not asked for.
    const known = Object.values(outputs).filter((value) => this.types.has(value));
    const reads = [...new Set(node.inputs)].filter((value) => value !== '');
    return {
      name: node.name,
      op: node.op as KernelCall['op'],
      attributes,
      inputs,
      outputs: Object.fromEntries(
        Object.entries(outputs).filter(([, value]) => this.types.has(value)),
      ),
      types: new Map(known.map((value) => [value, dtypeName(this.types.get(value)!.type)])),
      body: hasFunction(node, this.model)
        ? this.part({ nodes: [node], initializers: [], inputs: reads, outputs: known })
        : undefined,
    };
  }
}

/**
 * Cuts the model at the calls that the kernels take; the others stay in their pieces with their function bodies. To be called inside
 * `exclusive`, as it asks ONNX Runtime for types.
 *
 * @param supports why the kernels do not take a call, or undefined; nothing means that there are no kernels
 * @param providers what ONNX Runtime may run the model on, to be tried one after the other
 * @throws FlaError `unsupported` for a call that the kernels do not take and that has no body
 */
export async function compile(
  model: OnnxModel,
  supports: Supports | undefined,
  providers?: Parameters<typeof findTypes>[2],
): Promise<Program> {
  let kernels = supports ? kernelNodes(model) : [];
  for (;;) {
    const plan = partition(model, kernels);
    const types = await findTypes(model, innerValues(plan, model), providers);
    const taken = kernels.filter((kernel) => {
      const reason = supports && refusal(kernel, types, supports);
      if (reason !== undefined && !hasFunction(kernel.node, model))
        throw unsupported(kernel.node.name, kernel.node.op, reason);
      return reason === undefined;
    });
    if (taken.length === kernels.length) return toProgram(plan, new Parts(model, types));
    kernels = taken;
  }
}

function toProgram({ steps, constants, uploads }: Plan, parts: Parts): Program {
  return {
    steps: steps.map((step): ProgramStep => {
      const { inputs, outputs } = step;
      return step.kind === 'piece'
        ? { kind: 'piece', part: parts.part(step), inputs, outputs }
        : { kind: 'calls', calls: step.nodes.map((node) => parts.call(node)), inputs, outputs };
    }),
    constants: constants && parts.part(constants),
    uploads: uploads.map(({ name }) => name),
    inputs: parts.model.inputs.map(({ name }) => name),
  };
}

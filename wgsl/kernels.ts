/** Runs com.fla operators on a WebGPU device: plans calls, keeps pipelines, uniforms and scratch memory, encodes the dispatches. */
import { checkCall, type DType } from '../ops/define.js';
import { FlaError } from '../ops/error.js';
import { sizeOf } from '../ops/tensor64.js';
import { causalConvShapes, planCausalConvWithState } from './causal_conv_with_state.js';
import { type ShaderName, shaders } from './gen/shaders.js';
import {
  linearAttentionShapes,
  planLinearAttention,
  tensorBytes,
  unplannable,
} from './linear_attention.js';
import { PARAMS_STRIDE, packParams, paramFields } from './params.js';
import type { Copy, Dispatch, Plan, Range, Traits } from './plan.js';
import { KERNEL_SCHEMAS, type KernelOp } from './schemas.js';

/** A tensor in GPU memory. The buffer may be larger than the tensor; its usage must include STORAGE and COPY_SRC. */
export interface GpuTensor {
  readonly buffer: GPUBuffer;
  /** Bytes; a multiple of 4. */
  readonly offset?: number;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

export interface KernelCall {
  readonly op: KernelOp;
  readonly attributes: Readonly<Record<string, number | string>>;
  /** By the schema's names; absent optional inputs are undefined or missing. */
  readonly inputs: Readonly<Record<string, GpuTensor | undefined>>;
  /** By the schema's names; outputs that nobody wants are undefined or missing. present_state may be past_state itself. */
  readonly outputs: Readonly<Record<string, GpuTensor | undefined>>;
}

export interface KernelOptions {
  /** Most bytes of scratch memory; default 256 MiB. Longer sequences are worked off in pieces. */
  readonly scratchBytes?: number;
  /** Largest storage binding that is used, in bytes; default the device's limit. */
  readonly maxBinding?: number;
  /** Workgroups that keep the device busy; default 1 on a software adapter, else 512. */
  readonly parallel?: number;
}

export interface KernelMemory {
  /** Bytes held for intermediate results, shared by all calls. */
  readonly scratchBytes: number;
  /** Bytes of uniforms of the plans that are kept. */
  readonly uniformBytes: number;
  /** Plans, pipelines that are kept. */
  readonly plans: number;
  readonly pipelines: number;
}

/** Plans kept; a model has a few different calls, twice as many while its prompt is read in pieces. */
const MAX_PLANS = 256;
/** Sets of buffers whose bind groups a plan remembers: states go back and forth between two. */
const MAX_BIND_GROUPS = 8;
// GPUBufferUsage, GPUShaderStage: numbers of the specification, so that nothing global is needed.
const [COPY_DST, UNIFORM, STORAGE, COMPUTE] = [0x08, 0x40, 0x80, 0x4];

const isCopy = (step: Dispatch | Copy): step is Copy => 'source' in step;

interface Checked {
  readonly plan: () => Plan;
  readonly shapes: Record<string, number[]>;
  readonly refusal?: string;
}

/** A plan with its uniforms on the device and its pipelines. */
interface Prepared {
  readonly plan: Plan;
  readonly uniforms: GPUBuffer;
  readonly bindGroups: Map<string, GPUBindGroup[]>;
}

interface Pipeline {
  readonly layout: GPUBindGroupLayout;
  readonly descriptor: GPUComputePipelineDescriptor;
  compiled?: GPUComputePipeline;
}

export class Kernels {
  private readonly traits: Traits;
  private readonly modules = new Map<ShaderName, GPUShaderModule>();
  private readonly layouts = new Map<string, GPUBindGroupLayout>();
  private readonly pipelines = new Map<string, Pipeline>();
  private readonly prepared = new Map<string, Prepared>();
  private readonly scratch = new Map<string, GPUBuffer>();
  private readonly ids = new WeakMap<GPUBuffer, number>();
  private lastId = 0;
  private dummy?: GPUBuffer;
  private isDisposed = false;

  constructor(
    private readonly device: GPUDevice,
    options: KernelOptions = {},
  ) {
    const { limits } = device;
    this.traits = {
      // Shaders count elements in 32 bits, and bytes of a binding are whole words.
      maxBinding: Math.min(
        options.maxBinding ?? limits.maxStorageBufferBindingSize,
        limits.maxStorageBufferBindingSize,
        2 ** 32 - 4,
      ),
      maxBuffer: limits.maxBufferSize,
      alignment: limits.minStorageBufferOffsetAlignment,
      maxGroups: limits.maxComputeWorkgroupsPerDimension,
      parallel: options.parallel ?? (isSoftware(device) ? 1 : 512),
      scratchBytes: options.scratchBytes ?? 256 * 2 ** 20,
    };
  }

  /** Why this device's kernels cannot run the call, or undefined when they can. Throws `FlaError` when the call breaks the op's schema. */
  supports(call: KernelCall): string | undefined {
    return this.refusal(call, this.check(call));
  }

  /** The shapes of the outputs, whether `call.outputs` has them or not. Throws `FlaError` when the call breaks the op's schema. */
  outputShapes(call: Pick<KernelCall, 'op' | 'attributes' | 'inputs'>): Record<string, number[]> {
    return this.check({ ...call, outputs: {} }).shapes;
  }

  /**
   * Appends the call's work to `encoder`, outside of any pass. Nothing is read back; what it reads must have been written by earlier work of
   * the same queue. Calls share scratch memory, so encoders must be submitted in the order in which they were filled.
   */
  encode(encoder: GPUCommandEncoder, call: KernelCall): void {
    const ready = this.prepare(call);
    let pass: GPUComputePassEncoder | undefined;
    const groups = this.bindGroups(ready, call);
    for (const [i, step] of ready.plan.steps.entries()) {
      if (isCopy(step)) {
        pass?.end();
        pass = undefined;
        const { source, target } = step;
        const from = this.buffer(source, call);
        const to = this.buffer(target, call);
        encoder.copyBufferToBuffer(from, source.from, to, target.from, source.bytes);
        continue;
      }
      pass ??= encoder.beginComputePass();
      pass.setPipeline(this.compiled(step));
      pass.setBindGroup(0, groups[i]);
      pass.dispatchWorkgroups(...step.groups);
    }
    pass?.end();
  }

  /** Compiles what the call needs without blocking, so that `encode` finds it ready. */
  async warmUp(call: KernelCall): Promise<void> {
    const { plan } = this.prepare(call);
    const dispatches = plan.steps.filter((step) => !isCopy(step));
    const missing = new Set(dispatches.map((step) => this.pipeline(step as Dispatch)));
    await Promise.all(
      [...missing].map(async (pipeline) => {
        pipeline.compiled ??= await this.device.createComputePipelineAsync(pipeline.descriptor);
      }),
    );
  }

  get memory(): KernelMemory {
    const sum = (buffers: Iterable<GPUBuffer>) => [...buffers].reduce((n, { size }) => n + size, 0);
    return {
      scratchBytes: sum(this.scratch.values()),
      uniformBytes: sum([...this.prepared.values()].map(({ uniforms }) => uniforms)),
      plans: this.prepared.size,
      pipelines: this.pipelines.size,
    };
  }

  /** Frees scratch memory; only when all that was encoded has been submitted. It comes back with the next call. */
  trim(): void {
    for (const buffer of this.scratch.values()) buffer.destroy();
    this.scratch.clear();
    for (const { bindGroups } of this.prepared.values()) bindGroups.clear();
  }

  /** Frees everything; only when all that was encoded has been submitted. */
  dispose(): void {
    this.trim();
    for (const { uniforms } of this.prepared.values()) uniforms.destroy();
    this.dummy?.destroy();
    for (const map of [this.prepared, this.pipelines, this.layouts, this.modules]) map.clear();
    this.isDisposed = true;
  }

  // --- Calls to plans ---

  private check(call: KernelCall): Checked {
    const schema = KERNEL_SCHEMAS[call.op];
    if (!schema) {
      throw new FlaError(
        'unsupported',
        `Kernels: op must be one of ${Object.keys(KERNEL_SCHEMAS).join(', ')}, received ${call.op}`,
      );
    }
    const { inputs, outputs } = call;
    const shapes = Object.fromEntries(
      Object.entries(inputs).map(([name, tensor]) => [name, tensor?.shape]),
    );
    const offsets = Object.fromEntries(
      Object.entries({ ...inputs, ...outputs }).map(([name, tensor]) => [
        name,
        tensor?.offset ?? 0,
      ]),
    );
    const wanted = {
      output: outputs.output !== undefined,
      present_state: outputs.present_state !== undefined,
    };
    const inPlace =
      inputs.past_state !== undefined &&
      inputs.past_state.buffer === outputs.present_state?.buffer &&
      (inputs.past_state.offset ?? 0) === (outputs.present_state?.offset ?? 0);
    const rest = { shapes, offsets, inPlace, outputs: wanted };
    if (call.op === 'CausalConvWithState') {
      const checked = {
        ...checkCall(KERNEL_SCHEMAS.CausalConvWithState, call.attributes, inputs),
        ...rest,
      };
      return {
        plan: () => planCausalConvWithState(checked, this.traits),
        shapes: causalConvShapes(checked),
      };
    }
    const checked = {
      ...checkCall(KERNEL_SCHEMAS.LinearAttention, call.attributes, inputs),
      ...rest,
    };
    return {
      plan: () => planLinearAttention(checked, this.traits),
      shapes: linearAttentionShapes(checked),
      refusal: unplannable(checked, this.traits),
    };
  }

  private refusal(call: KernelCall, { shapes, refusal }: Checked): string | undefined {
    const given = Object.entries({ ...call.inputs, ...call.outputs });
    const bfloat = given.find(([, tensor]) => tensor?.dtype === 'bfloat16');
    if (bfloat) return `${bfloat[0]} is bfloat16, which WGSL has no type for`;
    for (const [name, tensor] of given) {
      if (!tensor) continue;
      const { buffer, offset = 0, dtype } = tensor;
      const shape = name in call.outputs ? shapes[name] : tensor.shape;
      const needs = offset + tensorBytes(dtype, shape);
      if (offset % 4) return `${name} starts at byte ${offset}, no multiple of 4`;
      if (tensorBytes(dtype, shape) > 0 && needs > buffer.size) {
        return `${name} needs ${needs} bytes of its buffer, which has ${buffer.size}`;
      }
    }
    for (const [name, output] of Object.entries(call.outputs)) {
      const other = given.find(
        ([otherName, tensor]) => tensor && output && clash(name, output, otherName, tensor),
      );
      if (other) return `${name} is in the same buffer as ${other[0]}`;
    }
    return refusal;
  }

  private prepare(call: KernelCall): Prepared {
    if (this.isDisposed) throw new FlaError('disposed', 'Kernels: used after dispose()');
    const key = signature(call);
    const known = this.prepared.get(key);
    if (known) {
      // The most recently used plans are kept: the map's order is that of use.
      this.prepared.delete(key);
      this.prepared.set(key, known);
      return known;
    }
    const checked = this.check(call);
    for (const [name, shape] of Object.entries(checked.shapes)) {
      const output = call.outputs[name];
      if (output && output.shape.join() !== shape.join()) {
        throw new FlaError(
          'invalid_shape',
          `${call.op}: ${name} must be [${shape}], received [${output.shape}]`,
        );
      }
    }
    const reason = this.refusal(call, checked);
    if (reason) throw new FlaError('unsupported', `${call.op}: ${reason}`);
    const plan = checked.plan();
    const prepared = { plan, uniforms: this.uniforms(call, plan), bindGroups: new Map() };
    this.prepared.set(key, prepared);
    if (this.prepared.size > MAX_PLANS) {
      // Not destroyed: encoders that are still to be submitted may hold it.
      this.prepared.delete(this.prepared.keys().next().value!);
    }
    return prepared;
  }

  private uniforms(call: KernelCall, { steps }: Plan): GPUBuffer {
    const op = call.op === 'LinearAttention' ? 'linear_attention' : 'causal_conv_with_state';
    const size = Math.max(1, steps.length) * PARAMS_STRIDE;
    const buffer = this.device.createBuffer({ size, usage: UNIFORM, mappedAtCreation: true });
    const mapped = buffer.getMappedRange();
    for (const [i, step] of steps.entries()) {
      if (isCopy(step)) continue;
      const words = new Uint32Array(mapped, i * PARAMS_STRIDE, PARAMS_STRIDE / 4);
      packParams(paramFields[op], step.params, words);
    }
    buffer.unmap();
    return buffer;
  }

  // --- Memory ---

  private buffer({ name, from, bytes }: Range, call: KernelCall): GPUBuffer {
    if (!name.startsWith('#')) return (call.outputs[name] ?? call.inputs[name])!.buffer;
    const known = this.scratch.get(name);
    if (known && known.size >= from + bytes) return known;
    // Grows by half at least, so that lengths that grow bit by bit do not leave a trail of buffers. The old one is left to the garbage
    // collector: encoders that are still to be submitted may hold it.
    const wanted = Math.max(from + bytes, Math.floor(((known?.size ?? 0) * 1.5) / 16) * 16);
    const size = Math.max(from + bytes, Math.min(wanted, this.traits.maxBinding));
    const buffer = this.device.createBuffer({ size, usage: STORAGE | COPY_DST, label: name });
    this.scratch.set(name, buffer);
    return buffer;
  }

  private id(buffer: GPUBuffer): number {
    const known = this.ids.get(buffer);
    if (known) return known;
    this.lastId += 1;
    this.ids.set(buffer, this.lastId);
    return this.lastId;
  }

  /** The bind group of every dispatch of a plan, for the buffers of this call. */
  private bindGroups({ plan, uniforms, bindGroups }: Prepared, call: KernelCall): GPUBindGroup[] {
    const tensors = [...Object.values(call.inputs), ...Object.values(call.outputs)];
    const memory = Object.entries(plan.scratch).map(([name, bytes]) =>
      this.buffer({ name, from: 0, bytes }, call),
    );
    const key = [...tensors.map((tensor) => tensor?.buffer), ...memory]
      .map((buffer) => (buffer ? this.id(buffer) : 0))
      .join();
    const known = bindGroups.get(key);
    if (known) return known;
    const groups = plan.steps.map((step, i) =>
      isCopy(step)
        ? (undefined as unknown as GPUBindGroup)
        : this.bindGroup(step, uniforms, i * PARAMS_STRIDE, call),
    );
    if (bindGroups.size >= MAX_BIND_GROUPS) bindGroups.delete(bindGroups.keys().next().value!);
    bindGroups.set(key, groups);
    return groups;
  }

  private bindGroup(step: Dispatch, uniforms: GPUBuffer, offset: number, call: KernelCall) {
    const entries: GPUBindGroupEntry[] = [
      { binding: 0, resource: { buffer: uniforms, offset, size: PARAMS_STRIDE } },
    ];
    this.dummy ??= this.device.createBuffer({ size: 64, usage: STORAGE });
    const { bindings } = shaders[step.shader];
    for (const [i, binding] of step.bindings.entries()) {
      if (binding === undefined) continue;
      if (binding === 'none') {
        // Where a stage has several of these, they are different parts only of what is read: what is written is written by nobody.
        const buffer = bindings[i] === 'w' ? this.unused(i) : this.dummy;
        entries.push({ binding: i + 1, resource: { buffer } });
        continue;
      }
      const buffer = this.buffer(binding, call);
      const size = Math.min(binding.bytes, buffer.size - binding.from);
      entries.push({ binding: i + 1, resource: { buffer, offset: binding.from, size } });
    }
    return this.device.createBindGroup({ layout: this.pipeline(step).layout, entries });
  }

  /** A small buffer for a written binding that this call does not use; one for each binding, because writable bindings may not overlap. */
  private unused(binding: number): GPUBuffer {
    return this.buffer({ name: `#unused${binding}`, from: 0, bytes: 64 }, noCall);
  }

  // --- Pipelines ---

  private pipeline({ shader, entry = 'main', constants, bindings }: Dispatch): Pipeline {
    const present = bindings.map((binding) => (binding === undefined ? '-' : '+')).join('');
    const key = `${shader}.${entry} ${present} ${Object.values(constants).join()}`;
    const known = this.pipelines.get(key);
    if (known) return known;
    const layout = this.layout(shader, bindings);
    const pipeline = {
      layout,
      descriptor: {
        label: `${shader}.${entry}`,
        layout: this.device.createPipelineLayout({ bindGroupLayouts: [layout] }),
        compute: { module: this.module(shader), entryPoint: entry, constants },
      },
    };
    this.pipelines.set(key, pipeline);
    return pipeline;
  }

  private compiled(step: Dispatch): GPUComputePipeline {
    const pipeline = this.pipeline(step);
    pipeline.compiled ??= this.device.createComputePipeline(pipeline.descriptor);
    return pipeline.compiled;
  }

  private layout(shader: ShaderName, bindings: Dispatch['bindings']): GPUBindGroupLayout {
    const access = bindings.map((binding, i) =>
      binding === undefined ? '-' : shaders[shader].bindings[i],
    );
    const key = access.join('');
    const known = this.layouts.get(key);
    if (known) return known;
    const entries: GPUBindGroupLayoutEntry[] = [
      { binding: 0, visibility: COMPUTE, buffer: { type: 'uniform' } },
    ];
    for (const [i, kind] of access.entries()) {
      if (kind === '-') continue;
      const type = kind === 'r' ? 'read-only-storage' : 'storage';
      entries.push({ binding: i + 1, visibility: COMPUTE, buffer: { type } });
    }
    const layout = this.device.createBindGroupLayout({ entries });
    this.layouts.set(key, layout);
    return layout;
  }

  private module(name: ShaderName): GPUShaderModule {
    const known = this.modules.get(name);
    if (known) return known;
    const module = this.device.createShaderModule({ label: name, code: shaders[name].code });
    this.modules.set(name, module);
    return module;
  }
}

const noCall: KernelCall = { op: 'LinearAttention', attributes: {}, inputs: {}, outputs: {} };

/** Whether an output shares its buffer with a tensor that a dispatch may bind beside it; a state in place is bound once. */
function clash(name: string, output: GpuTensor, otherName: string, other: GpuTensor): boolean {
  if (name === otherName || output.buffer !== other.buffer) return false;
  if (sizeOf(output.shape) === 0 || sizeOf(other.shape) === 0) return false;
  const inPlace = name === 'present_state' && otherName === 'past_state';
  return !(inPlace && (output.offset ?? 0) === (other.offset ?? 0));
}

/** Everything of a call that its plan depends on. */
function signature({ op, attributes, inputs, outputs }: KernelCall): string {
  const tensors = (list: KernelCall['inputs']) =>
    Object.entries(list).flatMap(([name, tensor]) =>
      tensor
        ? [`${name} ${tensor.dtype} ${tensor.shape} ${tensor.offset ?? 0} ${tensor.buffer.size}`]
        : [],
    );
  const shared = inputs.past_state?.buffer === outputs.present_state?.buffer;
  return [
    op,
    ...Object.entries(attributes).flat(),
    ...tensors(inputs),
    '->',
    ...tensors(outputs),
    shared,
  ].join('|');
}

function isSoftware(device: GPUDevice): boolean {
  const info = device.adapterInfo as (GPUAdapterInfo & { isFallbackAdapter?: boolean }) | undefined;
  return info?.isFallbackAdapter === true || info?.architecture === 'swiftshader';
}

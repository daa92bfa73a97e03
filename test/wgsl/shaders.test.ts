/** Every shader and every pipeline that the cases need is valid, at WebGPU's default limits; nothing runs (Dawn's null backend). */
import fs from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { sizeOf } from '../../ops/tensor64.js';
import { shaders } from '../../wgsl/gen/shaders.js';
import { generate, outOfDate } from '../../wgsl/generate.js';
import { type GpuTensor, type KernelCall, Kernels } from '../../wgsl/kernels.js';
import { causalConvCases } from '../cases/causal_conv_with_state.js';
import {
  type CaseTypes,
  caseTypes,
  dtypeOf,
  emptyBatches,
  linearAttentionCases,
  typesOf,
} from '../cases/linear_attention.js';
import { nullGpu, openDevice } from '../support/webgpu.js';
import { type Draw, draw } from './calls.js';

const files = fs.readdirSync('wgsl').filter((name) => name.endsWith('.wgsl'));
let device: GPUDevice;
let errors: string[];

beforeAll(async () => {
  ({ device, errors } = await openDevice(nullGpu()));
});

async function messages(code: string): Promise<string[]> {
  device.pushErrorScope('validation');
  const info = await device.createShaderModule({ code }).getCompilationInfo();
  await device.popErrorScope();
  return info.messages.map(({ lineNum, linePos, type, message }) =>
    [lineNum, linePos, type, message].join(':'),
  );
}

describe('shaders', () => {
  it('the device has the default limits', () => {
    expect(device.limits.maxStorageBuffersPerShaderStage).toBe(8);
    expect(device.limits.maxComputeWorkgroupStorageSize).toBe(16384);
    expect(device.limits.maxStorageBufferBindingSize).toBe(128 * 2 ** 20);
  });

  it.each(files)('%s is a valid module as it stands', async (name) => {
    expect(await messages(fs.readFileSync(`wgsl/${name}`, 'utf8'))).toEqual([]);
  });

  it.each(Object.entries(shaders))('%s is valid as it is shipped', async (_, { code }) => {
    expect(await messages(code)).toEqual([]);
    expect(code).not.toMatch(/\n|\/\//);
  });

  it('are what `npm run gen` writes', () => {
    expect(outOfDate()).toEqual([]);
    expect(generate().length).toBe(files.length + 1);
  });

  it('an error is found', async () => {
    const { code } = shaders.linear_attention_states;
    expect(await messages(code.replace('p.k_row', 'p.no_such'))).not.toEqual([]);
  });
});

describe('pipelines', () => {
  /** On a device that runs many workgroups at a time, and on software. */
  let both: Kernels[];

  beforeAll(() => {
    both = [512, 1].map((parallel) => new Kernels(device, { parallel }));
  });

  /** A tensor of the right size, not more. */
  function tensor(dtype: GpuTensor['dtype'], shape: readonly number[]): GpuTensor {
    const size = sizeOf(shape) * ({ float16: 2, bool: 1 }[dtype as string] ?? 4);
    return {
      dtype,
      shape,
      buffer: device.createBuffer({ size: Math.ceil(size / 4) * 4, usage: 0x80 | 0x4 | 0x8 }),
    };
  }

  async function validate(
    call: Omit<KernelCall, 'outputs'>,
    stateType: GpuTensor['dtype'],
    inPlace: boolean,
    without?: string,
  ): Promise<void> {
    const first = Object.values(call.inputs)[0]!;
    const outputs = Object.fromEntries(
      Object.entries(both[0].outputShapes(call)).map(([name, shape]) => [
        name,
        name === 'present_state' && inPlace && call.inputs.past_state
          ? call.inputs.past_state
          : tensor(name === 'present_state' ? stateType : first.dtype, shape),
      ]),
    );
    if (without) delete outputs[without];
    const encoder = device.createCommandEncoder();
    for (const kernels of both) kernels.encode(encoder, { ...call, outputs });
    device.queue.submit([encoder.finish()]);
    for (const used of [...Object.values(call.inputs), ...Object.values(outputs)]) {
      used?.buffer.destroy();
    }
  }

  const types = caseTypes.filter(({ T }) => T !== 'bfloat16');

  it.each(types)('LinearAttention, $T, state $S', async (wanted: CaseTypes) => {
    for (const testCase of [...linearAttentionCases, ...emptyBatches]) {
      if (!typesOf(testCase).includes(wanted)) continue;
      const inputs = Object.fromEntries(
        Object.entries(testCase.inputs()).map(([name, { shape }]) => [
          name,
          tensor(dtypeOf(name, wanted), shape),
        ]),
      );
      const { attributes } = testCase;
      const call = { op: 'LinearAttention' as const, attributes: { ...attributes }, inputs };
      await validate(call, wanted.S, testCase.name.length % 2 === 0);
    }
    await device.queue.onSubmittedWorkDone();
    expect(errors).toEqual([]);
  });

  it.each(['float32', 'float16'] as const)('CausalConvWithState, %s', async (dtype) => {
    for (const { attributes, inputs } of causalConvCases) {
      const tensors = Object.entries(inputs()).map(([name, { shape }]) => [
        name,
        tensor(dtype, shape),
      ]);
      const call = {
        op: 'CausalConvWithState' as const,
        attributes: { ...attributes },
        inputs: Object.fromEntries(tensors),
      };
      await validate(call, dtype, true);
    }
    await device.queue.onSubmittedWorkDone();
    expect(errors).toEqual([]);
  });

  const rules = ['linear', 'gated', 'delta', 'gated_delta'] as const;
  const sizes = [
    { T: 1, K: 256, V: 64, state: true },
    { T: 700, K: 64, V: 64, HQ: 2 },
    { T: 700, K: 6, V: 7, mask: true, decay: 'key' },
    { T: 70, K: 8, V: 8, mask: true, state: true },
    { T: 3, K: 8, V: 8, mask: true },
  ] as const;
  const calls: Draw[] = rules.flatMap((rule) => sizes.map((size) => ({ rule, ...size })));

  it.each(types)('drawn calls, $T, state $S', async (wanted) => {
    for (const call of calls) {
      const { attributes, inputs } = draw(call, wanted);
      const tensors = Object.entries(inputs).map(([name, { shape }]) => [
        name,
        tensor(name === 'mask' ? 'float32' : dtypeOf(name, wanted), shape),
      ]);
      const drawn = { op: 'LinearAttention' as const, attributes: { ...attributes } };
      const without = { 1: 'present_state', 3: 'output' }[call.T as number];
      await validate({ ...drawn, inputs: Object.fromEntries(tensors) }, wanted.S, false, without);
    }
    await device.queue.onSubmittedWorkDone();
    expect(errors).toEqual([]);
  });

  it('cover every shader, and every constant in more than one value', () => {
    const used = both.flatMap((kernels) => [
      ...(kernels as unknown as { pipelines: Map<string, PipelineEntry> }).pipelines,
    ]);
    const missing: string[] = [];
    for (const name of Object.keys(shaders)) {
      const own = used.filter(([key]) => key.startsWith(`${name}.`)).map(([, entry]) => entry);
      if (own.length === 0) missing.push(name);
      const constants = own.map(({ descriptor }) => descriptor.compute.constants ?? {});
      for (const constant of Object.keys(constants[0] ?? {})) {
        const values = new Set(constants.map((values) => values[constant]));
        if (values.size < 2) missing.push(`${name} ${constant}`);
      }
    }
    expect(missing).toEqual([]);
    expect(used.length).toBeGreaterThan(300);
  });
});

interface PipelineEntry {
  readonly descriptor: GPUComputePipelineDescriptor;
}

/** What `Kernels` keeps, refuses and frees. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { DType } from '../../ops/define.js';
import { type GpuTensor, type KernelCall, Kernels } from '../../wgsl/kernels.js';
import { nullGpu, openDevice } from '../support/webgpu.js';

describe('Kernels', () => {
  let device: GPUDevice;
  let errors: string[];
  let kernels: Kernels;

  beforeEach(async () => {
    ({ device, errors } = await openDevice(nullGpu()));
    kernels = new Kernels(device);
  });

  afterEach(async () => {
    await device.queue.onSubmittedWorkDone();
    expect(errors).toEqual([]);
  });

  function tensor(
    dtype: DType,
    shape: readonly number[],
    { size = 1 << 15, offset = 0 } = {},
  ): GpuTensor {
    return { buffer: device.createBuffer({ size, usage: 0x8c }), dtype, shape, offset };
  }

  function call(T: number, dtype: DType = 'float32'): KernelCall {
    const state = tensor('float32', [1, 2, 4, 4]);
    return {
      op: 'LinearAttention',
      attributes: { q_num_heads: 2, kv_num_heads: 2, update_rule: 'linear' },
      inputs: {
        query: tensor(dtype, [1, T, 8]),
        key: tensor(dtype, [1, T, 8]),
        value: tensor(dtype, [1, T, 8]),
        past_state: state,
      },
      outputs: { output: tensor(dtype, [1, T, 8]), present_state: state },
    };
  }

  function encode(wanted: KernelCall) {
    const encoder = device.createCommandEncoder();
    kernels.encode(encoder, wanted);
    device.queue.submit([encoder.finish()]);
  }

  it('tells the outputs before there are any', () => {
    expect(kernels.outputShapes({ ...call(3) })).toEqual({
      output: [1, 3, 8],
      present_state: [1, 2, 4, 4],
    });
  });

  it('supports what it can run', () => {
    expect(kernels.supports(call(3))).toBeUndefined();
    expect(kernels.supports(call(100))).toBeUndefined();
  });

  it('says what it cannot', () => {
    const bfloat = call(3, 'bfloat16');
    expect(kernels.supports(bfloat)).toMatch(/query is bfloat16/);
    const good = call(3);
    const small = { ...good.inputs, key: tensor('float32', [1, 3, 8], { size: 64 }) };
    expect(kernels.supports({ ...good, inputs: small })).toBe(
      'key needs 96 bytes of its buffer, which has 64',
    );
    const odd = { ...good.inputs, key: tensor('float32', [1, 3, 8], { offset: 2 }) };
    expect(kernels.supports({ ...good, inputs: odd })).toMatch(/key starts at byte 2/);
    const shared = { ...good.outputs, output: good.inputs.value };
    expect(kernels.supports({ ...good, outputs: shared })).toBe(
      'output is in the same buffer as value',
    );
    expect(() => kernels.encode(device.createCommandEncoder(), { ...good, inputs: small })).toThrow(
      /LinearAttention: key needs 96 bytes/,
    );
  });

  it('gives the errors of the schema', () => {
    const good = call(3);
    const wrong = { ...good, inputs: { ...good.inputs, value: tensor('float32', [1, 4, 8]) } };
    expect(() => kernels.supports(wrong)).toThrow(
      'LinearAttention: value must be [B,T,HV*V] = [1,3,2*V], received [1,4,8]',
    );
    const output = tensor('float32', [1, 3, 9]);
    expect(() =>
      kernels.encode(device.createCommandEncoder(), { ...good, outputs: { output } }),
    ).toThrow('LinearAttention: output must be [1,3,8], received [1,3,9]');
    expect(() => kernels.supports({ ...good, op: 'Softmax' as 'LinearAttention' })).toThrow(
      /op must be one of LinearAttention, CausalConvWithState, received Softmax/,
    );
  });

  it('a state too large for the device is refused, not cut', () => {
    const tight = new Kernels(device, { maxBinding: 4096 });
    const large = call(100);
    const shape = [1, 2, 64, 64];
    const inputs = Object.fromEntries(
      ['query', 'key', 'value'].map((name) => [
        name,
        tensor('float32', [1, 100, 128], { size: 1 << 16 }),
      ]),
    );
    const state = tensor('float32', shape, { size: 1 << 16 });
    expect(
      tight.supports({ ...large, inputs: { ...inputs, past_state: state }, outputs: {} }),
    ).toMatch(/2 states of 64 x 64 need bindings larger than the device's 4096 bytes/);
  });

  it('a repeated call adds nothing, other buffers no plan', () => {
    const one = call(1);
    encode(one);
    const before = kernels.memory;
    for (let i = 0; i < 50; i += 1) encode(one);
    encode(call(1));
    expect(kernels.memory).toEqual(before);
    expect(before.plans).toBe(1);
  });

  it('keeps a bounded number of plans, and scratch memory as large as the largest call', () => {
    for (let T = 9; T < 400; T += 1) encode(call(T));
    const { plans, scratchBytes, uniformBytes } = kernels.memory;
    expect(plans).toBe(256);
    expect(uniformBytes).toBeLessThan(2 ** 20);
    encode(call(399));
    expect(kernels.memory.scratchBytes).toBe(scratchBytes);
    kernels.trim();
    expect(kernels.memory.scratchBytes).toBe(0);
    encode(call(399));
    expect(kernels.memory.scratchBytes).toBeLessThanOrEqual(scratchBytes);
  });

  it('compiles ahead', async () => {
    const wanted = call(100);
    await kernels.warmUp(wanted);
    const { pipelines } = kernels.memory;
    expect(pipelines).toBeGreaterThan(2);
    encode(wanted);
    expect(kernels.memory.pipelines).toBe(pipelines);
  });

  it('no sequence, no tokens', () => {
    encode(call(0));
    const none = call(3);
    const empty = Object.fromEntries(
      Object.entries(none.inputs).map(([name, given]) => [
        name,
        { ...given!, shape: [0, ...given!.shape.slice(1)] },
      ]),
    );
    encode({ ...none, inputs: empty, outputs: {} });
  });

  it('is of no use once it is disposed', () => {
    encode(call(100));
    kernels.dispose();
    expect(kernels.memory).toEqual({ scratchBytes: 0, uniformBytes: 0, plans: 0, pipelines: 0 });
    expect(() => encode(call(1))).toThrow(/used after dispose/);
  });
});

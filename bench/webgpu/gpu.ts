/** A WebGPU device in Node, shared with onnxruntime-web, and times on its clock. */
import { create } from 'webgpu';
import { softwareDriver, softwareGpu } from '../../test/support/webgpu.js';
import { median } from '../results.js';

const LIMITS = [
  'maxBufferSize',
  'maxStorageBufferBindingSize',
  'maxComputeWorkgroupStorageSize',
  'maxComputeInvocationsPerWorkgroup',
  'maxComputeWorkgroupSizeX',
  'maxStorageBuffersPerShaderStage',
] as const;
const FEATURES: readonly GPUFeatureName[] = ['shader-f16', 'subgroups', 'timestamp-query'];

const STORAGE = 0x80;
const COPY_SRC = 0x04;
const COPY_DST = 0x08;
const QUERY_RESOLVE = 0x200;
const MAP_READ = 0x01;

export interface Gpu {
  readonly device: GPUDevice;
  readonly name: string;
  readonly isSoftware: boolean;
  /** Errors that nobody waited for. */
  readonly errors: string[];
}

/** Opens the machine's GPU, or with `software` Chromium's software Vulkan driver, with all that the adapter has. */
export async function openGpu(software: boolean): Promise<Gpu> {
  if (software && !softwareDriver) throw new Error('no Chromium, so no software driver');
  // Browsers round timestamps; a bench must not. Dawn keeps float16 from NVIDIA's Vulkan driver unless it is asked for.
  const gpu = software
    ? softwareGpu()
    : create([
        'disable-dawn-features=timestamp_quantization',
        'enable-dawn-features=vulkan_enable_f16_on_nvidia',
      ]);
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) throw new Error('no WebGPU adapter; --software takes Chromium’s software driver');
  const device = await adapter.requestDevice({
    requiredFeatures: FEATURES.filter((feature) => adapter.features.has(feature)),
    requiredLimits: Object.fromEntries(LIMITS.map((limit) => [limit, adapter.limits[limit]])),
  });
  const errors: string[] = [];
  device.addEventListener('uncapturederror', (event) => {
    errors.push((event as GPUUncapturedErrorEvent).error.message);
  });
  const { vendor, architecture, device: model, description } = adapter.info;
  const name = [vendor, architecture, model, description].filter(Boolean).join(' ');
  kept.push(gpu, adapter);
  takeCopies(device.queue);
  // Where onnxruntime-web looks for WebGPU.
  const target = globalThis as unknown as { navigator?: object };
  target.navigator ??= {};
  Object.defineProperty(target.navigator, 'gpu', { value: gpu, configurable: true });
  return { device, name, isSoftware: architecture === 'swiftshader', errors };
}

/** Dawn aborts when these are collected before the device. */
const kept: unknown[] = [];

/** Dawn for Node refuses views of shared memory, which onnxruntime-web's are. */
function takeCopies(queue: GPUQueue): void {
  const write = queue.writeBuffer.bind(queue);
  queue.writeBuffer = (buffer, offset, data, from = 0, count) => {
    const view = ArrayBuffer.isView(data);
    const size = view && 'BYTES_PER_ELEMENT' in data ? (data.BYTES_PER_ELEMENT as number) : 1;
    const bytes = view
      ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
      : new Uint8Array(data as ArrayBuffer);
    const end = count === undefined ? bytes.length : (from + count) * size;
    write(buffer, offset, Uint8Array.from(bytes.subarray(from * size, end)));
  };
}

export function buffer(device: GPUDevice, bytes: number): GPUBuffer {
  const size = Math.max(16, Math.ceil(bytes / 16) * 16);
  return device.createBuffer({ size, usage: STORAGE | COPY_SRC | COPY_DST });
}

export async function readBack(device: GPUDevice, from: GPUBuffer, bytes: number) {
  const size = Math.ceil(bytes / 4) * 4;
  const staging = device.createBuffer({ size, usage: MAP_READ | COPY_DST });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(from, 0, staging, 0, size);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(MAP_READ);
  const copy = staging.getMappedRange().slice(0);
  staging.destroy();
  return copy;
}

/** Reads the device's clock before and after some work. */
export class Clock {
  private readonly queries: GPUQuerySet;
  private readonly resolved: GPUBuffer;

  constructor(private readonly device: GPUDevice) {
    this.queries = device.createQuerySet({ type: 'timestamp', count: 2 });
    this.resolved = device.createBuffer({ size: 16, usage: QUERY_RESOLVE | COPY_SRC });
  }

  /** Appends a reading of the clock, taken when all that comes before it is done. */
  private mark(encoder: GPUCommandEncoder, index: number): void {
    const { queries: querySet } = this;
    encoder.beginComputePass({ timestampWrites: { querySet, endOfPassWriteIndex: index } }).end();
    if (index === 1) encoder.resolveQuerySet(querySet, 0, 2, this.resolved, 0);
  }

  private async elapsed(): Promise<number> {
    const times = new BigUint64Array(await readBack(this.device, this.resolved, 16));
    return Number(times[1] - times[0]) / 1e6;
  }

  /** Milliseconds of what `encode` appends, and nothing else. */
  async ofEncoded(encode: (encoder: GPUCommandEncoder) => void): Promise<number> {
    const encoder = this.device.createCommandEncoder();
    this.mark(encoder, 0);
    encode(encoder);
    this.mark(encoder, 1);
    this.device.queue.submit([encoder.finish()]);
    return this.elapsed();
  }

  /** Milliseconds from an idle device until it has done what `submit` submits: that, and what the CPU does meanwhile. */
  async ofSubmitted(submit: () => unknown): Promise<number> {
    const before = this.device.createCommandEncoder();
    this.mark(before, 0);
    await this.device.queue.onSubmittedWorkDone();
    this.device.queue.submit([before.finish()]);
    await submit();
    const after = this.device.createCommandEncoder();
    this.mark(after, 1);
    this.device.queue.submit([after.finish()]);
    return this.elapsed();
  }
}

const COPY = `
@group(0) @binding(0) var<storage, read> from_: array<vec4u>;
@group(0) @binding(1) var<storage, read_write> to: array<vec4u>;
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * groups.x + group.x) * 256 + lane;
  to[i] = from_[i];
}`;

/** Bytes per second, read and written, of a copy in WGSL; buffers far above caches. */
export async function copyBandwidth({ device, isSoftware }: Gpu, clock: Clock): Promise<number> {
  const bytes = isSoftware ? 2 ** 25 : Math.min(2 ** 28, device.limits.maxStorageBufferBindingSize);
  const [source, target] = [buffer(device, bytes), buffer(device, bytes)];
  const module = device.createShaderModule({ code: COPY });
  const pipeline = device.createComputePipeline({ layout: 'auto', compute: { module } });
  const entries = [source, target].map((b, binding) => ({ binding, resource: { buffer: b } }));
  const group = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
  const groups = bytes / 16 / 256;
  const rates: number[] = [];
  for (let i = 0; i < 7; i += 1) {
    const ms = await clock.ofEncoded((encoder) => {
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(Math.min(groups, 32768), Math.ceil(groups / 32768));
      pass.end();
    });
    rates.push((2 * bytes) / (ms / 1000));
  }
  source.destroy();
  target.destroy();
  return median(rates);
}

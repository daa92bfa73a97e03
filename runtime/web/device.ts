import { FlaError } from '../../ops/error.js';
import { Kernels } from '../../wgsl/kernels.js';
import { ort } from './ort.js';
import { BufferPool } from './pool.js';

/** What ONNX Runtime or our kernels make use of where the adapter has it. */
const FEATURES: readonly GPUFeatureName[] = [
  'shader-f16',
  'subgroups',
  'timestamp-query',
  'chromium-experimental-subgroup-matrix' as GPUFeatureName,
];

/** How long a failure may be ahead of the news that the device is lost. */
const LOSS_NOTICE_MS = 50;

/** Limits that are raised to what the adapter has. */
const LIMITS = [
  'maxBufferSize',
  'maxStorageBufferBindingSize',
  'maxStorageBuffersPerShaderStage',
  'maxComputeWorkgroupStorageSize',
  'maxComputeInvocationsPerWorkgroup',
  'maxComputeWorkgroupSizeX',
  'maxComputeWorkgroupSizeY',
  'maxComputeWorkgroupSizeZ',
  'maxComputeWorkgroupsPerDimension',
] as const;

/** Readback takes memory that the host can map, everything else memory that shaders can. */
const STORAGE = 0x80 | 0x04 | 0x08; // STORAGE, COPY_SRC, COPY_DST
const READBACK = 0x01 | 0x08; // MAP_READ, COPY_DST

/**
 * onnxruntime-web's memory is shared, and Dawn for Node (the npm package `webgpu`) takes no shared memory in `writeBuffer`: it
 * gets copies there.
 */
function takeSharedMemory({ queue }: GPUDevice): void {
  const write = queue.writeBuffer;
  queue.writeBuffer = (
    buffer: GPUBuffer,
    offset: number,
    data: ArrayBufferView | ArrayBufferLike,
    from = 0,
    size?: number,
  ) => {
    const view = ArrayBuffer.isView(data);
    if ((view ? data.buffer : data) instanceof ArrayBuffer)
      return write.call(queue, buffer, offset, data as BufferSource, from, size);
    const step = view && 'BYTES_PER_ELEMENT' in data ? Number(data.BYTES_PER_ELEMENT) : 1;
    const bytes = view
      ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
      : new Uint8Array(data);
    const end = size === undefined ? bytes.length : (from + size) * step;
    return write.call(queue, buffer, offset, bytes.slice(from * step, end));
  };
}

/** A range of a buffer to be brought to the host. */
export interface Download {
  readonly buffer: GPUBuffer;
  readonly offset: number;
  readonly bytes: number;
}

/**
 * A GPU with what its sessions share: pipelines of our kernels, buffers, and what has gone wrong on it.
 */
export class Gpu {
  readonly kernels: Kernels;
  readonly pool: BufferPool;
  readonly #readback: BufferPool;
  readonly #waiting = new Set<(error: FlaError) => void>();
  #failure: FlaError | undefined;
  #lost: FlaError | undefined;

  private constructor(readonly device: GPUDevice) {
    if (typeof process !== 'undefined' && process.versions?.node) takeSharedMemory(device);
    this.kernels = new Kernels(device);
    const create = (usage: number) => (size: number) =>
      this.checked('out-of-memory', () => device.createBuffer({ size, usage }));
    this.pool = new BufferPool(create(STORAGE));
    this.#readback = new BufferPool(create(READBACK));
    device.lost.then(({ reason, message }) => {
      const why =
        message.replace(/\.$/, '') ||
        (reason === 'destroyed' ? 'it was destroyed' : 'no reason is given');
      this.#lost = new FlaError(
        'device_lost',
        `WebGPU: the device must be there, it was lost: ${why}. Release the session and create it again`,
      );
      for (const reject of this.#waiting) reject(this.#lost);
    });
  }

  static readonly #known = new WeakMap<GPUDevice, Gpu>();

  /** What belongs to this device, whatever session asks. */
  static of(device: GPUDevice): Gpu {
    let gpu = Gpu.#known.get(device);
    if (!gpu) Gpu.#known.set(device, (gpu = new Gpu(device)));
    return gpu;
  }

  get isLost(): boolean {
    return this.#lost !== undefined;
  }

  /** @throws FlaError `device_lost` when the device is lost, `runtime` when something failed since the last call */
  assertSound(): void {
    if (this.#lost) throw this.#lost;
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure) throw failure;
  }

  /** `promise`, which may never be settled when the device is lost; then the result is rejected. */
  guard<T>(promise: Promise<T>): Promise<T> {
    if (this.#lost) {
      promise.catch(() => {});
      return Promise.reject(this.#lost);
    }
    return new Promise((resolve, reject) => {
      this.#waiting.add(reject);
      const settle = (end: () => void) => {
        this.#waiting.delete(reject);
        end();
      };
      promise.then(
        (value) => settle(() => resolve(value)),
        // What fails because the device is gone often fails before the device says so.
        (error) => setTimeout(() => settle(() => reject(this.#lost ?? error)), LOSS_NOTICE_MS),
      );
    });
  }

  /** Calls `body`; an error of the kind that `filter` says is thrown by the next `assertSound`. */
  checked<T>(filter: GPUErrorFilter, body: () => T): T {
    this.device.pushErrorScope(filter);
    try {
      return body();
    } finally {
      this.device.popErrorScope().then(
        (error) => {
          if (error) this.#failure ??= new FlaError('runtime', `WebGPU: ${error.message}`);
        },
        () => {}, // the device is lost
      );
    }
  }

  /** A buffer of just this size, for what stays; its content is zeros. */
  allocate(bytes: number): GPUBuffer {
    const size = Math.max(16, Math.ceil(bytes / 16) * 16);
    return this.checked('out-of-memory', () => this.device.createBuffer({ size, usage: STORAGE }));
  }

  /** Copies ranges of buffers to the host. */
  async read(downloads: readonly Download[]): Promise<ArrayBuffer[]> {
    let total = 0;
    const places = downloads.map(({ offset, bytes }) => {
      const start = offset - (offset % 4);
      const length = Math.ceil((offset + bytes - start) / 4) * 4;
      total += length;
      return { at: total - length, start, length, skip: offset - start };
    });
    const staging = this.#readback.acquire(total);
    const encoder = this.device.createCommandEncoder();
    for (const [i, { buffer }] of downloads.entries()) {
      const { at, start, length } = places[i];
      if (length > 0) encoder.copyBufferToBuffer(buffer, start, staging, at, length);
    }
    this.device.queue.submit([encoder.finish()]);
    await this.guard(staging.mapAsync(0x01, 0, Math.max(total, 4)));
    const mapped = staging.getMappedRange(0, Math.max(total, 4));
    const results = downloads.map(({ bytes }, i) => {
      const from = places[i].at + places[i].skip;
      return mapped.slice(from, from + bytes);
    });
    staging.unmap();
    this.#readback.release(staging);
    this.#readback.tick();
    this.assertSound();
    return results;
  }

  /** Overwrites the first bytes of a buffer. */
  write(buffer: GPUBuffer, data: ArrayBufferView): void {
    let bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    // Writes are in multiples of 4 bytes; shared memory is not taken everywhere.
    if (bytes.length % 4 !== 0 || !(bytes.buffer instanceof ArrayBuffer)) {
      const copy = new Uint8Array(Math.ceil(bytes.length / 4) * 4);
      copy.set(bytes);
      bytes = copy;
    }
    this.device.queue.writeBuffer(buffer, 0, bytes as Uint8Array<ArrayBuffer>);
  }
}

/** Dawn for Node aborts when an adapter is collected before its device. */
const adapters = new WeakMap<GPUDevice, GPUAdapter>();

/** A device with what the adapter has, or the reason why there is none. */
async function request(): Promise<GPUDevice | string> {
  const gpu = (globalThis.navigator as Navigator | undefined)?.gpu;
  if (!gpu) return 'there is no navigator.gpu';
  const { adapter: chosen, powerPreference, forceFallbackAdapter } = ort().env.webgpu;
  const adapter: GPUAdapter | null =
    (chosen as GPUAdapter | undefined) ??
    (await gpu.requestAdapter({
      powerPreference: powerPreference ?? 'high-performance',
      forceFallbackAdapter,
    }));
  if (!adapter) return 'there is no GPU adapter';
  const requiredFeatures = FEATURES.filter((feature) => adapter.features.has(feature));
  const requiredLimits = Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]]));
  try {
    const device = await adapter.requestDevice({ requiredFeatures, requiredLimits });
    adapters.set(device, adapter);
    return device;
  } catch (error) {
    return `the adapter gives no device: ${(error as Error).message}`;
  }
}

/**
 * A device as sessions make it for themselves, with the features and limits that the adapter has; undefined where there is no WebGPU. For
 * sessions that are not to share one, and for work of the caller's own.
 */
export async function requestDevice(): Promise<GPUDevice | undefined> {
  const device = await request();
  return typeof device === 'string' ? undefined : device;
}

let shared: Promise<GPUDevice | string> | undefined;

/** The device that sessions share unless they are given one; a lost one is replaced. Or the reason why there is none. */
export async function defaultGpu(): Promise<Gpu | string> {
  const wasAsked = shared !== undefined;
  const device = await (shared ??= request());
  const isThere = typeof device !== 'string' && !Gpu.of(device).isLost;
  // Asked again: a lost device is replaced, and an adapter may have come.
  const best = isThere || !wasAsked ? device : await (shared = request());
  return typeof best === 'string' ? best : Gpu.of(best);
}

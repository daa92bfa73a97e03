/** GPU memory of a device, as far as buffers tell. */
export interface GpuMemory {
  /** Bytes of the buffers that are there now. */
  readonly bytes: number;
  /** The most since the start or the last `reset()`. */
  readonly peak: number;
  /** How many buffers there are. */
  readonly buffers: number;
  /** Lets `peak` start again from now. */
  reset(): void;
}

/**
 * Counts the buffers that are made on a device from now on, whoever makes them: ONNX Runtime, this package, or the page. To be called before
 * the device is used. WebGPU itself does not tell what memory is in use.
 */
export function watchMemory(device: GPUDevice): GpuMemory {
  const sizes = new Map<number, number>();
  let [bytes, peak, next] = [0, 0, 0];
  const forget = (id: number) => {
    bytes -= sizes.get(id) ?? 0;
    sizes.delete(id);
  };
  // A buffer that nobody holds any more is freed without being destroyed.
  const collected = new FinalizationRegistry<number>(forget);
  const create = device.createBuffer.bind(device);
  device.createBuffer = (descriptor) => {
    const buffer = create(descriptor);
    const id = next++;
    sizes.set(id, descriptor.size);
    bytes += descriptor.size;
    peak = Math.max(peak, bytes);
    collected.register(buffer, id);
    const destroy = buffer.destroy.bind(buffer);
    buffer.destroy = () => {
      forget(id);
      return destroy();
    };
    return buffer;
  };
  return {
    get bytes() {
      return bytes;
    },
    get peak() {
      return peak;
    },
    get buffers() {
      return sizes.size;
    },
    reset() {
      peak = bytes;
    },
  };
}

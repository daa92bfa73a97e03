/** Buffers that were not used for so many runs are destroyed. */
const KEEP_RUNS = 16;

/** Smallest buffer; bindings are multiples of 16 bytes. */
const SMALLEST = 256;

/** Sizes in steps of an eighth of a power of two: at most an eighth of a buffer is not used. */
export function bucketOf(bytes: number): number {
  if (bytes <= SMALLEST) return SMALLEST;
  const step = Math.max(16, 2 ** (Math.ceil(Math.log2(bytes)) - 4));
  return Math.ceil(bytes / step) * step;
}

interface Idle {
  readonly buffer: GPUBuffer;
  readonly since: number;
}

/**
 * Buffers of one usage that go from run to run. A buffer may be given back as soon as the work that reads it is submitted: the
 * next work that writes it comes later in the same queue.
 */
export class BufferPool {
  readonly #create: (size: number) => GPUBuffer;
  readonly #idle = new Map<number, Idle[]>();
  readonly #lent = new Set<GPUBuffer>();
  #run = 0;
  #closed = false;

  constructor(create: (size: number) => GPUBuffer) {
    this.#create = create;
  }

  /** A buffer of at least `bytes`; its content is whatever was there. */
  acquire(bytes: number): GPUBuffer {
    const size = bucketOf(bytes);
    const buffer = this.#idle.get(size)?.pop()?.buffer ?? this.#create(size);
    this.#lent.add(buffer);
    return buffer;
  }

  /** Gives a buffer back; one that is not lent is left alone. */
  release(buffer: GPUBuffer): void {
    if (!this.#lent.delete(buffer)) return;
    if (this.#closed) {
      buffer.destroy();
      return;
    }
    const idle = this.#idle.get(buffer.size) ?? [];
    idle.push({ buffer, since: this.#run });
    this.#idle.set(buffer.size, idle);
  }

  /** Counts a run, and destroys what was idle for too long. */
  tick(): void {
    const oldest = ++this.#run - KEEP_RUNS;
    for (const [size, idle] of this.#idle) {
      // The oldest are at the front: what is given back last is taken first.
      let stale = 0;
      while (stale < idle.length && idle[stale].since < oldest) idle[stale++].buffer.destroy();
      if (stale === idle.length) this.#idle.delete(size);
      else idle.splice(0, stale);
    }
  }

  /** Bytes of the buffers that are there, lent or idle. */
  get bytes(): number {
    let sum = 0;
    for (const buffer of this.#lent) sum += buffer.size;
    for (const idle of this.#idle.values()) for (const { buffer } of idle) sum += buffer.size;
    return sum;
  }

  /** Destroys what is idle; what is lent follows when it is given back. */
  close(): void {
    this.#closed = true;
    for (const idle of this.#idle.values()) for (const { buffer } of idle) buffer.destroy();
    this.#idle.clear();
  }
}

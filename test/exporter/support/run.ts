import { getFloat16, setFloat16 } from '@petamoriken/float16';
import * as ort from 'onnxruntime-node';
import { type Model, modelBytes } from '../../../exporter/index.js';

export type Feeds = Record<string, ort.Tensor>;

const sessions = new WeakMap<Model, Promise<ort.InferenceSession>>();

/** Runs a model in memory on stock onnxruntime-node. The model must not change after its first run. */
export async function run(model: Model, feeds: Feeds): Promise<Record<string, ort.Tensor>> {
  const known =
    sessions.get(model) ??
    ort.InferenceSession.create(modelBytes(model), { logSeverityLevel: 3, intraOpNumThreads: 1 });
  sessions.set(model, known);
  return (await known).run(feeds);
}

export function floats(dims: readonly number[], values: (i: number) => number): ort.Tensor {
  const count = dims.reduce((a, b) => a * b, 1);
  return new ort.Tensor(
    'float32',
    Float32Array.from({ length: count }, (_, i) => values(i)),
    dims,
  );
}

export function ints(dims: readonly number[], values: readonly number[]): ort.Tensor {
  return new ort.Tensor('int64', BigInt64Array.from(values, BigInt), dims);
}

/** Zeros of a declared state, -1 and symbols being `batch`. */
export function zeros(
  dtype: string,
  shape: readonly (number | string)[],
  batch: number,
): ort.Tensor {
  const dims = shape.map((d) => (typeof d === 'number' ? d : batch));
  const count = dims.reduce((a, b) => a * b, 1);
  if (dtype === 'float16') return halves(dims, Array(count).fill(0));
  return dtype === 'int64'
    ? new ort.Tensor('int64', new BigInt64Array(count), dims)
    : new ort.Tensor('float32', new Float32Array(count), dims);
}

/** The largest difference between two tensors, NaN counting as infinite. */
export function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY;
  let worst = 0;
  for (let i = 0; i < a.length; i++) {
    const d = Math.abs(a[i]! - b[i]!);
    worst = Math.max(worst, Number.isNaN(d) ? Number.POSITIVE_INFINITY : d);
  }
  return worst;
}

/** Repeatable numbers in [-1, 1). */
export function random(seed: number): () => number {
  let s = seed >>> 0;
  return () => {
    s = (Math.imul(s, 1664525) + 1013904223) >>> 0;
    return s / 2 ** 31 - 1;
  };
}

/** A float16 tensor. */
export function halves(dims: readonly number[], values: readonly number[]): ort.Tensor {
  const view = new DataView(new ArrayBuffer(values.length * 2));
  values.forEach((v, i) => {
    setFloat16(view, i * 2, v, true);
  });
  return new ort.Tensor('float16', new Uint16Array(view.buffer), dims);
}
/** Elements of a tensor of floats or halves. */
export function numbers({ type, data }: ort.Tensor): number[] {
  if (type !== 'float16') return [...(data as Float32Array)].map(Number);
  const { buffer, byteOffset, length } = data as Uint16Array;
  const view = new DataView(buffer, byteOffset, length * 2);
  return Array.from({ length }, (_, i) => getFloat16(view, i * 2, true));
}

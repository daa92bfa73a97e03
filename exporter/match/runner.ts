import { FlaError } from '../../ops/error.js';

/** A tensor handed to or returned by a runner: row-major; int64 as BigInt64Array, bool as Uint8Array. */
export interface RunTensor {
  readonly type: string;
  readonly dims: readonly number[];
  readonly data: ArrayLike<number | bigint>;
}

/** Runs a serialized ONNX model once. Injected, so that the exporter is not tied to one runtime. */
export interface Runner {
  run(
    model: Uint8Array,
    feeds: Readonly<Record<string, RunTensor>>,
    outputs: readonly string[],
  ): Promise<Record<string, RunTensor>>;
}

/** The default runner: onnxruntime-node on one CPU thread, loaded when first needed. */
export const nodeRunner: Runner = {
  async run(model, feeds, outputs) {
    const ort = await import('onnxruntime-node').catch((cause) => {
      throw new FlaError('not_found', 'onnxruntime-node must be installed to probe masks', {
        cause,
      });
    });
    const session = await ort.InferenceSession.create(model, {
      executionProviders: ['cpu'],
      graphOptimizationLevel: 'disabled',
      intraOpNumThreads: 1,
      logSeverityLevel: 4,
    });
    try {
      const tensors = Object.fromEntries(
        Object.entries(feeds).map(([name, t]) => [
          name,
          new ort.Tensor(t.type as 'float32', t.data as Float32Array, t.dims),
        ]),
      );
      const results = await session.run(tensors, [...outputs]);
      return results as unknown as Record<string, RunTensor>;
    } finally {
      await session.release();
    }
  },
};

import type * as Ort from 'onnxruntime-common';
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

/** What a runner needs of onnxruntime-node, onnxruntime-web or any other onnxruntime-common. */
type OrtModule = Pick<typeof Ort, 'InferenceSession' | 'Tensor'>;

/** Runs models on the CPU provider of an ONNX Runtime for JavaScript (in a browser, that is wasm). */
export function ortRunner(load: () => OrtModule | Promise<OrtModule>): Runner {
  return {
    async run(model, feeds, outputs) {
      const ort = await load();
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
}

/** Stands in where no runner was given: most models need one, to know their masks. */
export const missingRunner: Runner = {
  async run() {
    throw new FlaError(
      'invalid_argument',
      'runner must be given to probe masks, as in { runner: ortRunner(() => ort) }, received none',
    );
  },
};

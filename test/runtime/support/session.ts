import * as ort from 'onnxruntime-node';
import { FlaError, type FlaExecutionProviderOption } from '../../../runtime/node/index.js';

type Options = ort.InferenceSession.SessionOptions;

/** A session on the fla backend without the operator library: these tests are about the backend alone. */
export function createSession(
  model: string | Uint8Array,
  options: Options = {},
  provider: Partial<FlaExecutionProviderOption> = {},
): Promise<ort.InferenceSession> {
  return ort.InferenceSession.create(model as string, {
    ...options,
    executionProviders: [{ name: 'fla', library: false, ...provider }],
  });
}

export function floats(values: readonly number[], dims: readonly number[]): ort.Tensor {
  return new ort.Tensor('float32', Float32Array.from(values), dims);
}

/** The FlaError that `promise` is rejected with. */
export async function failureOf(promise: Promise<unknown>): Promise<FlaError> {
  const outcome = await promise.then(
    () => undefined,
    (error) => error,
  );
  if (outcome instanceof FlaError) return outcome;
  throw new Error(`expected a rejection with a FlaError, received ${outcome}`);
}

import type * as onnxruntime from 'onnxruntime-web';
import { FlaError } from '../../ops/error.js';

/** The parts of onnxruntime-web that are used; every one of its bundles has them. */
export type Ort = Pick<
  typeof onnxruntime,
  'InferenceSession' | 'Tensor' | 'env' | 'registerBackend'
>;

let current: Ort | undefined;

/** Makes `module` the ONNX Runtime that sessions are made with. */
export function setOrt(module: Ort): void {
  current = module;
}

export function ort(): Ort {
  if (current) return current;
  throw new FlaError(
    'not_found',
    'onnx-fla: an ONNX Runtime must be registered first; import onnx-fla/web, or call register(ort) of onnx-fla/web/register',
  );
}

let last: Promise<unknown> = Promise.resolve();

/**
 * Calls `body` when everything before is done. onnxruntime-web hangs or throws when a session is created or run while
 * another one, of whatever session, is under way: all calls of this package go through here. Put your own sessions' calls
 * through it, too, if they may overlap.
 */
export function exclusive<T>(body: () => Promise<T>): Promise<T> {
  const result = last.then(body);
  last = result.catch(() => {});
  return result;
}

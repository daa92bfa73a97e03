import type { Backend } from 'onnxruntime-web';
import { type Ort, setOrt } from './ort.js';
import { FlaSession } from './session.js';

const backend: Backend = {
  // What is missing is told when a session is made: from here, only the text of the error would arrive.
  async init() {},
  async createInferenceSessionHandler(model, options = {}) {
    return FlaSession.create(model, options);
  },
};

/**
 * Makes `executionProviders: ['fla']` known to a bundle of onnxruntime-web. Each bundle is an ONNX Runtime of its own, and the
 * one that was registered last runs this package's sessions.
 */
export function register(ort: Ort): void {
  setOrt(ort);
  // Bundles for browsers count cores by `navigator`, which Node 20 lacks, and then fail.
  if (typeof navigator === 'undefined') ort.env.wasm.numThreads ??= 1;
  ort.registerBackend('fla', backend, -1);
}

import { type Backend, registerBackend } from 'onnxruntime-node';
import { FlaSession } from './session.js';

const backend: Backend = {
  // What is missing is told when a session is made: from here, only the text of the error would arrive.
  async init() {},
  async createInferenceSessionHandler(model, options = {}) {
    return FlaSession.create(model, options);
  },
};

/** Makes `executionProviders: ['fla']` known to onnxruntime-node. Never chosen unless it is asked for. */
export function register(): void {
  registerBackend('fla', backend, -1);
}

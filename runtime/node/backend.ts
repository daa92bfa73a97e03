import { type Backend, registerBackend } from 'onnxruntime-node';
import { load } from './addon.js';
import { FlaSession } from './session.js';

const backend: Backend = {
  async init() {
    load();
  },
  async createInferenceSessionHandler(model, options = {}) {
    return FlaSession.create(model, options);
  },
};

/** Makes `executionProviders: ['fla']` known to onnxruntime-node. Never chosen unless it is asked for. */
export function register(): void {
  registerBackend('fla', backend, -1);
}

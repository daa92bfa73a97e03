import { FlaError } from '../ops/error.js';
import { ortRunner } from './match/runner.js';

/** Runs models on onnxruntime-node, which is loaded when first needed. */
export const nodeRunner = ortRunner(async () => {
  try {
    return await import('onnxruntime-node');
  } catch (cause) {
    throw new FlaError(
      'not_found',
      'onnxruntime-node must be installed to probe masks: npm install onnxruntime-node',
      { cause },
    );
  }
});

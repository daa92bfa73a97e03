import type { Model } from '../ir/index.js';
import { forGenai, type GenaiOptions } from './genai.js';
import type { TargetReport } from './report.js';
import { forTransformersJs } from './transformersjs.js';

export type { GenaiConfig, GenaiOptions } from './genai.js';
export { mergePatch } from './merge_patch.js';
export type { TargetReport } from './report.js';

export const TARGETS = ['transformersjs', 'genai'] as const;
/** Who is to run the model, beside onnx-fla and ONNX Runtime. */
export type Target = (typeof TARGETS)[number];

/**
 * Gives the states of a rewritten decoder the names and shapes that another program carries, in place.
 *
 * @param options the configuration of the original; the file's name for `genai` only
 * @throws FlaError `unsupported` when the model has no states, or some that the program has no place for
 */
export function retarget(model: Model, target: Target, options: GenaiOptions = {}): TargetReport {
  return target === 'genai' ? forGenai(model, options) : forTransformersJs(model, options.config);
}

import { type ControlOptions, rewriteControl as control } from './controls.js';
import { type InspectOptions, type InspectReport, inspectModel as inspect } from './inspect.js';
import type { Model } from './ir/index.js';
import { type LowerOptions, lowerModel as lower } from './lower.js';
import { nodeRunner } from './node_runner.js';
import { type MovedNode, type RaiseOptions, raiseModel as raise } from './raise.js';
import { type RewriteReport, rewriteModel as rewrite } from './rewrite.js';
import type { RewriteOptions } from './variants/options.js';

export * from './browser.js';
export * from './calibrate/index.js';
export * from './ir/file.js';
export { nodeRunner } from './node_runner.js';

/**
 * Finds every Softmax and fused attention node of a model and says what each one is. The model is not changed.
 * Masks are probed on onnxruntime-node unless `options.runner` says otherwise.
 *
 * @throws FlaError `invalid_model` when the graph is malformed
 */
export function inspectModel(model: Model, options: InspectOptions = {}): Promise<InspectReport> {
  return inspect(model, { runner: nodeRunner, ...options });
}

/**
 * Rewrites the attention of a model, in place. When it throws, the model is of no further use.
 * Masks are probed on onnxruntime-node unless `options.runner` says otherwise.
 *
 * @throws FlaError `invalid_argument` for options that do not fit the model, `invalid_model` for a malformed graph,
 * `unsupported` for what a site needs and this version cannot write
 */
export function rewriteModel(model: Model, options: RewriteOptions): Promise<RewriteReport> {
  return rewrite(model, { runner: nodeRunner, ...options });
}

/**
 * Turns LinearAttention and CausalConvWithState of ai.onnx and com.microsoft into those of com.fla, in place.
 *
 * @throws FlaError `invalid_model` when the graph is malformed
 */
export function raiseModel(model: Model, options: RaiseOptions = {}): Promise<MovedNode[]> {
  return raise(model, { runner: nodeRunner, ...options });
}

/**
 * Replaces the operators of com.fla by those of com.microsoft or ai.onnx, in place.
 *
 * @throws FlaError `invalid_model` when the graph is malformed; `unsupported` for `ai.onnx` when the model's opset is neither 26 nor 27
 */
export function lowerModel(model: Model, options: LowerOptions): Promise<MovedNode[]> {
  return lower(model, { runner: nodeRunner, ...options });
}

/**
 * Makes a control to compare rewritten models with, in place: attention zeroed, or a window and sinks only. Masks are probed on
 * onnxruntime-node unless `options.runner` says otherwise.
 *
 * @returns how many attentions were changed
 * @throws FlaError `invalid_argument` for a window of no tokens, `invalid_model` for a malformed graph
 */
export function rewriteControl(model: Model, options: ControlOptions): Promise<number> {
  return control(model, { runner: nodeRunner, ...options });
}

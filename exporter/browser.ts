// Everything but file access and onnxruntime-node: for browsers, and for wherever the caller brings the runtime.
export { type ControlOptions, rewriteControl } from './controls.js';
export {
  type InspectOptions,
  type InspectReport,
  inspectModel,
  type SiteReport,
} from './inspect.js';
export * from './ir/index.js';
export { LOWER_TARGETS, type LowerOptions, type LowerTarget, lowerModel } from './lower.js';
export { ortRunner, type Runner, type RunTensor } from './match/runner.js';
export {
  addMemoryTokens,
  type MemoryTokensOptions,
  type MemoryTokensReport,
  segmentOf,
} from './memory_tokens.js';
export { type MovedNode, type RaiseOptions, raiseModel } from './raise.js';
export {
  type RewriteReport,
  type RewrittenSite,
  rewriteModel,
} from './rewrite.js';
export type { StatePair } from './states.js';
export {
  type GenaiConfig,
  type GenaiOptions,
  mergePatch,
  retarget,
  TARGETS,
  type Target,
  type TargetReport,
} from './targets/index.js';
export { validateModel } from './validate.js';
export type {
  ConstantGate,
  FeatureMapName,
  FittedFeatures,
  Gate,
  HybridFeatureMap,
  HybridLayer,
  LayerGates,
  Parameter,
  ProjectedGate,
  RewriteOptions,
  Variant,
} from './variants/options.js';

export {
  type InspectOptions,
  type InspectReport,
  inspectModel,
  type SiteReport,
} from './inspect.js';
export * from './ir/index.js';
export { nodeRunner, type Runner, type RunTensor } from './match/runner.js';
export {
  type FeatureMapName,
  type Gate,
  type LayerGates,
  type RewriteOptions,
  type RewriteReport,
  type RewrittenSite,
  rewriteModel,
  type StatePair,
  type Variant,
} from './rewrite.js';
export { validateModel } from './validate.js';

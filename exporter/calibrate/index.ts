import type { Model } from '../ir/index.js';
import { openedUp } from '../open_up.js';
import type { RewriteReport } from '../rewrite.js';
import { validateModel } from '../validate.js';
import { assemble, type CalibrateOptions, type Calibration, calibrate } from './calibrate.js';
import { type ChoiceGoal, chooseLayers, type ParetoRow } from './choose.js';
import type { CalibrationData } from './data/index.js';
import { chooseByOutputs, type OutputRow } from './output_quality.js';

export {
  assemble,
  type CalibratedVariant,
  type CalibrateOptions,
  type Calibration,
  calibrate,
} from './calibrate.js';
export { type ChoiceGoal, type ChooseOptions, chooseLayers, type ParetoRow } from './choose.js';
export {
  arrayData,
  type CalibrationData,
  mixedData,
  type Repeat,
  type TokenDataOptions,
  tokenData,
} from './data/index.js';
export { loadData } from './data/load.js';
export { type NpyArray, readNpz, writeNpz } from './data/npz.js';
export { GATED_VARIANTS, type GatedVariant } from './gate_parameters.js';
export { measure, type Quality } from './measure.js';
export type { OutputRow } from './output_quality.js';

export interface CalibrateModelOptions extends CalibrateOptions {
  /** Choose layers to keep as softmax: so many, or as many as it takes to come under a mean KL divergence. */
  choose?: ChoiceGoal;
  /** Held-out batches that quality is measured on; default 4. */
  batches?: number;
}

/** What a calibration came to. */
export interface CalibrationReport {
  rewrite: RewriteReport;
  /** By layer: mean losses at the start and the end of the fit, of all weights, of far ones alone, of the output; for gates, of the output. */
  losses: Record<number, { first: number[]; last: number[] }>;
  /** Language models: quality on held-out data for every number of softmax layers looked at; the last row is the model that came out. */
  pareto: ParetoRow[];
  /** The same for models with bidirectional attention, by their outputs; then `pareto` is empty. */
  outputs: OutputRow[];
}

const PARETO_KEY = 'onnx_fla.pareto';

/**
 * Rewrites a causal language model to hybrid attention whose far part is fitted to the attention of the original (or to another
 * variant, see `variant`), or a model with bidirectional attention to linear attention with fitted feature maps.
 *
 * @returns the rewritten model; `model` itself is left as it is
 * @throws FlaError `aborted` when `signal` fires, `invalid_argument` for options or data that do not fit the model
 */
export async function calibrateModel(
  model: Model,
  data: CalibrationData,
  options: CalibrateModelOptions = {},
): Promise<{ model: Model; report: CalibrationReport; calibration: Calibration }> {
  validateModel(model);
  const opened = openedUp(model);
  const calibration = await calibrate(opened, data, options);
  const goal = options.choose ?? { keep: 0 };
  const { bidirectional } = calibration;
  const outputs = bidirectional
    ? await chooseByOutputs(opened, calibration, data, goal, options)
    : [];
  const pareto = bidirectional ? [] : await chooseLayers(opened, calibration, data, goal, options);
  const { kept } = [...outputs, ...pareto].at(-1)!;
  const { model: rewritten, report } = await assemble(opened, calibration, kept);
  rewritten.setMetadata(PARETO_KEY, JSON.stringify(bidirectional ? outputs : pareto));
  const losses = Object.fromEntries(calibration.losses);
  return { model: rewritten, report: { rewrite: report, losses, pareto, outputs }, calibration };
}

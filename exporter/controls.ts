import { FlaError } from '../ops/error.js';
import { analyse } from './analysis.js';
import type { Model } from './ir/index.js';
import type { Runner } from './match/runner.js';
import { openUp, startsCausally } from './open_up.js';
import { reEmit } from './rewrite.js';
import { validateModel } from './validate.js';
import type { Handicap } from './variants/softmax.js';

/**
 * What a rewritten model is to be compared with:
 *
 * - `zeroed`: attention yields zeros. A model that is no better has lost its attention.
 * - `window`: exact softmax over the first `sinks` and the last `window` tokens, and nothing else. What a linear branch adds is
 *   measured from here. Bidirectional attention sees as far ahead as back.
 */
export type ControlOptions = Handicap & { runner?: Runner; signal?: AbortSignal };

/**
 * Makes a control of a model, in place: every attention that could be rewritten changes, KV caches stay. Controls are written in
 * standard operators, for measuring and not for speed.
 *
 * @returns how many attentions were changed
 * @throws FlaError `invalid_argument` for a window of no tokens, `invalid_model` for a malformed graph
 */
export async function rewriteControl(model: Model, options: ControlOptions): Promise<number> {
  if (options.control === 'window' && !(options.window >= 1 && options.sinks >= 0)) {
    throw new FlaError(
      'invalid_argument',
      `window must be at least 1 and sinks at least 0, received ${options.window} and ${options.sinks}`,
    );
  }
  validateModel(model);
  const causalCaches = await startsCausally(model, options);
  openUp(model);
  const analysis = await analyse(model, { ...options, causalCaches });
  const chosen = analysis.sites.filter(
    ({ sdpa, mask }) => sdpa && mask && mask.kind !== 'other' && !sdpa.cache?.opaque,
  );
  reEmit(chosen, analysis, options);
  model.graph.removeDead();
  model.graph.sort();
  return chosen.length;
}

import * as v from 'valibot';
import { FlaError } from '../ops/error.js';
import { checkShape } from './check_shape.js';
import type { Model } from './ir/index.js';

/** What a rewritten model carries from call to call. */
export const STATE_KEY = 'onnx_fla.state';
/** What became of each attention of the model as it was before any rewrite. */
export const SITES_KEY = 'onnx_fla.sites';

export const statesSchema = v.array(
  v.object({
    past: v.string(),
    present: v.string(),
    shape: v.array(v.union([v.number(), v.string()])),
    dtype: v.string(),
    in_place: v.boolean(),
  }),
);

export const sitesSchema = v.array(
  v.looseObject({ layer: v.nullable(v.number()), variant: v.string() }),
);

/**
 * A list that an earlier rewrite of the same model left in its metadata; empty without one.
 *
 * @throws FlaError `invalid_model` when it is another
 */
export function earlier<T extends v.GenericSchema<unknown, unknown[]>>(
  model: Model,
  key: string,
  schema: T,
): v.InferOutput<T> {
  const text = model.metadata(key);
  return checkShape(
    schema,
    text === undefined ? [] : parsed(key, text),
    `model: metadata ${key}`,
    'invalid_model',
  );
}

function parsed(key: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new FlaError(
      'invalid_model',
      `model: metadata ${key} must be JSON, received ${text.slice(0, 60)}`,
      { cause },
    );
  }
}

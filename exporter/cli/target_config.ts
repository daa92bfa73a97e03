import fs from 'node:fs';
import path from 'node:path';
import { FlaError } from '../../ops/error.js';
import { mergePatch, type Target } from '../index.js';
import { readJson } from '../text/read_text.js';
import { checkWritable, sameFile } from './files.js';

/** A model's configuration, and where that of the rewritten model goes. */
export interface TargetConfig {
  readonly name: string;
  readonly config: object;
  readonly output: string;
  /** Its text with a JSON merge patch applied. */
  patched(patch: object | null): string;
}

/** Where a target's configuration lies, of a model file. */
const PLACES: Readonly<Record<Target, (model: string) => string>> = {
  genai: (model) => path.join(path.dirname(model), 'genai_config.json'),
  // The library looks for models in a folder called onnx, and for config.json above it.
  transformersjs: (model) => {
    const folder = path.dirname(path.resolve(model));
    const root = path.basename(folder) === 'onnx' ? path.dirname(folder) : folder;
    return path.join(root, 'config.json');
  },
};

/** The configuration that a target goes by, where the model has one. */
export function configOf(target: Target, file: string): object | undefined {
  const from = PLACES[target](file);
  return fs.existsSync(from) ? readJson(from) : undefined;
}

/**
 * The configuration that a target goes by of a model, and where and how it is written, patched, for the rewritten one.
 *
 * @throws FlaError `io` when there is none, `invalid_argument` when it is no JSON object or would be overwritten
 */
export function readTargetConfig(target: Target, file: string, written: string): TargetConfig {
  const [from, output] = [file, written].map(PLACES[target]) as [string, string];
  const name = path.basename(from);
  if (sameFile(from, output)) {
    throw new FlaError(
      'invalid_argument',
      `rewrite: target ${target} writes ${output}, which must be another file than the model's own ${name}, received ${written}: choose another folder`,
    );
  }
  if (sameFile(written, output)) {
    throw new FlaError(
      'invalid_argument',
      `rewrite: -o must be another file than ${name}, which target ${target} writes, received ${written}`,
    );
  }
  checkWritable(output);
  const config = readJson(from);
  return {
    name,
    config,
    output,
    patched: (patch) => `${JSON.stringify(mergePatch(config, patch ?? {}), null, 2)}\n`,
  };
}

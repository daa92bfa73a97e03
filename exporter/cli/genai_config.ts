import path from 'node:path';
import { FlaError } from '../../ops/error.js';
import { type GenaiOptions, mergePatch } from '../index.js';
import { writeFiles } from '../ir/write_files.js';
import { readText } from '../text/read_text.js';
import { parseJson } from '../text/tokens.js';
import { sameFile } from './files.js';

const NAME = 'genai_config.json';

/**
 * The genai_config.json in the folder of a model, and a way to write it, patched, into the folder of the rewritten one.
 *
 * @throws FlaError `io` when there is none, `invalid_argument` when it is no JSON or would be overwritten
 */
export function readGenaiConfig(file: string, written: string) {
  const [from, output] = [file, written].map((f) => path.join(path.dirname(f), NAME)) as [
    string,
    string,
  ];
  if (sameFile(from, output)) {
    throw new FlaError(
      'invalid_argument',
      `rewrite: target genai writes ${NAME} beside the output, which must be in another folder than the model, received ${written}`,
    );
  }
  const options: GenaiOptions = {
    config: parseJson(readText(from), from),
    filename: path.basename(written),
  };
  return {
    ...options,
    output,
    write(patch: object | null): void {
      const text = `${JSON.stringify(mergePatch(options.config, patch ?? {}), null, 2)}\n`;
      try {
        writeFiles({ [output]: text });
      } catch (error) {
        throw new FlaError('io', `${output}: cannot be written: ${(error as Error).message}`, {
          cause: error,
        });
      }
    },
  };
}

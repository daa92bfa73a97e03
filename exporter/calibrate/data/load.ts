import fs from 'node:fs';
import path from 'node:path';
import { FlaError } from '../../../ops/error.js';
import { readText } from '../../text/read_text.js';
import { loadTokenizer } from '../../text/tokenizer.js';
import { arrayData, type CalibrationData, type TokenDataOptions, tokenData } from './index.js';
import { type NpyArray, readNpz } from './npz.js';

/**
 * Reads calibration data: a text (with the model's tokenizer), an .npz of arrays named like the model's inputs, or a folder of
 * either.
 *
 * @throws FlaError `io` or `invalid_argument`, naming the file
 */
export function loadData(
  file: string,
  { tokenizer, ...options }: TokenDataOptions & { tokenizer?: string } = {},
): CalibrationData {
  const files = filesOf(file);
  const arrays = files.filter((f) => f.endsWith('.npz'));
  if (arrays.length > 0) return arrayData(arrays.map(readNpz).reduce(joined), options);
  if (!tokenizer) {
    throw new FlaError('invalid_argument', `${file}: is text, which needs a tokenizer`);
  }
  const { encode } = loadTokenizer(tokenizer);
  const ids: number[] = [];
  for (const f of files) for (const id of encode(readText(f))) ids.push(id);
  return tokenData(ids, options);
}

function filesOf(file: string): string[] {
  if (!fs.statSync(file, { throwIfNoEntry: false })?.isDirectory()) return [file];
  const names = fs.readdirSync(file).sort();
  const npz = names.filter((n) => n.endsWith('.npz'));
  const chosen = npz.length > 0 ? npz : names.filter((n) => /\.(txt|md)$/.test(n));
  if (chosen.length === 0) {
    throw new FlaError('invalid_argument', `${file}: holds neither .npz nor .txt files`);
  }
  return chosen.map((n) => path.join(file, n));
}

/** Examples of two files, one after the other. */
function joined(a: Map<string, NpyArray>, b: Map<string, NpyArray>): Map<string, NpyArray> {
  return new Map(
    [...a].map(([name, x]) => {
      const y = b.get(name);
      if (`${y?.dims.slice(1)}` !== `${x.dims.slice(1)}`) {
        throw new FlaError('invalid_argument', `array ${name} must have one shape in all files`);
      }
      const data = new Float64Array(x.data.length + y!.data.length);
      data.set(x.data as Float64Array);
      data.set(y!.data as Float64Array, x.data.length);
      return [name, { dims: [x.dims[0]! + y!.dims[0]!, ...x.dims.slice(1)], data }];
    }),
  );
}

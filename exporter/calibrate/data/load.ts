import fs from 'node:fs';
import path from 'node:path';
import { FlaError } from '../../../ops/error.js';
import { readText } from '../../text/read_text.js';
import { loadTokenizer } from '../../text/tokenizer.js';
import {
  arrayData,
  type CalibrationData,
  mixedData,
  type TokenDataOptions,
  tokenData,
} from './index.js';
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
  if (arrays.length > 0) return byShape(arrays, options);
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

/** Examples of all files; those of one shape together. */
function byShape(files: readonly string[], options: TokenDataOptions): CalibrationData {
  const groups = new Map<string, { arrays: Map<string, NpyArray>; file: string }>();
  for (const file of files) {
    const arrays = readNpz(file);
    const key = [...arrays].map(([name, a]) => `${name} [${a.dims.slice(1)}]`).sort();
    const known = groups.get(`${key}`);
    groups.set(`${key}`, { arrays: known ? joined(known.arrays, arrays) : arrays, file });
  }
  const sources = [...groups.values()].map(({ arrays, file }) => {
    const [first] = arrays.values();
    try {
      return { data: arrayData(arrays, options), examples: first!.dims[0] ?? 0 };
    } catch (error) {
      throw groups.size > 1 ? prefixed(error, file) : error;
    }
  });
  return sources.length === 1 ? sources[0]!.data : mixedData(sources, options.seed);
}

function prefixed(error: unknown, file: string): unknown {
  return error instanceof FlaError ? new FlaError(error.code, `${file}: ${error.message}`) : error;
}

/** Examples of two files, one after the other. */
function joined(a: Map<string, NpyArray>, b: Map<string, NpyArray>): Map<string, NpyArray> {
  return new Map(
    [...a].map(([name, x]) => {
      const y = b.get(name);
      const data = new Float64Array(x.data.length + y!.data.length);
      data.set(x.data as Float64Array);
      data.set(y!.data as Float64Array, x.data.length);
      return [name, { dims: [x.dims[0]! + y!.dims[0]!, ...x.dims.slice(1)], data }];
    }),
  );
}

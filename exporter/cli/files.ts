import fs from 'node:fs';
import path from 'node:path';
import { FlaError } from '../../ops/error.js';
import { externalFiles, type Model } from '../index.js';
import { kindOf } from '../ir/read_file.js';

/** Refuses outputs that would destroy the input or cannot be written, before any work is done. */
export function checkOutput(model: Model, file: string, output: string): void {
  checkWritable(output);
  const data = externalFiles(model).map((name) => path.join(path.dirname(file), name));
  for (const written of [output, `${output}.data`]) {
    for (const read of [file, ...data]) {
      if (!sameFile(written, read)) continue;
      throw new FlaError(
        'invalid_argument',
        `${output}: must be another file than the input, received one that would overwrite ${read}`,
      );
    }
  }
}

/** Refuses a path that no file can be written to. @throws FlaError `io` */
export function checkWritable(output: string): void {
  const folder = path.dirname(path.resolve(output));
  if (!fs.existsSync(folder)) {
    throw new FlaError('io', `${output}: cannot be written: folder ${folder} does not exist`);
  }
  const there = fs.statSync(output, { throwIfNoEntry: false });
  const what = there && kindOf(there);
  if (what) throw new FlaError('io', `${output}: cannot be written: is ${what}`);
}

/** Are these paths of one file, by whatever links? */
export function sameFile(a: string, b: string): boolean {
  if (path.resolve(a) === path.resolve(b)) return true;
  if (!fs.existsSync(a) || !fs.existsSync(b)) return false;
  const [x, y] = [fs.statSync(a), fs.statSync(b)];
  return x.dev === y.dev && x.ino === y.ino;
}

import path from 'node:path';
import { FlaError } from '../../ops/error.js';
import { readNpy, readNpz } from '../calibrate/data/npz.js';
import type { NumberArray } from '../text/encoder.js';
import { readSafetensors } from './safetensors.js';

/**
 * The arrays of a file, by name: .npz and .safetensors as they are named there, that of an .npy as the file.
 *
 * @throws FlaError `io`, or `invalid_argument` naming the file and what is wrong with it
 */
export function readArrays(file: string): Map<string, NumberArray> {
  const { name, ext } = path.parse(file);
  switch (ext.toLowerCase()) {
    case '.npy':
      return new Map([[name, readNpy(file)]]);
    case '.npz':
      return readNpz(file);
    case '.safetensors':
      return new Map(
        readSafetensors(file).map((t) => [t.name, { dims: t.dims, data: t.numbers() }]),
      );
    default:
      throw new FlaError('invalid_argument', `${file}: must be an .npy, .npz or .safetensors file`);
  }
}

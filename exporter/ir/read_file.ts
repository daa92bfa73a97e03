import fs from 'node:fs';
import { FlaError } from '../../ops/error.js';

/** Reads a file whole. @throws FlaError `io` naming the file and the reason */
export function readFile(file: string): Buffer {
  return reading(file, () => fs.readFileSync(file));
}

/**
 * Reads a file of known size whole: pipes and devices are not opened, as one may wait for ever, and the other never end.
 *
 * @throws FlaError `io` naming the file and the reason
 */
export function readRegularFile(file: string): Buffer {
  const what = reading(file, () => kindOf(fs.statSync(file)));
  if (what === undefined) return readFile(file);
  throw new FlaError('io', `${file}: cannot be read: must be a regular file, received ${what}`);
}

/** What it is when it is no regular file. */
export function kindOf(stat: fs.Stats): string | undefined {
  if (stat.isFile()) return undefined;
  if (stat.isDirectory()) return 'a folder';
  if (stat.isFIFO()) return 'a pipe';
  return stat.isSocket() ? 'a socket' : 'a device';
}

function reading<T>(file: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const why = code === 'ENOENT' ? 'no such file' : code === 'EISDIR' ? 'is a folder' : message;
    throw new FlaError('io', `${file}: cannot be read: ${why}`, { cause: error });
  }
}

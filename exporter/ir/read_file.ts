import fs from 'node:fs';
import { FlaError } from '../../ops/error.js';

/** Reads a file whole. @throws FlaError `io` naming the file and the reason */
export function readFile(file: string): Buffer {
  try {
    return fs.readFileSync(file);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const why = code === 'ENOENT' ? 'no such file' : code === 'EISDIR' ? 'is a folder' : message;
    throw new FlaError('io', `${file}: cannot be read: ${why}`, { cause: error });
  }
}

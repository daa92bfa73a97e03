import { readFile } from '../ir/read_file.js';

/** Reads a UTF-8 file. @throws FlaError `io` naming the file and the reason */
export function readText(file: string): string {
  return readFile(file).toString('utf8');
}

import { readFile, readRegularFile } from '../ir/read_file.js';
import { parseJson } from './tokens.js';

/** Reads a UTF-8 file. @throws FlaError `io` naming the file and the reason */
export function readText(file: string): string {
  return readFile(file).toString('utf8');
}

/**
 * The object in a JSON file that nobody named, but that lies beside one that was.
 *
 * @throws FlaError `io`, or `invalid_argument` when it holds none, naming the file
 */
export function readJson(file: string): object {
  return parseJson(readRegularFile(file).toString('utf8'), file);
}

import fs from 'node:fs';
import { deserialize, serialize } from 'node:v8';
import { FlaError } from '../../ops/error.js';
import { writeFiles } from '../ir/write_files.js';

const VERSION = 1;

/** Writes what an interrupted calibration needs to go on; the file is never half written. */
export function saveCheckpoint(file: string, key: string, content: unknown): void {
  writeFiles({ [file]: serialize({ version: VERSION, key, content }) });
}

/**
 * Reads a checkpoint, or undefined when there is none.
 *
 * @param key what the calibration depends on; another one means that the file belongs to another calibration
 * @throws FlaError `invalid_argument` for a file of another calibration, or none at all
 */
export function loadCheckpoint<T>(file: string, key: string): T | undefined {
  if (!fs.existsSync(file)) return undefined;
  let read: { version?: number; key?: string; content?: T };
  try {
    read = deserialize(fs.readFileSync(file));
  } catch (cause) {
    throw new FlaError('invalid_argument', `${file}: is no checkpoint`, { cause });
  }
  if (read.version !== VERSION || read.key !== key) {
    throw new FlaError(
      'invalid_argument',
      `${file}: belongs to another calibration: give the options it was begun with, or remove it`,
    );
  }
  return read.content;
}

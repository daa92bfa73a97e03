import fs from 'node:fs';
import path from 'node:path';
import { FlaError } from '../../../ops/error.js';
import { writeFiles } from '../../ir/write_files.js';
import type { Report } from './schema.js';

/**
 * Writes report.json and report.html into a folder, which is made when it is missing. Both appear complete or not at all.
 *
 * @throws FlaError `io` naming the folder
 */
export async function writeReport(report: Report, folder: string): Promise<string[]> {
  const { reportHtml } = await import('./html.js'); // a plotting library, which other work need not wait for
  const files = {
    'report.json': `${JSON.stringify(report, null, 2)}\n`,
    'report.html': reportHtml(report),
  };
  const paths = Object.entries(files).map(
    ([name, text]) => [path.join(folder, name), text] as const,
  );
  try {
    fs.mkdirSync(folder, { recursive: true });
    writeFiles(Object.fromEntries(paths));
    return paths.map(([file]) => file);
  } catch (error) {
    throw new FlaError('io', `${folder}: cannot be written: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

import fs from 'node:fs';
import path from 'node:path';
import { FlaError } from '../../../ops/error.js';
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
  const made: string[] = [];
  try {
    fs.mkdirSync(folder, { recursive: true });
    for (const [name, text] of Object.entries(files)) {
      made.push(path.join(folder, `${name}.tmp-${process.pid}`));
      fs.writeFileSync(made.at(-1)!, text);
    }
    return Object.keys(files).map((name, i) => {
      const file = path.join(folder, name);
      fs.renameSync(made[i]!, file);
      return file;
    });
  } catch (error) {
    for (const file of made) fs.rmSync(file, { force: true });
    throw new FlaError('io', `${folder}: cannot be written: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

// `npm run gen`: writes docs/compare-report.schema.json; with --check only says whether it is up to date.
import fs from 'node:fs';
import { fileURLToPath } from 'node:url';
import { toJsonSchema } from '@valibot/to-json-schema';
import { reportSchema } from '../exporter/compare/report/schema.js';

/** The layout of report.json as a JSON Schema. */
export function reportJsonSchema(): object {
  return toJsonSchema(reportSchema, { target: 'draft-2020-12', typeMode: 'output' });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const file = new URL('../docs/compare-report.schema.json', import.meta.url);
  const text = `${JSON.stringify(reportJsonSchema(), null, 2)}\n`;
  const before = fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : '';
  if (!process.argv.includes('--check')) fs.writeFileSync(file, text);
  else if (before !== text) {
    console.error('docs/compare-report.schema.json is out of date: npm run gen');
    process.exit(1);
  }
}

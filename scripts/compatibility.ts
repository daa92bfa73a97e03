// `npm run gen`: writes docs/compatibility.md; with --check only says whether it is up to date.
import fs from 'node:fs';
import { compatibilityPage } from '../test/exporter/support/compatibility.js';

const file = new URL('../docs/compatibility.md', import.meta.url);
const text = await compatibilityPage();
const before = fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : '';
if (!process.argv.includes('--check')) fs.writeFileSync(file, text);
else if (before !== text) {
  console.error('docs/compatibility.md is out of date: npm run gen');
  process.exit(1);
}

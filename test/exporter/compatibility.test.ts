import fs from 'node:fs';
import path from 'node:path';
import { expect, it } from 'vitest';
import { ROOT } from '../support/models.js';
import { compatibilityPage } from './support/compatibility.js';

it('docs/compatibility.md is what `npm run gen` writes', async () => {
  const page = await compatibilityPage();
  expect(fs.readFileSync(path.join(ROOT, 'docs/compatibility.md'), 'utf8')).toBe(page);
}, 180_000);

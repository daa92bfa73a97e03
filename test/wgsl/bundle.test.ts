/** The kernels in a bundle for browsers: what they reach, and what they weigh. */
import fs from 'node:fs';
import path from 'node:path';
import { gzipSync } from 'node:zlib';
import { build } from 'vite';
import { expect, it } from 'vitest';
import { ROOT } from '../support/models.js';

it('the kernels see operators only', () => {
  const folder = path.join(ROOT, 'wgsl');
  const sources = fs
    .readdirSync(folder)
    .filter((name) => name.endsWith('.ts') && name !== 'generate.ts');
  expect(sources.length).toBeGreaterThan(4);
  for (const name of sources) {
    const text = fs.readFileSync(path.join(folder, name), 'utf8');
    const imports = [...text.matchAll(/from '([^']+)'/g)].map(([, from]) => from);
    expect(imports.filter((from) => !/^(\.\/|\.\.\/ops\/)/.test(from))).toEqual([]);
  }
});

it('at most 25 KB, compressed, beside the schemas', async () => {
  const result = await build({
    root: ROOT,
    configFile: false,
    logLevel: 'silent',
    build: {
      write: false,
      minify: 'esbuild',
      rollupOptions: {
        input: path.join(ROOT, 'wgsl/kernels.ts'),
        external: /\/ops\//,
        preserveEntrySignatures: 'strict',
      },
    },
  });
  const { output } = result as { output: { code: string }[] };
  const bytes = gzipSync(output[0].code).length;
  expect(output).toHaveLength(1);
  expect(bytes).toBeGreaterThan(5_000);
  expect(bytes).toBeLessThan(25_000);
});

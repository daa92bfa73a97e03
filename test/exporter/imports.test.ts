import fs from 'node:fs';
import path from 'node:path';
import { expect, it } from 'vitest';
import { ROOT } from '../support/models.js';

const EXPORTER = path.join(ROOT, 'exporter');
const sources = fs
  .readdirSync(EXPORTER, { recursive: true, encoding: 'utf8' })
  .filter((f) => f.endsWith('.ts'))
  .map((f) => path.join(EXPORTER, f));

/** What a file imports, types left out; files of this repository as paths relative to its root. */
function imports(file: string): string[] {
  const text = fs.readFileSync(file, 'utf8').replace(/^(import|export) type [^;]*;/gm, '');
  const found = [...text.matchAll(/(?:\bfrom|\bimport\(|^import) ?'([^']+)'/gm)].map((m) => m[1]!);
  return found.map((name) =>
    name.startsWith('.')
      ? path.relative(ROOT, path.resolve(path.dirname(file), name)).replace(/\.js$/, '.ts')
      : name,
  );
}

/** Everything that a file imports, and what that imports, and so on. */
function reached(file: string): Set<string> {
  const seen = new Set<string>();
  const waiting = [path.relative(ROOT, file)];
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    if (seen.has(next)) continue;
    seen.add(next);
    if (next.endsWith('.ts')) waiting.push(...imports(path.join(ROOT, next)));
  }
  return seen;
}

it('what rewrites sees schemas and function bodies only', () => {
  const rewriting = sources.filter(
    (f) => !/exporter\/(calibrate|compare|text|cli)\/|exporter\/index\.ts$/.test(f),
  );
  expect(rewriting.length).toBeGreaterThan(30);
  for (const file of rewriting) {
    const own = imports(file).filter((i) => i.endsWith('.ts'));
    expect(own.filter((i) => !/^(exporter|ops)\//.test(i))).toEqual([]);
    expect(own.filter((i) => /^exporter\/(calibrate|compare|text|cli)\//.test(i))).toEqual([]);
  }
});

it('what runs models sees runtime/node and what it is told of rows besides', () => {
  const own = sources.flatMap(imports).filter((i) => i.endsWith('.ts'));
  expect(own).toContain('runtime/node/index.ts');
  expect(
    own.filter(
      (i) => !/^(exporter\/|ops\/|runtime\/(node\/index|common\/row_lengths)\.ts$)/.test(i),
    ),
  ).toEqual([]);
});

it('the entry for browsers reaches neither files nor onnxruntime-node', () => {
  const all = reached(path.join(EXPORTER, 'browser.ts'));
  expect(all.size).toBeGreaterThan(30);
  expect([...all].filter((i) => i.startsWith('node:') || i.startsWith('onnxruntime'))).toEqual([]);
  expect([...reached(path.join(EXPORTER, 'index.ts'))]).toContain('node:fs');
});

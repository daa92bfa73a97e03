/**
 * Writes what follows from the schemas: ops/gen/<op>.h (C++ tables), ops/gen/<op>_constants.h and docs/ops/<op>.md.
 * `npm run gen` writes; with `--check` nothing is written and the exit status is 1 when a file would change.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, relative } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { cppConstants, cppHeader, snakeCase } from './generate_cpp.js';
import { docPage } from './generate_docs.js';
import { ops } from './index.js';

const root = new URL('..', import.meta.url);

export interface GeneratedFile {
  readonly path: string;
  readonly text: string;
}

/** Every generated file, with absolute paths. */
export function generate(): GeneratedFile[] {
  return Object.values(ops).flatMap((schema) => {
    const name = snakeCase(schema.name);
    const files: [string, string | undefined][] = [
      [`ops/gen/${name}.h`, cppHeader(schema)],
      [`ops/gen/${name}_constants.h`, cppConstants(schema)],
      [`docs/ops/${name}.md`, docPage(schema)],
    ];
    return files.flatMap(([path, text]) =>
      text === undefined ? [] : [{ path: fileURLToPath(new URL(path, root)), text }],
    );
  });
}

/** The generated files whose text on disk differs. */
export function outOfDate(): GeneratedFile[] {
  return generate().filter(({ path, text }) => readOrEmpty(path) !== text);
}

function readOrEmpty(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

function main(): void {
  const stale = outOfDate();
  const names = stale.map(({ path }) => relative(fileURLToPath(root), path));
  if (process.argv.includes('--check')) {
    if (stale.length === 0) return;
    process.stderr.write(`Out of date (run \`npm run gen\`): ${names.join(', ')}\n`);
    process.exitCode = 1;
    return;
  }
  for (const { path, text } of stale) {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
  }
  process.stdout.write(stale.length ? `Wrote ${names.join(', ')}\n` : 'Nothing to do\n');
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) main();

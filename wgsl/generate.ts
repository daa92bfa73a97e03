/**
 * Puts the uniforms' struct between the `// <params>` markers of every shader, and writes wgsl/gen/shaders.ts: the shaders as strings,
 * without comments and indentation, so that they need no loader in Node, in bundles or in tsc builds.
 * `npm run gen` writes; with `--check` nothing is written and the exit status is 1 when a file would change.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, relative } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { paramFields, paramsWgsl } from './params.js';

const root = new URL('..', import.meta.url);
const folder = new URL('wgsl/', root);

export interface GeneratedFile {
  readonly path: string;
  readonly text: string;
}

type Op = keyof typeof paramFields;

/** The operator whose name starts the file's. */
const opOf = (file: string) =>
  (Object.keys(paramFields) as Op[]).find((op) => file.startsWith(op)) ?? fail(file);

function fail(file: string): never {
  throw new Error(`wgsl/${file}: expected a name that starts with that of an operator`);
}

/** Every shader and wgsl/gen/shaders.ts, with absolute paths. */
export function generate(): GeneratedFile[] {
  const names = readdirSync(folder).filter((name) => name.endsWith('.wgsl'));
  const files = names.sort().map((name) => {
    const path = fileURLToPath(new URL(name, folder));
    return { name, path, text: withParams(name, readFileSync(path, 'utf8')) };
  });
  const modules = files.map(({ name, text }) => moduleEntry(name, text)).join('');
  const structs = Object.entries(paramFields).map(
    ([op, fields]) => `const ${op}_params = ${quoted(minified(paramsWgsl(fields)))};\n`,
  );
  const text = `// Written by \`npm run gen\` from wgsl/*.wgsl. Do not edit.
${structs.join('')}
/** A shader: its source, and for each storage binding from 1 on whether it is written ('w') or only read ('r'). */
export interface Shader {
  readonly code: string;
  readonly bindings: string;
}

export const shaders = {
${modules}} satisfies Record<string, Shader>;

export type ShaderName = keyof typeof shaders;
`;
  return [...files, { path: fileURLToPath(new URL('gen/shaders.ts', folder)), text }];
}

const MARKED = /(\/\/ <params>\n)[\s\S]*?(\/\/ <\/params>\n)/;

function withParams(name: string, text: string): string {
  if (!MARKED.test(text)) throw new Error(`wgsl/${name}: expected the markers // <params>`);
  return text.replace(MARKED, `$1${paramsWgsl(paramFields[opOf(name)])}$2`);
}

function moduleEntry(name: string, text: string): string {
  const own = minified(text.replace(MARKED, ''));
  const bindings = [...text.matchAll(/@binding\((\d+)\) var<storage, (read(?:_write)?)>/g)].map(
    ([, , access]) => (access === 'read' ? 'r' : 'w'),
  );
  return `  ${name.replace('.wgsl', '')}: {\n    code: ${opOf(name)}_params + ${quoted(own)},\n    bindings: '${bindings.join('')}',\n  },\n`;
}

/** Without comments, indentation, line breaks and the spaces between tokens that WGSL can do without. */
function minified(text: string): string {
  return text
    .replace(/\/\/.*$/gm, '')
    .replace(/\s+/g, ' ')
    .replace(/ ?([{}()<>[\];:,=+*/&|!?@-]) ?/g, '$1')
    .replace(/([^=<>!+*/&|-])([=<>!]=?|&&|\|\|)-/g, '$1$2 -')
    .trim();
}

const quoted = (text: string) => `'${text.replace(/['\\]/g, '\\$&')}'`;

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

/** The package as a user has it: what its exports resolve to in plain node, their types, the files that npm packs. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ROOT } from './support/models.js';

const folder = mkdtempSync(join(tmpdir(), 'onnx-fla-consumer-'));
afterAll(() => rmSync(folder, { recursive: true }));

const manifest = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));

const SCRIPT = `
import * as ort from 'onnxruntime-node';
import { FlaError, linearAttentionReference, ops } from 'onnx-fla';
import { loadModel, rewriteModel } from 'onnx-fla/exporter';
import { NativeTensor, nativeInfo, StatefulSession } from 'onnx-fla/node';

const tensor: ort.Tensor = new ort.Tensor('float32', Float32Array.of(1), [1]);
const code: string = new FlaError('unsupported', 'no').code;
const rewrite: (model: ReturnType<typeof loadModel>, options: { variant: 'linear' }) => Promise<unknown> = rewriteModel;
const create: (path: string) => Promise<StatefulSession> = (path) => StatefulSession.create(path);
const isa: unknown = nativeInfo().ops.isa;
const failed: string = await ort.InferenceSession.create(new Uint8Array(0), { executionProviders: ['fla'] }).then(
  () => 'created',
  (error) => error.code,
);
const kinds = [typeof linearAttentionReference, typeof NativeTensor, typeof rewrite, typeof create];
console.log(JSON.stringify({ kinds, code, isa, failed, size: tensor.size, ops: Object.keys(ops) }));
`;

/** SCRIPT without its type annotations. */
const plain = SCRIPT.replace(
  /^(const \w+): .*? = (?=new|await|nativeInfo|rewriteModel|\(path\))/gm,
  '$1 = ',
);

beforeAll(() => {
  mkdirSync(join(folder, 'node_modules'));
  symlinkSync(ROOT, join(folder, 'node_modules/onnx-fla'));
  for (const name of ['onnxruntime-node', 'onnxruntime-web', 'onnxruntime-common', '@types']) {
    symlinkSync(join(ROOT, 'node_modules', name), join(folder, 'node_modules', name));
  }
  writeFileSync(join(folder, 'package.json'), JSON.stringify({ type: 'module' }));
});

describe('exports', () => {
  it('load in plain node', () => {
    writeFileSync(join(folder, 'plain.js'), plain);
    const printed = execFileSync(process.execPath, ['plain.js'], { cwd: folder, encoding: 'utf8' });
    expect(JSON.parse(printed)).toEqual({
      kinds: ['function', 'function', 'function', 'function'],
      code: 'unsupported',
      isa: expect.stringMatching(/avx|portable/),
      failed: 'invalid_model',
      size: 1,
      ops: ['LinearAttention', 'CausalConvWithState'],
    });
  });

  it('onnx-fla/web loads in plain node beside onnxruntime-web', () => {
    const script = "await import('onnx-fla/web'); console.log('loaded')";
    const args = ['--input-type=module', '-e', script];
    expect(execFileSync(process.execPath, args, { cwd: folder, encoding: 'utf8' })).toBe(
      'loaded\n',
    );
  });

  it.each([
    ['nodenext', 'nodenext'],
    ['esnext', 'bundler'],
  ])('have types: module %s, moduleResolution %s', (module, moduleResolution) => {
    writeFileSync(join(folder, 'consumer.ts'), `${SCRIPT}\nimport 'onnx-fla/web';\n`);
    const options = {
      module,
      moduleResolution,
      target: 'es2023',
      strict: true,
      noEmit: true,
      types: ['node'],
    };
    const config = {
      compilerOptions: { ...options, lib: ['es2023', 'dom'] },
      files: ['consumer.ts'],
    };
    writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(config));
    const tsc = join(ROOT, 'node_modules/.bin/tsc');
    try {
      execFileSync(tsc, ['-p', folder], { encoding: 'utf8' });
    } catch (error) {
      throw new Error((error as { stdout: string }).stdout);
    }
  });
});

/** Every path in a map of exports, whatever its conditions. */
const targets = (map: unknown): string[] =>
  typeof map === 'string' ? [map] : Object.values(map as object).flatMap(targets);

describe('npm pack', () => {
  const npm = ['pack', '--dry-run', '--json', '--ignore-scripts'];
  const [{ files }] = JSON.parse(
    execFileSync('npm', npm, { cwd: ROOT, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }),
  ) as [{ files: { path: string }[] }];
  const packed = new Set(files.map(({ path }) => path));

  it('has what package.json points at, and what the native parts are built from', () => {
    const wanted = targets([manifest.exports, manifest.bin]).map((path) => path.replace('./', ''));
    for (const path of [
      ...wanted,
      'CMakeLists.txt',
      'scripts/build-native.mjs',
      'README.md',
      'LICENSE',
    ]) {
      expect(packed, path).toContain(path);
    }
  });

  it('imports nothing that a user does not get', () => {
    const given = Object.keys({ ...manifest.dependencies, ...manifest.peerDependencies });
    const imported = files
      .filter(({ path }) => /^dist\/(ops|exporter|runtime)\/.*\.js$/.test(path))
      .flatMap(({ path }) => {
        const source = readFileSync(join(ROOT, path), 'utf8');
        return [
          ...source.matchAll(
            /^(?:import|export) .*?from '([^'.][^']*)'|import\('([^'.][^']*)'\)/gm,
          ),
        ];
      })
      .map(([, from, dynamic]) => from ?? dynamic!)
      .filter((name) => !name.startsWith('node:'))
      .map((name) =>
        name
          .split('/')
          .slice(0, name.startsWith('@') ? 2 : 1)
          .join('/'),
      );
    expect(imported.length).toBeGreaterThan(0);
    expect([...new Set(imported)].filter((name) => !given.includes(name))).toEqual([]);
  });
});

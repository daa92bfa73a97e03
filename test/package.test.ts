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

/** What is written for the browser: only its types are checked here. */
const WEB_SCRIPT = `
import * as ort from 'onnxruntime-web/webgpu';
import { FlaSession, StatefulSession, watchMemory } from 'onnx-fla/web';
import { register } from 'onnx-fla/web/register';
import { type GpuTensor, Kernels } from 'onnx-fla/wgsl';

export function encode(device: GPUDevice, encoder: GPUCommandEncoder, query: GpuTensor, output: GpuTensor): void {
  const attributes = { q_num_heads: 1, kv_num_heads: 1, update_rule: 'linear' };
  new Kernels(device).encode(encoder, { op: 'LinearAttention', attributes, inputs: { query, key: query, value: query }, outputs: { output } });
}

export async function run(device: GPUDevice): Promise<Float32Array> {
  register(ort);
  const bytes: number = watchMemory(device).bytes;
  const plain = await ort.InferenceSession.create('model.onnx', { executionProviders: [{ name: 'fla', device, kernels: true }] });
  await plain.run({ x: new ort.Tensor('float32', [bytes], [1]) });
  const session: FlaSession = await FlaSession.create(new Uint8Array(1), { executionProviders: [{ name: 'fla', device: 'wasm' }] });
  const state = session.zeros('float32', [1, 2, 3]);
  await session.run({ past: state }, { present: state, y: null }, { signal: AbortSignal.timeout(1) });
  const stateful = await StatefulSession.create('model.onnx', { outputs: 'last', batch: 2 });
  const { logits } = await stateful.prefill([[1], [2]], { chunk: 8, onProgress: (done, total) => console.log(done / total) });
  return logits.data as Float32Array;
}
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
      ops: ['LinearAttention', 'CausalConvWithState', 'WindowAttention', 'HybridAttention'],
    });
  });

  it.each(['web', 'web/jspi', 'web/register'])(
    'onnx-fla/%s loads in plain node beside onnxruntime-web',
    (entry) => {
      const script = `console.log(Object.keys(await import('onnx-fla/${entry}')).sort().join(' '))`;
      const args = ['--input-type=module', '-e', script];
      expect(execFileSync(process.execPath, args, { cwd: folder, encoding: 'utf8' })).toBe(
        'DeviceTensor FlaError FlaSession StatefulSession exclusive register requestDevice watchMemory\n',
      );
    },
  );

  it('onnx-fla/wgsl loads in plain node', () => {
    const script = "console.log(Object.keys(await import('onnx-fla/wgsl')).join(' '))";
    const args = ['--input-type=module', '-e', script];
    expect(execFileSync(process.execPath, args, { cwd: folder, encoding: 'utf8' })).toBe(
      'Kernels\n',
    );
  });

  it.each([
    ['nodenext', 'nodenext'],
    ['esnext', 'bundler'],
  ])('have types: module %s, moduleResolution %s', (module, moduleResolution) => {
    writeFileSync(join(folder, 'consumer.ts'), SCRIPT);
    writeFileSync(join(folder, 'consumer_web.ts'), WEB_SCRIPT);
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
      files: ['consumer.ts', 'consumer_web.ts'],
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
      .filter(({ path }) => /^dist\/(ops|exporter|runtime|wgsl)\/.*\.js$/.test(path))
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

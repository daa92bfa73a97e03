/** The kernels by themselves, without ONNX Runtime: random cases in C++, and what their object files look like. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { nativeFile, OPS_LIBRARY } from '../../runtime/native.js';
import { ROOT } from '../support/models.js';

/** Where `npm run build:native` leaves what the libraries are linked from. */
const BUILD = join(ROOT, 'build/cmake');
const OBJECTS = join(BUILD, 'CMakeFiles/fla_kernels.dir/ops');
const folder = mkdtempSync(join(tmpdir(), 'onnx-fla-native-'));
afterAll(() => rmSync(folder, { recursive: true }));

const run = (command: string, args: string[], env: Record<string, string> = {}) =>
  execFileSync(command, args, { encoding: 'utf8', env: { ...process.env, ...env } });

describe.each([
  ['check_linear_attention', '150'],
  ['check_causal_conv_with_state', '300'],
  ['check_hybrid_attention', '150'],
])('%s: random cases against float64', (name, cases) => {
  const program = join(folder, name);

  beforeAll(() => {
    const source = join(ROOT, 'test/native', `${name}.cc`);
    const archive = join(BUILD, 'libfla_kernels.a');
    const options = ['-std=c++17', '-O1', `-I${ROOT}`, '-pthread', '-o', program];
    run('c++', [...options, source, archive]);
  });

  // The program fails, and names the case, when one result is off.
  it.each(['avx512', 'avx2', 'portable'])('%s', (isa) => {
    expect(run(program, [cases, '20261'], { FLA_CPU_ISA: isa })).toMatch(/\d+ passed, 0 failed/);
  });
});

describe('the object files of one instruction set', () => {
  const ops = [
    'linear_attention',
    'causal_conv_with_state',
    'window_attention',
    'hybrid_attention',
  ];
  const isaObjects = ops.flatMap((op) =>
    existsSync(join(OBJECTS, op))
      ? readdirSync(join(OBJECTS, op))
          .filter((file) => /^cpu_\w+\.cc\.o$/.test(file))
          .map((file) => join(op, file))
      : [],
  );

  it('are there', () => expect(isaObjects.length).toBeGreaterThanOrEqual(2));

  // An inline function or template that two files share is kept once, in whichever instruction set the linker meets first.
  it.each(isaObjects)('%s shares nothing but its entry', (file) => {
    const symbols = run('nm', ['--defined-only', '--extern-only', join(OBJECTS, file)]);
    const names = symbols.trim().split('\n');
    expect(names).toHaveLength(1);
    expect(names[0]).toMatch(new RegExp(` T \\w*(${ops.join('|')})_(portable|avx2|avx512)`));
  });
});

// ELF only.
describe.skipIf(process.platform !== 'linux')('the operator library', () => {
  it('needs nothing but the C library: no C++ runtime, no CUDA, no ONNX Runtime', () => {
    const dynamic = run('readelf', ['-d', nativeFile(OPS_LIBRARY)]);
    const needed = [...dynamic.matchAll(/\(NEEDED\).*\[(.*)\]/g)].map(([, name]) => name);
    const system = /^(libc|libm|libdl|librt|libpthread|ld-linux[\w-]*)\.so\.\d+$/;
    expect(needed.filter((name) => !system.test(name!))).toEqual([]);
  });
});

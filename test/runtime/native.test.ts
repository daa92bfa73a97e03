import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { nativeDir, nativeFile } from '../../runtime/native.js';
import { collect, peak, resetPeak, resident } from './support/memory.js';
import { binaryModel, identityModel } from './support/models.js';
import { createSession, failureOf, floats } from './support/session.js';

afterEach(() => vi.unstubAllEnvs());

// The first session of the process comes after this one: nothing is loaded yet.
test('without the compiled parts a session is refused with the remedy', async () => {
  vi.stubEnv('FLA_NATIVE_DIR', tmpdir());
  const error = await failureOf(createSession(binaryModel('Add', 'float32')));
  expect(error.code).toBe('not_found');
  expect(error.message).toContain(join(tmpdir(), 'fla_node.node'));
  expect(error.message).toContain('npm run build:native');
});

describe('where outputs have to be copied', () => {
  test('they are the same, and cost a copy', async () => {
    vi.stubEnv('FLA_COPY_OUTPUTS', '1');
    const size = 32 * 2 ** 20;
    const session = await createSession(identityModel('float32'), { enableCpuMemArena: false });
    const x = new ort.Tensor('float32', new Float32Array(size).fill(2), [size]);
    await collect();
    const before = resident();
    resetPeak();
    const { y } = await session.run({ x });
    const growth = peak() - before;
    expect(y.data[size - 1]).toBe(2);
    // The output of 128 MiB, and its copy.
    expect(growth).toBeGreaterThan(240);
    const z = floats([0, 0], [2]);
    await session.run({ x: floats([1, 2], [2]) }, { y: z });
    expect(z.data).toEqual(Float32Array.of(1, 2));
    await session.release();
  });
});

describe('compiled parts', () => {
  test('are found from the sources', () => {
    expect(nativeFile('fla_node.node')).toBe(
      join(import.meta.dirname, '../../build/native/fla_node.node'),
    );
  });

  test('are found by FLA_NATIVE_DIR', () => {
    vi.stubEnv('FLA_NATIVE_DIR', '/elsewhere');
    expect(nativeDir()).toBe('/elsewhere');
  });
});

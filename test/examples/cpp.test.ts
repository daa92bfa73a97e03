import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  linearAttention,
  linearAttentionReference,
  type Tensor64,
  zeros,
} from '../../ops/index.js';
import { nativeFile, OPS_LIBRARY } from '../../runtime/native.js';
import { relativeError } from '../cases/tensors.js';
import { callModel } from '../support/kernels.js';
import { ROOT } from '../support/models.js';

const [heads, K, V, tokens] = [2, 8, 8, 20];
const attributes = { q_num_heads: heads, kv_num_heads: heads, update_rule: 'linear' } as const;

/** Token `t` of the numbers that decode.c feeds into its input `input`. */
function sample(t: number, input: number, size: number): number[] {
  return Array.from({ length: size }, (_, i) =>
    Math.fround(Math.fround(Math.fround((t * 31 + input * 17 + i * 7) % 23) / 11) - 1),
  );
}

function sequence(input: number, size: number): Tensor64 {
  const rows = Array.from({ length: tokens }, (_, t) => sample(t, input, size));
  return { shape: [1, tokens, size], data: Float64Array.from(rows.flat()) };
}

describe('examples/cpp/decode.c, a plain ONNX Runtime program', () => {
  const folder = mkdtempSync(join(tmpdir(), 'fla-cpp-'));
  const model = join(folder, 'model.onnx');
  const program = join(folder, 'decode');

  beforeAll(() => {
    const cmake = (...args: string[]) => execFileSync('cmake', args, { cwd: ROOT, stdio: 'pipe' });
    cmake('-S', 'examples/cpp', '-B', folder);
    cmake('--build', folder);
    const one = {
      query: zeros([1, 1, heads * K]),
      key: zeros([1, 1, heads * K]),
      value: zeros([1, 1, heads * V]),
    };
    const inputs = { ...one, past_state: zeros([1, heads, K, V]) };
    const dtypes = Object.fromEntries(
      Object.keys(inputs).map((name) => [name, 'float32' as const]),
    );
    writeFileSync(model, callModel({ op: linearAttention, attributes, inputs, dtypes }));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it('decodes with the state carried from token to token', () => {
    const printed = execFileSync(program, [nativeFile(OPS_LIBRARY), model, `${tokens}`], {
      encoding: 'utf8',
    });
    const expected = linearAttentionReference(attributes, {
      query: sequence(0, heads * K),
      key: sequence(1, heads * K),
      value: sequence(2, heads * V),
    });
    const actual = Float64Array.from(printed.trim().split(/\s+/).map(Number));
    expect(relativeError(actual, expected.output.data)).toBeLessThanOrEqual(1e-6);
  });

  it('reports a library that is not there', () => {
    const { status, stderr } = spawnSync(program, [model, model, '1'], {
      encoding: 'utf8',
    });
    expect(status).toBe(1);
    expect(stderr).toContain('Failed to load library');
  });
});

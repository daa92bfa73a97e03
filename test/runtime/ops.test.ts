import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, describe, expect, test } from 'vitest';
import { buildModel, makeNode, modelBytes } from '../../exporter/ir/index.js';
import { NativeTensor, nativeInfo, StatefulSession } from '../../runtime/node/index.js';
import { failureOf, floats } from './support/session.js';

const HEADS = 2;
const DIM = 8;
const WIDTH = HEADS * DIM;

/** One com.fla.LinearAttention with a decay per head. */
function attention(
  dtype: 'float32' | 'bfloat16' = 'float32',
  metadata: Record<string, string> = {},
): Uint8Array {
  const packed = [dtype, ['B', 'T', WIDTH]] as const;
  const state = ['float32', ['B', HEADS, DIM, DIM]] as const;
  const attributes = { q_num_heads: HEADS, kv_num_heads: HEADS, update_rule: 'gated' };
  return modelBytes(
    buildModel({
      opsets: { '': 17, 'com.fla': 1 },
      metadata,
      inputs: { q: packed, k: packed, v: packed, past_state: state, g: [dtype, ['B', 'T', 'H']] },
      outputs: { o: packed, present_state: state },
      nodes: [
        makeNode(
          'LinearAttention',
          ['q', 'k', 'v', 'past_state', 'g'],
          ['o', 'present_state'],
          attributes,
          {
            domain: 'com.fla',
            name: 'attention',
          },
        ),
      ],
    }),
  );
}

function wave(length: number, width: number, phase: number): ort.Tensor {
  const values = Array.from({ length: length * width }, (_, i) => Math.sin(i * 0.37 + phase));
  return floats(values, [1, length, width]);
}

function feeds(length: number): Record<string, ort.Tensor> {
  const g = floats(new Array(length * HEADS).fill(-0.1), [1, length, HEADS]);
  return { q: wave(length, WIDTH, 0), k: wave(length, WIDTH, 1), v: wave(length, WIDTH, 2), g };
}

const fla = { executionProviders: ['fla'] };
const noState = () =>
  new ort.Tensor('float32', new Float32Array(HEADS * DIM * DIM), [1, HEADS, DIM, DIM]);

/** The upper half of a float32: bfloat16, rounded towards zero. */
const bfloatBits = (x: number) => new Uint32Array(Float32Array.of(x).buffer)[0]! >>> 16;
const bfloat = (x: number) => new Float32Array(Uint32Array.of(bfloatBits(x) << 16).buffer)[0]!;

/** The recurrence in double precision, on inputs that went through `seen`. */
function reference(length: number, seen = (x: number) => x): number[] {
  const { q, k, v } = feeds(length);
  const at = (x: ort.Tensor, t: number, h: number, i: number) =>
    seen(Number(x.data[t * WIDTH + h * DIM + i]));
  const kept = Math.exp(seen(-0.1));
  const out = new Array<number>(length * WIDTH).fill(0);
  for (let h = 0; h < HEADS; h++) {
    const state = new Float64Array(DIM * DIM);
    for (let t = 0; t < length; t++) {
      for (let i = 0; i < DIM; i++) {
        for (let j = 0; j < DIM; j++) {
          state[i * DIM + j] = state[i * DIM + j] * kept + at(k, t, h, i) * at(v, t, h, j);
          out[t * WIDTH + h * DIM + j] += (at(q, t, h, i) * state[i * DIM + j]) / Math.sqrt(DIM);
        }
      }
    }
  }
  return out;
}

function expectClose(actual: ArrayLike<number>, expected: ArrayLike<number>): void {
  expect(actual.length).toBe(expected.length);
  for (let i = 0; i < actual.length; i++) expect(actual[i]).toBeCloseTo(expected[i], 4);
}

describe('the operator library', () => {
  test('says what it has', () => {
    const { runtime, library, ops } = nativeInfo();
    expect(runtime.version).toMatch(/^1\.\d+\.\d+/);
    expect(runtime.providers).toContain('CPUExecutionProvider');
    expect(library).toMatch(/libfla_ops\.(so|dylib)$/);
    expect(ops.ops).toContain('com.fla.LinearAttention');
  });

  test("is what executionProviders: ['fla'] runs", async () => {
    const folder = mkdtempSync(join(tmpdir(), 'onnx-fla-ops-'));
    afterAll(() => rmSync(folder, { recursive: true, force: true }));
    const profile = { enableProfiling: true, profileFilePrefix: join(folder, 'profile') };
    const session = await ort.InferenceSession.create(attention(), { ...fla, ...profile });
    const { o } = await session.run({ ...feeds(20), past_state: noState() });
    expectClose(o.data as Float32Array, reference(20));
    session.endProfiling();
    const events = JSON.parse(readFileSync(join(folder, readdirSync(folder)[0]), 'utf8')) as {
      args?: { op_name?: string };
    }[];
    expect(new Set(events.map(({ args }) => args?.op_name).filter(Boolean))).toEqual(
      new Set(['LinearAttention']),
    );
    await session.release();
  });

  test('is left out on request: then a model without function bodies does not load', async () => {
    const off = { name: 'fla', library: false } as const;
    const error = await failureOf(
      ort.InferenceSession.create(attention(), { executionProviders: [off] }),
    );
    expect(error.message).toContain('com.fla');
  });

  test('refuses by op, argument, expected and received', async () => {
    const session = await ort.InferenceSession.create(attention(), { ...fla, logSeverityLevel: 4 });
    const wrong = {
      ...feeds(4),
      g: floats(new Array(12).fill(0), [1, 4, 3]),
      past_state: noState(),
    };
    const error = await failureOf(session.run(wrong));
    expect(error.message).toMatch(
      /^LinearAttention: decay must be .*\[1,4,3\].*\(node attention\)$/s,
    );
    await session.release();
  });

  test('moves bfloat16 in and out', async () => {
    const session = await ort.InferenceSession.create(attention('bfloat16'), fla);
    const toBits = (x: ort.Tensor) => {
      const bits = Uint16Array.from(x.data as Float32Array, bfloatBits);
      return NativeTensor.from('bfloat16', bits, x.dims) as unknown as ort.Tensor;
    };
    const short = Object.fromEntries(
      Object.entries(feeds(5)).map(([name, x]) => [name, toBits(x)]),
    );
    const { o } = await session.run({ ...short, past_state: noState() });
    expect([o.type, o.dims]).toEqual(['bfloat16', [1, 5, WIDTH]]);
    const bits = o.data as unknown as Uint16Array;
    const expected = reference(5, bfloat);
    // One rounding to 8 bits of mantissa.
    for (const [i, e] of expected.entries()) {
      const actual = new Float32Array(Uint32Array.of(bits[i]! << 16).buffer)[0]!;
      expect(Math.abs(actual - e)).toBeLessThanOrEqual(2 ** -8 * Math.abs(e) + 1e-6);
    }
    await session.release();
  });
});

describe('state', () => {
  const LENGTH = 50;

  test.each([true, false])('in chunks and steps as in one run, inPlace: %s', async (inPlace) => {
    const session = await StatefulSession.create(attention(), { inPlace });
    const whole = await session.prefill(feeds(LENGTH), { outputs: ['o'], chunk: LENGTH });
    const expected = reference(LENGTH);
    expectClose(whole.o.data as Float32Array, expected);

    await session.reset();
    const parts: number[] = [];
    await session.prefill(feeds(LENGTH), {
      outputs: ['o'],
      chunk: 7,
      onChunk: ({ o }) => void parts.push(...(o.data as Float32Array)),
    });
    expectClose(parts, expected);
    expect(session.stateBytes).toBe(4 * HEADS * DIM * DIM);
    await session.dispose();
  });

  test('in place where the metadata says so and the kernels run', async () => {
    const state = [{ past: 'past_state', present: 'present_state', in_place: true }];
    const session = await StatefulSession.create(
      attention('float32', { 'onnx_fla.state': JSON.stringify(state) }),
    );
    expect(session.session.hasLibrary).toBe(true);
    expect(session.pairs).toMatchObject([{ inPlace: true }]);
    const { o } = await session.prefill(feeds(LENGTH), { chunk: 7 });
    expectClose(o.data as Float32Array, reference(LENGTH).slice(-WIDTH));
    await session.dispose();
  });

  test('in place by hand: the same tensor as feed and fetch', async () => {
    const session = await ort.InferenceSession.create(attention(), fla);
    const state = NativeTensor.zeros('float32', [1, HEADS, DIM, DIM]) as unknown as ort.Tensor;
    const all = feeds(LENGTH);
    const expected = reference(LENGTH);
    for (let t = 0; t < LENGTH; t++) {
      const at = (x: ort.Tensor) => {
        const width = x.dims[2];
        return new ort.Tensor(
          'float32',
          (x.data as Float32Array).subarray(t * width, (t + 1) * width),
          [1, 1, width],
        );
      };
      const step = Object.fromEntries(Object.entries(all).map(([name, x]) => [name, at(x)]));
      const { o } = await session.run(
        { ...step, past_state: state },
        { o: null, present_state: state },
      );
      expectClose(o.data as Float32Array, expected.slice(t * WIDTH, (t + 1) * WIDTH));
    }
    await session.release();
  });
});

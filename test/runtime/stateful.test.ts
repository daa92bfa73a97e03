import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import {
  buildModel,
  Emitter,
  freshNames,
  loadModel,
  modelBytes,
  rewriteModel,
  saveModel,
} from '../../exporter/index.js';
import { type StatefulOptions, StatefulSession } from '../../runtime/node/index.js';
import { TINYLM } from '../support/models.js';
import { collect, resident } from './support/memory.js';
import { cumulativeModel } from './support/models.js';
import { failureOf, floats } from './support/session.js';

const open: StatefulSession[] = [];
async function create(
  model: string | Uint8Array,
  options: StatefulOptions = {},
): Promise<StatefulSession> {
  const fla = { name: 'fla', library: false } as const;
  const session = await StatefulSession.create(model, { executionProviders: [fla], ...options });
  open.push(session);
  return session;
}
afterEach(async () => {
  for (const session of open.splice(0)) await session.dispose();
});

/** [1,T,1] of 1, 2, 3, ... */
function ramp(length: number): { x: ort.Tensor } {
  return {
    x: floats(
      Array.from({ length }, (_, i) => i + 1),
      [1, length, 1],
    ),
  };
}

function values(tensor: ort.Tensor): number[] {
  return [...(tensor.data as Float32Array)];
}

const single = () => cumulativeModel({ dim: 1 });

describe('pairs', () => {
  const names: [string, string][] = [
    ['past_state', 'present_state'],
    ['past_key_values.0.key', 'present.0.key'],
    ['past_key_values.3.conv', 'present_key_values.3.conv'],
    ['layers.2.past_memory', 'layers.2.present_memory'],
    ['past', 'present'],
  ];
  test.each(names)('%s -> %s', async (past, present) => {
    const session = await create(cumulativeModel({ past, present }));
    expect(session.pairs).toMatchObject([{ past, present, type: 'float32', shape: ['B', 3] }]);
  });

  test('those that the model lists, under any name', async () => {
    const metadata = {
      'onnx_fla.state': JSON.stringify([{ past: 'memory_in', present: 'memory_out' }]),
    };
    const session = await create(
      cumulativeModel({ past: 'memory_in', present: 'memory_out', metadata }),
    );
    expect(session.pairs).toMatchObject([{ past: 'memory_in', present: 'memory_out' }]);
  });

  test('a list that is wrong', async () => {
    const wrong = (text: string) =>
      failureOf(create(cumulativeModel({ metadata: { 'onnx_fla.state': text } })));
    expect((await wrong('{')).message).toContain('metadata onnx_fla.state must be JSON');
    expect((await wrong('{}')).message).toContain('must be a list, received {}');
    expect((await wrong('[{"past":"past_state","present":"nothing"}]')).message).toBe(
      "model: state 'past_state' must have the output 'nothing'",
    );
  });

  test('none', async () => {
    const error = await failureOf(create(cumulativeModel({ past: 'a', present: 'b' })));
    expect(error.code).toBe('invalid_model');
    expect(error.message).toContain(
      'must have past/present pairs, received inputs x a and outputs y b',
    );
  });
});

describe('prefill and step', () => {
  test.each([1, 2, 3, 7, 10, 100])('chunks of %i give what one run gives', async (chunk) => {
    const session = await create(single());
    const { y } = await session.prefill(ramp(10), { chunk });
    expect([y.dims, values(y)]).toEqual([[1, 1, 1], [55]]);
    expect(session.position).toBe(10);
    expect(values((await session.step({ x: floats([5], [1, 1, 1]) })).y)).toEqual([60]);
    expect(session.position).toBe(11);
  });

  test('a batch', async () => {
    const session = await create(single(), { batch: 2 });
    const x = floats([1, 2, 3, 10, 20, 30], [2, 3, 1]);
    const { y } = await session.prefill({ x }, { chunk: 2 });
    expect([y.dims, values(y)]).toEqual([
      [2, 1, 1],
      [6, 60],
    ]);
  });

  test('named outputs come whole, chunk by chunk', async () => {
    const session = await create(single());
    const seen: [number, number, number[]][] = [];
    await session.prefill(ramp(5), {
      chunk: 2,
      outputs: ['y'],
      onChunk: ({ y }, start, count) => void seen.push([start, count, values(y)]),
    });
    expect(seen).toEqual([
      [0, 2, [1, 3]],
      [2, 2, [6, 10]],
      [4, 1, [15]],
    ]);
  });

  test("outputs: 'none', and a name that is none", async () => {
    const session = await create(single(), { outputs: 'none' });
    expect(await session.prefill(ramp(5))).toEqual({});
    const error = await failureOf(session.step(ramp(1), { outputs: ['present_state'] }));
    expect(error.message).toBe(
      "StatefulSession: outputs must be among y, received 'present_state'",
    );
    expect(session.position).toBe(5);
  });

  test('progress is told, a signal stops between chunks', async () => {
    const session = await create(single());
    const controller = new AbortController();
    const progress: [number, number][] = [];
    const running = session.prefill(ramp(10), {
      chunk: 3,
      signal: controller.signal,
      onProgress: (done, total) => {
        progress.push([done, total]);
        if (done === 6) controller.abort(new Error('enough'));
      },
    });
    await expect(running).rejects.toThrow('enough');
    expect(progress).toEqual([
      [3, 10],
      [6, 10],
    ]);
    expect(session.position).toBe(6);
    expect(values((await session.step({ x: floats([0], [1, 1, 1]) })).y)).toEqual([21]);
  });

  test('calls are carried out in the order in which they were made', async () => {
    const session = await create(single());
    const steps = Array.from({ length: 20 }, (_, i) =>
      session.step({ x: floats([i + 1], [1, 1, 1]) }),
    );
    const sums = (await Promise.all(steps)).map(({ y }) => values(y)[0]);
    expect(sums).toEqual(Array.from({ length: 20 }, (_, i) => ((i + 1) * (i + 2)) / 2));
  });

  test('memory does not grow with the length', async () => {
    const session = await create(single());
    const feeds = { x: floats(new Array(100_000).fill(1), [1, 100_000, 1]) };
    const sweep = async () => {
      await session.prefill(feeds, { chunk: 50 });
      await collect();
      return resident();
    };
    const before = await sweep();
    expect((await sweep()) - before).toBeLessThan(8);
    expect(values((await session.step(ramp(1))).y)).toEqual([200_001]);
  });

  test('nothing to take in', async () => {
    const session = await create(single());
    expect(await session.prefill({ x: floats([], [1, 0, 1]) })).toEqual({});
    expect(session.position).toBe(0);
  });

  test('wrong arguments', async () => {
    const session = await create(single());
    expect((await failureOf(session.prefill(ramp(1), { chunk: 0 }))).message).toContain(
      'chunk must be an integer >= 1',
    );
    expect((await failureOf(session.step(1))).message).toContain('pass tensors by name instead: x');
    expect((await failureOf(session.step({}))).message).toContain('time along axis 1');
    expect((await failureOf(create(single(), { batch: 0 }))).message).toContain(
      'batch must be an integer >= 1, received 0',
    );
  });
});

describe('state', () => {
  test('reset, save and load', async () => {
    const session = await create(single());
    expect(session.stateBytes).toBe(4);
    await session.prefill(ramp(4));
    const saved = await session.save();
    expect(saved).toMatchObject({
      position: 4,
      tensors: { past_state: { type: 'float32', dims: [1, 1] } },
    });
    await session.prefill(ramp(4));
    await session.reset();
    expect(session.position).toBe(0);
    expect(values((await session.step(ramp(1))).y)).toEqual([1]);

    await session.load(structuredClone(saved));
    expect(session.position).toBe(4);
    expect(values((await session.step(ramp(1))).y)).toEqual([11]);

    const other = await create(single());
    await other.load(saved);
    expect(values((await other.step(ramp(1))).y)).toEqual([11]);
  });

  test('a snapshot of another model is refused, and nothing is changed', async () => {
    const session = await create(single());
    await session.prefill(ramp(4));
    const foreign = await (await create(cumulativeModel({ dim: 2 }))).save();
    expect((await failureOf(session.load(foreign))).message).toBe(
      "StatefulSession.load: dims of 'past_state' must be [1,1], received [1,2]",
    );
    const none = { position: 1, tensors: {} };
    expect((await failureOf(session.load(none))).message).toContain(
      "'past_state' must be in the snapshot, received none",
    );
    expect(values((await session.step(ramp(1))).y)).toEqual([11]);
  });

  test('a run that fails leaves it as it was', async () => {
    const session = await create(single(), { logSeverityLevel: 4 });
    await session.prefill(ramp(4));
    await failureOf(session.step({ x: floats([1, 2], [1, 1, 2]) }));
    expect(session.position).toBe(4);
    expect(values((await session.step(ramp(1))).y)).toEqual([11]);
  });

  test('in place: one tensor is read and written', async () => {
    const session = await create(single(), { inPlace: true });
    for (let i = 0; i < 5; i++)
      await session.step({ x: floats([1], [1, 1, 1]) }, { outputs: 'none' });
    const { past_state } = (await session.save()).tensors;
    expect(new Float32Array(past_state.data.buffer)).toEqual(Float32Array.of(5));
  });

  test('in place only what is named', async () => {
    // Here y reads the past after the present was written, so that in place it comes out wrong; that is how one can tell.
    const sums = async (inPlace: boolean | string[]) => {
      const session = await create(single(), { inPlace });
      await session.step(ramp(1));
      return values((await session.step(ramp(1))).y);
    };
    expect(await sums(['another'])).toEqual([2]);
    expect(await sums(['past_state'])).toEqual(await sums(true));
    expect(await sums(true)).not.toEqual([2]);
  });

  test('in place: a run that was refused changes nothing, one that failed calls for a reset', async () => {
    const session = await create(single(), { inPlace: true, logSeverityLevel: 4 });
    await session.prefill(ramp(4), { outputs: 'none' });
    await failureOf(session.step({ x: floats([1, 2], [1, 1, 2]) }));
    await session.step(ramp(1), { outputs: 'none' });
    // Two sequences do not fit a state of one.
    await failureOf(session.step({ x: floats([1, 2], [2, 1, 1]) }));
    expect((await failureOf(session.step(ramp(1)))).message).toContain('call reset() or load()');
    await session.reset();
    await session.step(ramp(2), { outputs: 'none' });
    const { past_state } = (await session.save()).tensors;
    expect(new Float32Array(past_state.data.buffer)).toEqual(Float32Array.of(3));
  });

  test('use after dispose is rejected, pending calls are not', async () => {
    const session = await create(single());
    const pending = session.prefill(ramp(4));
    await session.dispose();
    await session.dispose();
    expect(values((await pending).y)).toEqual([10]);
    const error = await failureOf(session.step(ramp(1)));
    expect([error.code, error.message]).toEqual([
      'disposed',
      'StatefulSession: used after dispose()',
    ]);
  });
});

describe('inputs that follow from the position', () => {
  /** present_state counts; the other inputs are handed back to be looked at. */
  function echo(metadata?: Record<string, string>): Uint8Array {
    const e = new Emitter(freshNames());
    e.op('Identity', ['attention_mask'], {}, { output: 'mask' });
    e.op('Identity', ['position_ids'], {}, { output: 'positions' });
    e.op('Identity', ['cache_position'], {}, { output: 'cache' });
    const ids = e.op('Cast', ['input_ids'], { to: 1 });
    e.op(
      'Add',
      ['past_state', e.op('ReduceSum', [ids, e.ints(1)])],
      {},
      { output: 'present_state' },
    );
    return modelBytes(
      buildModel({
        inputs: {
          input_ids: ['int64', ['batch', 'T']],
          attention_mask: ['int64', ['batch', 'total']],
          position_ids: ['int32', ['batch', 'T']],
          cache_position: ['int64', ['T']],
          past_state: ['float32', ['batch', 1]],
        },
        outputs: {
          mask: ['int64', ['batch', 'total']],
          positions: ['int32', ['batch', 'T']],
          cache: ['int64', ['T']],
          present_state: ['float32', ['batch', 1]],
        },
        nodes: e.nodes,
        metadata,
      }),
    );
  }
  const outputs = ['mask', 'positions', 'cache'];

  test('are fed', async () => {
    const session = await create(echo(), { outputs, batch: 2 });
    const rows = [
      [1, 2, 3],
      [4, 5, 6],
    ];
    await session.prefill(rows);
    const { mask, positions, cache } = await session.step([
      [7, 8],
      [9, 10],
    ]);
    expect([mask.dims, new Set(mask.data as BigInt64Array)]).toEqual([[2, 5], new Set([1n])]);
    expect([positions.dims, positions.data]).toEqual([[2, 2], Int32Array.of(3, 4, 3, 4)]);
    expect([cache.dims, cache.data]).toEqual([[2], BigInt64Array.of(3n, 4n)]);
  });

  test('the mask covers the tokens of the run where the model says so', async () => {
    const session = await create(echo({ 'onnx_fla.attention_mask': 'current' }), { outputs });
    await session.prefill([1, 2, 3]);
    expect((await session.step(7)).mask.dims).toEqual([1, 1]);
  });

  test('the caller may give them', async () => {
    const session = await create(echo(), { outputs });
    const feeds = {
      input_ids: new ort.Tensor('int64', [5n], [1, 1]),
      attention_mask: new ort.Tensor('int64', [0n, 1n], [1, 2]),
    };
    expect((await session.step(feeds)).mask.data).toEqual(BigInt64Array.of(0n, 1n));
  });

  test('tokens are checked', async () => {
    const session = await create(echo(), { batch: 2 });
    const message = async (tokens: number[] | number[][]) =>
      (await failureOf(session.prefill(tokens))).message;
    expect(await message([1, 2])).toContain('tokens must be 2 lists, received 1');
    expect(await message([[1], []])).toContain('token lists must not be empty');
    expect(await message([[1.5], [2]])).toContain('tokens must be integers, received 1.5');
  });
});

describe('a language model with an ordinary KV cache', () => {
  const bytes = readFileSync(TINYLM.text);
  // Any ids below the vocabulary of 2048 do.
  const ids = Array.from({ length: 150 }, (_, i) => (bytes[i] * 7 + i) % 2048);

  /** Logits of all positions by the model without cache, on the stock backend. */
  async function reference(): Promise<{ data: Float32Array; vocab: number }> {
    const session = await ort.InferenceSession.create(TINYLM.model);
    const dims = [1, ids.length];
    const { logits } = await session.run({
      input_ids: new ort.Tensor('int64', ids.map(BigInt), dims),
      attention_mask: new ort.Tensor(
        'int64',
        ids.map(() => 1n),
        dims,
      ),
    });
    await session.release();
    return { data: logits.data as Float32Array, vocab: logits.dims[2] };
  }

  function distance(a: Float32Array, b: Float32Array): number {
    expect(a.length).toBe(b.length);
    return a.reduce((worst, value, i) => Math.max(worst, Math.abs(value - b[i])), 0);
  }

  test('chunked prefill and steps equal the run without cache', async () => {
    const { data, vocab } = await reference();
    const session = await create(TINYLM.modelKv);
    expect(session.pairs).toHaveLength(8);
    expect(session.stateBytes).toBe(0);
    const { logits } = await session.prefill(ids.slice(0, 140), { chunk: 33 });
    expect(logits.dims).toEqual([1, 1, vocab]);
    expect(
      distance(logits.data as Float32Array, data.subarray(139 * vocab, 140 * vocab)),
    ).toBeLessThan(2e-4);
    for (let i = 140; i < 150; i++) {
      const step = await session.step(ids[i]);
      expect(
        distance(step.logits.data as Float32Array, data.subarray(i * vocab, (i + 1) * vocab)),
      ).toBeLessThan(2e-4);
    }
    // 4 layers, key and value, 2 heads of 64, float32.
    expect(session.stateBytes).toBe(4 * 2 * 2 * 64 * 4 * 150);
    const saved = await session.save();
    await session.reset();
    expect(session.stateBytes).toBe(0);
    await session.load(saved);
    expect(session.position).toBe(150);
  });
});

describe('the same language model with linear attention', () => {
  const folder = mkdtempSync(join(tmpdir(), 'onnx-fla-stateful-'));
  const model = join(folder, 'linear.onnx');
  const ids = Array.from({ length: 100 }, (_, i) => (i * 37 + 5) % 2048);
  beforeAll(async () => {
    const original = loadModel(TINYLM.modelKv);
    await rewriteModel(original, { variant: 'linear' });
    saveModel(original, model);
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  async function logits(options: StatefulOptions, chunk: number): Promise<Float32Array> {
    const session = await StatefulSession.create(model, options);
    await session.prefill(ids.slice(0, 90), { chunk });
    const bytes = session.stateBytes;
    for (const id of ids.slice(90, 99)) await session.step(id, { outputs: 'none' });
    const last = await session.step(ids[99]);
    expect(session.stateBytes).toBe(bytes);
    await session.dispose();
    return last.logits.data as Float32Array;
  }

  test('chunks of any size, kernels or function bodies, in place or not', async () => {
    const whole = await logits({}, 90);
    const probe = await StatefulSession.create(model);
    const states = probe.pairs.filter(({ shape }) => shape.length === 4).map(({ past }) => past);
    await probe.dispose();
    expect(states).toHaveLength(4);
    const bodies = [{ name: 'fla', library: false }] as const;
    const others = [
      await logits({}, 7),
      await logits({ inPlace: states }, 32),
      await logits({ executionProviders: bodies }, 32),
    ];
    const scale = Math.max(...whole.map(Math.abs));
    for (const other of others) {
      for (let i = 0; i < whole.length; i++) {
        expect(Math.abs(other[i] - whole[i])).toBeLessThan(2e-5 * scale);
      }
    }
  });
});

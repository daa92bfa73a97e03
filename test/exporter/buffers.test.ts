/** Caches of fixed length that TensorScatter writes, under StatefulSession, which feeds what they are told. */
import { afterEach, describe, expect, it } from 'vitest';
import {
  inspectModel,
  type Model,
  modelBytes,
  parseModel,
  type RewriteOptions,
  rewriteControl,
  rewriteModel,
} from '../../exporter/index.js';
import { StatefulSession } from '../../runtime/node/index.js';
import { BUFFERS, decoder } from './support/decoder.js';
import { distance, ints, run } from './support/run.js';

const open: StatefulSession[] = [];
afterEach(async () => {
  for (const session of open.splice(0)) await session.dispose();
});

const ROWS = [
  [3, 9, 14, 2, 20, 7, 7, 1],
  [5, 5, 11, 18, 0, 13, 4, 21],
];

/** What the same attention without a cache says of both rows. */
async function bare(model: Model): Promise<number[][]> {
  const places = ROWS.flatMap((row) => [...row.keys()]);
  const { y } = await run(model, {
    input_ids: ints([2, 8], ROWS.flat()),
    position_ids: ints([2, 8], places),
  });
  return [[...(y!.data as Float32Array)]];
}

/** What is said of all tokens of two rows, read in pieces. */
async function read(model: Model, pieces: readonly number[]): Promise<number[][]> {
  const session = await StatefulSession.create(modelBytes(model), {
    batch: 2,
    logSeverityLevel: 3, // TensorScatter tells of copies
  });
  open.push(session);
  const said: number[][] = [[], []];
  let from = 0;
  for (const count of pieces) {
    const { y } = await session.step(
      ROWS.map((row) => row.slice(from, from + count)),
      { outputs: ['y'] },
    );
    const width = count * y!.dims[2]!;
    said.forEach((row, b) => {
      row.push(...(y!.data as Float32Array).subarray(b * width, (b + 1) * width));
    });
    from += count;
  }
  return said;
}

const far = (a: readonly number[][], b: readonly number[][]) => distance(a.flat(), b.flat());

describe.each(BUFFERS)('$name', ({ spec }) => {
  const rewritten = async (options: RewriteOptions) => {
    const model = decoder(spec);
    const report = await rewriteModel(model, options);
    return { model: parseModel(modelBytes(model)), report };
  };

  it('takes no rows of different length, which nonpad_kv_seqlen cannot tell of', async () => {
    const model = modelBytes((await rewritten({ variant: 'linear' })).model);
    const session = await StatefulSession.create(model, { batch: 2 });
    open.push(session);
    await expect(session.prefill([[1, 2, 3], [4]])).rejects.toThrow(
      'as the model has no input that tells of padding, received 3 and 1',
    );
  });

  it('is found', async () => {
    expect((await inspectModel(decoder(spec))).sites).toMatchObject([
      { cache: true, mask: 'causal', q_num_heads: 4, kv_num_heads: 2, rewritable: true },
    ]);
  });

  it('survives a round trip, and is what attention without a cache is', async () => {
    const expected = await bare(decoder({ ...spec, cache: false }));
    for (const pieces of [[8], [3, 2, 1, 1, 1]]) {
      const { model } = await rewritten({ variant: 'none' });
      expect(model.graph.nodes.some((n) => n.is('Attention'))).toBe(false);
      expect(far(expected, await read(decoder(spec), pieces))).toBeLessThan(2e-6);
      expect(far(expected, await read(model, pieces))).toBeLessThan(2e-6);
    }
  });

  it('is seen through a window by the control', async () => {
    const window = async (cache: boolean) => {
      const model = decoder({ ...spec, cache });
      expect(await rewriteControl(model, { control: 'window', window: 3, sinks: 1 })).toBe(1);
      return model;
    };
    const expected = await bare(await window(false));
    expect(far(expected, await read(await window(true), [3, 2, 1, 1, 1]))).toBeLessThan(2e-6);
    expect(far(expected, await bare(decoder({ ...spec, cache: false })))).toBeGreaterThan(1e-3);
  });

  it.each([{ variant: 'linear' }, { variant: 'window', window: 3, sinks: 1 }] as RewriteOptions[])(
    'becomes a state ($variant)',
    async (options) => {
      const { model, report } = await rewritten(options);
      expect(report.state).toHaveLength(1);
      expect(model.graph.nodes.some((n) => n.is('TensorScatter'))).toBe(false);
      expect(model.graph.inputs.map((i) => i.name)).toEqual(
        expect.arrayContaining(['write_indices', 'nonpad_kv_seqlen']),
      );
      const whole = await read(model, [8]);
      expect(far(whole, await read(model, [3, 2, 1, 1, 1]))).toBeLessThan(4e-6);
      expect(far(whole, await read(decoder(spec), [8]))).toBeGreaterThan(1e-3);
    },
  );
});

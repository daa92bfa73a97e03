/** Rows of different length under StatefulSession, of models that are told of them in every customary way. */
import type * as ort from 'onnxruntime-node';
import { afterEach, describe, expect, test } from 'vitest';
import { type Model, modelBytes, type RewriteOptions, rewriteModel } from '../../exporter/index.js';
import { type StatefulOptions, StatefulSession } from '../../runtime/node/index.js';
import { DECODERS, decoder, GROUPED } from '../exporter/support/decoder.js';
import { genaiModel } from '../exporter/support/genai.js';
import { failureOf } from './support/session.js';

const open: StatefulSession[] = [];
async function create(model: Model, options: StatefulOptions = {}): Promise<StatefulSession> {
  const session = await StatefulSession.create(modelBytes(model), options);
  open.push(session);
  return session;
}
afterEach(async () => {
  for (const session of open.splice(0)) await session.dispose();
});

const ROWS = [
  [4, 9, 2, 17, 8, 3],
  [11, 5, 20],
];
const MORE = [
  [7, 1],
  [14, 6],
  [2, 19],
];

/** The largest difference, in parts of the largest number. */
function far(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length);
  const size = Math.max(...Array.from(a, Math.abs));
  return Math.max(...Array.from(a, (x, i) => Math.abs(x - b[i]!))) / size;
}

const row = (y: ort.Tensor, b: number) => {
  const width = y.dims.at(-1)!;
  return (y.data as Float32Array).subarray(b * width, (b + 1) * width);
};

/** What is said of the last tokens of a batch is what is said of each row by itself. */
async function check(model: Model, options: StatefulOptions = {}, chunk?: number) {
  const session = await create(model, { ...options, batch: 2 });
  const said = [(await session.prefill(ROWS, { chunk })).y!];
  let saved = await session.save();
  for (const [i, next] of MORE.entries()) {
    // Going on from a copy must not lose where rows were padded.
    if (i === 1) await session.load(saved);
    said.push((await session.step(next.map((id) => [id]))).y!);
    saved = await session.save();
  }
  for (const [b, tokens] of ROWS.entries()) {
    const alone = await create(model, options);
    expect(far(row((await alone.prefill(tokens)).y!, 0), row(said[0]!, b))).toBeLessThan(4e-6);
    for (const [i, next] of MORE.entries()) {
      const { y } = await alone.step(next[b]!);
      expect(far(row(y!, 0), row(said[i + 1]!, b))).toBeLessThan(4e-6);
    }
  }
}

async function rewritten(model: Model, options: RewriteOptions): Promise<Model> {
  await rewriteModel(model, options);
  return model;
}

describe.each(DECODERS.filter(({ spec }) => spec.padding))('$name', ({ spec }) => {
  test('padded on the left, as it is and rewritten', async () => {
    await check(decoder(spec), {}, 2);
    await check(await rewritten(decoder(spec), { variant: 'linear' }), {}, 2);
  });
});

describe.each(GROUPED.filter(({ spec }) => !spec.window))(
  'GroupQueryAttention, $name',
  ({ spec }) => {
    test('padded on the right, its cache growing or a buffer, and rewritten', async () => {
      await check(decoder(spec), { padding: 'right' });
      await check(decoder(spec), { padding: 'right', cacheLength: 16 });
      const linear = await rewritten(decoder(spec), { variant: 'linear' });
      await check(linear, { padding: 'right' });
      if (!spec.told) await check(linear, { padding: 'left' }, 2);
    });
  },
);

test('a model of onnxruntime-genai, two layers', async () => {
  await check(genaiModel(), { padding: 'right', cacheLength: 12 });
  const mixed = await rewritten(genaiModel(), { variant: 'linear', keepSoftmax: [0] });
  await check(mixed, { padding: 'right', cacheLength: 12 });
});

test('says when rows cannot be told apart, or a buffer is full', async () => {
  const plain = await create(decoder(DECODERS[0]!.spec), { batch: 2 });
  expect((await failureOf(plain.prefill(ROWS))).message).toContain(
    'token lists must be of one length, as the model has no input that tells of padding, received 6 and 3',
  );
  const padded = await create(decoder(DECODERS[1]!.spec), { batch: 2 });
  await padded.prefill(ROWS);
  expect((await failureOf(padded.step(ROWS))).message).toContain(
    'token lists must be of one length after the first call, received 6 and 3',
  );
  const full = await create(decoder(GROUPED[0]!.spec), { cacheLength: 6 });
  await full.prefill(ROWS[0]!);
  expect((await failureOf(full.step(1))).message).toContain(
    'cacheLength must be at least the number of tokens so far, 7, received 6',
  );
  await expect(create(decoder(GROUPED[0]!.spec), { cacheLength: 0 })).rejects.toThrow(
    'cacheLength must be an integer >= 1, received 0',
  );
});

import { describe, expect, it } from 'vitest';
import {
  type Model,
  modelBytes,
  parseModel,
  rewriteModel,
  tensorDims,
  tensorNumbers,
} from '../../exporter/index.js';
import { orthogonalDirections } from '../../exporter/variants/performer.js';
import { FAMILIES, Writer } from './support/families.js';
import { evaluate, makeLayer, type Weighing } from './support/layer.js';
import { distance, floats, ints, random, run } from './support/run.js';

describe('directions of random features', () => {
  const [K, M] = [6, 3000];
  const w = orthogonalDirections(K, M, 3, 1);
  const dot = (a: number, b: number) =>
    Array.from({ length: K }, (_, i) => w[i * M + a]! * w[i * M + b]!).reduce((x, y) => x + y);

  it('are orthogonal within a block, and not beyond it', () => {
    for (let a = 6; a < 12; a++)
      for (let b = 6; b < a; b++) expect(Math.abs(dot(a, b))).toBeLessThan(1e-13);
    expect(Math.abs(dot(5, 6))).toBeGreaterThan(1e-3);
  });

  it('are normally distributed, with lengths of their own', () => {
    const all = [...w];
    const mean = (f: (x: number) => number) => all.reduce((s, x) => s + f(x), 0) / all.length;
    expect(Math.abs(mean((x) => x))).toBeLessThan(0.03);
    expect(Math.abs(mean((x) => x ** 2) - 1)).toBeLessThan(0.05);
    expect(Math.abs(mean((x) => x ** 4) - 3)).toBeLessThan(0.4);
    expect(Math.abs(dot(0, 0) - dot(1, 1))).toBeGreaterThan(1e-3);
  });

  it('follow from seed and layer', () => {
    expect(orthogonalDirections(K, 12, 3, 1)).toEqual(orthogonalDirections(K, 12, 3, 1));
    expect(orthogonalDirections(K, 12, 4, 1)).not.toEqual(orthogonalDirections(K, 12, 3, 1));
    expect(orthogonalDirections(K, 12, 3, 2)).not.toEqual(orthogonalDirections(K, 12, 3, 1));
  });
});

const BATCH = 2;
const TOKENS = 11;
const MASK = [Array(TOKENS).fill(1), Array.from({ length: TOKENS }, (_, t) => (t < 4 ? 0 : 1))];
const family = (start: string) => FAMILIES.find((f) => f.name.startsWith(start))!;
type Family = (typeof FAMILIES)[number];

const weights = (model: Model, name: RegExp) => {
  const tensor = model.graph.proto.initializer.find((t) => name.test(t.name!))!;
  return { dims: tensorDims(tensor), data: tensorNumbers(tensor, model.external) };
};

/** Rewritten outputs against weights written out in float64, relative to the largest; and against exact softmax. */
async function errors(source: Family, features: number, seed: number, size = 1.5) {
  const layer = source.layer?.() ?? makeLayer();
  const model = source.build(new Writer(layer));
  await rewriteModel(model, { variant: 'performer', features, seed });
  const next = random(11);
  const x = floats([BATCH, TOKENS, layer.hidden], () => next() * size);
  const { y } = await run(parseModel(modelBytes(model)), {
    x,
    ...(source.padding && { attention_mask: ints([BATCH, TOKENS], MASK.flat()) }),
  });
  const visible = (b: number, t: number) => !source.padding || MASK[b]![t] === 1;
  const causal = source.visible !== 'all';
  const scale = 1 / Math.sqrt(layer.dim);
  const w = weights(model, /query_weight/);
  const [, K, M] = w.dims as [number, number, number];
  expect([K, M]).toEqual([layer.dim, features]);
  // exp(w x - |x|^2 / 2) of x = sqrt(scale) q; the root lies in the file's weights.
  const phi = (v: Float64Array) =>
    Array.from({ length: M }, (_, m) => {
      let exponent = 0;
      for (let i = 0; i < K; i++) exponent += w.data[i * M + m]! * v[i]! - (scale / 2) * v[i]! ** 2;
      return Math.exp(exponent);
    });
  const kernel = (q: Float64Array, k: Float64Array) => {
    const [a, b] = [phi(q), phi(k)];
    return a.reduce((sum, f, m) => sum + f * b[m]!, 0);
  };
  const call = {
    batch: BATCH,
    tokens: TOKENS,
    x: x.data as Float32Array,
    sees: (b: number, i: number, j: number) => (!causal || j <= i) && visible(b, j),
  };
  const keep = (values: ArrayLike<number>) =>
    Array.from(values).filter((_, i) => {
      const token = Math.floor(i / layer.hidden);
      return visible(Math.floor(token / TOKENS), token % TOKENS);
    });
  const actual = keep(y!.data as Float32Array);
  const against = (weighing: Weighing) => {
    const expected = keep(evaluate(layer, call, weighing));
    const rms = Math.hypot(...actual.map((a, i) => a - expected[i]!)) / Math.hypot(...expected);
    const largest = Math.max(1, ...expected.map(Math.abs));
    return { largest: distance(actual, expected) / largest, rms };
  };
  return { actual, own: () => against(kernel).largest, softmax: against('softmax').rms };
}

describe('performer', () => {
  it.each(['GPT-2: packed', 'Llama', 'BERT', 'MPT'])(
    'computes the kernel of its features (%s)',
    async (name) => {
      expect((await errors(family(name), 12, 1)).own()).toBeLessThan(5e-6);
    },
  );

  it('approaches softmax: the error falls like the root of the number of features', async () => {
    const source = family('GPT-2: packed');
    const mean = async (features: number) => {
      const all = [];
      for (let seed = 0; seed < 16; seed++) {
        all.push((await errors(source, features, seed, 0.5)).softmax ** 2);
      }
      return Math.sqrt(all.reduce((a, b) => a + b) / all.length);
    };
    const [few, many] = [await mean(24), await mean(24 * 64)];
    // The root of 64, as far as 16 draws tell.
    expect(few / many).toBeGreaterThan(5.5);
    expect(few / many).toBeLessThan(11);
    expect(many).toBeLessThan(0.02);
  });

  it('keeps large keys and queries finite', async () => {
    const { actual } = await errors(family('GPT-2: packed'), 24, 0, 40);
    expect(actual.every(Number.isFinite)).toBe(true);
  });

  it('takes about d log d features, in whole blocks', async () => {
    const model = family('GPT-2: packed').build(new Writer(makeLayer(16, 1, 1, 16)));
    await rewriteModel(model, { variant: 'performer' });
    expect(weights(model, /query_weight/).dims).toEqual([1, 16, 48]);
  });
});

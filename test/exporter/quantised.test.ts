import { describe, expect, it } from 'vitest';
import {
  inspectModel,
  type Model,
  modelBytes,
  parseModel,
  rewriteModel,
} from '../../exporter/index.js';
import { HIDDEN, QUANTISED, quantiser } from './support/families/quantised.js';
import { optimized } from './support/optimize.js';
import { distance, type Feeds, floats, ints, random, run } from './support/run.js';

const MASK = [
  [1, 1, 1, 1, 1, 1, 1],
  [0, 0, 1, 1, 1, 1, 1],
];
function feeds(): Feeds {
  const next = random(3);
  return { x: floats([2, 7, HIDDEN], () => next()), attention_mask: ints([2, 7], MASK.flat()) };
}
const visible = (y: Float32Array) =>
  [...y].filter((_, i) => MASK.flat()[Math.floor(i / HIDDEN)] === 1);

describe.each(QUANTISED)('$name', ({ build, error, fused }) => {
  const model = () => build(quantiser());

  it.each(['as exported', 'basic', 'extended', 'all'] as const)(
    'is understood, %s',
    async (level) => {
      const subject = level === 'as exported' ? model() : await optimized(model(), level);
      const { sites } = await inspectModel(subject);
      if (fused && (level === 'extended' || level === 'all')) {
        expect(sites).toMatchObject([{ layer: 0, rewritable: false }]);
        expect(sites[0]!.reason).toMatch(fused);
        return;
      }
      expect(sites).toMatchObject([
        { q_num_heads: 4, head_dim: 4, mask: 'causal+padding', reason: null },
      ]);
    },
  );

  it('survives a round trip, and runs as linear attention with its weights as they were', async () => {
    const original = await run(model(), feeds());
    for (const variant of ['none', 'linear'] as const) {
      const subject = model();
      const weights = (m: Model) =>
        m.graph.nodes.filter((n) => /^(MatMulNBits|MatMulInteger|QAttention)/.test(n.opType))
          .length;
      const before = weights(subject);
      await rewriteModel(subject, { variant });
      expect(weights(subject)).toBe(before);
      const { y } = await run(parseModel(modelBytes(subject)), feeds());
      const [a, b] = [visible(original.y!.data as Float32Array), visible(y!.data as Float32Array)];
      expect(b.every(Number.isFinite)).toBe(true);
      if (variant === 'none') expect(distance(a, b)).toBeLessThan(error);
    }
  });
});

it('QAttention becomes what its products side by side become', async () => {
  const named = (start: string) => QUANTISED.find(({ name }) => name.startsWith(start))!;
  const outputs = ['com.microsoft.QAttention', 'products of 8 bits'].map(async (name) => {
    const subject = named(name).build(quantiser());
    await rewriteModel(subject, { variant: 'linear' });
    const { y } = await run(parseModel(modelBytes(subject)), feeds());
    return visible(y!.data as Float32Array);
  });
  const [inside, apart] = await Promise.all(outputs);
  expect(distance(inside!, apart!)).toBeLessThan(2e-6);
});

it('QAttention takes gates from what was quantised', async () => {
  const subject = QUANTISED.find(({ name }) => name.includes('QAttention'))!.build(quantiser());
  const decay = { weight: new Float32Array(HIDDEN * 4).fill(0.1) };
  await rewriteModel(subject, { variant: 'gla', gates: { 0: { decay } } });
  const { y } = await run(parseModel(modelBytes(subject)), feeds());
  expect((y!.data as Float32Array).every(Number.isFinite)).toBe(true);
});

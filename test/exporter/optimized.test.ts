import { describe, expect, it } from 'vitest';
import {
  inspectModel,
  type Model,
  modelBytes,
  parseModel,
  rewriteModel,
} from '../../exporter/index.js';
import { bertBlock } from './support/families/block.js';
import { FAMILIES, type Family, Writer } from './support/families.js';
import { atOpset, reread } from './support/forms.js';
import { makeLayer } from './support/layer.js';
import { optimized } from './support/optimize.js';
import { distance, type Feeds, floats, ints, random, run } from './support/run.js';

// What ONNX Runtime's own optimizer makes of the families is understood like the families themselves.
const RUN = FAMILIES.filter((f) => !f.noKernel);
const MASK = [
  [1, 1, 1, 1, 1, 1, 0],
  [1, 1, 1, 1, 1, 0, 0],
];

function feedsOf(family: Family): Feeds {
  const next = random(3);
  const { graph } = family.build(new Writer(family.layer?.() ?? makeLayer()));
  const hidden = graph.dims('x')![2] as number;
  return {
    x: floats([2, 7, hidden], () => next()),
    ...(graph.isInput('attention_mask') && { attention_mask: ints([2, 7], MASK.flat()) }),
    ...family.feeds?.(MASK),
  };
}

/** What tokens say that are no padding: nobody reads the others. */
function visible(y: Float32Array, { padding }: Family): number[] {
  const width = y.length / MASK.flat().length;
  return [...y].filter((_, i) => !padding || MASK.flat()[Math.floor(i / width)] === 1);
}

describe.each(['basic', 'extended', 'all'] as const)('after %s optimization', (level) => {
  it.each(RUN)('$name', async (family) => {
    const original = family.build(new Writer(family.layer?.() ?? makeLayer()));
    const model = await optimized(original, level);
    const { sites } = await inspectModel(model);
    expect(sites).toMatchObject([{ layer: 0, mask: family.mask, reason: null }]);
    await rewriteModel(model, { variant: 'none' });
    const feeds = feedsOf(family);
    const [before, after] = [
      await run(original, feeds),
      await run(parseModel(modelBytes(model)), feeds),
    ];
    const [a, b] = [before.y!, after.y!].map((t) => visible(t.data as Float32Array, family));
    expect(distance(a!, b!)).toBeLessThan(5e-6);
  });
});

describe('a whole block of BERT', () => {
  it.each([
    { opset: 12, fused: 'com.microsoft.Attention' },
    { opset: 17, fused: 'decomposed' },
  ])('of opset $opset becomes $fused, and linear attention as before', async ({ opset, fused }) => {
    const block = () => atOpset(bertBlock(), opset)!;
    const next = random(5);
    const feeds = {
      x: floats([2, 7, 16], () => next()),
      attention_mask: ints([2, 7], MASK.flat()),
    };
    const rows = async (model: Model) => {
      const { y } = await run(reread(model), feeds);
      const values = [...(y!.data as Float32Array)];
      return values.filter((_, i) => MASK.flat()[Math.floor(i / 16)] === 1);
    };
    for (const options of [{ variant: 'none' }, { variant: 'linear' }] as const) {
      const [plain, model] = [block(), await optimized(block(), 'extended')];
      const kinds = model.graph.nodes.map((n) => n.opType);
      expect(kinds).toEqual(expect.arrayContaining(['SkipLayerNormalization', 'BiasGelu']));
      await rewriteModel(plain, options);
      const { sites } = await rewriteModel(model, options);
      expect(sites).toMatchObject([
        { pattern: fused, mask: 'padding', q_num_heads: 4, rewritten: true },
      ]);
      expect(distance(await rows(plain), await rows(model))).toBeLessThan(5e-6);
    }
  });
});

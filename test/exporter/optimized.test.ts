import { describe, expect, it } from 'vitest';
import { inspectModel, modelBytes, parseModel, rewriteModel } from '../../exporter/index.js';
import { FAMILIES, type Family, Writer } from './support/families/index.js';
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

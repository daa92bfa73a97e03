import { describe, expect, it } from 'vitest';
import { inspectModel, type Model, rewriteModel } from '../../exporter/index.js';
import { FAMILIES, type Family, Writer } from './support/families.js';
import { atOpset, constantNodes, reread } from './support/forms.js';
import { makeLayer } from './support/layer.js';
import { distance, type Feeds, floats, ints, random, run } from './support/run.js';

// The families in other forms: weights as nodes, other versions of the default domain.
const MASK = [
  [1, 1, 1, 1, 1, 1, 1],
  [1, 1, 1, 1, 1, 0, 0],
];
const build = (family: Family) => family.build(new Writer(family.layer?.() ?? makeLayer()));

async function unchanged(family: Family, model: Model) {
  const { sites } = await inspectModel(model);
  expect(sites, family.name).toMatchObject([{ layer: 0, mask: family.mask, reason: null }]);
  if (family.noKernel) return;
  const hidden = model.graph.dims('x')![2] as number;
  const next = random(3);
  const feeds: Feeds = {
    x: floats([2, 7, hidden], () => next()),
    ...(model.graph.isInput('attention_mask') && { attention_mask: ints([2, 7], MASK.flat()) }),
    ...family.feeds?.(MASK),
  };
  const before = await run(reread(model), feeds);
  await rewriteModel(model, { variant: 'none' });
  const after = await run(reread(model), feeds);
  const [a, b] = [before.y!, after.y!].map((t) =>
    Array.from(t.data as Float32Array).filter(
      (_, i) => !family.padding || MASK.flat()[Math.floor(i / hidden)] === 1,
    ),
  );
  expect(distance(a!, b!), family.name).toBeLessThan(5e-6);
}

it.each(FAMILIES)('weights as Constant nodes: $name', async (family) => {
  await unchanged(family, constantNodes(build(family)));
});

describe.each([
  { opset: 9, atLeast: 8 },
  { opset: 10, atLeast: 12 },
  { opset: 11, atLeast: 15 },
  { opset: 13, atLeast: 30 },
  { opset: 18, atLeast: 40 },
  { opset: 26, atLeast: 40 },
])('opset $opset', ({ opset, atLeast }) => {
  const written = FAMILIES.flatMap((family) => {
    const model = /opset|ai\.onnx/.test(family.name) ? undefined : atOpset(build(family), opset);
    return model ? [{ family, model }] : [];
  });

  it('can express many families', () => {
    expect(written.length).toBeGreaterThanOrEqual(atLeast);
  });
  it.each(written.map(({ family, model }) => ({ name: family.name, family, model })))(
    '$name',
    async ({ family, model }) => unchanged(family, model),
  );
});

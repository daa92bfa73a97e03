import { describe, expect, it } from 'vitest';
import { inspectModel, modelBytes, parseModel, rewriteModel } from '../../exporter/index.js';
import { FAMILIES, type Family, Writer } from './support/families.js';
import { type Call, evaluate, makeLayer, type Weighing } from './support/layer.js';
import { distance, type Feeds, floats, ints, random, run } from './support/run.js';

const BATCH = 2;
const TOKENS = 7;
const MASK = [
  [1, 1, 1, 1, 1, 1, 0],
  [0, 0, 1, 1, 1, 1, 1],
];
const RIGHT = [
  [1, 1, 1, 1, 1, 1, 0],
  [1, 1, 1, 1, 1, 0, 0],
];
const maskOf = ({ padding }: Family) => (padding === 'right' ? RIGHT : MASK);

function setUp(family: Family) {
  const layer = family.layer?.() ?? makeLayer();
  const model = family.build(new Writer(layer));
  const next = random(3);
  const x = floats([BATCH, TOKENS, layer.hidden], () => next() * 2);
  const feeds: Feeds = { x };
  const mask = maskOf(family);
  if (model.graph.isInput('attention_mask'))
    feeds.attention_mask = ints([BATCH, TOKENS], mask.flat());
  Object.assign(feeds, family.feeds?.(mask));
  const visible = (b: number, i: number, j: number) => {
    if (family.padding && !mask[b]![j]) return false;
    if (family.visible === 'all') return true;
    return j <= i && (family.visible === 'causal' || j > i - family.visible.window);
  };
  const call: Call = { batch: BATCH, tokens: TOKENS, x: x.data as Float32Array, sees: visible };
  return { layer, model, feeds, call };
}

/** Output rows of tokens that are no padding: nobody reads the others, and exporters differ in them. */
function rows(y: ArrayLike<number>, family: Family, hidden: number): number[] {
  return Array.from(y).filter((_, i) => {
    const token = Math.floor(i / hidden);
    return !family.padding || maskOf(family)[Math.floor(token / TOKENS)]![token % TOKENS] === 1;
  });
}

async function compare(
  family: Family,
  weighing: Weighing,
  rewrite?: Parameters<typeof rewriteModel>[1],
) {
  const { layer, model, feeds, call } = setUp(family);
  const report = rewrite && (await rewriteModel(model, rewrite));
  // What is run is what would be read back from a file.
  const { y } = await run(parseModel(modelBytes(model)), feeds);
  const expected = evaluate(layer, call, weighing);
  const size = Math.max(1, ...expected.map(Math.abs));
  const error =
    distance(
      rows(y!.data as Float32Array, family, layer.hidden),
      rows(expected, family, layer.hidden),
    ) / size;
  return { error, report, model };
}

describe.each(FAMILIES)('$name', (family) => {
  it('is the attention that the reference computes', async () => {
    const original = compare(family, 'softmax');
    // What ONNX Runtime cannot run on the CPU is compared after its round trip, below.
    if (family.noKernel) await expect(original).rejects.toThrow(family.noKernel);
    else expect((await original).error).toBeLessThan(2e-6);
  });

  it('is found by inspect', async () => {
    const { layer, model } = setUp(family);
    const before = modelBytes(model);
    const { sites } = await inspectModel(model);
    expect(sites).toEqual([
      {
        node: expect.any(String),
        layer: 0,
        pattern: family.pattern ?? 'decomposed',
        q_num_heads: layer.heads,
        kv_num_heads: layer.kvHeads,
        head_dim: layer.dim,
        mask: family.mask,
        cache: false,
        rewritable: true,
        reason: null,
        notes: family.notes ?? [],
      },
    ]);
    expect(modelBytes(model)).toEqual(before);
  });

  it('survives a round trip through its description', async () => {
    const { error, report, model } = await compare(family, 'softmax', { variant: 'none' });
    expect(report!.sites[0]!.rewritten).toBe(true);
    expect(error).toBeLessThan(2e-6);
    if (family.pattern)
      expect(model.graph.nodes.some((n) => /Attention/.test(n.opType))).toBe(false);
  });

  it.each(['elu1', 'relu', 'exp', 'silu'] as const)(
    'becomes linear attention with %s',
    async (featureMap) => {
      const asCausal = typeof family.visible === 'object';
      const same: Family = asCausal ? { ...family, visible: 'causal' } : family;
      const { error, report, model } = await compare(same, featureMap, {
        variant: 'linear',
        featureMap,
        // Features of either sign may sum to nothing, which no rounding survives.
        normalize: featureMap !== 'silu',
        layers: [0],
      });
      expect(report!.sites[0]!.rewritten).toBe(true);
      expect(error).toBeLessThan(2e-6);
      expect(model.graph.nodes.some((n) => /^(Softmax|Attention|MultiHead)/.test(n.opType))).toBe(
        false,
      );
      const products = model.graph.nodes.filter((n) => n.is('MatMul'));
      expect(products.filter((n) => n.inputs.every((v) => !model.graph.constant(v)))).toEqual([]);
      const call = model.graph.nodes.find((n) => n.is('LinearAttention', 'com.fla'))!;
      expect(call.proto.attribute).toHaveLength(10);
      expect(call.outputs).toHaveLength(2);
    },
  );
});

import { describe, expect, it } from 'vitest';
import {
  inspectModel,
  modelBytes,
  parseModel,
  type RewriteOptions,
  rewriteModel,
} from '../../exporter/index.js';
import { BIASED, FAMILIES, type Family, t5Decoder, Writer } from './support/families.js';
import { evaluate, makeLayer, type Weighing } from './support/layer.js';
import { distance, floats, ints, random, run } from './support/run.js';

// What variants make of ALiBi, softcap and sinks.
const BATCH = 2;
const TOKENS = 9;
const MASK = [Array(TOKENS).fill(1), Array.from({ length: TOKENS }, (_, t) => (t < 2 ? 0 : 1))];

const family = (start: string) => FAMILIES.find((f) => f.name.startsWith(start))!;
const MPT = family('MPT');
const BLOOM = family('BLOOM');
const GEMMA = family('Gemma 2');
const GPT_OSS = family('gpt-oss');

/** How far a rewritten layer is from the float64 model, tokens of padding left out. */
async function error(
  source: Family,
  options: RewriteOptions,
  weighing: Weighing,
  near?: number,
  changed = {},
): Promise<number> {
  const layer = source.layer!();
  const model = source.build(new Writer(layer));
  const { sites } = await rewriteModel(model, options);
  expect(sites).toMatchObject([{ rewritten: true }]);
  const next = random(11);
  const x = floats([BATCH, TOKENS, layer.hidden], () => next() * 1.5);
  const feeds = { x, attention_mask: ints([BATCH, TOKENS], MASK.flat()) };
  const { y } = await run(parseModel(modelBytes(model)), feeds);
  const sees = (b: number, i: number, j: number) => j <= i && MASK[b]![j] === 1;
  const call = { batch: BATCH, tokens: TOKENS, x: x.data as Float32Array, sees, near };
  const expected = evaluate({ ...layer, ...changed }, call, weighing);
  const seen = (values: ArrayLike<number>) =>
    Array.from(values).filter((_, i) => MASK.flat()[Math.floor(i / layer.hidden)] === 1);
  return distance(seen(y!.data as Float32Array), seen(expected));
}

it.each([MPT, BLOOM, GEMMA, GPT_OSS])('a window as long as the text is exact: $name', async (f) => {
  const options = { variant: 'window', window: TOKENS, sinks: 0 } as const;
  expect(await error(f, options, 'softmax')).toBeLessThan(2e-6);
});

it.each([MPT, BLOOM, GEMMA])('hybrid is exact within its window: $name', async (f) => {
  const options = { variant: 'hybrid', window: TOKENS, sinks: 0 } as const;
  expect(await error(f, options, 'softmax')).toBeLessThan(2e-6);
});

it.each([MPT, BLOOM])('hybrid decays beyond its window as ALiBi does: $name', async (f) => {
  const options = { variant: 'hybrid', window: 3, sinks: 0, featureMap: 'elu1' } as const;
  expect(await error(f, options, 'elu1', 3)).toBeLessThan(2e-6);
});

it('hybrid keeps a softcap within its window, and features know none', async () => {
  const options = { variant: 'hybrid', window: 3, sinks: 0, featureMap: 'elu1' } as const;
  expect(await error(GEMMA, options, 'elu1', 3)).toBeLessThan(2e-6);
});

describe('a sink beside weights that decay', () => {
  const common = { featureMap: 'elu1', normalize: true } as const;
  const constants = (values: Record<string, number>) => ({
    default: Object.fromEntries(Object.entries(values).map(([k, constant]) => [k, { constant }])),
  });
  const slopes = Array(GPT_OSS.layer!().heads).fill(0.2);
  it.each<RewriteOptions>([
    { variant: 'gla', gates: constants({ decay: -0.2 }), ...common },
    // The gain takes back what the step makes of the values; keys stay as they are.
    { variant: 'mamba2', gates: constants({ a: -0.05, dt: 4, gain: 0.25 }), ...common },
  ])('$variant', async (options) => {
    expect(await error(GPT_OSS, options, 'elu1', undefined, { slopes })).toBeLessThan(2e-6);
  });
});

describe.each(BIASED)('$name', (f) => {
  const model = () => f.build(new Writer(f.layer!()));

  it('is refused as linear attention, until it may be dropped', async () => {
    const { sites } = await inspectModel(model());
    expect(sites).toMatchObject([
      {
        mask: f.mask,
        rewritable: false,
        reason: expect.stringMatching(
          /^mask: it adds up to .* a bias .* bias 'drop' leaves it out$/,
        ),
      },
    ]);
    const bare = { bias: undefined };
    const options = { variant: 'linear', bias: 'drop' } as const;
    expect(await error(f, options, 'elu1', undefined, bare)).toBeLessThan(2e-6);
  });

  it('is the same after a round trip, in a window, and in a hybrid whose window holds its buckets', async () => {
    expect(await error(f, { variant: 'none' }, 'softmax')).toBeLessThan(2e-6);
    const window = { variant: 'window', window: TOKENS, sinks: 0 } as const;
    expect(await error(f, window, 'softmax')).toBeLessThan(2e-6);
    expect(await error(f, { variant: 'hybrid', window: 128 }, 'softmax')).toBeLessThan(2e-6);
  });
});

describe('a bias that is settled within the window', () => {
  const f = t5Decoder({ count: 4, longest: 3 });

  it('raises all weights beyond it alike', async () => {
    const options = { variant: 'hybrid', window: 3, sinks: 0, featureMap: 'elu1' } as const;
    expect(await error(f, options, 'elu1', 3)).toBeLessThan(2e-6);
  });

  it('is kept with a shorter window, or dropped', async () => {
    for (const options of [
      { variant: 'hybrid', window: 2 },
      { variant: 'window', window: 2, sinks: 1 },
    ] as const) {
      const model = () => f.build(new Writer(f.layer!()));
      const report = await rewriteModel(model(), options);
      expect(report.sites[0]!.kept).toMatch(/changes beyond the window of 2 tokens/);
      const dropped = await rewriteModel(model(), { ...options, bias: 'drop' });
      expect(dropped.sites).toMatchObject([
        { rewritten: true, notes: ['the bias by position is left out'] },
      ]);
    }
  });
});

describe('what is left out is said', () => {
  const notes = async (f: Family, options: RewriteOptions) => {
    const report = await rewriteModel(f.build(new Writer(f.layer!())), options);
    return report.sites[0]!.notes;
  };
  const constant = { default: { decay: { constant: -0.1 }, beta: { constant: 0.5 } } };
  it.each<[string, Family, RewriteOptions, string[]]>([
    ['none', MPT, { variant: 'none' }, []],
    ['window', MPT, { variant: 'window' }, []],
    ['hybrid', BLOOM, { variant: 'hybrid' }, []],
    [
      'retention',
      MPT,
      { variant: 'retention' },
      ['ALiBi is left out: the variant has decays of its own'],
    ],
    ['delta', MPT, { variant: 'delta' }, ['ALiBi is left out: the variant has no decay']],
    ['performer', MPT, { variant: 'performer' }, ['ALiBi becomes a decay of each head']],
    ['performer', GPT_OSS, { variant: 'performer' }, ['the sink is left out']],
    ['window', GEMMA, { variant: 'window' }, []],
    ['hybrid', GEMMA, { variant: 'hybrid' }, []],
    ['retention', GEMMA, { variant: 'retention' }, ['the softcap of 1.5 is left out']],
    ['window', GPT_OSS, { variant: 'window' }, []],
    ['silu', GPT_OSS, { variant: 'linear', featureMap: 'relu' }, ['the sink is left out']],
    ['gated-delta', GPT_OSS, { variant: 'gated-delta', gates: constant }, ['the sink is left out']],
  ])('%s, %o', async (_, f, options, expected) => {
    expect(await notes(f, options)).toEqual(expected);
  });

  it('and that is all that differs', async () => {
    const plain = { slopes: undefined, sinks: undefined };
    const options = { variant: 'linear', featureMap: 'relu' } as const;
    expect(await error(GPT_OSS, options, 'relu', undefined, plain)).toBeLessThan(2e-6);
  });
});

describe('what a variant cannot do is kept', () => {
  const kept = async (f: Family, options: RewriteOptions, layer = f.layer!()) => {
    const report = await rewriteModel(f.build(new Writer(layer)), options);
    expect(report.sites).toMatchObject([{ rewritten: false, rewritable: true }]);
    return report.sites[0]!.kept;
  };
  it('a sink in hybrid', async () => {
    expect(await kept(GPT_OSS, { variant: 'hybrid' })).toMatch(/no place for the sink/);
  });
  it('ALiBi beside a cache of tokens', async () => {
    expect(await kept(MPT, { variant: 'hybrid', cache: 4 })).toMatch(/keeps no cache of tokens/);
  });
  it('a decay that query heads of one key head do not share', async () => {
    const alibi = FAMILIES.find((f) => f.name.startsWith('ai.onnx Attention, ALiBi'))!;
    const shared: Family = {
      ...alibi,
      build(w) {
        const model = alibi.build(w);
        const node = model.graph.nodes.find((n) => n.is('Attention'))!;
        node.proto.attribute.find((a) => a.name === 'kv_num_heads')!.i = 2;
        return parseModel(modelBytes(model));
      },
    };
    const grouped = { ...makeLayer(12, 4, 2, 3), slopes: alibi.layer!().slopes! };
    for (const variant of ['linear', 'performer', 'hybrid'] as const)
      expect(await kept(shared, { variant }, grouped)).toMatch(/several slopes .* share a decay/);
  });
});

it.each<[RewriteOptions, RegExp]>([
  [{ variant: 'none', bias: 'drop' }, /bias must be absent for variant none, received drop/],
  [{ variant: 'linear', bias: 'keep' as 'drop' }, /bias must be 'drop' or absent, received keep/],
])('refuses %o', async (options, message) => {
  const model = MPT.build(new Writer(MPT.layer!()));
  await expect(rewriteModel(model, options)).rejects.toThrow(message);
});

import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import {
  DATA_TYPE,
  inspectModel,
  type Model,
  makeValueInfo,
  modelBytes,
  parseModel,
  type RewriteOptions,
  rewriteModel,
  type StatePair,
} from '../../exporter/index.js';
import { DECODERS, type DecoderSpec, decoder, merged, VOCABULARY } from './support/decoder.js';
import { distance, type Feeds, floats, ints, run, zeros } from './support/run.js';

const BATCH = 2;
const TOKENS = 9;
const IDS = Array.from({ length: BATCH * TOKENS }, (_, i) => (i * 7 + 3) % VOCABULARY);
const LEFT = [
  [1, 1, 1, 1, 1, 1, 1, 1, 1],
  [0, 0, 0, 1, 1, 1, 1, 1, 1],
];

/** A running text: what earlier calls left behind. */
interface Stream {
  carried: Feeds;
  done: number;
}

/** One call of a model on tokens `from` to `to`, with the mask of all tokens or of the new ones. */
async function call(
  model: Model,
  pairs: readonly { past: string; present: string }[],
  stream: Stream,
  to: number,
  maskOf: 'total' | 'current' = 'total',
): Promise<ort.Tensor> {
  const from = stream.done;
  const has = (name: string) => model.graph.inputs.some((i) => i.name === name);
  const cut = (rows: readonly (readonly number[])[], start: number) =>
    rows.flatMap((r) => r.slice(start, to));
  const ids = Array.from({ length: BATCH }, (_, b) => IDS.slice(b * TOKENS, (b + 1) * TOKENS));
  const feeds: Feeds = { ...stream.carried, input_ids: ints([BATCH, to - from], cut(ids, from)) };
  if (has('attention_mask')) {
    const start = maskOf === 'total' ? 0 : from;
    feeds.attention_mask = ints([BATCH, to - start], cut(LEFT, start));
  }
  if (has('position_ids')) {
    const places = LEFT.map((row) =>
      row.map((_, j) => Math.max(0, row.slice(0, j + 1).filter((m) => m).length - 1)),
    );
    feeds.position_ids = ints([BATCH, to - from], cut(places, from));
  }
  const results = await run(model, feeds);
  stream.done = to;
  stream.carried = Object.fromEntries(pairs.map((p) => [p.past, results[p.present]!]));
  return results.y!;
}

/** Outputs [B, TOKENS, hidden] of visible tokens, put together from calls that end at `ends`. */
async function stream(
  model: Model,
  pairs: readonly { past: string; present: string }[],
  start: Feeds,
  ends: readonly number[],
  maskOf: 'total' | 'current' = 'total',
): Promise<number[]> {
  const state: Stream = { carried: start, done: 0 };
  const padded = model.graph.inputs.some((i) => i.name === 'attention_mask');
  const rows: number[][][] = Array.from({ length: BATCH }, () => []);
  for (const end of ends) {
    const from = state.done;
    const y = await call(model, pairs, state, end, maskOf);
    const hidden = y.dims[2]!;
    for (let b = 0; b < BATCH; b++)
      for (let t = from; t < end; t++) {
        if (padded && LEFT[b]![t] === 0) continue;
        const at = (b * (end - from) + t - from) * hidden;
        rows[b]!.push([...(y.data as Float32Array).subarray(at, at + hidden)]);
      }
  }
  return rows.flat(2);
}

const WHOLE = [TOKENS];
const STEPS = Array.from({ length: TOKENS }, (_, i) => i + 1);
const CHUNKS = [4, 5, 9];

const cachePairs = (model: Model) => {
  const names = model.graph.inputs.map((i) => i.name).filter((n) => n.startsWith('past_'));
  return names.map((past) => ({
    past,
    present: past.replace(/past_key_values|past/, 'present'),
  }));
};
function emptyCache(model: Model): Feeds {
  return Object.fromEntries(
    cachePairs(model).map(({ past }) => {
      const dims = model.graph.dims(past)!.map((d) => (typeof d === 'number' ? d : BATCH));
      dims[dims.length - 2] = 0;
      return [past, floats(dims, () => 0)];
    }),
  );
}
function emptyState(pairs: readonly StatePair[]): Feeds {
  return Object.fromEntries(pairs.map((p) => [p.past, zeros(p.dtype, p.shape, BATCH)]));
}
/** The model as it would be read back from a file. */
const reread = (model: Model) => parseModel(modelBytes(model));

async function rewritten(spec: DecoderSpec, options: RewriteOptions) {
  const model = decoder(spec);
  const report = await rewriteModel(model, options);
  return { model: reread(model), report };
}

describe.each(DECODERS)('$name', ({ spec }) => {
  it('is inspected as cached and causal', async () => {
    const { sites } = await inspectModel(decoder(spec));
    expect(sites).toMatchObject([
      {
        cache: true,
        mask: `causal${spec.padding ? '+padding' : ''}${spec.alibi ? '+ALiBi' : ''}`,
        rewritable: true,
      },
    ]);
  });

  it('survives a round trip, step by step', async () => {
    const original = decoder(spec);
    const { model } = await rewritten(spec, { variant: 'none' });
    const expected = await stream(original, cachePairs(original), emptyCache(original), CHUNKS);
    const actual = await stream(model, cachePairs(model), emptyCache(model), CHUNKS);
    expect(distance(expected, actual)).toBeLessThan(2e-6);
  });

  const variants: RewriteOptions[] = [
    { variant: 'linear' },
    { variant: 'performer', features: 8, seed: 2 },
    { variant: 'retention' },
    { variant: 'mamba2', gates: { default: { a: { constant: -1 }, dt: { constant: 0.2 } } } },
    {
      variant: 'gated-delta',
      gates: { default: { decay: { constant: -0.1 }, beta: { constant: 0.5 } } },
    },
    { variant: 'hybrid', window: 3, sinks: 1 },
    { variant: 'hybrid', window: 2, sinks: 0, features: 8, featureMap: 'exp' },
    { variant: 'window', window: 3, sinks: 1 },
  ];
  it.each(variants)(
    'carries a state: prefill = chunks = token by token = no cache ($variant)',
    async (options) => {
      const { model, report } = await rewritten(spec, options);
      const { graph } = model;
      expect(graph.inputs.some((i) => /\.(key|value)$|past_0$/.test(i.name))).toBe(false);
      expect(graph.outputs.some((o) => /\.(key|value)$|present_0$/.test(o.name))).toBe(false);
      expect(report.attentionMask).toBe('current');
      const start = emptyState(report.state);
      const whole = await stream(model, report.state, start, WHOLE);
      const bare = await rewritten({ ...spec, cache: false }, options);
      const reference = await stream(bare.model, [], {}, WHOLE);
      expect(distance(reference, whole)).toBeLessThan(2e-6);
      expect(distance(whole, await stream(model, report.state, start, CHUNKS))).toBeLessThan(2e-6);
      expect(distance(whole, await stream(model, report.state, start, STEPS))).toBeLessThan(2e-6);
      expect(
        distance(whole, await stream(model, report.state, start, STEPS, 'current')),
      ).toBeLessThan(2e-6);
    },
  );

  it.each(['hybrid', 'window'] as const)(
    'is the original while all fits the window (%s)',
    async (variant) => {
      const original = decoder(spec);
      const { model, report } = await rewritten(spec, { variant, window: TOKENS });
      const expected = await stream(original, cachePairs(original), emptyCache(original), WHOLE);
      const actual = await stream(model, report.state, emptyState(report.state), CHUNKS);
      expect(distance(expected, actual)).toBeLessThan(1e-5);
      const stacked = spec.attention === 'com.microsoft.Attention';
      const { kv_num_heads: heads, head_dim: dim } = report.sites[0]!;
      const pairs: [string, number[]][] = [['window', [heads!, 4 + TOKENS + 1, 2 * dim!]]];
      if (variant === 'hybrid') pairs.push(['state', [heads!, 2 * dim!, dim! + 1]]);
      for (const [name, shape] of pairs) {
        expect(report.state).toContainEqual({
          past: stacked ? `past_0.${name}` : `past_key_values.0.${name}`,
          present: stacked ? `present_0.${name}` : `present.0.${name}`,
          shape: ['batch', ...shape],
          dtype: 'float32',
          in_place: true,
        });
      }
    },
  );

  it('says in its metadata how it is to be run', async () => {
    const { model, report } = await rewritten(spec, { variant: 'linear' });
    expect(JSON.parse(model.metadata('onnx_fla.state')!)).toEqual(report.state);
    expect(model.metadata('onnx_fla.attention_mask')).toBe('current');
    expect(model.metadata('onnx_fla.rewind')).toBe('no');
    if (spec.padding) expect(model.graph.dims('attention_mask')).toEqual(['batch', 'sequence']);
    const stacked = spec.attention === 'com.microsoft.Attention';
    expect(report.state[0]).toEqual({
      past: stacked ? 'past_0.state' : 'past_key_values.0.state',
      present: stacked ? 'present_0.state' : 'present.0.state',
      shape: ['batch', stacked || spec.attention === 'MultiHeadAttention' ? 4 : 2, 3, 4],
      dtype: 'float32',
      in_place: true,
    });
    const counted = report.state.find((s) => s.past === 'past_key_values.length');
    const counts = { cache: 'past_key_values.position', mask: 'past_key_values.length' }[
      spec.positions as string
    ];
    expect(report.state.slice(1).map((s) => s.past)).toEqual(counts ? [counts] : []);
    if (counted)
      expect(counted).toMatchObject({ dtype: 'int64', shape: ['batch'], in_place: false });
    for (const pair of report.state) {
      expect(model.graph.dims(pair.past)).toEqual(pair.shape);
      expect(model.graph.dims(pair.present)).toEqual(pair.shape);
    }
  });
});

describe.each(DECODERS.filter(({ spec }) => spec.attention === 'decomposed'))(
  'merged with its twin without a cache: $name',
  ({ spec }) => {
    const twice = () => reread(merged(spec));

    it('is found once', async () => {
      const { sites } = await inspectModel(twice());
      expect(sites).toMatchObject([{ layer: 0, cache: true, rewritable: true }]);
    });

    it('becomes what the branch with the cache becomes', async () => {
      for (const options of [{ variant: 'none' }, { variant: 'linear' }] as const) {
        const model = twice();
        await rewriteModel(model, options);
        expect(model.graph.inputs.map((i) => i.name)).not.toContain('use_cache_branch');
        expect(model.graph.nodes.some((n) => n.is('If'))).toBe(false);
        const single = await rewritten(spec, options);
        const { report } = single;
        const pairs = options.variant === 'none' ? cachePairs(model) : report.state;
        const start = options.variant === 'none' ? emptyCache(model) : emptyState(report.state);
        const expected = await stream(single.model, pairs, start, CHUNKS);
        expect(distance(expected, await stream(reread(model), pairs, start, CHUNKS))).toBe(0);
      }
    });

    it('says the same as both branches did', async () => {
      const model = twice();
      await rewriteModel(model, { variant: 'none' });
      const ids = { input_ids: ints([BATCH, TOKENS], IDS) };
      const more = {
        ...(spec.padding && { attention_mask: ints([BATCH, TOKENS], LEFT.flat()) }),
        ...(spec.positions === 'input' && {
          position_ids: ints([BATCH, TOKENS], Array(BATCH * TOKENS).fill(1)),
        }),
      };
      const feeds = { ...ids, ...more, ...emptyCache(model) };
      const { y } = await run(reread(model), feeds);
      for (const used of [0, 1]) {
        const flag = { use_cache_branch: new ort.Tensor('bool', [used === 1], [1]) };
        const original = await run(twice(), { ...feeds, ...flag });
        const [a, b] = [original.y!, y!].map((t) => t.data as Float32Array);
        const seen = (x: Float32Array) =>
          [...x].filter((_, i) => !spec.padding || LEFT.flat()[Math.floor(i / 12)] === 1);
        expect(distance(seen(a!), seen(b!))).toBeLessThan(2e-6);
      }
    });
  },
);

it('leaves a merged decoder alone whose other branch needs an encoder', async () => {
  const model = merged(DECODERS[0]!.spec);
  model.graph.addInput(makeValueInfo('encoder_hidden_states', DATA_TYPE.float32, ['batch', 3, 12]));
  const { sites } = await inspectModel(reread(model));
  expect(sites).toMatchObject([
    { rewritable: false, reason: expect.stringContaining('which is not a graph input') },
    { rewritable: false, reason: 'it lies in a nested graph, and the model has a KV cache' },
  ]);
});

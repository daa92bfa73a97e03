import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import {
  inspectModel,
  type Model,
  modelBytes,
  parseModel,
  type RewriteOptions,
  rewriteModel,
} from '../../exporter/index.js';
import { type DecoderSpec, decoder, GROUPED, VOCABULARY } from './support/decoder.js';
import { genaiModel } from './support/genai.js';
import { distance, type Feeds, floats, ints, run, zeros } from './support/run.js';

// GroupQueryAttention with its cache, as onnxruntime-genai runs it: a first call with rows padded on the right, then one
// token at a time.
const PROMPT = [6, 4]; // tokens of each row
const STEPS = 3;
const ROOM = 16; // of a cache that is a buffer
const BATCH = PROMPT.length;
const id = (row: number, at: number) => (row * 5 + at * 7 + 3) % VOCABULARY;

/** What a model says about every visible token, row by row, in the flow above. */
async function flow(
  model: Model,
  carry: Feeds,
  pairs: readonly (readonly [past: string, present: string])[],
  maskOf: 'total' | 'current' = 'total',
): Promise<number[]> {
  const said: number[][] = PROMPT.map(() => []);
  let carried = carry;
  const width = Math.max(...PROMPT);
  const takes = new Set(model.graph.inputs.map((i) => i.name));
  for (let step = 0; step <= STEPS; step++) {
    const [from, to] = step === 0 ? [0, width] : [width + step - 1, width + step];
    const seen = (row: number, t: number) => t < PROMPT[row]! || t >= width;
    const at = (row: number, t: number) => (t < width ? t : PROMPT[row]! + t - width);
    const columns = (start: number, f: (row: number, t: number) => number) =>
      PROMPT.flatMap((_, row) => Array.from({ length: to - start }, (_, i) => f(row, start + i)));
    const start = maskOf === 'total' ? 0 : from;
    const lengths = PROMPT.map((n) => n + step - 1);
    const feeds: Feeds = {
      input_ids: ints(
        [BATCH, to - from],
        columns(from, (row, t) => id(row, at(row, t))),
      ),
      attention_mask: ints(
        [BATCH, to - start],
        columns(start, (r, t) => (seen(r, t) ? 1 : 0)),
      ),
      seqlens_k: new ort.Tensor('int32', Int32Array.from(lengths), [BATCH]),
      total_sequence_length: new ort.Tensor('int32', [to], []),
      ...carried,
    };
    const wanted = Object.fromEntries(Object.entries(feeds).filter(([name]) => takes.has(name)));
    const out = await run(model, wanted);
    carried = Object.fromEntries(pairs.map(([past, present]) => [past, out[present]!]));
    const hidden = out.y!.dims[2]!;
    const y = out.y!.data as Float32Array;
    PROMPT.forEach((_, row) => {
      for (let t = from; t < to; t++) {
        const place = (row * (to - from) + t - from) * hidden;
        if (seen(row, t)) said[row]!.push(...y.subarray(place, place + hidden));
      }
    });
  }
  return said.flat();
}

const PAIRS = ['key', 'value'].map((k) => [`past_key_values.0.${k}`, `present.0.${k}`] as const);
/** A cache that grows starts empty, a buffer starts with anything. */
const cache = (room: number): Feeds =>
  Object.fromEntries(PAIRS.map(([past]) => [past, floats([BATCH, 2, room, 16], () => 7)]));

async function rewritten(spec: DecoderSpec, options: RewriteOptions) {
  const model = decoder(spec);
  const report = await rewriteModel(model, { ...options, layers: [0] });
  expect(report.sites).toMatchObject([{ rewritten: true }]);
  return { model: parseModel(modelBytes(model)), report };
}

/** Each row by itself, without cache or padding, in one call. */
async function apart(spec: DecoderSpec, options: RewriteOptions): Promise<number[]> {
  const { model } = await rewritten({ ...spec, cache: false }, options);
  const takes = new Set(model.graph.inputs.map((i) => i.name));
  const rows: number[] = [];
  for (const [row, n] of PROMPT.entries()) {
    const count = n + STEPS;
    const feeds: Feeds = {
      input_ids: ints(
        [1, count],
        Array.from({ length: count }, (_, t) => id(row, t)),
      ),
      attention_mask: ints([1, count], Array(count).fill(1)),
      seqlens_k: new ort.Tensor('int32', [count - 1], [1]),
      total_sequence_length: new ort.Tensor('int32', [count], []),
    };
    const wanted = Object.fromEntries(Object.entries(feeds).filter(([name]) => takes.has(name)));
    const { y } = await run(model, wanted);
    rows.push(...(y!.data as Float32Array));
  }
  return rows;
}

describe.each(GROUPED)('GroupQueryAttention with a cache: $name', ({ spec }) => {
  it('is found', async () => {
    const mask = spec.window ? `window ${spec.window}+padding` : 'causal+padding';
    expect((await inspectModel(decoder(spec))).sites).toMatchObject([
      {
        pattern: 'com.microsoft.GroupQueryAttention',
        q_num_heads: 4,
        kv_num_heads: 2,
        head_dim: 16,
        cache: true,
        mask,
        rewritable: true,
      },
    ]);
  });

  it.each([
    { cacheIs: 'grows', room: 0 },
    { cacheIs: 'is a buffer', room: ROOM },
  ])('survives a round trip, where its cache $cacheIs', async ({ room }) => {
    const expected = await flow(decoder(spec), cache(room), PAIRS);
    const { model } = await rewritten(spec, { variant: 'none' });
    expect(model.graph.nodes.some((n) => n.opType === 'GroupQueryAttention')).toBe(false);
    expect(distance(expected, await flow(model, cache(room), PAIRS))).toBeLessThan(2e-6);
    expect(distance(expected, await apart(spec, { variant: 'none' }))).toBeLessThan(2e-6);
  });

  it.each([{ variant: 'linear' }, { variant: 'retention' }] as const)(
    'carries a state ($variant)',
    async (options) => {
      const { model, report } = await rewritten(spec, options);
      const start = Object.fromEntries(
        report.state.map((s) => [s.past, zeros(s.dtype, s.shape, BATCH)]),
      );
      const pairs = report.state.map((s) => [s.past, s.present] as const);
      const whole = await apart(spec, options);
      const streamed = await flow(model, start, pairs, report.attentionMask ?? undefined);
      expect(distance(whole, streamed)).toBeLessThan(4e-6);
      expect(distance(whole, await flow(model, start, pairs, 'total'))).toBeLessThan(4e-6);
      const counted = spec.rope && !spec.told ? ['past_key_values.length'] : [];
      expect(report.state.slice(1).map((s) => s.past)).toEqual(counted);
      expect(report.attentionMask).toBe('current');
      const rotations = model.graph.nodes.filter((n) => n.is('RotaryEmbedding', 'com.microsoft'));
      expect(rotations).toHaveLength(spec.rope ? 2 : 0);
    },
  );
});

describe('a decoder of onnxruntime-genai, two layers', () => {
  const pairsOf = (layers: readonly number[]) =>
    layers.flatMap((i) =>
      ['key', 'value'].map((k) => [`past_key_values.${i}.${k}`, `present.${i}.${k}`] as const),
    );
  const empty = (layers: readonly number[], room: number): Feeds =>
    Object.fromEntries(
      pairsOf(layers).map(([past]) => [past, floats([BATCH, 2, room, 16], () => 7)]),
    );
  const change = async (options: RewriteOptions) => {
    const model = genaiModel();
    const report = await rewriteModel(model, options);
    return { model: parseModel(modelBytes(model)), report };
  };
  /** Each row in one call without padding, as a text of its own. */
  const rowByRow = async (model: Model, carry: (batch: number) => Feeds) => {
    const said: number[] = [];
    for (const [row, n] of PROMPT.entries()) {
      const count = n + STEPS;
      const ids = Array.from({ length: count }, (_, t) => id(row, t));
      const { y } = await run(model, {
        input_ids: ints([1, count], ids),
        attention_mask: ints([1, count], Array(count).fill(1)),
        ...carry(1),
      });
      said.push(...(y!.data as Float32Array));
    }
    return said;
  };

  it('is understood', async () => {
    const { sites } = await inspectModel(genaiModel());
    const expected = { mask: 'causal+padding', cache: true, rewritable: true };
    expect(sites).toMatchObject([
      { layer: 0, ...expected },
      { layer: 1, ...expected },
    ]);
  });

  it.each([0, ROOM])('survives a round trip, with room for %d tokens', async (room) => {
    const expected = await flow(genaiModel(), empty([0, 1], room), pairsOf([0, 1]));
    const { model } = await change({ variant: 'none' });
    const actual = await flow(model, empty([0, 1], room), pairsOf([0, 1]));
    expect(distance(expected, actual) / Math.max(...expected.map(Math.abs))).toBeLessThan(4e-6);
  });

  it.each([{ keepSoftmax: [] }, { keepSoftmax: [0] }])(
    'streams what it says of a whole text, softmax kept in layers $keepSoftmax',
    async ({ keepSoftmax }) => {
      const { model, report } = await change({ variant: 'linear', keepSoftmax });
      const start = (batch: number): Feeds => ({
        ...Object.fromEntries(
          pairsOf(keepSoftmax).map(([past]) => [past, floats([batch, 2, 0, 16], () => 0)]),
        ),
        ...Object.fromEntries(report.state.map((s) => [s.past, zeros(s.dtype, s.shape, batch)])),
      });
      const pairs = [
        ...pairsOf(keepSoftmax),
        ...report.state.map((s) => [s.past, s.present] as const),
      ];
      const mask = keepSoftmax.length > 0 ? 'total' : 'current';
      expect(report.attentionMask).toBe(mask);
      const whole = await rowByRow(model, start);
      const streamed = await flow(model, start(BATCH), pairs, mask);
      expect(distance(whole, streamed) / Math.max(...whole.map(Math.abs))).toBeLessThan(4e-6);
      const kinds = model.graph.nodes.map((n) => n.opType);
      expect(kinds.filter((k) => k === 'GroupQueryAttention')).toHaveLength(keepSoftmax.length);
      expect(kinds.filter((k) => k === 'MatMulNBits')).toHaveLength(10);
    },
  );
});

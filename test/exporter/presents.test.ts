/** Fused nodes that give out keys and values though none come in: the first call of a decoder, as ONNX Runtime's optimizer leaves it. */
import { describe, expect, it } from 'vitest';
import {
  DATA_TYPE,
  type Model,
  modelBytes,
  parseModel,
  rewriteModel,
} from '../../exporter/index.js';
import { packedWeights, Writer } from './support/families/writer.js';
import { makeLayer } from './support/layer.js';
import { distance, type Feeds, floats, ints, numbers, random, run } from './support/run.js';

const [BATCH, TOKENS] = [2, 7];

/** com.microsoft.Attention with padding and `present` [2,B,H,T,D], from its first call on without a past. */
function packed(attributes: Record<string, number> = {}): Writer {
  const w = new Writer(makeLayer());
  const { heads, dim } = w.layer;
  w.maskInput();
  w.outputs.present = ['float32', [2, 'batch', heads, 'sequence', dim]];
  const { weight, bias } = packedWeights(w);
  const mask = w.op('Cast', ['attention_mask'], { to: DATA_TYPE.int32 });
  const more = { num_heads: heads, unidirectional: 1, ...attributes };
  w.ops('Attention', ['x', weight, bias, mask], ['att', 'present'], more, {
    domain: 'com.microsoft',
  });
  return w;
}

/** com.microsoft.MultiHeadAttention with present_key and present_value [B,H,T,D]. */
function multiHead(present: readonly string[] = ['present_key', 'present_value']): Writer {
  const w = new Writer(makeLayer());
  const { heads, dim, bq, bk, bv } = w.layer;
  w.maskInput();
  for (const name of present) {
    if (name) w.outputs[name] = ['float32', ['batch', heads, 'sequence', dim]];
  }
  const bias = w.weight('bqkv', [3 * bq.length], [...bq, ...bk, ...bv]);
  const mask = w.op('Cast', ['attention_mask'], { to: DATA_TYPE.int32 });
  w.ops(
    'MultiHeadAttention',
    [w.product('q'), w.product('k'), w.product('v'), bias, mask],
    ['att', ...present],
    { num_heads: heads, unidirectional: 1 },
    { domain: 'com.microsoft' },
  );
  return w;
}

const FORMS: [string, () => Writer][] = [
  ['com.microsoft.Attention', packed],
  ['com.microsoft.MultiHeadAttention', multiHead],
  ['com.microsoft.MultiHeadAttention, its values alone', () => multiHead(['', 'present_value'])],
];

const build = (w: Writer): Model => w.project('att');
const next = random(9);
const FEEDS: Feeds = {
  x: floats([BATCH, TOKENS, 12], () => next()),
  attention_mask: ints([BATCH, TOKENS], [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1]),
};

describe.each(FORMS)('%s', (_, form) => {
  it('computes the same again, and gives out the same keys and values', async () => {
    const before = build(form());
    const after = parseModel(modelBytes(build(form())));
    const { sites } = await rewriteModel(after, { variant: 'none' });
    expect(sites).toMatchObject([{ rewritten: true, mask: 'causal+padding', cache: false }]);
    const [wanted, got] = [await run(before, FEEDS), await run(after, FEEDS)];
    expect(Object.keys(got).sort()).toEqual(Object.keys(wanted).sort());
    for (const [name, tensor] of Object.entries(wanted)) {
      expect(got[name]!.dims).toEqual(tensor.dims);
      expect(distance(numbers(got[name]!), numbers(tensor)), name).toBeLessThan(1e-6);
    }
  });

  it.each(['linear', 'retention', 'window', 'hybrid'] as const)(
    'keeps them as they are where it becomes %s',
    async (variant) => {
      const before = build(form());
      const after = parseModel(modelBytes(build(form())));
      const { state } = await rewriteModel(after, { variant });
      expect(state).toEqual([]);
      const [wanted, got] = [await run(before, FEEDS), await run(after, FEEDS)];
      for (const name of Object.keys(wanted).filter((n) => n !== 'y')) {
        expect(distance(numbers(got[name]!), numbers(wanted[name]!)), name).toBeLessThan(1e-6);
      }
      expect(numbers(got.y!).every(Number.isFinite)).toBe(true);
    },
  );
});

it('a buffer that no past comes into is left alone', async () => {
  const { sites } = await rewriteModel(build(packed({ past_present_share_buffer: 1 })), {
    variant: 'none',
  });
  expect(sites[0]).toMatchObject({ rewritten: false });
  expect(sites[0]!.reason).toMatch(/past_sequence_length must be given/);
});

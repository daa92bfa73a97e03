import fs from 'node:fs';
import * as ort from 'onnxruntime-node';
import { expect, test } from 'vitest';
import { compareLanguage } from '../../../exporter/compare/index.js';
import { endsRepeatedPair } from '../../../exporter/compare/language.js';
import { LanguageModel } from '../../../exporter/text/language_model.js';
import { loadTokenizer } from '../../../exporter/text/tokenizer.js';
import { TINYLM } from '../../support/models.js';
import { RuleReader } from './support.js';

const ids = () =>
  loadTokenizer(TINYLM.tokenizer).encode(fs.readFileSync(TINYLM.text, 'utf8').slice(0, 4000));

/** Mean negative log-likelihood of one window, straight from the definition. */
async function windowNll(window: readonly number[]): Promise<number> {
  const session = await ort.InferenceSession.create(TINYLM.model);
  const row = (x: readonly number[]) =>
    new ort.Tensor('int64', BigInt64Array.from(x, BigInt), [1, x.length]);
  const out = await session.run({
    input_ids: row(window),
    attention_mask: row(window.map(() => 1)),
  });
  const logits = out.logits!.data as Float32Array;
  let total = 0;
  for (let t = 0; t + 1 < window.length; t++) {
    const scores = [...logits.subarray(t * 2048, (t + 1) * 2048)];
    const partition = scores.reduce((sum, x) => sum + Math.exp(x), 0);
    total -= scores[window[t + 1]!]! - Math.log(partition);
  }
  return total / (window.length - 1);
}

test('perplexity is the exponential of the mean loss; a model does not differ from itself', async () => {
  const window = ids().slice(0, 100);
  const a = await LanguageModel.open(TINYLM.model);
  const b = await LanguageModel.open(TINYLM.modelKv);
  const result = await compareLanguage(a, b, window, { context: 100 });
  expect(result.tokens).toBe(99);
  expect(result.ppl.original).toBeCloseTo(Math.exp(await windowNll(window)), 3);
  expect(result.ppl.ratio.value).toBeCloseTo(1, 5);
  expect(result.kld.max).toBeLessThan(1e-8);
  expect(result.same_top).toEqual({ value: 1, error: 0 });
});

test('windows start afresh, and the last one may be short', async () => {
  const text = ids().slice(0, 150);
  const model = await LanguageModel.open(TINYLM.modelKv);
  const both = await compareLanguage(model, await LanguageModel.open(TINYLM.model), text, {
    context: 100,
  });
  const first = Math.exp(await windowNll(text.slice(0, 100)));
  const second = Math.exp(await windowNll(text.slice(100)));
  expect(both.tokens).toBe(99 + 49);
  const expected = Math.exp((99 * Math.log(first) + 49 * Math.log(second)) / (99 + 49));
  expect(both.ppl.original).toBeCloseTo(expected, 3);
});

test('reading in pieces gives the logits of reading at once', async () => {
  const text = ids().slice(0, 90);
  const model = await LanguageModel.open(TINYLM.modelKv);
  const whole = await model.advance(text);
  await model.reset();
  const pieces = await model.prefill(text, { chunk: 32 });
  expect(model.position).toBe(90);
  const last = whole.data.subarray(89 * whole.vocabulary);
  expect(Math.max(...last.map((x, i) => Math.abs(x - pieces.data[i]!)))).toBeLessThan(1e-4);
  expect(model.stateBytes).toBe(4 * 2 * 2 * 90 * 64 * 4); // layers, K and V, heads, tokens, dim, bytes
});

/** Logits that give token 0 the probability p, and one of the other three the rest in equal parts. */
const odds = (p: number) => Math.log((3 * p) / (1 - p));

test('every number of two models whose distributions are known', async () => {
  // The original gives token 0 probability 1/2, the rewritten one 1/4, whatever came before.
  const a = new RuleReader(4, () => 0, 'state', odds(0.5));
  const b = new RuleReader(4, () => 0, 'state', odds(0.25));
  const kl = 0.5 * Math.log(2) + 0.5 * Math.log(2 / 3);
  const result = await compareLanguage(a, b, [1, 0, 2, 0, 0, 0], { context: 6 });
  // Tokens 0, 2, 0, 0, 0 are predicted: log(q/p) is -log 2 four times and log(3/2) once.
  const logs = [Math.LN2, -Math.log(1.5), Math.LN2, Math.LN2, Math.LN2];
  const mean = logs.reduce((x, y) => x + y) / 5;
  const error = Math.sqrt(logs.reduce((s, x) => s + (x - mean) ** 2, 0) / 4 / 5);
  expect(result.tokens).toBe(5);
  expect(result.ppl.original).toBeCloseTo(Math.exp((4 * Math.LN2 + Math.log(6)) / 5), 5);
  expect(result.ppl.rewritten).toBeCloseTo(4, 5);
  expect(result.ppl.ratio.value).toBeCloseTo(Math.exp(mean), 5);
  expect(result.ppl.ratio.error).toBeCloseTo(Math.exp(mean) * error, 5);
  for (const x of [result.kld.mean.value, result.kld.median.value, result.kld.max]) {
    expect(x).toBeCloseTo(kl, 5);
  }
  expect(result.delta_p.mean.value).toBeCloseTo((4 * -0.25 + 1 / 12) / 5, 5);
  expect(result.delta_p.rms.value).toBeCloseTo(Math.sqrt((4 * 0.0625 + 1 / 144) / 5), 5);
  expect(result.histogram.counts.reduce((x, y) => x + y)).toBe(5);
  // One pair, 0 0, comes twice; its second end is the last token.
  expect(result.repeated).toMatchObject({ tokens: 1, ratio: { error: null } });
  expect(result.repeated!.ratio.value).toBeCloseTo(2, 5);
  expect(result.rest!.tokens).toBe(4);
  expect(result.drift.map((d) => [d.from, d.to, d.tokens])).toEqual(
    [1, 2, 3, 4, 5].map((i) => [i, i + 1, 1]),
  );
});

test('repeated pairs', () => {
  expect(endsRepeatedPair([1, 2, 1, 2, 2, 1, 2])).toEqual(
    [0, 0, 0, 1, 0, 1, 1].map((x) => x === 1),
  );
});

test('models that remember are read in pieces, with the same result', async () => {
  const rule = (seen: readonly number[]) => (seen.length * 7) % 4;
  const text = Array.from({ length: 50 }, (_, i) => (i * i) % 4);
  const read = (chunk: number, memory: 'state' | 'none') =>
    compareLanguage(new RuleReader(4, rule, memory), new RuleReader(4, rule, memory, 3), text, {
      context: 20,
      chunk,
    });
  expect(await read(7, 'state')).toEqual(await read(64, 'none'));
});

test('a text too short is refused', async () => {
  const model = new RuleReader(4, () => 0);
  await expect(compareLanguage(model, model, [1])).rejects.toThrow('at least 2 tokens');
});

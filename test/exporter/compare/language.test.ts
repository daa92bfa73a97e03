import fs from 'node:fs';
import * as ort from 'onnxruntime-node';
import { expect, test } from 'vitest';
import { compareLanguage } from '../../../exporter/compare/index.js';
import { LanguageModel } from '../../../exporter/text/language_model.js';
import { loadTokenizer } from '../../../exporter/text/tokenizer.js';
import { TINYLM } from '../../support/models.js';

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
  expect(result.ppl.ratio).toBeCloseTo(1, 5);
  expect(result.kld.max).toBeLessThan(1e-8);
  expect(result.same_top).toBe(1);
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

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { maxAbsDifference } from '../../../exporter/compare/statistics.js';
import { loadModel, rewriteModel, saveModel } from '../../../exporter/index.js';
import { LanguageModel } from '../../../exporter/text/language_model.js';
import { loadTokenizer } from '../../../exporter/text/tokenizer.js';
import { TINYLM } from '../../support/models.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-lm-'));
const linear = path.join(folder, 'linear.onnx');
const hybrid = path.join(folder, 'hybrid.onnx');
const text = fs.readFileSync(TINYLM.text, 'utf8').slice(0, 3000);
const ids = loadTokenizer(TINYLM.tokenizer).encode(text).slice(0, 150);

beforeAll(async () => {
  for (const [file, layers] of [
    [linear, undefined],
    [hybrid, [1, 3]],
  ] as const) {
    const model = loadModel(TINYLM.modelKv);
    await rewriteModel(model, { variant: 'linear', layers });
    saveModel(model, file);
  }
});
afterAll(() => fs.rmSync(folder, { recursive: true }));

describe.each(['fla', 'stock'] as const)('rewritten models run by %s', (backend) => {
  test.each([
    ['all layers', linear, 'state'],
    ['two layers', hybrid, 'cache'],
  ])('%s: reading in pieces gives the logits of reading at once', async (_, file, memory) => {
    const model = await LanguageModel.open(file, { backend });
    expect([model.memory, model.backend]).toEqual([memory, backend]);
    const whole = await model.advance(ids);
    for (const chunk of [1, 7, 64]) {
      await model.reset();
      for (let at = 0; at < ids.length; at += chunk) {
        const part = await model.advance(ids.slice(at, at + chunk));
        const same = whole.data.subarray(at * whole.vocabulary).subarray(0, part.data.length);
        expect(maxAbsDifference(part.data, same)).toBeLessThan(1e-4); // logits reach 30
      }
      expect(model.position).toBe(ids.length);
    }
    await model.release();
  });

  test('the state of a model without cache does not grow', async () => {
    const model = await LanguageModel.open(linear, { backend });
    const before = model.stateBytes;
    await model.prefill(ids, { chunk: 32 });
    expect(model.stateBytes).toBe(before);
    expect(before).toBe(4 * 2 * 64 * 65 * 4 + 8); // layers, heads, [64, 64 + 1] floats; one length
    await model.release();
  });
});

test('both backends compute the same', async () => {
  const [a, b] = [
    await LanguageModel.open(linear, { backend: 'fla' }),
    await LanguageModel.open(linear, { backend: 'stock' }),
  ];
  const [x, y] = [await a.advance(ids), await b.advance(ids)];
  expect(maxAbsDifference(x.data, y.data)).toBeLessThan(1e-3);
});

test('a model that is not there is named', async () => {
  await expect(LanguageModel.open(path.join(folder, 'none.onnx'))).rejects.toMatchObject({
    code: 'io',
    message: expect.stringMatching(/none\.onnx: cannot be read: no such file$/),
  });
});

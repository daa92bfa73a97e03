import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, describe, expect, it } from 'vitest';
import {
  type ControlOptions,
  loadModel,
  modelBytes,
  parseModel,
  rewriteControl,
  saveModel,
} from '../../exporter/index.js';
import { LanguageModel } from '../../exporter/text/language_model.js';
import { OCR_DETECTOR, OCR_RECOGNISER, TINYLM } from '../support/models.js';
import { FAMILIES, type Family, Writer } from './support/families.js';
import { type Call, evaluate, makeLayer } from './support/layer.js';
import { distance, floats, ints, random, run } from './support/run.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-controls-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));

const BATCH = 2;
const TOKENS = 9;
const masked = (hidden: (t: number) => boolean): number[][] => [
  Array(TOKENS).fill(1),
  Array.from({ length: TOKENS }, (_, t) => (hidden(t) ? 0 : 1)),
];
const LEFT = masked((t) => t < 2);
const RIGHT = masked((t) => t >= TOKENS - 2);

/** A control of a family, and the layer computed from the definition with the keys that `near` admits. */
async function compare(
  family: Family,
  options: ControlOptions,
  near: (i: number, j: number) => boolean,
) {
  const layer = family.layer?.() ?? makeLayer();
  const model = family.build(new Writer(layer));
  const changed = await rewriteControl(model, options);
  const mask = family.padding === 'right' ? RIGHT : LEFT;
  const next = random(5);
  const x = floats([BATCH, TOKENS, layer.hidden], () => next() * 2);
  const feeds = {
    x,
    ...(model.graph.isInput('attention_mask') && {
      attention_mask: ints([BATCH, TOKENS], mask.flat()),
    }),
    ...family.feeds?.(mask),
  };
  const { y } = await run(parseModel(modelBytes(model)), feeds);
  const { visible, padding } = family;
  const sees: Call['sees'] = (b, i, j) =>
    near(i, j) &&
    !(padding && !mask[b]![j]) &&
    (visible === 'all' || (j <= i && (visible === 'causal' || j > i - visible.window)));
  const data = x.data as Float32Array;
  const expected = evaluate(layer, { batch: BATCH, tokens: TOKENS, x: data, sees }, 'softmax');
  const keep = (values: ArrayLike<number>) =>
    Array.from(values).filter((_, i) => {
      const token = Math.floor(i / layer.hidden);
      return !padding || mask[Math.floor(token / TOKENS)]![token % TOKENS] === 1;
    });
  return { changed, error: distance(keep(y!.data as Float32Array), keep(expected)) };
}

describe.each(FAMILIES)('$name', (family) => {
  it('sees sinks and a window', async () => {
    const near = (i: number, j: number) => j < 1 || Math.abs(i - j) < 3;
    const { changed, error } = await compare(
      family,
      { control: 'window', window: 3, sinks: 1 },
      near,
    );
    expect(changed).toBe(1);
    expect(error).toBeLessThan(1e-5);
  });
  it('yields zeros', async () => {
    expect((await compare(family, { control: 'zeroed' }, () => false)).error).toBe(0);
  });
});

async function control(source: string, options: ControlOptions): Promise<string> {
  const model = loadModel(source);
  await rewriteControl(model, options);
  const file = path.join(folder, `${fs.readdirSync(folder).length}.onnx`);
  saveModel(model, file);
  return file;
}

describe('a language model with a cache', () => {
  const ids = Array.from({ length: 40 }, (_, i) => (i * 389 + 17) % 2048);
  const logits = async (file: string, chunk: number) => {
    const model = await LanguageModel.open(file);
    const rows: number[] = [];
    for (let at = 0; at < ids.length; at += chunk) {
      rows.push(...(await model.advance(ids.slice(at, at + chunk))).data);
    }
    await model.release();
    return rows;
  };
  it('counts its window over the cache: in pieces as at once', async () => {
    const file = await control(TINYLM.modelKv, { control: 'window', window: 8, sinks: 2 });
    const whole = await logits(file, 40);
    expect(distance(await logits(file, 7), whole)).toBeLessThan(1e-4);
    const stateless = await control(TINYLM.model, { control: 'window', window: 8, sinks: 2 });
    expect(distance(await logits(stateless, 40), whole)).toBeLessThan(1e-4);
    expect(distance(await logits(TINYLM.modelKv, 40), whole)).toBeGreaterThan(0.1);
  });
  it('changes nothing with a window as long as the text', async () => {
    const file = await control(TINYLM.modelKv, { control: 'window', window: 40, sinks: 0 });
    expect(distance(await logits(file, 40), await logits(TINYLM.modelKv, 40))).toBeLessThan(1e-4);
  });
  it('does not know the tokens before without attention', async () => {
    const file = await control(TINYLM.modelKv, { control: 'zeroed' });
    const model = await LanguageModel.open(file);
    const following = async (before: number[]) => [...(await model.prefill([...before, 7])).data];
    const a = await following([1, 2, 3]);
    await model.reset();
    expect(await following([900, 901])).toEqual(a);
  });
});

it('works in opset 9, bidirectionally: the recogniser', async () => {
  const file = await control(OCR_RECOGNISER, { control: 'window', window: 4, sinks: 0 });
  const pixels = { x: floats([1, 3, 48, 160], (i) => Math.sin(i)) };
  const read = async (from: string) => {
    const session = await ort.InferenceSession.create(from, { logSeverityLevel: 3 });
    const [out] = Object.values(await session.run(pixels));
    return out!.data as Float32Array;
  };
  const original = await read(OCR_RECOGNISER);
  expect(distance(await read(file), original)).toBeGreaterThan(1e-4);
  const wide = await control(OCR_RECOGNISER, { control: 'window', window: 400, sinks: 0 });
  expect(distance(await read(wide), original)).toBeLessThan(1e-4);
});

it('leaves a model without attention alone', async () => {
  expect(await rewriteControl(loadModel(OCR_DETECTOR), { control: 'zeroed' })).toBe(0);
});

it('refuses a window of nothing', async () => {
  const model = loadModel(TINYLM.model);
  const options = { control: 'window', window: 0, sinks: 4 } as const;
  await expect(rewriteControl(model, options)).rejects.toMatchObject({
    code: 'invalid_argument',
    message: expect.stringContaining('window must be at least 1'),
  });
});

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type * as Ort from 'onnxruntime-node';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { measure } from '../../../exporter/calibrate/measure.js';
import { openModel } from '../../../exporter/calibrate/student_session.js';
import {
  assemble,
  type CalibratedVariant,
  type CalibrateOptions,
  calibrate,
  calibrateModel,
  loadModel,
  type Model,
  modelBytes,
  type RewriteOptions,
  rewriteModel,
  tokenData,
} from '../../../exporter/index.js';
import { readText } from '../../../exporter/text/read_text.js';
import { loadTokenizer } from '../../../exporter/text/tokenizer.js';
import { TINYLM } from '../../support/models.js';
import { bertBlock } from '../support/families/block.js';

vi.setConfig({ testTimeout: 120_000 });
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-variants-'));
const text = readText(TINYLM.text).slice(0, 40_000);
const data = tokenData(loadTokenizer(TINYLM.tokenizer).encode(text), { length: 128, repeated: 0 });
const model = loadModel(TINYLM.model);
const LAYERS = [1, 3];
const ONE = { threads: 1 }; // the models are small

let teacher: Ort.InferenceSession;
beforeAll(async () => {
  teacher = (await openModel(model, ONE)).session;
});
afterAll(async () => {
  await teacher.release();
  fs.rmSync(folder, { recursive: true });
});

async function kl(student: Model): Promise<number> {
  const { session } = await openModel(student, ONE);
  const quality = await measure(teacher, session, 'logits', data, { batches: 4 });
  await session.release();
  return quality.kl;
}

const constant = (value: number) => ({ constant: value });
const [decay, beta, a, dt] = [-0.1, 1, -1, 0.1].map(constant);
const GIVEN: Record<string, RewriteOptions['gates']> = {
  gla: { default: { decay } },
  mamba2: { default: { a, dt } },
  delta: { default: { beta } },
  'gated-delta': { default: { decay, beta } },
};
const CASES: [CalibratedVariant, CalibrateOptions, least: number][] = [
  ['gla', {}, 0.3],
  ['mamba2', {}, 0.4],
  ['mamba2', { constantGates: true }, 0.5],
  ['delta', {}, 0.9],
  ['gated-delta', {}, 0.6],
  ['gated-delta', { constantGates: true, gates: GIVEN['gated-delta'] }, 0.8],
  ['performer', { features: 64, rate: 0.05, rows: 64 }, 0.8],
];

it.each(CASES)('%s %j: held-out text tells that it was fitted', async (variant, options, least) => {
  const unfitted = loadModel(TINYLM.model);
  const { features } = options;
  const given = variant === 'performer' ? { features } : { gates: GIVEN[variant] };
  await rewriteModel(unfitted, { variant, layers: LAYERS, ...given });
  // Without the refit of the matrices that mix heads: it is the fit alone that is looked at.
  const fitted = await calibrate(model, data, {
    variant,
    layers: LAYERS,
    steps: 16,
    refit: false,
    ...ONE,
    ...options,
  });
  for (const { first, last } of fitted.losses.values()) {
    expect(last.at(-1)!).toBeLessThan(first.at(-1)!);
  }
  const [before, after] = [await kl(unfitted), await kl((await assemble(model, fitted)).model)];
  expect(after).toBeLessThan(least * before);
});

it('is the same when interrupted', async () => {
  const short = { variant: 'gated-delta', layers: [1], steps: 22, refit: false, ...ONE } as const;
  const whole = await assemble(model, await calibrate(model, data, short));
  const checkpoint = path.join(folder, 'checkpoint');
  const controller = new AbortController();
  const stopped = calibrate(model, data, {
    ...short,
    checkpoint,
    signal: controller.signal,
    onProgress: (_, done) => {
      if (done === 20) controller.abort(new Error('stop'));
    },
  });
  await expect(stopped).rejects.toThrow('stop');
  const resumed = await assemble(model, await calibrate(model, data, { ...short, checkpoint }));
  expect(Buffer.compare(modelBytes(whole.model), modelBytes(resumed.model))).toBe(0);
  const other = calibrate(model, data, { ...short, variant: 'gla', checkpoint });
  await expect(other).rejects.toThrow('belongs to another calibration');
});

it('reports states, and chooses layers to keep', async () => {
  const { report } = await calibrateModel(loadModel(TINYLM.modelKv), data, {
    variant: 'mamba2',
    layers: LAYERS,
    steps: 4,
    refitBatches: 2,
    batches: 1,
    choose: { keep: 1 },
    ...ONE,
  });
  const sizes = report.pareto.map((r) => [r.state_bytes, r.cache_bytes_per_token]);
  expect(sizes).toEqual([
    [2 * 2 * 64 * 64 * 4, 0],
    [2 * 64 * 64 * 4, 2 * 128 * 4],
  ]);
  expect(report.rewrite.state.filter((s) => s.past.endsWith('.state'))).toMatchObject([
    { shape: ['batch', 2, 64, 64] },
  ]);
});

it.each<[CalibrateOptions, string]>([
  [{ variant: 'retention' as 'gla' }, 'variant must be one of hybrid, performer, gla,'],
  [{ variant: 'gla', window: 8 }, 'window is for hybrid, received gla'],
  [{ variant: 'performer', distil: 2 }, 'distil is for hybrid, received performer'],
  [
    { constantGates: true },
    'constantGates is for gla, mamba2, delta, gated-delta, received hybrid',
  ],
  [
    { variant: 'gla', gates: { 1: { decay: { constant: [-1] } } } },
    'layer 1: decay must be 2 numbers <= 0 (log decay), received -1',
  ],
  [
    { variant: 'gla', gates: { default: { beta: { constant: 1 } } } },
    'layer 0: gla begins with constants for decay, received beta',
  ],
  [
    { variant: 'delta', gates: { 1: { beta: { weight: new Float32Array(1) } } } },
    'layer 1: delta begins with constants for beta, received a projection for beta',
  ],
])('refuses %j', async (options, message) => {
  await expect(calibrate(model, data, options)).rejects.toThrow(message);
});

it('refuses a bidirectional model', async () => {
  await expect(calibrate(bertBlock(), data, { variant: 'gla' })).rejects.toThrow(
    'variant gla is for causal attention, received a bidirectional model',
  );
});

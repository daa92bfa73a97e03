import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, expect, it, vi } from 'vitest';
import { measure } from '../../../exporter/calibrate/measure.js';
import { openModel } from '../../../exporter/calibrate/student_session.js';
import {
  arrayData,
  assemble,
  calibrate,
  calibrateModel,
  loadModel,
  modelBytes,
  rewriteModel,
} from '../../../exporter/index.js';
import { Random } from '../../../exporter/random.js';
import { ROOT } from '../../support/models.js';
import { recallSequence } from './sequences.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-calibrate-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));

const FILE = path.join(ROOT, 'test/fixtures/tinyrecall/model.onnx');
const T = 160;
const COUNT = 120;
const ids = Float64Array.from(
  Array.from({ length: COUNT }, (_, i) => recallSequence(new Random(3, i), T).ids).flat(),
);
const data = arrayData(new Map([['input_ids', { dims: [COUNT, T], data: ids }]]), { batch: 2 });
const model = loadModel(FILE);
vi.setConfig({ testTimeout: 180_000 }); // several fits a test

const options = {
  window: 32,
  sinks: 2,
  features: 128,
  featureMap: 'softmax',
  unrotated: true,
  steps: 24,
  refitBatches: 4,
  seed: 1,
} as const;

async function quality(student: typeof model) {
  const teacher = await openModel(model);
  const other = await openModel(student);
  const q = await measure(teacher.session, other.session, 'logits', data, {
    batches: 4,
    window: 32,
  });
  await teacher.session.release();
  await other.session.release();
  return q;
}

it('a short fit beats no fit, a window alone, and naive linear attention', async () => {
  const fitted = (await assemble(model, await calibrate(model, data, options))).model;
  const others = [
    { variant: 'hybrid', window: 32, sinks: 2, featureMap: 'elu1' },
    { variant: 'hybrid', window: 32, sinks: 2 },
    { variant: 'window', window: 32, sinks: 2 },
    { variant: 'linear' },
  ] as const;
  const mine = await quality(fitted);
  for (const other of others) {
    const student = loadModel(FILE);
    await rewriteModel(student, other);
    const theirs = await quality(student);
    expect(mine.kl_repeated!).toBeLessThan(0.7 * theirs.kl_repeated!);
    expect(mine.recall!).toBeGreaterThan(theirs.recall! + 0.1);
  }
});

it('is deterministic under a seed, and the same when interrupted', async () => {
  const short = { ...options, steps: 22, refitBatches: 2, layers: [1] };
  const whole = await assemble(model, await calibrate(model, data, short));
  const checkpoint = path.join(folder, 'checkpoint');
  const controller = new AbortController();
  const stopped = calibrate(model, data, {
    ...short,
    checkpoint,
    signal: controller.signal,
    onProgress: (stage, done) => {
      if (stage === 'steps of the fit' && done === 20) controller.abort(new Error('stop'));
    },
  });
  await expect(stopped).rejects.toThrow('stop');
  const resumed = await assemble(model, await calibrate(model, data, { ...short, checkpoint }));
  expect(Buffer.compare(modelBytes(whole.model), modelBytes(resumed.model))).toBe(0);
  const foreign = calibrate(model, data, { ...short, seed: 2, checkpoint });
  await expect(foreign).rejects.toThrow('belongs to another calibration');
});

it('finds the layer that recalls', async () => {
  const { report } = await calibrateModel(model, data, {
    ...options,
    steps: 12,
    batches: 4,
    choose: { keep: 1 },
  });
  expect(report.pareto.map((r) => r.kept)).toEqual([[], [1]]);
  expect(report.pareto[1]!.recall!).toBeGreaterThan(0.95);
  expect(report.pareto[1]!.kl).toBeLessThan(report.pareto[0]!.kl);
  expect(report.pareto[1]!.cache_bytes_per_token).toBe(2 * 128 * 4);
});

it('says what does not fit', async () => {
  await expect(calibrate(model, data, { window: 200 })).rejects.toThrow(
    'sequences must be longer than window and sinks together (204 tokens), received 160',
  );
  await expect(calibrate(model, data, { layers: [7] })).rejects.toThrow(
    'layer must be one of the causal ones (0, 1), received 7',
  );
  await expect(calibrate(model, data, { features: 7, window: 64 })).rejects.toThrow(
    'features must be a multiple of 2 for exp, received 7',
  );
});

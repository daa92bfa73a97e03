import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, expect, test, vi } from 'vitest';
import { compareModels } from '../../../exporter/compare/index.js';
import { loadModel, rewriteModel, saveModel } from '../../../exporter/index.js';
import { OCR_DETECTOR, OCR_RECOGNISER, TINYRECALL } from '../../support/models.js';
import { loadTransformers } from '../support/transformers.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-models-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));

test('a model without attention has no controls, and a note says so', async () => {
  const { rows, notices } = await compareModels(OCR_DETECTOR, [OCR_DETECTOR], { length: 64 });
  expect(rows.map((r) => r.id)).toEqual(['original', 'model']);
  expect(rows[0]!.attention).toEqual({ layers: 0, softmax: 0 });
  expect(notices).toEqual(['no controls: the original has no attention']);
});

test('an encoder: controls by outputs; their files are gone afterwards', async () => {
  const temporary = fs.mkdtempSync(path.join(folder, 'tmp-'));
  vi.stubEnv('TMPDIR', temporary);
  const { rows } = await compareModels(OCR_RECOGNISER, [OCR_RECOGNISER], { length: 96, window: 4 });
  const cosine = (id: string) => Object.values(rows.find((r) => r.id === id)!.outputs!)[0]!.cosine!;
  expect(cosine('parity')).toBeCloseTo(1, 5);
  expect(cosine('model')).toBeCloseTo(1, 5);
  for (const id of ['zeroed', 'window', 'elu1']) expect(cosine(id)).toBeLessThan(0.9999);
  expect(fs.readdirSync(temporary)).toEqual([]);
  vi.unstubAllEnvs();
});

test('a decoder that is still merged reads a text, and so do its rewritten forms', async () => {
  const write = async (name: string, variant?: 'none' | 'linear') => {
    const model = loadTransformers('gpt2_merged.torchscript');
    if (variant) await rewriteModel(model, { variant });
    const file = path.join(folder, `${name}.onnx`);
    saveModel(model, file);
    return { file, name };
  };
  const { file } = await write('merged');
  const models = [await write('none', 'none'), await write('linear', 'linear')];
  const ids = Array.from({ length: 60 }, (_, i) => 3 + ((i * i) % 61));
  const { rows } = await compareModels(file, models, {
    ...{ text: { ids, name: 'numbers' }, context: 20, length: 8, controls: false },
  });
  const [none, linear] = rows.filter((r) => r.role === 'model');
  expect(none!.language!.ppl.ratio.value).toBeCloseTo(1, 5);
  expect(none!.language!.kld.max).toBeLessThan(1e-9);
  expect(linear!.language!.kld.max).toBeGreaterThan(1e-4);
});

test('models have names; the choice of layers comes from the metadata; layers are counted', async () => {
  const model = loadModel(TINYRECALL);
  await rewriteModel(model, { variant: 'linear', layers: [0] });
  model.setMetadata('onnx_fla.pareto', '[{"kept":1,"layers":[1],"kld":0.5}]');
  const file = path.join(folder, 'half.onnx');
  saveModel(model, file);
  const seen: string[] = [];
  const report = await compareModels(
    TINYRECALL,
    [TINYRECALL, { file, name: 'half', about: 'one of two layers' }],
    {
      controls: false,
      tasks: { names: ['mqar'], lengths: [40, 96], samples: 1, depths: [0] },
      onProgress: (stage) => seen.push(stage),
    },
  );
  expect(report.rows.map((r) => [r.id, r.name, r.attention?.softmax])).toEqual([
    ['original', 'original', 2],
    ['model', 'model.onnx', 2],
    ['model-2', 'half', 1],
  ]);
  expect(report.rows[2]!.about).toBe('one of two layers');
  expect(report.pareto).toEqual([
    { kept: 1, layers: [1], ppl_ratio: null, kld: 0.5, recall: null, state_bytes: null },
  ]);
  expect(report.settings.tasks!.lengths).toEqual([96]);
  expect(report.notices).toContain('task mqar: too long for 40 tokens');
  expect(new Set(seen)).toContain('tokens of tasks, half');
  // The same model answers the same questions alike.
  expect(report.rows[1]!.tasks).toEqual(report.rows[0]!.tasks);
});

test('lengths that hold no question are refused', async () => {
  const tasks = { names: ['mqar'], lengths: [8, 16] };
  await expect(compareModels(TINYRECALL, [TINYRECALL], { tasks })).rejects.toThrow(
    'task lengths must hold a question, received 8, 16',
  );
});

test('an interrupt is heard', async () => {
  const stop = new AbortController();
  const running = compareModels(TINYRECALL, [TINYRECALL], {
    tasks: { names: ['repeat'] },
    onProgress: (stage) => {
      if (stage.startsWith('tokens of tasks')) stop.abort(new Error('enough'));
    },
    signal: stop.signal,
  });
  await expect(running).rejects.toThrow('enough');
});

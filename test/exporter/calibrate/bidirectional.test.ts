import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { openModel } from '../../../exporter/calibrate/student_session.js';
import {
  assemble,
  type CalibrationReport,
  calibrate,
  calibrateModel,
  loadData,
  loadModel,
  type Model,
  modelBytes,
  rewriteModel,
  saveModel,
  writeNpz,
} from '../../../exporter/index.js';
import { nodeRunner } from '../../../exporter/node_runner.js';
import { Random } from '../../../exporter/random.js';
import { runCli, runJson } from '../cli/run_cli.js';
import { decoder } from '../support/decoder.js';
import { bertBlock } from '../support/families/block.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-bidirectional-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));
const at = (name: string) => path.join(folder, name);
vi.setConfig({ testTimeout: 180_000, hookTimeout: 60_000 });

const HIDDEN = 16;
const model = bertBlock();

/** Examples of `T` tokens, the last few of which are padding; what stands in the padding is loud. */
function examples(count: number, T: number, seed: number) {
  const x = new Float32Array(count * T * HIDDEN);
  const mask = new BigInt64Array(count * T);
  for (let i = 0; i < count; i++) {
    const random = new Random(seed, i);
    const length = T - random.below(T / 2);
    for (let t = 0; t < T; t++) {
      mask[i * T + t] = BigInt(+(t < length));
      const loud = t < length ? 1 : 50;
      for (let c = 0; c < HIDDEN; c++) x[(i * T + t) * HIDDEN + c] = loud * random.normal();
    }
  }
  return {
    x: { dims: [count, T, HIDDEN], data: x },
    attention_mask: { dims: [count, T], data: mask },
  };
}

beforeAll(() => {
  fs.mkdirSync(at('data'));
  writeNpz(at('data/short.npz'), examples(40, 16, 1));
  writeNpz(at('data/long.npz'), examples(60, 24, 2));
  saveModel(bertBlock(), at('bert.onnx'));
});

/** Relative error of outputs where there is no padding, on examples that no fit saw. */
async function error(student: Model, backend: 'stock' | 'fla' = 'stock'): Promise<number> {
  const [count, T] = [16, 20];
  const { x, attention_mask } = examples(count, T, 3);
  const feeds = {
    x: new ort.Tensor('float32', x.data, x.dims),
    attention_mask: new ort.Tensor('int64', attention_mask.data, attention_mask.dims),
  };
  const outputs: Float32Array[] = [];
  for (const m of [model, student]) {
    const { session } = await openModel(m, { backend });
    outputs.push((await session.run(feeds)).y!.data as Float32Array);
    await session.release();
  }
  const [a, b] = outputs as [Float32Array, Float32Array];
  let [difference, size] = [0, 0];
  a.forEach((y, i) => {
    if (attention_mask.data[Math.floor(i / HIDDEN)] === 0n) return;
    difference += (y - b[i]!) ** 2;
    size += y ** 2;
  });
  return Math.sqrt(difference / size);
}

const options = { features: 32, steps: 150, refitBatches: 8, seed: 1 } as const;
const data = () => loadData(at('data'), { batch: 4 });

it('a short fit beats naive linear attention, with padding and lengths of several kinds', async () => {
  const calibration = await calibrate(model, data(), options);
  const fitted = (await assemble(model, calibration)).model;
  const naive = bertBlock();
  await rewriteModel(naive, { variant: 'linear' });
  const mine = await error(fitted);
  expect(mine).toBeLessThan(0.5 * (await error(naive)));
  expect(await error(fitted, 'fla')).toBeCloseTo(mine, 4);
  const { first, last } = calibration.losses.get(0)!;
  expect(last[0]!).toBeLessThan(0.5 * first[0]!);
  const [node] = fitted.graph.nodes.filter((n) => n.is('LinearAttention', 'com.fla'));
  expect([node!.int('causal'), node!.int('normalize')]).toEqual([0, 1]);
});

it('padding has no say in the fit', async () => {
  const quiet = examples(60, 24, 2);
  quiet.x.data.forEach((v, i) => {
    if (Math.abs(v) > 8) quiet.x.data[i] = 0;
  });
  const losses = [];
  for (const [name, arrays] of Object.entries({ loud: examples(60, 24, 2), quiet })) {
    writeNpz(at(`${name}.npz`), arrays);
    const short = { ...options, steps: 5, refit: false };
    losses.push((await calibrate(model, loadData(at(`${name}.npz`)), short)).losses.get(0)!.last);
  }
  expect(losses[0]).toEqual(losses[1]);
});

it('is deterministic under a seed, and the same when interrupted', async () => {
  const short = { ...options, steps: 22, refitBatches: 2, featureMap: 'softmax' } as const;
  const whole = await assemble(model, await calibrate(model, data(), short));
  const checkpoint = at('checkpoint');
  const controller = new AbortController();
  const stopped = calibrate(model, data(), {
    ...short,
    checkpoint,
    signal: controller.signal,
    onProgress: (stage, done) => {
      if (stage === 'steps of the fit' && done === 20) controller.abort(new Error('stop'));
    },
  });
  await expect(stopped).rejects.toThrow('stop');
  const resumed = await assemble(model, await calibrate(model, data(), { ...short, checkpoint }));
  expect(Buffer.compare(modelBytes(whole.model), modelBytes(resumed.model))).toBe(0);
});

it('onnx-fla calibrate takes a folder of arrays, and reports what became of the outputs', async () => {
  const out = at('linear.onnx');
  const report = await runJson<CalibrationReport>(
    ...['calibrate', at('bert.onnx'), '--data', at('data'), '-o', out, '--features', '16'],
    ...['--steps', '30', '--refit-batches', '4', '--batch', '4', '--keep-softmax', 'auto:1'],
  );
  expect(report.pareto).toEqual([]);
  expect(report.outputs.map((r) => r.kept)).toEqual([[], [0]]);
  expect(report.outputs[0]!.relative_error).toBeGreaterThan(0);
  expect(report.outputs[1]!.relative_error).toBe(0);
  const { stdout, stderr, code } = await runCli(
    ...['calibrate', at('bert.onnx'), '--data', at('data'), '-o', out, '--features', '16'],
    ...['--steps', '4', '--refit-batches', '1', '--batch', '4'],
  );
  expect([stderr, code]).toEqual(['', 0]);
  expect(stdout).toContain('relative error of outputs');
  expect(await error(loadModel(out))).toBeLessThan(1);
});

it('says what does not fit', async () => {
  await expect(calibrate(model, data(), { distil: 3 })).rejects.toThrow(
    'cache, distil and unrotated are for causal attention, received a bidirectional model',
  );
  await expect(calibrate(model, data(), { layers: [2] })).rejects.toThrow(
    'layer must be one of the bidirectional ones (0), received 2',
  );
  const goal = { ...options, steps: 1, refit: false, choose: { kl: 0.1 } };
  await expect(calibrateModel(model, data(), goal)).rejects.toThrow(
    'a KL divergence as goal is for language models, received a bidirectional model',
  );
  const parameter = { dims: [4, 4, 3], data: new Float32Array(48) };
  const fitted = { 0: { featureMap: 'exp', signs: 1, queryWeight: parameter } } as const;
  await expect(rewriteModel(bertBlock(), { variant: 'linear', fitted })).rejects.toThrow(
    'fitted.0.queryWeight must be [4,4,4], received [4,4,3]',
  );
  await expect(rewriteModel(bertBlock(), { variant: 'hybrid', fitted })).rejects.toThrow(
    'fitted feature maps are for linear and performer, received hybrid',
  );
});

it('fitted features serve a decoder with a cache too', async () => {
  const spec = { attention: 'decomposed', cache: true, positions: 'none', padding: false } as const;
  const model = decoder(spec);
  const [heads, dim, M] = [2, 3, 5];
  const weight = (h: number) => ({
    dims: [h, dim, M],
    data: Float32Array.from({ length: h * dim * M }, (_, i) => Math.sin(3 * i)),
  });
  const [queryWeight, keyWeight] = [weight(2 * heads), weight(heads)];
  const layer = { featureMap: 'exp', signs: 2, queryWeight, keyWeight } as const;
  const { state } = await rewriteModel(model, {
    variant: 'linear',
    fitted: { 0: layer },
    runner: nodeRunner,
  });
  expect(state[0]!.shape.slice(1)).toEqual([heads, 2 * M, 4]);
  const session = await ort.InferenceSession.create(modelBytes(model), { logSeverityLevel: 3 });
  const call = (ids: number[], past: ort.Tensor) =>
    session.run({
      input_ids: new ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]),
      [state[0]!.past]: past,
    });
  const empty = new ort.Tensor('float32', new Float32Array(heads * 2 * M * 4), [
    1,
    heads,
    2 * M,
    4,
  ]);
  const whole = await call([3, 10, 17, 1], empty);
  const first = await call([3, 10], empty);
  const rest = await call([17, 1], first[state[0]!.present]!);
  const parts = [first, rest].flatMap((r) => [...(r.y!.data as Float32Array)]);
  [...(whole.y!.data as Float32Array)].forEach((y, i) => {
    expect(parts[i]).toBeCloseTo(y, 4);
  });
});

import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { loadOnnxRuntime } from '../compare/session.js';
import type { Model } from '../ir/index.js';
import { nodeRunner } from '../node_runner.js';
import { tokenInterface } from '../text/token_interface.js';
import { Adam } from './adam.js';
import { batchFor, type CalibrateOptions, type Calibration } from './calibrate.js';
import { weightOf } from './copy.js';
import type { CalibrationData } from './data/index.js';
import { DistillationStep } from './distillation.js';
import type { Projection } from './refit.js';
import { PARAMETER_NAMES, type ParameterName } from './student.js';
import { openModel } from './student_session.js';

const FIELDS: Record<
  ParameterName,
  'queryWeight' | 'keyWeight' | 'queryBias' | 'keyBias' | 'alpha' | 'keyMean'
> = {
  query_weight: 'queryWeight',
  key_weight: 'keyWeight',
  query_bias: 'queryBias',
  key_bias: 'keyBias',
  alpha: 'alpha',
  key_mean: 'keyMean',
};

/** Trains all converted layers together to predict what the original predicts; changes the calibration's numbers in place. */
export async function distil(
  model: Model,
  data: CalibrationData,
  calibration: Calibration,
  ways: ReadonlyMap<number, Projection | undefined>,
  options: CalibrateOptions,
): Promise<void> {
  const { distil: steps = 0, distilRate = 0.002, signal } = options;
  const ort = await loadOnnxRuntime();
  const teacher = await openModel(model, options);
  const { logits, state } = tokenInterface(teacher.session);
  if (state.length > 0) {
    throw new FlaError(
      'unsupported',
      'distillation needs a model without a cache, received one with',
    );
  }
  const projections = calibration.projections as Map<string, { layer: number; data: Float32Array }>;
  for (const [layer, way] of ways) {
    if (!way || projections.has(way.weight)) continue;
    const data = Float32Array.from(weightOf(model.graph, way.weight)!.numbers());
    projections.set(way.weight, { layer, data });
  }
  const example = await batchFor(teacher.session, data, 'fit', 3_000_000);
  const first = (await teacher.session.run(example))[logits]!;
  const forms = [...calibration.layers].map(([layer, l]) => ({
    layer,
    M: l.queryWeight!.dims[2]!,
    unrotated: l.unrotated ?? false,
    form: {
      window: options.window ?? 64,
      sinks: options.sinks ?? 4,
      featureMap: l.featureMap as 'exp' | 'softmax',
      signs: l.signs,
    },
  }));
  const step = await DistillationStep.create(model, forms, example, logits, first.dims[2]!, {
    runner: nodeRunner,
    ...options,
  });
  const values = new Map<string, Float32Array>();
  for (const [layer, l] of calibration.layers) {
    for (const p of PARAMETER_NAMES) values.set(`student.${layer}.${p}`, l[FIELDS[p]]!.data);
    const way = ways.get(layer);
    if (way) values.set(`student.${layer}.output_weight`, projections.get(way.weight)!.data);
  }
  const adams = new Map([...step.shapes.keys()].map((n) => [n, new Adam(values.get(n)!.length)]));
  try {
    for (let t = 1; t <= steps; t++) {
      signal?.throwIfAborted();
      const feeds = await batchFor(teacher.session, data, 'fit', 3_000_000 + t);
      const target = logProbabilities(ort, (await teacher.session.run(feeds))[logits]!);
      const [B, T] = target.dims as [number, number, number];
      const ones = new ort.Tensor('float32', new Float32Array(B * T).fill(1), [B, T]);
      const { gradients } = await step.run(values, feeds, target, ones);
      const rate = distilRate * (0.05 + 0.95 * 0.5 * (1 + Math.cos((Math.PI * t) / steps)));
      for (const [n, g] of gradients) {
        const own = n.endsWith('output_weight') ? 0.2 * rate : rate;
        adams.get(n)!.step(values.get(n)!, g, own, t);
      }
      options.onProgress?.('steps of the distillation', t, steps);
    }
  } finally {
    await step.release();
    await teacher.session.release();
  }
}

function logProbabilities(ort: typeof Ort, logits: Ort.Tensor): Ort.Tensor {
  const data = logits.data as Float32Array;
  const size = logits.dims.at(-1)!;
  const out = new Float32Array(data.length);
  for (let at = 0; at < data.length; at += size) {
    let top = -Infinity;
    for (let c = 0; c < size; c++) top = Math.max(top, data[at + c]!);
    let total = 0;
    for (let c = 0; c < size; c++) total += Math.exp(data[at + c]! - top);
    const shift = top + Math.log(total);
    for (let c = 0; c < size; c++) out[at + c] = data[at + c]! - shift;
  }
  return new ort.Tensor('float32', out, logits.dims);
}

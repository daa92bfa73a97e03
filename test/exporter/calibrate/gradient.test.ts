import * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  type HybridForm,
  PARAMETER_NAMES,
  parameterShapes,
} from '../../../exporter/calibrate/student.js';
import type { TappedHeads } from '../../../exporter/calibrate/taps.js';
import { TrainingStep, type Values } from '../../../exporter/calibrate/training.js';
import { Random } from '../../../exporter/random.js';

const sizes = { HQ: 4, HV: 2, K: 6, V: 5, D: 6, M: 7 };
const T = 14;
const ROWS = [6, 9, 13];
const WEIGHTS = { weights: 1, far: 0.5, output: 2 };

const random = new Random(4);
const floats = (...dims: number[]) => {
  const size = dims.reduce((a, b) => a * b, 1);
  return new ort.Tensor(
    'float32',
    Float32Array.from({ length: size }, () => random.normal()),
    dims,
  );
};

describe.each([
  { name: 'exp', featureMap: 'exp', signs: 2 },
  { name: 'softmax', featureMap: 'softmax', signs: 1 },
  { name: 'FAVOR+', featureMap: 'exp', signs: 1, favor: true },
] as const)('the training step ($name)', ({ name: _, ...map }) => {
  const form: HybridForm = {
    window: 3,
    sinks: 1,
    scale: 0.4,
    ...map,
  };
  const shapes = parameterShapes(sizes, form);
  const heads: TappedHeads = {
    query: floats(2, 4, T, 6),
    key: floats(2, 2, T, 6),
    value: floats(2, 2, T, 5),
    queryFeatures: floats(2, 4, T, 6),
    keyFeatures: floats(2, 2, T, 6),
  };
  const values = Object.fromEntries(
    PARAMETER_NAMES.map((n) => [
      n,
      Float32Array.from(
        { length: shapes[n].reduce((a, b) => a * b, 1) },
        () => 0.4 * random.normal(),
      ),
    ]),
  ) as Values;
  let step: TrainingStep;
  beforeAll(async () => {
    step = await TrainingStep.create(form, {
      ...sizes,
      batch: 2,
      tokens: T,
      rows: ROWS.length,
      focus: 0.5,
    });
  });
  afterAll(() => step.release());
  const loss = async (at: Values) => {
    const { losses } = await step.run(at, heads, ROWS, WEIGHTS);
    return losses[0]! * WEIGHTS.weights + losses[1]! * WEIGHTS.far + losses[2]! * WEIGHTS.output;
  };

  it.each(PARAMETER_NAMES)('has the gradient of %s that differences give', async (name) => {
    const { gradients } = await step.run(values, heads, ROWS, WEIGHTS);
    // Along the gradient itself the derivative is its length.
    const length = Math.hypot(...gradients[name]);
    expect(length).toBeGreaterThan(1e-3);
    const h = 1e-2;
    const moved = (sign: number) => ({
      ...values,
      [name]: values[name].map((x, i) => x + (sign * h * gradients[name][i]!) / length),
    });
    const derivative = ((await loss(moved(1))) - (await loss(moved(-1)))) / (2 * h);
    expect(Math.abs(derivative / length - 1)).toBeLessThan(0.01);
  });

  it('has losses of 0 at best', async () => {
    const { losses } = await step.run(values, heads, ROWS, WEIGHTS);
    for (const l of losses) expect(l).toBeGreaterThan(0);
  });
});

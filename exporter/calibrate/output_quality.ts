import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { tensorValues } from '../compare/feeds.js';
import { cosine, mean } from '../compare/statistics.js';
import type { Model } from '../ir/index.js';
import { assemble, batchFor, type Calibration, calibratedLayers } from './calibrate.js';
import { type ChoiceGoal, type ChooseOptions, fastest, greedy } from './choose.js';
import type { CalibrationData } from './data/index.js';
import { openModel } from './student_session.js';

/** How the outputs of a model without next tokens differ from the original's on held-out examples. */
export interface OutputRow {
  /** Layers that stay softmax, in the order in which they were chosen. */
  kept: number[];
  /** Root of the squared differences over the squares of the original's outputs. */
  relative_error: number;
  /** Mean cosine of an example's output and the original's. */
  cosine: number;
  /** Time of the original over that of the rewritten model, on one held-out batch. */
  speed: number;
}

/** Chooses layers to keep as softmax, one after the other: each time the one that brings the outputs nearest to the original's. */
export async function chooseByOutputs(
  model: Model,
  calibration: Calibration,
  data: CalibrationData,
  goal: ChoiceGoal,
  options: ChooseOptions = {},
): Promise<OutputRow[]> {
  if (goal.kl !== undefined) {
    throw new FlaError(
      'invalid_argument',
      'a KL divergence as goal is for language models, received a bidirectional model',
    );
  }
  const layers = calibratedLayers(calibration);
  const most = Math.min(goal.keep ?? 0, layers.length);
  const teacher = await openModel(model, options);
  const look = async (kept: number[]): Promise<OutputRow> => {
    const all = kept.length === layers.length;
    const student = all ? model : (await assemble(model, calibration, kept)).model;
    const opened = await openModel(student, options);
    try {
      return { kept, ...(await compareOutputs(teacher.session, opened.session, data, options)) };
    } finally {
      await opened.session.release();
    }
  };
  try {
    return await greedy(layers, most, look, (row) => row.relative_error, options);
  } finally {
    await teacher.session.release();
  }
}

async function compareOutputs(
  teacher: Ort.InferenceSession,
  student: Ort.InferenceSession,
  data: CalibrationData,
  { batches = 4, signal }: ChooseOptions,
): Promise<Omit<OutputRow, 'kept'>> {
  let [error, size] = [0, 0];
  const cosines: number[] = [];
  for (let i = 0; i < batches; i++) {
    signal?.throwIfAborted();
    const p = await teacher.run(await batchFor(teacher, data, 'held-out', i));
    const q = await student.run(await batchFor(student, data, 'held-out', i));
    for (const name of teacher.outputNames) {
      const [own, others] = [p[name]!, q[name]!];
      if (!/float/.test(own.type)) continue;
      const [a, b] = [own, others].map((t) => Float32Array.from(tensorValues(t)));
      for (let j = 0; j < a!.length; j++) {
        error += (a![j]! - b![j]!) ** 2;
        size += a![j]! ** 2;
      }
      const examples = own.dims[0] ?? 1;
      const width = a!.length / examples;
      for (let k = 0; k < examples; k++) {
        const part = (x: Float32Array) => x.subarray(k * width, (k + 1) * width);
        cosines.push(cosine(part(a!), part(b!)));
      }
    }
  }
  const feeds = await batchFor(teacher, data, 'held-out', 0);
  const others = await batchFor(student, data, 'held-out', 0);
  const before = await fastest(() => teacher.run(feeds));
  const after = await fastest(() => student.run(others));
  return {
    relative_error: Math.sqrt(error / Math.max(size, 1e-30)),
    cosine: mean(cosines),
    speed: before / after,
  };
}

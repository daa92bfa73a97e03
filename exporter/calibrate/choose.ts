import type { SessionChoice } from '../compare/session.js';
import type { Model } from '../ir/index.js';
import { tokenInterface } from '../text/token_interface.js';
import { assemble, batchFor, type Calibration, calibratedLayers } from './calibrate.js';
import type { CalibrationData } from './data/index.js';
import { measure, type Quality } from './measure.js';
import { openModel } from './student_session.js';

/** What keeping K layers as softmax gives and costs. */
export interface ParetoRow extends Quality {
  /** Layers that stay softmax, in the order in which they were chosen. */
  kept: number[];
  /** Bytes carried whatever the length, and bytes a token that the softmax layers' caches grow by. */
  state_bytes: number;
  cache_bytes_per_token: number;
  /** Time of the original over that of the rewritten model, on one held-out batch. */
  speed: number;
}

/** Where to stop: at so many softmax layers, or as soon as the mean KL divergence is small enough. */
export interface ChoiceGoal {
  keep?: number;
  kl?: number;
}

export interface ChooseOptions extends SessionChoice {
  /** Held-out batches that a choice is measured on; default 4. */
  batches?: number;
  onProgress?: (stage: string, done: number, total: number) => void;
  signal?: AbortSignal;
}

/**
 * Chooses layers to keep as softmax, one after the other: each time the one that brings the predictions nearest to the original's,
 * by the KL divergence on text plus that on tokens that repeat an earlier segment (text alone misses the layers that recall).
 *
 * @returns a row for every number of layers from 0 on; the last one meets the goal, if any does
 */
export async function chooseLayers(
  model: Model,
  calibration: Calibration,
  data: CalibrationData,
  goal: ChoiceGoal,
  options: ChooseOptions = {},
): Promise<ParetoRow[]> {
  const layers = calibratedLayers(calibration);
  const teacher = await openModel(model, options);
  const { logits } = tokenInterface(teacher.session);
  const most = Math.min(goal.keep ?? layers.length, layers.length);
  const look = async (kept: number[]): Promise<ParetoRow> => {
    const student = await openModel(
      kept.length === layers.length ? model : (await assemble(model, calibration, kept)).model,
      options,
    );
    try {
      const quality = await measure(teacher.session, student.session, logits, data, {
        ...options,
        window: calibration.options.window ?? 64,
      });
      const feeds = [teacher.session, student.session].map((s) => batchFor(s, data, 'held-out', 0));
      const [own, others] = await Promise.all(feeds);
      const before = await fastest(() => teacher.session.run(own!));
      const after = await fastest(() => student.session.run(others!));
      return { kept, ...quality, ...bytes(calibration, kept), speed: before / after };
    } finally {
      await student.session.release();
    }
  };
  try {
    return await greedy(layers, most, look, loss, options, (row) => reached(row, goal));
  } finally {
    await teacher.session.release();
  }
}

/** Keeps one layer more at a time, each time the best of all, until `most` are kept or enough is reached. */
export async function greedy<Row extends { kept: number[] }>(
  layers: readonly number[],
  most: number,
  look: (kept: number[]) => Promise<Row>,
  loss: (row: Row) => number,
  { onProgress, signal }: ChooseOptions,
  enough: (row: Row) => boolean = () => false,
): Promise<Row[]> {
  const total =
    1 + Array.from({ length: most }, (_, i) => layers.length - i).reduce((a, b) => a + b, 0);
  let done = 0;
  const measured = async (kept: number[]) => {
    signal?.throwIfAborted();
    const row = await look(kept);
    onProgress?.('choices measured', ++done, total);
    return row;
  };
  const rows = [await measured([])];
  while (rows.length <= most && !enough(rows.at(-1)!)) {
    const { kept } = rows.at(-1)!;
    const candidates: Row[] = [];
    for (const layer of layers.filter((l) => !kept.includes(l))) {
      candidates.push(await measured([...kept, layer]));
    }
    rows.push(candidates.reduce((best, c) => (loss(c) < loss(best) ? c : best)));
  }
  return rows;
}

function reached(row: ParetoRow, { keep, kl }: ChoiceGoal): boolean {
  return kl !== undefined ? row.kl <= kl : row.kept.length >= (keep ?? 0);
}

function loss({ kl, kl_repeated }: Quality): number {
  return kl + (kl_repeated ?? 0);
}

function bytes(
  calibration: Calibration,
  kept: readonly number[],
): Pick<ParetoRow, 'state_bytes' | 'cache_bytes_per_token'> {
  const { sizes } = calibration;
  let [fixed, perToken] = [0, 0];
  for (const layer of calibratedLayers(calibration)) {
    const { HV, K, V } = sizes.get(layer)!;
    if (kept.includes(layer)) perToken += HV * (K + V) * 4;
    else fixed += HV * 4 * carriedElements(calibration, layer);
  }
  return { state_bytes: fixed, cache_bytes_per_token: perToken };
}

/** What a key head carries. */
export function carriedElements({ layers, options, sizes }: Calibration, layer: number): number {
  const { K, V } = sizes.get(layer)!;
  const features = layers.get(layer);
  if (!features) return K * V;
  const state = features.queryBias!.dims[1]! * (V + 1);
  if (features.favor) return state;
  const { window = 64, sinks = 4, cache = 0 } = options;
  return state + (window + sinks + cache + 1) * (K + V + (features.unrotated ? K : 0));
}

export async function fastest(run: () => Promise<unknown>): Promise<number> {
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 3; i++) {
    const start = performance.now();
    await run();
    best = Math.min(best, performance.now() - start);
  }
  return best;
}

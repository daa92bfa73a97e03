/**
 * `npx tsx bench/quality/calibrate.ts [--only tinylm,recall] [--steps 120]`: what calibration keeps of two small models. Writes
 * bench/results/quality/calibration-<model>-<machine>.json, a row at a time; rows that are there already are not measured again
 * unless `--fresh` is given.
 */
import fs from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { calibratedLayers } from '../../exporter/calibrate/calibrate.js';
import { carriedElements } from '../../exporter/calibrate/choose.js';
import { openModel } from '../../exporter/calibrate/student_session.js';
import {
  arrayData,
  assemble,
  type CalibrateOptions,
  type Calibration,
  type CalibrationData,
  calibrate,
  chooseLayers,
  loadModel,
  type Model,
  measure,
  type Quality,
  type RewriteOptions,
  rewriteModel,
  tokenData,
} from '../../exporter/index.js';
import { Random } from '../../exporter/random.js';
import { readText } from '../../exporter/text/read_text.js';
import { loadTokenizer } from '../../exporter/text/tokenizer.js';
import { recallSequence } from '../../test/exporter/calibrate/sequences.js';
import { ROOT, TINYLM } from '../../test/support/models.js';
import { commit, machineName, RESULTS } from '../results.js';

const { values: flags } = parseArgs({
  options: {
    only: { type: 'string', default: 'tinylm,recall' },
    steps: { type: 'string', default: '120' },
    rows: { type: 'string' },
    fresh: { type: 'boolean', default: false },
  },
});

interface QualityRow extends Quality {
  model: string;
  name: string;
  options: object;
  /** Bytes carried for one sequence, whatever its length; null where caches grow. */
  state_bytes: number | null;
  seconds: number;
  date: string;
  commit: string;
}

const folder = path.join(RESULTS, 'quality');
const fileOf = (model: string) => path.join(folder, `calibration-${model}-${machineName()}.json`);
const files = new Map<string, QualityRow[]>();

/** The rows of a model, those of an earlier run included. */
function rowsOf(model: string): QualityRow[] {
  const file = fileOf(model);
  const before = !flags.fresh && fs.existsSync(file) ? readText(file) : '{"rows":[]}';
  const rows = files.get(model) ?? (JSON.parse(before) as { rows: QualityRow[] }).rows;
  files.set(model, rows);
  return rows;
}

function save(model: string): void {
  fs.mkdirSync(folder, { recursive: true });
  const about =
    'Predictions of rewritten models against the original on held-out sequences; see docs/calibration.md.';
  const content = { name: 'calibration', about, machine: machineName(), rows: rowsOf(model) };
  fs.writeFileSync(fileOf(model), `${JSON.stringify(content, null, 1)}\n`);
}

interface Subject {
  model: string;
  load: () => Model;
  fit: CalibrationData;
  /** Ordinary sequences, and ones in which a segment repeats. */
  plain: CalibrationData;
  repeated: CalibrationData;
  batches: number;
}

async function judge(subject: Subject, student: Model, window = 64): Promise<Quality> {
  const teacher = await openModel(subject.load());
  const other = await openModel(student);
  try {
    const look = (data: CalibrationData) =>
      measure(teacher.session, other.session, 'logits', data, { batches: subject.batches, window });
    const plain = await look(subject.plain);
    if (subject.plain === subject.repeated) return plain;
    const { kl_repeated, recall, recall_teacher, recall_by_distance, repeated } = await look(
      subject.repeated,
    );
    return { ...plain, kl_repeated, recall, recall_teacher, recall_by_distance, repeated };
  } finally {
    await teacher.session.release();
    await other.session.release();
  }
}

type Made = { student: Model; state_bytes: number | null; note?: object };

async function row(subject: Subject, name: string, options: object, make: () => Promise<Made>) {
  if (flags.rows && !name.includes(flags.rows)) return;
  const rows = rowsOf(subject.model);
  if (rows.some((r) => r.name === name)) return;
  const start = performance.now();
  const { student, state_bytes, note } = await make();
  const seconds = Math.round((performance.now() - start) / 1000);
  const quality = await judge(subject, student);
  const now = { date: new Date().toISOString().slice(0, 10), commit: commit() };
  rows.push({
    model: subject.model,
    name,
    options: { ...options, ...note },
    ...quality,
    state_bytes,
    seconds,
    ...now,
  });
  save(subject.model);
  const { ppl_ratio, kl, kl_repeated, same_top, recall } = quality;
  console.log(
    subject.model,
    name,
    JSON.stringify({ ppl_ratio, kl, kl_repeated, same_top, recall, state_bytes, seconds }),
  );
}

async function rewritten(subject: Subject, name: string, options: RewriteOptions) {
  await row(subject, name, options, async () => {
    const student = subject.load();
    if (options.layers?.length !== 0) await rewriteModel(student, options);
    return { student, state_bytes: null };
  });
}

function carried(calibration: Calibration): number {
  return calibratedLayers(calibration).reduce(
    (bytes, layer) =>
      bytes + 4 * calibration.sizes.get(layer)!.HV * carriedElements(calibration, layer),
    0,
  );
}

/** A calibrated model, and with `keep` also one with so many layers chosen to stay softmax. */
async function calibrated(subject: Subject, name: string, options: CalibrateOptions, keep = 0) {
  let made: Calibration | undefined;
  const fitted = async () => {
    made ??= await calibrate(subject.load(), subject.fit, {
      ...options,
      onProgress: (stage, done, total) => {
        if (process.stderr.isTTY) process.stderr.write(`\r${name}: ${done}/${total} ${stage}   `);
      },
    });
    return made;
  };
  await row(subject, name, options, async () => {
    const calibration = await fitted();
    const { model } = await assemble(subject.load(), calibration);
    return { student: model, state_bytes: carried(calibration) };
  });
  if (keep === 0) return;
  await row(subject, `${name}, ${keep} layer softmax (chosen)`, options, async () => {
    const calibration = await fitted();
    const pareto = await chooseLayers(
      subject.load(),
      calibration,
      subject.repeated,
      { keep },
      { batches: 2 },
    );
    const { kept } = pareto.at(-1)!;
    const { model } = await assemble(subject.load(), calibration, kept);
    return { student: model, state_bytes: null, note: { kept } };
  });
}

const steps = Number(flags.steps);

if (flags.only.includes('tinylm')) {
  const ids = loadTokenizer(TINYLM.tokenizer).encode(readText(TINYLM.text));
  const subject: Subject = {
    model: 'tinylm',
    load: () => loadModel(TINYLM.model),
    fit: tokenData(ids, { length: 1024, repeated: 0.25, distance: 64 }),
    plain: tokenData(ids, { length: 1024, repeated: 0 }),
    repeated: tokenData(ids, { length: 1024, repeated: 1, distance: 64 }),
    batches: 8,
  };
  await rewritten(subject, 'softmax again', { variant: 'none' });
  await rewritten(subject, 'window and sinks only', { variant: 'window' });
  await rewritten(subject, 'naive linear, elu+1', { variant: 'linear' });
  await rewritten(subject, 'hybrid, uncalibrated (elu+1)', {
    variant: 'hybrid',
    featureMap: 'elu1',
  });
  await rewritten(subject, 'hybrid, uncalibrated (softmax)', { variant: 'hybrid' });
  await calibrated(subject, 'hybrid, calibrated', { steps, refitBatches: 16 }, 1);
  await calibrated(subject, 'linear only, calibrated', {
    steps: Math.ceil(steps / 2),
    window: 1,
    sinks: 0,
    refitBatches: 16,
  });
  const more = { steps: 2 * steps, features: 256, refitBatches: 16 };
  await calibrated(subject, 'hybrid, calibrated, 256 features', more, 1);
  const distilled = { steps, refitBatches: 16, distil: Math.ceil(steps / 2) };
  await calibrated(subject, 'hybrid, calibrated, then distilled', distilled);
}

if (flags.only.includes('recall')) {
  const T = 320;
  const arrays = (count: number, seed: number, shortest: number) => {
    const ids = Array.from(
      { length: count },
      (_, i) => recallSequence(new Random(seed, i), T, shortest).ids,
    );
    return new Map([['input_ids', { dims: [count, T], data: Float64Array.from(ids.flat()) }]]);
  };
  const held = arrayData(arrays(500, 77, 32), { batch: 4 });
  const subject: Subject = {
    model: 'tinyrecall',
    load: () => loadModel(path.join(ROOT, 'test/fixtures/tinyrecall/model.onnx')),
    fit: arrayData(arrays(2000, 7, 16), { batch: 2 }),
    plain: held,
    repeated: held,
    batches: 12,
  };
  await rewritten(subject, 'window and sinks only', { variant: 'window' });
  await rewritten(subject, 'naive linear, elu+1', { variant: 'linear' });
  const hash = {
    featureMap: 'softmax',
    unrotated: true,
    focus: 1,
    outputShare: 0,
    rate: 0.005,
    steps: 2 * steps,
  } as const;
  await calibrated(subject, 'softmax, 256 features', { ...hash, features: 256 }, 1);
  for (const cache of [96, 64]) {
    const name = `softmax, 256 features, cache ${cache}`;
    await calibrated(subject, name, { ...hash, features: 256, cache });
  }
  for (const features of [64, 128, 512, 1024]) {
    await calibrated(subject, `softmax, ${features} features`, { ...hash, features });
  }
  // What each part brings.
  const parts: Record<string, CalibrateOptions> = {
    'all queries alike': { focus: 0, rate: 0.003 },
    'no refit': { refit: false },
    'rotated features': { unrotated: false },
    'exp of x W and -x W': { featureMap: 'exp', rate: 0.01 },
  };
  for (const [part, options] of Object.entries(parts)) {
    const name = `softmax, 256 features: ${part}`;
    await calibrated(subject, name, { ...hash, features: 256, ...options });
  }
}

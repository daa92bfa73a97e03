import crypto from 'node:crypto';
import os from 'node:os';
import path from 'node:path';
import * as v from 'valibot';
import { FlaError } from '../../ops/error.js';
import { loadModel } from '../ir/file.js';
import { packageVersion } from '../package_version.js';
import type { Tokenizer } from '../text/tokens.js';
import { type Control, controls, withControl } from './controls.js';
import { inputVocabularies } from './feeds.js';
import { measureRow, Reference } from './measure.js';
import { changesSince, checkComparable } from './report/baseline.js';
import {
  FORMAT,
  type ParetoPoint,
  paretoSchema,
  type Report,
  type ReportRow,
  reportSchema,
  VERSION,
} from './report/schema.js';
import { type BackendChoice, loadOnnxRuntime } from './session.js';
import {
  chooseTasks,
  DEPTHS,
  fits,
  TASKS,
  type Task,
  type TaskPlan,
  TextMaterial,
  TokenMaterial,
} from './tasks/index.js';
import { verdicts } from './verdicts.js';

export { type CostRow, measureCost } from './cost.js';
export { compareLanguage, type LanguageDifference } from './language.js';
export { changesSince, readBaseline } from './report/baseline.js';
export { type Condition, failures, parseConditions } from './report/conditions.js';
export type { ParetoPoint, Report, ReportRow, TaskScore } from './report/schema.js';
export type { BackendChoice } from './session.js';
export { TASKS } from './tasks/index.js';

/** A text for language models. */
export interface CompareText {
  name: string;
  ids: readonly number[];
}

/** A model to compare: its file, or its file and what to call it. */
export type Rewritten = string | { file: string; name: string; about?: string };

/** Questions whose answers lie far back; see docs/long-context.md. */
export interface CompareTasks {
  /** Default: all that make sense with the material. */
  names?: readonly string[];
  /** Tokens of a question. Default: 1, 2, 4, 8 and 16 times the window; what is too short for a task is left out. */
  lengths?: readonly number[];
  depths?: readonly number[];
  samples?: number;
  /** Let models write their answers too, besides grading them with the right tokens given. Takes about twice as long. */
  greedy?: boolean;
  /** Without one, questions are made of random ids. */
  tokenizer?: Tokenizer;
  /** What haystacks are made of; without it, of made-up sentences. */
  book?: string;
}

export interface CompareOptions {
  text?: CompareText;
  context?: number;
  maxTokens?: number;
  tasks?: CompareTasks;
  /** Lengths to measure time and memory at; none by default. */
  lengths?: readonly number[];
  chunk?: number;
  runs?: number;
  /** Lengths of named dimensions. */
  dims?: Readonly<Record<string, number>>;
  /** Length of all other free dimensions while outputs are compared. */
  length?: number;
  seed?: number;
  /** Measure the controls too. Default true. */
  controls?: boolean;
  /** Of the control that sees a window and sinks only. Default 64 and 4. */
  window?: number;
  sinks?: number;
  /** Points of a choice of layers; default: those in the metadata of the first model that has some. */
  pareto?: readonly ParetoPoint[];
  /** An earlier report, to say what changed. */
  baseline?: Report;
  /** Who runs the rewritten models. */
  backend?: BackendChoice;
  /** Who runs the original; `auto` means ONNX Runtime as installed, unless it has our ops already. */
  originalBackend?: BackendChoice;
  threads?: number;
  /** Growing caches of com.microsoft.GroupQueryAttention are buffers for so many tokens, which are written in place. */
  cacheLength?: number;
  onProgress?: (stage: string, done: number, total: number) => void;
  signal?: AbortSignal;
}

const TIMES_THE_WINDOW = [1, 2, 4, 8, 16];
const PARETO_KEY = 'onnx_fla.pareto';

/**
 * Compares rewritten models with their original, and with controls: outputs on the same inputs, predictions on a text, answers to
 * long questions, time and memory against length.
 *
 * @throws FlaError when a model cannot be opened or run; a control that fails says so in its row
 */
export async function compareModels(
  original: string,
  rewritten: readonly Rewritten[],
  options: CompareOptions = {},
): Promise<Report> {
  const start = performance.now();
  const { window = 64, sinks = 4, seed = 0, signal } = options;
  const { context = 512, maxTokens = 8192 } = options;
  const notices: string[] = [];
  const plan = options.tasks && planTasks(original, options.tasks, window, seed, notices);
  const text = options.text && { ...options.text, ids: options.text.ids.slice(0, maxTokens) };
  const stateTokens = Math.max(
    text ? Math.min(context, text.ids.length) : 0,
    ...(plan ? plan.flatMap((p) => p.lengths) : []),
  );
  const settings: Report['settings'] = {
    original: path.basename(original),
    seed,
    window,
    sinks,
    state_tokens: stateTokens > 0 ? stateTokens : null,
    text: text
      ? { name: text.name, sha256: digest(text.ids), tokens: text.ids.length, context }
      : null,
    tasks: plan ? taskSettings(plan) : null,
  };
  if (options.baseline) checkComparable(settings, options.baseline.settings);
  const reference = await Reference.open(original, {
    ...options,
    context,
    text,
    plan,
    stateTokens,
    decode: options.tasks?.greedy ? options.tasks.tokenizer?.decode : undefined,
    vocabulary: smallestVocabulary(original),
  });
  const rows: ReportRow[] = [];
  const models: ReportRow[] = [];
  try {
    if (plan && !reference.tokens) {
      throw new FlaError('unsupported', `${original}: must be a language model for tasks`);
    }
    // Models first: what is wrong with them is known before controls are made.
    for (const [i, model] of rewritten.entries()) {
      const named = typeof model === 'string' ? { file: model, name: path.basename(model) } : model;
      const id = i === 0 ? 'model' : `model-${i + 1}`;
      models.push(await measureRow(reference, { about: '', ...named, id, role: 'model' }, notices));
    }
    rows.push(await reference.row(notices));
    if (options.controls !== false) {
      if (reference.layers === 0) notices.push('no controls: the original has no attention');
      else {
        for (const control of controls({ window, sinks })) {
          rows.push(await controlRow(reference, control, notices, signal));
        }
      }
    }
  } finally {
    await reference.release();
  }
  const report = {
    format: FORMAT,
    version: VERSION,
    run: await runFacts(start),
    settings,
    rows: [...rows, ...models],
    pareto: options.pareto
      ? [...options.pareto]
      : storedPareto(rewritten.map((m) => (typeof m === 'string' ? m : m.file))),
    notices,
    changes: null,
  } satisfies Report;
  // JSON has no infinities and no NaN.
  const plain = v.parse(reportSchema, JSON.parse(JSON.stringify(report)));
  plain.notices.push(...verdicts(plain));
  if (options.baseline) plain.changes = changesSince(plain, options.baseline);
  return plain;
}

async function runFacts(start: number): Promise<Report['run']> {
  const { node: ort } = (await loadOnnxRuntime()).env.versions;
  const { node } = process.versions;
  const processor = os.cpus()[0]?.model.trim() || 'unknown processor';
  return {
    created: new Date().toISOString(),
    seconds: (performance.now() - start) / 1000,
    versions: { 'onnx-fla': packageVersion(), node, ...(ort && { 'onnxruntime-node': ort }) },
    machine: `${processor}, ${os.availableParallelism()} cores, ${os.platform()}`,
  };
}

async function controlRow(
  reference: Reference,
  control: Control,
  notices: string[],
  signal: AbortSignal | undefined,
): Promise<ReportRow> {
  const { id, name, about } = control;
  const candidate = { id, role: 'control' as const, name, about };
  try {
    return await withControl(
      reference.file,
      control,
      (file, changed) => {
        if (changed === 0) {
          throw new FlaError('unsupported', 'the model has no attention that can be rewritten');
        }
        const layers = reference.layers;
        const softmax = id === 'parity' ? layers : layers - changed;
        return measureRow(
          reference,
          { ...candidate, file, attention: { layers, softmax } },
          notices,
        );
      },
      signal,
    );
  } catch (error) {
    signal?.throwIfAborted();
    return { ...emptyRow(candidate), error: (error as Error).message };
  }
}

/** A row in which nothing was measured. */
export function emptyRow(row: Pick<ReportRow, 'id' | 'role' | 'name' | 'about'>): ReportRow {
  return {
    ...row,
    backend: null,
    attention: null,
    state_bytes: null,
    outputs: null,
    language: null,
    tasks: null,
    cost: null,
    error: null,
  };
}

/** One plan a task, as lengths that do not hold it are left out. */
function planTasks(
  original: string,
  options: CompareTasks,
  window: number,
  seed: number,
  notices: string[],
): TaskPlan[] {
  const { tokenizer, book, depths = DEPTHS, samples = 4 } = options;
  const material = tokenizer
    ? new TextMaterial(tokenizer, book)
    : new TokenMaterial(smallestVocabulary(original) ?? 1000);
  const all = Object.values(TASKS).filter((t) => tokenizer || !t.needsWords);
  const tasks = options.names ? chooseTasks(options.names, tokenizer !== undefined) : all;
  const wanted = options.lengths ?? TIMES_THE_WINDOW.map((times) => times * window);
  const planFor = (task: Task, lengths: readonly number[]): TaskPlan => ({
    tasks: [task],
    lengths,
    depths,
    samples,
    material,
    seed,
  });
  const plans = tasks.flatMap((task) => {
    const lengths = wanted.filter((length) => fits(planFor(task, [length])));
    const short = wanted.filter((length) => !lengths.includes(length));
    if (short.length > 0)
      notices.push(`task ${task.name}: too long for ${short.join(', ')} tokens`);
    return lengths.length > 0 ? [planFor(task, lengths)] : [];
  });
  if (plans.length > 0) return plans;
  throw new FlaError(
    'invalid_argument',
    `task lengths must hold a question, received ${wanted.join(', ')}`,
  );
}

function taskSettings(plans: readonly TaskPlan[]): Report['settings']['tasks'] {
  const [{ depths, samples, material }] = plans as [TaskPlan];
  return {
    names: plans.flatMap((p) => p.tasks.map((t) => t.name)),
    lengths: [...new Set(plans.flatMap((p) => p.lengths))].sort((a, b) => a - b),
    depths: [...depths!],
    samples: samples!,
    mode: material.mode,
  };
}

/** Points that `calibrate` left in a model. */
function storedPareto(files: readonly string[]): ParetoPoint[] | null {
  for (const file of files) {
    const text = loadModel(file).metadata(PARETO_KEY);
    if (text !== undefined) return parsePareto(text, `${file}: metadata ${PARETO_KEY}`);
  }
  return null;
}

/**
 * Reads the points of a choice of layers: a list, or an object with one under `pareto`.
 *
 * @throws FlaError `invalid_argument` when it is none
 */
export function parsePareto(text: string, what: string): ParetoPoint[] {
  try {
    const json: unknown = JSON.parse(text);
    const list = Array.isArray(json) ? json : (json as { pareto?: unknown } | null)?.pareto;
    return v.parse(paretoSchema, list);
  } catch (error) {
    const { message } = error as Error;
    throw new FlaError('invalid_argument', `${what}: is no Pareto table: ${message}`, {
      cause: error,
    });
  }
}

function digest(ids: readonly number[]): string {
  return crypto.createHash('sha256').update(ids.join(' ')).digest('hex');
}

/** Ids below this are in every embedding table that ids index; undefined where none was found. */
function smallestVocabulary(file: string): number | undefined {
  const sizes = [...inputVocabularies(loadModel(file)).values()];
  return sizes.length > 0 ? Math.min(...sizes) : undefined;
}

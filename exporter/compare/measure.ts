import { inspectModel, loadModel } from '../index.js';
import { LanguageModel, writesInPlace } from '../text/language_model.js';
import { isLanguageModel } from '../text/token_interface.js';
import { measureCost } from './cost.js';
import { compareLanguage } from './language.js';
import { checkDims, compareOutputs, type OpenModel, type Outputs, outputsOf } from './outputs.js';
import type { ReportRow, TaskScore } from './report/schema.js';
import type { OpenedSession } from './session.js';
import { type BackendChoice, openSession, type SessionChoice } from './session.js';
import { sum } from './statistics.js';
import { plannedTokens, runTasks, type TaskPlan } from './tasks/index.js';

/** What every row is measured with. */
export interface MeasureOptions {
  text?: { ids: readonly number[] };
  context: number;
  /** One plan a task. */
  plan?: readonly TaskPlan[];
  /** Text of token ids. */
  decode?: (ids: readonly number[]) => string;
  stateTokens: number;
  lengths?: readonly number[];
  chunk?: number;
  runs?: number;
  dims?: Readonly<Record<string, number>>;
  length?: number;
  seed?: number;
  vocabulary?: number;
  backend?: BackendChoice;
  originalBackend?: BackendChoice;
  threads?: number;
  cacheLength?: number;
  onProgress?: (stage: string, done: number, total: number) => void;
  signal?: AbortSignal;
}

/** A model to be measured. */
export interface Candidate extends Pick<ReportRow, 'id' | 'role' | 'name' | 'about'> {
  file: string;
  /** Where it is known; otherwise the file is looked at. */
  attention?: ReportRow['attention'];
}

/** The original, against which everything is measured. */
export class Reference {
  private constructor(
    readonly file: string,
    readonly options: MeasureOptions,
    readonly choice: SessionChoice,
    private readonly opened: OpenedSession,
    readonly outputs: Outputs,
    /** Attention layers. */
    readonly layers: number,
    /** Does it read tokens? Opened once for that. */
    readonly tokens: boolean,
    readonly language: LanguageModel | undefined,
  ) {}

  static async open(file: string, options: MeasureOptions): Promise<Reference> {
    const { threads, cacheLength } = options;
    const choice = { backend: options.originalBackend ?? 'auto', threads, cacheLength };
    options.onProgress?.('models opened', 0, 1);
    const opened = await openSession(file, choice);
    const { session } = opened;
    const tokens = isLanguageModel(session);
    try {
      const outputs = await outputsOf({ file, ...opened }, options);
      const { sites } = await inspectModel(loadModel(file), { signal: options.signal });
      const layers = sites.filter((s) => s.layer !== null).length;
      const reads = options.text || (options.plan && tokens);
      const language = reads ? await LanguageModel.open(file, choice) : undefined;
      return new Reference(file, options, choice, opened, outputs, layers, tokens, language);
    } finally {
      await session.release();
    }
  }

  /** Its session is released, and still describes inputs and outputs. */
  get model(): OpenModel {
    return { file: this.file, ...this.opened };
  }
  get backend(): 'fla' | 'stock' {
    return this.opened.backend;
  }

  /** The original's own row. */
  async row(notices: string[]): Promise<ReportRow> {
    if (this.opened.notice) notices.push(this.opened.notice);
    const { options, language } = this;
    return {
      id: 'original',
      role: 'original',
      name: 'original',
      about: 'as it came',
      backend: this.backend,
      attention: { layers: this.layers, softmax: await softmaxLayers(this.file, options.signal) },
      state_bytes: language ? await carried(language, options) : null,
      outputs: null,
      language: null,
      tasks: language && options.plan ? await answers(language, 'original', options) : null,
      cost: null,
      error: null,
    };
  }

  async release(): Promise<void> {
    await this.language?.release();
  }
}

/** Measures one model in every way that the options ask for. */
export async function measureRow(
  reference: Reference,
  candidate: Candidate,
  notices: string[],
): Promise<ReportRow> {
  const { options } = reference;
  const { file, id, role, name, about } = candidate;
  const choice = {
    backend: options.backend ?? ('auto' as const),
    threads: options.threads,
    ...(writesInPlace(loadModel(file)) && { cacheLength: options.cacheLength }),
  };
  const opened = await openSession(file, choice);
  if (opened.notice && !notices.includes(opened.notice)) notices.push(opened.notice);
  let outputs: ReportRow['outputs'];
  try {
    if (role === 'model') checkDims([reference.model, { file, ...opened }], options.dims ?? {});
    outputs = await differences(reference, { file, ...opened });
  } finally {
    await opened.session.release();
  }
  options.signal?.throwIfAborted();
  const read = reference.language ? await reading(reference, file, choice, name) : null;
  return {
    id,
    role,
    name,
    about,
    backend: opened.backend,
    attention: candidate.attention ?? {
      layers: reference.layers,
      softmax: await softmaxLayers(file, options.signal),
    },
    outputs,
    state_bytes: read?.state_bytes ?? null,
    language: read?.language ?? null,
    tasks: read?.tasks ?? null,
    cost: role === 'model' && options.lengths?.length ? await cost(reference, file, choice) : null,
    error: null,
  };
}

async function differences(reference: Reference, model: OpenModel): Promise<ReportRow['outputs']> {
  const { options } = reference;
  const files = { original: reference.file, rewritten: model.file };
  return compareOutputs(reference.outputs, await outputsOf(model, options), files);
}

/** What is found by reading: predictions on the text, answers, bytes carried. */
async function reading(
  { language: original, options }: Reference,
  file: string,
  choice: SessionChoice,
  name: string,
): Promise<Pick<ReportRow, 'language' | 'tasks' | 'state_bytes'>> {
  const { text, plan, onProgress } = options;
  const model = await LanguageModel.open(file, choice);
  try {
    const language =
      text &&
      (await compareLanguage(original!, model, text.ids, {
        ...options,
        maxTokens: text.ids.length,
        onProgress: (done, total) => onProgress?.(`tokens of text, ${name}`, done, total),
      }));
    const tasks = plan ? await answers(model, name, options) : null;
    return { language: language ?? null, tasks, state_bytes: await carried(model, options) };
  } finally {
    await model.release();
  }
}

/** How a model answers the questions of every task. */
async function answers(
  model: LanguageModel,
  name: string,
  { plan = [], chunk, decode, signal, onProgress }: MeasureOptions,
): Promise<TaskScore[]> {
  const total = sum(plan.map(plannedTokens));
  const scores: TaskScore[] = [];
  let before = 0;
  for (const part of plan) {
    const onPart = (done: number) => onProgress?.(`tokens of tasks, ${name}`, before + done, total);
    const options = { ...part, chunk, decode, signal, onProgress: onPart };
    scores.push(...(await runTasks(model, options)));
    before += plannedTokens(part);
  }
  return scores;
}

/** Bytes carried after some tokens. */
async function carried(
  model: LanguageModel,
  { stateTokens, chunk, signal }: MeasureOptions,
): Promise<number> {
  await model.reset();
  if (model.memory === 'none') return 0;
  await model.prefill(new Array<number>(stateTokens).fill(0), { chunk, signal });
  const bytes = model.stateBytes;
  await model.reset();
  return bytes;
}

function cost(
  { file: original, choice: originalChoice, tokens, options }: Reference,
  file: string,
  choice: SessionChoice,
): Promise<ReportRow['cost']> {
  const { lengths = [], vocabulary = 1000, dims, chunk, runs, signal, onProgress } = options;
  return measureCost({
    original: { file: original, choice: originalChoice },
    rewritten: { file, choice },
    lengths,
    vocabulary: tokens ? Math.min(vocabulary, 1000) : null,
    dims,
    chunk,
    runs,
    signal,
    onProgress: (done, total) => onProgress?.('lengths', done, total),
  });
}

/** How many attention layers of a file are softmax over all tokens. */
async function softmaxLayers(file: string, signal?: AbortSignal): Promise<number> {
  const { sites } = await inspectModel(loadModel(file), { signal });
  return sites.filter((s) => s.layer !== null && !s.mask?.startsWith('window')).length;
}

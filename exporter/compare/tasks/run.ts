import { FlaError } from '../../../ops/error.js';
import { hashText, seededRandom } from '../../random.js';
import { logitsRow } from '../../text/engine.js';
import type { TokenReader } from '../language.js';
import type { TaskScore } from '../report/schema.js';
import { argmax, logSoftmax, mean, shareEstimate, sum } from '../statistics.js';
import type { Material } from './material.js';
import type { Item, Task } from './task.js';

export interface TaskPlan {
  tasks: readonly Task[];
  /** Tokens of an item. */
  lengths: readonly number[];
  /** Default 0, 0.25, 0.5, 0.75, 1. */
  depths?: readonly number[];
  /** Items at each length and depth; tasks that know no depth have as many in all. Default 4. */
  samples?: number;
  material: Material;
  /** Default 0. */
  seed?: number;
}

export interface TaskOptions extends TaskPlan {
  /** Tokens read at a time by models that remember. Default 512. */
  chunk?: number;
  /**
   * Text of token ids, for what the model writes by itself. Without it nothing is written, and neither by models that remember
   * nothing: they would read everything again for each token.
   */
  decode?: (ids: readonly number[]) => string;
  /** Tokens read so far, and in all. */
  onProgress?: (done: number, total: number) => void;
  /** Called with each score as it is known. */
  onScore?: (score: TaskScore) => void;
  signal?: AbortSignal;
}

export const DEPTHS = [0, 0.25, 0.5, 0.75, 1];
const SAMPLES = 4;

/** The questions of one task at one length and depth. */
interface Cell {
  task: Task;
  length: number;
  depth: number | null;
  seeds: string[];
}

function plan({ tasks, lengths, depths = DEPTHS, samples = SAMPLES, seed = 0 }: TaskPlan): Cell[] {
  return tasks.flatMap((task) =>
    lengths.flatMap((length) => {
      const cell = (depth: number | null, count: number): Cell => ({
        task,
        length,
        depth,
        seeds: Array.from(
          { length: count },
          (_, i) => `${seed}/${task.name}/${length}/${depth}/${i}`,
        ),
      });
      return task.depths
        ? depths.map((depth) => cell(depth, samples))
        : [cell(null, samples * depths.length)];
    }),
  );
}

/** Tokens that a plan reads with one model. */
export function plannedTokens(options: TaskPlan): number {
  return sum(plan(options).map((c) => c.length * c.seeds.length));
}

/** The questions of a plan, cell by cell; the same for every model. */
export function* items(options: TaskPlan): Generator<Item> {
  for (const cell of plan(options)) {
    for (const seed of cell.seeds) yield makeItem(cell, seed, options.material);
  }
}

/** Does every question of a plan fit into its length? */
export function fits(options: TaskPlan): boolean {
  try {
    for (const _ of items(options));
    return true;
  } catch (error) {
    if (error instanceof FlaError && error.code === 'invalid_argument') return false;
    throw error;
  }
}

function makeItem({ task, length, depth }: Cell, seed: string, material: Material): Item {
  return task.make({ length, depth: depth ?? 0, random: seededRandom(hashText(seed)), material });
}

/**
 * Asks a model all questions of a plan.
 *
 * @throws FlaError `invalid_argument` for a length that does not hold a question, `aborted` when the signal fires
 */
export async function runTasks(model: TokenReader, options: TaskOptions): Promise<TaskScore[]> {
  const scores: TaskScore[] = [];
  const total = plannedTokens(options);
  let done = 0;
  for (const cell of plan(options)) {
    const graded: Grade[] = [];
    for (const seed of cell.seeds) {
      options.signal?.throwIfAborted();
      graded.push(await grade(model, makeItem(cell, seed, options.material), options));
      done += cell.length;
      options.onProgress?.(done, total);
      await new Promise(setImmediate); // a run may not yield, and an interrupt must get through
    }
    const score = summary(cell, graded);
    scores.push(score);
    options.onScore?.(score);
  }
  return scores;
}

/** How one item was answered. */
interface Grade {
  /** For each answer, whether all of its tokens are those that the model likes best. */
  right: boolean[];
  /** The same for each token of the answers, and its log-probability. */
  tokens: boolean[];
  logprobs: number[];
  /** Is the answer in what the model writes? */
  wrote: boolean | null;
}

function summary({ task, length, depth }: Cell, grades: readonly Grade[]): TaskScore {
  const right = grades.flatMap((g) => g.right);
  const tokens = grades.flatMap((g) => g.tokens);
  const wrote = grades.flatMap((g) => (g.wrote === null ? [] : [g.wrote]));
  const hits = (list: readonly boolean[]) => list.filter(Boolean).length;
  return {
    task: task.name,
    length,
    depth,
    samples: grades.length,
    answers: right.length,
    recall: shareEstimate(hits(right), right.length),
    tokens: hits(tokens) / tokens.length,
    logprob: mean(grades.flatMap((g) => g.logprobs)),
    greedy: wrote.length > 0 ? hits(wrote) / wrote.length : null,
  };
}

/** Grades one item: with the right tokens given, and in the model's own words. */
async function grade(model: TokenReader, item: Item, options: TaskOptions): Promise<Grade> {
  const { answers } = item;
  const first = answers[0]!.from;
  const predictions = await predict(model, item.tokens, first, answers.at(-1)!.to, options);
  const right: boolean[] = [];
  const tokens: boolean[] = [];
  const logprobs: number[] = [];
  for (const { from, to } of answers) {
    let all = true;
    for (let i = from; i < to; i++) {
      const logits = predictions(i);
      const hit = argmax(logits) === item.tokens[i];
      all &&= hit;
      tokens.push(hit);
      logprobs.push(logSoftmax(logits)[item.tokens[i]!]!);
    }
    right.push(all);
  }
  return { right, tokens, logprobs, wrote: await writes(model, item, tokens, options) };
}

/** Reads an item; gives the logits that predict token i, `from` <= i < `to`. */
async function predict(
  model: TokenReader,
  tokens: readonly number[],
  from: number,
  to: number,
  { chunk = 512, signal }: TaskOptions,
): Promise<(i: number) => ArrayLike<number>> {
  await model.reset();
  if (model.memory === 'none') {
    const logits = await model.advance(tokens.slice(0, to - 1));
    return (i) => logitsRow(logits, i - 1);
  }
  const context = await model.prefill(tokens.slice(0, from), { chunk, signal });
  const rows: ArrayLike<number>[] = [logitsRow(context, context.rows - 1)];
  for (let at = from; at < to - 1; at += chunk) {
    signal?.throwIfAborted();
    const logits = await model.advance(tokens.slice(at, Math.min(at + chunk, to - 1)));
    for (let row = 0; row < logits.rows; row++) rows.push(logitsRow(logits, row));
  }
  return (i) => rows[i - from]!;
}

const MORE = 8; // tokens that a model may write beyond the answer's own

/** Whether a model that goes on by itself writes the answer; null where that is not asked. */
async function writes(
  model: TokenReader,
  item: Item,
  hits: readonly boolean[],
  { decode, chunk = 512, signal }: TaskOptions,
): Promise<boolean | null> {
  if (model.memory === 'none' || !decode || !item.written) return null;
  const { from } = item.answers[0]!;
  const { to } = item.answers.at(-1)!;
  // One answer whose every token is the likeliest is what the model writes.
  if (item.answers.length === 1 && hits.every(Boolean)) return true;
  await model.reset();
  let logits = await model.prefill(item.tokens.slice(0, from), { chunk, signal });
  const ids: number[] = [];
  while (ids.length < to - from + MORE) {
    signal?.throwIfAborted();
    ids.push(argmax(logitsRow(logits, logits.rows - 1)));
    logits = await model.advance([ids.at(-1)!]);
  }
  const text = decode(ids);
  return item.written.every((word) => text.includes(word));
}

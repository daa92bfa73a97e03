import { FlaError } from '../../../ops/error.js';
import { facts } from './facts.js';
import { words } from './frequent.js';
import { needle, passkey } from './passkey.js';
import { mqar, repeat } from './recall.js';
import type { Task } from './task.js';
import { tracking } from './tracking.js';

export { type Material, TextMaterial, TokenMaterial } from './material.js';
export {
  DEPTHS,
  fits,
  items,
  plannedTokens,
  runTasks,
  type TaskOptions,
  type TaskPlan,
} from './run.js';
export type { Item, Setting, Task } from './task.js';

/** Every task, by name. */
export const TASKS: Readonly<Record<string, Task>> = Object.fromEntries(
  [passkey, needle, mqar, repeat, tracking, words, facts].map((task) => [task.name, task]),
);

/**
 * Looks tasks up.
 *
 * @param words is there a tokenizer?
 * @throws FlaError `invalid_argument` for a name that is none, or a task that needs words where there are none
 */
export function chooseTasks(names: readonly string[], words: boolean): Task[] {
  return names.map((name) => {
    const task = TASKS[name];
    if (!task) {
      const known = Object.keys(TASKS).join(', ');
      throw new FlaError('invalid_argument', `task must be one of ${known}, received ${name}`);
    }
    if (task.needsWords && !words) {
      throw new FlaError('invalid_argument', `task ${name} needs a tokenizer, received none`);
    }
    return task;
  });
}

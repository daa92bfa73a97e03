import { FlaError } from '../../../ops/error.js';
import { TASKS } from '../tasks/index.js';
import { type Metric, metrics, type Needs } from './metrics.js';
import type { Report } from './schema.js';

const OPERATORS = {
  '>=': (a: number, b: number) => a >= b,
  '<=': (a: number, b: number) => a <= b,
  '>': (a: number, b: number) => a > b,
  '<': (a: number, b: number) => a < b,
};

/** When a comparison fails: `kl>0.1`, or `kl>+5%` against a baseline. */
export interface Condition {
  text: string;
  metric: Metric;
  operator: keyof typeof OPERATORS;
  value: number;
  /** Is the value a change in percent of the baseline's? */
  relative: boolean;
}

/**
 * Reads conditions such as `kl>0.1,ppl>+5%,recall<0.9`.
 *
 * @throws FlaError `invalid_argument` naming the condition, and what is known
 */
export function parseConditions(text: string): Condition[] {
  const known = metrics(Object.keys(TASKS));
  return text.split(',').map((part) => {
    const form = /^\s*([\w.]+)\s*(>=|<=|>|<)\s*(\S+?)\s*(%?)\s*$/.exec(part);
    const value = Number(form?.[3]);
    if (!form || !Number.isFinite(value)) {
      return refuse(
        `condition must be like kl>0.1 or kl>+5%, received ${part.trim() || 'nothing'}`,
      );
    }
    const metric = known.find((m) => m.name === form[1]);
    if (!metric) {
      const names = known.map((m) => m.name).join(', ');
      return refuse(`condition must name one of ${names}, received ${form[1]}`);
    }
    return {
      text: part.trim(),
      metric,
      operator: form[2] as Condition['operator'],
      value,
      relative: form[4] === '%',
    };
  });
}

function refuse(message: string): never {
  throw new FlaError('invalid_argument', `fail-if: ${message}`);
}

const REMEDY: Record<Needs, string> = {
  text: 'a text (--text)',
  tasks: 'tasks (--tasks)',
  lengths: 'lengths (--lengths)',
  controls: 'the controls (leave --no-controls out)',
  nothing: 'nothing',
};

/**
 * Refuses conditions on what will not be measured, before anything is.
 *
 * @throws FlaError `invalid_argument`
 */
export function checkConditions(
  conditions: readonly Condition[],
  given: Readonly<Record<Exclude<Needs, 'nothing'> | 'baseline', boolean>>,
): void {
  for (const { text, metric, relative } of conditions) {
    if (metric.needs !== 'nothing' && !given[metric.needs]) {
      refuse(`${text} needs ${REMEDY[metric.needs]}`);
    }
    if (relative && !given.baseline) refuse(`${text} needs a baseline (--baseline)`);
  }
}

/**
 * Which conditions hold for which model, one line each.
 *
 * @throws FlaError `invalid_argument` for a condition on what was not measured
 */
export function failures(
  report: Report,
  conditions: readonly Condition[],
  baseline?: Report,
): string[] {
  const models = report.rows.filter((r) => r.role === 'model');
  return conditions.flatMap(({ text, metric, operator, value, relative }) =>
    models.flatMap((row) => {
      const now = metric.of(row, report);
      if (now === null)
        return refuse(
          `${text}: ${metric.name} was not measured, or is not finite, for ${row.name}`,
        );
      const before = baseline?.rows.find((r) => r.id === row.id);
      const old = relative && before ? metric.of(before, baseline!) : null;
      if (relative && old === null)
        return refuse(`${text}: the baseline has no ${metric.name} for ${row.name}`);
      const bound = relative ? old! * (1 + value / 100) : value;
      if (!OPERATORS[operator](now, bound)) return [];
      const was = relative ? ` (baseline ${short(old!)})` : '';
      return [`${row.name}: ${text}: ${metric.name} is ${short(now)}${was}`];
    }),
  );
}

const short = (x: number) => String(Number(x.toPrecision(4)));

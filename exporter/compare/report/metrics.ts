import { largestDifference, meanRecall } from '../verdicts.js';
import type { Report, ReportRow } from './schema.js';

/** What a report must have been given for a metric to be there. */
export type Needs = 'text' | 'tasks' | 'lengths' | 'controls' | 'nothing';

/** One number of a row, that conditions and baselines can name. */
export interface Metric {
  name: string;
  about: string;
  needs: Needs;
  of(row: ReportRow, report: Report): number | null;
}

const metric = (name: string, needs: Needs, about: string, of: Metric['of']): Metric => ({
  name,
  about,
  needs,
  of,
});

/** The smallest or largest of the values that are there. */
function extreme(pick: 'min' | 'max', values: readonly (number | null)[]): number | null {
  const known = values.filter((x) => x !== null);
  return known.length > 0 ? Math[pick](...known) : null;
}

const FIXED: readonly Metric[] = [
  metric('kl', 'text', 'mean KL divergence, nats', (r) => r.language?.kld.mean.value ?? null),
  metric('kl_median', 'text', 'its median', (r) => r.language?.kld.median.value ?? null),
  metric('kl_p99', 'text', 'its 99 % quantile', (r) => r.language?.kld.p99.value ?? null),
  metric('kl_p999', 'text', 'its 99.9 % quantile', (r) => r.language?.kld.p999.value ?? null),
  metric('kl_max', 'text', 'its maximum', (r) => r.language?.kld.max ?? null),
  metric('ppl', 'text', 'ratio of perplexities', (r) => r.language?.ppl.ratio.value ?? null),
  metric(
    'ppl_repeated',
    'text',
    'the same on tokens that end a repeated pair',
    (r) => r.language?.repeated?.ratio.value ?? null,
  ),
  metric(
    'ppl_rest',
    'text',
    'the same on all other tokens',
    (r) => r.language?.rest?.ratio.value ?? null,
  ),
  metric(
    'same_top',
    'text',
    'share of tokens with the same likeliest next token',
    (r) => r.language?.same_top.value ?? null,
  ),
  metric('recall', 'tasks', 'share of answers right, over all tasks, lengths and depths', (r) =>
    meanRecall(r),
  ),
  metric('max_abs', 'nothing', 'largest difference of any output', (r) => largestDifference(r)),
  metric('cosine', 'nothing', 'smallest cosine of any output', (r) =>
    extreme(
      'min',
      Object.values(r.outputs ?? {}).map((o) => o.cosine),
    ),
  ),
  metric(
    'parity',
    'controls',
    'largest difference of softmax attention written again',
    (_, { rows }) => largestDifference(rows.find((r) => r.id === 'parity')),
  ),
  metric('speedup', 'lengths', 'smallest speedup of any length', (r) =>
    extreme(
      'min',
      (r.cost ?? []).map((c) => c.speedup),
    ),
  ),
  metric('state_bytes', 'text', 'bytes carried from token to token', (r) => r.state_bytes),
];

/** Every metric: the fixed ones, and `recall.<task>` for the given tasks. */
export function metrics(tasks: readonly string[]): Metric[] {
  const ofTask = (task: string) =>
    metric(`recall.${task}`, 'tasks', `recall of task ${task}`, (r) => meanRecall(r, task));
  return [...FIXED, ...tasks.map(ofTask)];
}

import { formatBytes, formatNumber } from '../../cli/format.js';
import { quantisationLike } from '../yardsticks.js';
import { formatLength, recallByLength } from './lengths.js';
import type { Report, ReportRow } from './schema.js';

/** A table in words, for terminals, pages and Markdown alike. */
export interface Table {
  head: string[];
  rows: string[][];
}

interface Estimate {
  value: number | null;
  error: number | null;
}

const OUT = 5; // powers of ten beyond which a number is written with one

/** A number for a table cell. */
export function cell(value: number | null | undefined, digits = 3): string {
  if (value === null || value === undefined) return '-';
  const power = value === 0 ? 0 : Math.floor(Math.log10(Math.abs(value)));
  return Math.abs(power) > OUT ? value.toExponential(1) : formatNumber(value, digits);
}

export function withError({ value, error }: Estimate, digits = 3): string {
  return error === null ? cell(value, digits) : `${cell(value, digits)} ± ${cell(error, 2)}`;
}

export function percent(value: number | null | undefined, digits = 1): string {
  return value === null || value === undefined ? '-' : `${(100 * value).toFixed(digits)} %`;
}

export const hasLanguage = ({ rows }: Report) => rows.some((r) => r.language);

/** The first row has no predictions of its own: it is what the others are measured against. */
function originalPerplexity({ rows }: Report): number | null {
  return rows.find((r) => r.language)?.language?.ppl.original ?? null;
}

const kept = ({ attention }: ReportRow) =>
  attention ? `${attention.softmax} of ${attention.layers}` : '-';

/** Perplexity and divergence, one line a row. */
export function languageTable(report: Report): Table | undefined {
  if (!hasLanguage(report)) return undefined;
  const head = [
    '',
    'softmax layers',
    'PPL',
    'ratio',
    'KL mean',
    'median',
    '99 %',
    '99.9 %',
    'max',
    'same top',
    'like',
  ];
  const rows = report.rows.map((row) => {
    const { language: l, role, name } = row;
    if (role === 'original') {
      return [
        name,
        kept(row),
        cell(originalPerplexity(report)),
        '1',
        '0',
        '0',
        '0',
        '0',
        '0',
        '100 %',
        '-',
      ];
    }
    if (!l) return [name, kept(row), ...new Array<string>(head.length - 2).fill('-')];
    const { kld, ppl, same_top } = l;
    return [
      name,
      kept(row),
      cell(ppl.rewritten),
      withError(ppl.ratio),
      withError(kld.mean),
      ...[kld.median.value, kld.p99.value, kld.p999.value, kld.max].map((x) => cell(x)),
      percent(same_top.value),
      quantisationLike(kld.mean.value),
    ];
  });
  return { head, rows };
}

/** Perplexity on what can be recalled, apart from the rest; change of probabilities; drift. */
export function detailTable(report: Report): Table | undefined {
  if (!hasLanguage(report)) return undefined;
  const head = [
    '',
    'ratio, repeated pairs',
    'ratio, other tokens',
    'correlation of losses',
    'change of p: mean',
    'rms',
    'KL at the start',
    'at the end',
  ];
  const rows = report.rows.flatMap(({ name, language: l }) =>
    l
      ? [
          [
            name,
            l.repeated ? withError(l.repeated.ratio) : '-',
            l.rest ? withError(l.rest.ratio) : '-',
            cell(l.correlation),
            percent(l.delta_p.mean.value, 2),
            percent(l.delta_p.rms.value, 2),
            cell(l.drift[0]?.kld.value),
            cell(l.drift.at(-1)?.kld.value),
          ],
        ]
      : [],
  );
  return { head, rows };
}

/** Recall of one task: a line a row, a column a length, over all depths. */
export function recallTable(report: Report, task: string): Table | undefined {
  const scores = report.rows.flatMap((r) => (r.tasks ?? []).filter((t) => t.task === task));
  const lengths = [...new Set(scores.map((s) => s.length))].sort((a, b) => a - b);
  if (lengths.length === 0) return undefined;
  const rows = report.rows.flatMap(({ name, tasks }) => {
    if (!tasks) return [];
    const recall = recallByLength(tasks, task);
    return [[name, ...lengths.map((length) => percent(recall.get(length)))]];
  });
  return { head: ['', ...lengths.map(formatLength)], rows };
}

const STATE = /^present/;

/** Largest difference and cosine of every output; states and caches in one line. */
export function outputTable(report: Report): Table {
  const rows = report.rows.flatMap(({ name, outputs, error }) => {
    if (error !== null) return [[name, error, '-', '-']];
    const all = Object.entries(outputs ?? {});
    const states = all.filter(([output]) => STATE.test(output));
    const line = (output: string, max: number | null, cosine: number | null) => [
      name,
      output,
      cell(max),
      formatNumber(cosine, 6),
    ];
    const others = all.filter(([output]) => !STATE.test(output));
    const worst = (pick: 'max' | 'min', values: (number | null)[]) =>
      values.includes(null) ? null : Math[pick](...(values as number[]));
    return [
      ...others.map(([output, d]) => line(output, d.max_abs, d.cosine)),
      ...(states.length === 0
        ? []
        : [
            line(
              `present, worst of ${states.length}`,
              worst(
                'max',
                states.map(([, d]) => d.max_abs),
              ),
              worst(
                'min',
                states.map(([, d]) => d.cosine),
              ),
            ),
          ]),
    ];
  });
  return { head: ['', 'output', 'max abs difference', 'cosine'], rows };
}

/** Bytes carried from token to token. */
export function stateTable(report: Report): Table | undefined {
  const known = report.rows.filter((r) => r.state_bytes !== null);
  if (!known.some((r) => r.state_bytes! > 0)) return undefined;
  return {
    head: ['', 'softmax layers', `carried after ${report.settings.state_tokens} tokens`],
    rows: known.map((r) => [r.name, kept(r), formatBytes(r.state_bytes)]),
  };
}

/** What differs from the baseline. */
export function changeTable(report: Report): Table | undefined {
  if (!report.changes) return undefined;
  const name = (id: string) => report.rows.find((r) => r.id === id)?.name ?? id;
  return {
    head: ['', 'metric', 'baseline', 'now', 'change'],
    rows: report.changes.map(({ row, metric, before, after }) => [
      name(row),
      metric,
      cell(before, 4),
      cell(after, 4),
      before !== null && after !== null && before !== 0
        ? `${after >= before ? '+' : ''}${cell(100 * (after / before - 1))} %`
        : '-',
    ]),
  };
}

/** The choice of layers. */
export function paretoTable({ pareto }: Report): Table | undefined {
  if (!pareto || pareto.length === 0) return undefined;
  return {
    head: ['softmax layers', 'which', 'perplexity ratio', 'KL mean', 'recall', 'carried'],
    rows: pareto.map((p) => [
      String(p.kept),
      p.layers ? p.layers.join(', ') || 'none' : '-',
      cell(p.ppl_ratio),
      cell(p.kld),
      percent(p.recall),
      formatBytes(p.state_bytes),
    ]),
  };
}

import { formatBytes, formatMs } from '../../cli/format.js';
import { TASKS } from '../tasks/index.js';
import { YARDSTICKS } from '../yardsticks.js';
import {
  colour,
  costChart,
  depthChart,
  divergenceChart,
  driftChart,
  histogramChart,
  lossChart,
  paretoChart,
  recallChart,
  type Shown,
} from './charts.js';
import type { Report, ReportRow } from './schema.js';
import { STYLE } from './style.js';
import {
  cell,
  changeTable,
  detailTable,
  languageTable,
  outputTable,
  paretoTable,
  percent,
  recallTable,
  stateTable,
  type Table,
} from './summary.js';

/** A report as one page that needs nothing else: no scripts, no fonts, nothing from elsewhere. */
export function reportHtml(report: Report): string {
  const shown = withColours(report.rows);
  const title = `${report.settings.original}, rewritten`;
  const sections = [
    overview(report),
    language(report, shown),
    recall(report, shown),
    choice(report),
    outputs(report),
    costs(report, shown),
    about(report),
  ].filter((section) => section !== undefined);
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${esc(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<header>
<h1>${esc(title)}</h1>
${legend(shown)}
</header>
<main>
${sections.join('\n')}
</main>
</body>
</html>
`;
}

const CONTROL_COLOURS = ['parity', 'zeroed', 'window', 'elu1'];
const MODEL_COLOURS = 6;

/** The original has colour 0, controls 1 to 4, models the rest in turn. */
function withColours(rows: readonly ReportRow[]): Shown[] {
  let models = 0;
  return rows.map((row) => {
    if (row.role === 'original') return { row, index: 0 };
    const control = CONTROL_COLOURS.indexOf(row.id);
    if (control >= 0) return { row, index: 1 + control };
    return { row, index: 1 + CONTROL_COLOURS.length + (models++ % MODEL_COLOURS) };
  });
}

function esc(text: string): string {
  const names: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };
  return text.replace(/[&<>"]/g, (c) => names[c]!);
}

function legend(shown: readonly Shown[]): string {
  const entries = shown.map(({ row, index }) => {
    const dashed = row.role === 'control' ? ' class="dashed"' : '';
    return `<li${dashed} style="--row: ${colour(index)}">${esc(row.name)}</li>`;
  });
  return `<ul class="legend">${entries.join('')}</ul>`;
}

function table({ head, rows }: Table, report: Report, label: string): string {
  const byName = new Map(report.rows.map((r) => [r.name, r.role]));
  const first = head[0] === '' ? 'row' : head[0]!;
  const heads = head.map((h, i) => `<th scope="col">${esc(i === 0 ? first : h)}</th>`);
  const lines = rows.map(([name, ...cells]) => {
    const role = byName.get(name!);
    const data = cells.map((c) => `<td>${esc(c)}</td>`).join('');
    return `<tr${role ? ` class="${role}"` : ''}><th scope="row">${esc(name!)}</th>${data}</tr>`;
  });
  return `<div class="table" tabindex="0" role="region" aria-label="${esc(label)}"><table><thead><tr>${heads.join('')}</tr></thead><tbody>${lines.join('')}</tbody></table></div>`;
}

function section(id: string, title: string, ...parts: (string | undefined)[]): string | undefined {
  const known = parts.filter((p) => p !== undefined);
  if (known.length === 0) return undefined;
  return `<section aria-labelledby="${id}"><h2 id="${id}">${esc(title)}</h2>\n${known.join('\n')}</section>`;
}

const note = (text: string) => `<p class="note">${esc(text)}</p>`;

function figure(caption: string, chart: string | undefined): string | undefined {
  if (chart === undefined) return undefined;
  return `<figure><figcaption>${esc(caption)}</figcaption><div class="chart">${chart}</div></figure>`;
}

const figures = (...parts: (string | undefined)[]) => {
  const known = parts.filter((p) => p !== undefined);
  return known.length > 0 ? `<div class="figures">${known.join('')}</div>` : undefined;
};

function overview(report: Report): string | undefined {
  const notices = report.notices.map((n) => `<li>${esc(n)}</li>`).join('');
  const changes = changeTable(report);
  const changed =
    changes && changes.rows.length === 0 ? note('Nothing differs from the baseline.') : undefined;
  const parts = [
    notices ? `<ul class="notices">${notices}</ul>` : undefined,
    changed ??
      (changes &&
        `<h3>Against the baseline</h3>${table(changes, report, 'changes against the baseline')}`),
  ];
  return section('overview', 'What stands out', ...parts);
}

function language(report: Report, shown: readonly Shown[]): string | undefined {
  const [main, details] = [languageTable(report), detailTable(report)];
  const { text } = report.settings;
  if (!main || !details || !text) return undefined;
  const yardsticks = YARDSTICKS.map(
    (y) => `${y.name} ${y.kld} (same top token ${percent(y.same_top)})`,
  );
  return section(
    'predictions',
    'Predictions',
    note(
      `${text.tokens} tokens of ${text.name} in windows of ${text.context}. KL(original || row) in nats; "like" is the finest quantisation of llama.cpp that differs more: ${yardsticks.join(', ')}.`,
    ),
    table(main, report, 'perplexity and divergence'),
    figure('Mean KL divergence', divergenceChart(shown)),
    note(
      'Repeated pairs: tokens that end a pair of tokens seen before in the window, which can be recalled rather than guessed.',
    ),
    table(details, report, 'predictions in detail'),
    figure('KL divergences of single tokens', histogramChart(shown)),
    figures(
      figure('Drift: KL divergence against position', driftChart(shown)),
      figure('Loss against position', lossChart(shown)),
    ),
  );
}

function recall(report: Report, shown: readonly Shown[]): string | undefined {
  const { tasks } = report.settings;
  if (!tasks) return undefined;
  const parts = tasks.names.map((name) => {
    const known = recallTable(report, name);
    const task = TASKS[name];
    if (!known) return undefined;
    const source = task ? `${task.about}. After ${task.source.title}.` : '';
    return `<article><h3>${esc(name)}</h3>${note(source)}<div class="beside">${table(known, report, `recall of ${name}`)}${figure('Recall against length', recallChart(shown, name)) ?? ''}</div>${figure('By length and depth, % of answers right', depthChart(shown, name)) ?? ''}</article>`;
  });
  const made = tasks.mode === 'tokens' ? 'Questions of random token ids' : 'Questions in words';
  return section(
    'recall',
    'Recall at length',
    note(
      `${made}; ${tasks.samples} at each length and depth. The control's window is ${report.settings.window} tokens and ${report.settings.sinks} sinks. Share of answers of which every token is the likeliest, the right ones before it given.`,
    ),
    ...parts,
  );
}

function choice(report: Report): string | undefined {
  const points = paretoTable(report);
  if (!points) return undefined;
  return section(
    'layers',
    'Which layers stay softmax',
    figure('KL divergence against what is carried', paretoChart(report.pareto!)),
    table(points, report, 'layers left as softmax'),
  );
}

function outputs(report: Report): string | undefined {
  return section(
    'outputs',
    'Outputs on the same inputs',
    note(`Made-up inputs, seed ${report.settings.seed}.`),
    table(outputTable(report), report, 'differences of outputs'),
  );
}

function costs(report: Report, shown: readonly Shown[]): string | undefined {
  const state = stateTable(report);
  const chart = (
    key: Parameters<typeof costChart>[1],
    label: string,
    format: (n: number) => string,
  ) => figure(`${label} against length`, costChart(shown, key, label, format));
  const ms = (n: number) => formatMs(n);
  const bytes = (n: number) => formatBytes(n);
  const rows = report.rows.flatMap((r) =>
    (r.cost ?? []).map((c) => [
      r.name,
      String(c.length),
      `${formatMs(c.original_ms)} / ${formatMs(c.rewritten_ms)}`,
      c.speedup === null ? '-' : `${cell(c.speedup)}x`,
      `${formatMs(c.original_decode_ms)} / ${formatMs(c.rewritten_decode_ms)}`,
      `${formatBytes(c.original_peak_bytes)} / ${formatBytes(c.rewritten_peak_bytes)}`,
      `${formatBytes(c.original_state_bytes)} / ${formatBytes(c.rewritten_state_bytes)}`,
      String(c.runs),
    ]),
  );
  const head = [
    '',
    'length',
    'time, original / rewritten',
    'speedup',
    'next token',
    'peak memory',
    'carried',
    'runs',
  ];
  return section(
    'cost',
    'Time and memory',
    rows.length > 0
      ? note(
          `Median of runs that take turns, every model in a process of its own; ${report.run.machine}.`,
        )
      : undefined,
    figures(
      chart('ms', 'time', ms),
      chart('decode_ms', 'time of the next token', ms),
      chart('peak_bytes', 'peak memory', bytes),
      chart('state_bytes', 'carried', bytes),
    ),
    rows.length > 0 ? table({ head, rows }, report, 'costs by length') : undefined,
    state && table(state, report, 'bytes carried from token to token'),
  );
}

function about(report: Report): string | undefined {
  const { run, settings } = report;
  const versions = Object.entries(run.versions).map(([k, v]) => `${k} ${v}`);
  const rows = report.rows
    .filter((r) => r.about)
    .map((r) => `<dt>${esc(r.name)}</dt><dd>${esc(r.about)}</dd>`);
  return section(
    'about',
    'About this report',
    `<dl>${rows.join('')}</dl>`,
    note(
      `${run.created.slice(0, 16).replace('T', ' ')} UTC, ${run.seconds.toFixed(0)} s, ${run.machine}; ${versions.join(', ')}; seed ${settings.seed}.`,
    ),
  );
}

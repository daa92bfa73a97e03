/** `npm run bench:docs`: writes docs/quality.md from bench/results/quality/*.json. */
import fs from 'node:fs';
import path from 'node:path';
import { type Report, TASKS } from '../../exporter/compare/index.js';
import {
  cell,
  detailTable,
  languageTable,
  percent,
  recallTable,
  type Table,
} from '../../exporter/compare/report/summary.js';
import { YARDSTICKS } from '../../exporter/compare/yardsticks.js';
import { ROOT } from '../../test/support/models.js';
import type { EmbeddingResult } from './embeddings.js';
import { LINES, type OcrRow } from './ocr.js';
import { EMBEDDING_RESULTS, OCR_RESULTS, QUALITY } from './results.js';
import { type QualitySet, SETS } from './sets.js';

const read = <T>(name: string): T | undefined => {
  const file = path.join(QUALITY, `${name}.json`);
  return fs.existsSync(file) ? (JSON.parse(fs.readFileSync(file, 'utf8')) as T) : undefined;
};

function markdown({ head, rows }: Table): string {
  const line = (cells: readonly string[]) =>
    `| ${cells.map((c) => c.replaceAll('|', '\\|')).join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}

/** A table with a line for every rewrite that was not measured yet. */
function withMissing(table: Table, set: QualitySet, report: Report): string {
  const measured = report.rows.map((r) => r.name);
  const missing = set.rewrites.filter((r) => !measured.includes(r.name));
  const empty = table.head.slice(2).map(() => '');
  return markdown({
    head: table.head,
    rows: [...table.rows, ...missing.map((r) => [r.name, 'not yet', ...empty])],
  });
}

function section(set: QualitySet): string {
  const report = read<Report>(set.name);
  const parts = [`## ${set.title}`, set.about];
  if (!report) return [...parts, 'Not measured yet.'].join('\n\n');
  const { text, tasks } = report.settings;
  const [main, detail] = [languageTable(report), detailTable(report)];
  if (text) parts.push(`${text.tokens} tokens of ${text.name} in windows of ${text.context}.`);
  if (main) parts.push(withMissing(main, set, report));
  if (detail)
    parts.push('Apart: tokens that end a pair seen before in the window.', markdown(detail));
  for (const name of tasks?.names ?? []) {
    const table = recallTable(report, name);
    if (!table) continue;
    parts.push(
      `### ${name}`,
      `${TASKS[name]?.about ?? ''}; tokens against answers right.`,
      withMissing(table, set, report),
    );
  }
  const said = report.notices.filter((n) => /no better|recalls no more|misunderstood/.test(n));
  if (said.length > 0)
    parts.push('What the bench says of it:', said.map((n) => `- ${n}`).join('\n'));
  const { run } = report;
  parts.push(
    `Measured ${run.created.slice(0, 10)}, ${run.machine}, onnxruntime-node ${run.versions['onnxruntime-node']}, seed ${report.settings.seed}.`,
  );
  return parts.join('\n\n');
}

function ocr(): string {
  const rows = read<OcrRow[]>(OCR_RESULTS);
  const about = `PP-OCRv4's recogniser: two blocks of bidirectional attention over the columns of a picture. ${LINES} rendered lines in six fonts: characters read otherwise than the original reads them, and wrong against what was drawn. Calibrated rows saw 240 other lines, of other text.`;
  if (!rows) return ['## A text recogniser', about, 'Not measured yet.'].join('\n\n');
  const table = {
    head: ['', 'differs', 'wrong', 'largest difference of a probability', 'smallest cosine'],
    rows: rows.map((r) => [
      r.name,
      percent(r.wrong, 2),
      percent(r.wrong_truth, 2),
      cell(r.max_abs),
      cell(r.cosine, 5),
    ]),
  };
  return ['## A text recogniser', about, markdown(table)].join('\n\n');
}

function embeddings(): string {
  const result = read<EmbeddingResult>(EMBEDDING_RESULTS);
  const about =
    'Universal Sentence Encoder lite (2 layers of bidirectional attention, 512 dimensions), converted from TensorFlow.js files by `bench/quality/use_lite.ts`.';
  if (!result) return ['## A sentence encoder', about, 'Not measured yet.'].join('\n\n');
  const { texts, pairs, tokens, rows } = result;
  const what = `${texts} paragraphs of held-out text, ${tokens.toFixed(0)} tokens in the mean. Drift is 1 - cosine to the original's embedding of the same paragraph; rank correlation (Spearman's) is that of the similarities of all ${pairs} pairs with the original's. Calibrated rows saw the paragraphs between these.`;
  const table = {
    head: ['', 'drift, mean', 'drift, max', 'rank correlation'],
    rows: rows.map((r) => [
      r.name,
      cell(r.drift_mean),
      cell(r.drift_max),
      r.rank_correlation.toFixed(3),
    ]),
  };
  return ['## A sentence encoder', about, what, markdown(table)].join('\n\n');
}

const yardsticks = YARDSTICKS.map((y) => `${y.name} ${y.kld} and ${percent(y.same_top)}`).join(
  ', ',
);
const text = [
  '# What rewriting does to quality',
  '<!-- Made by `npm run bench:docs` from bench/results/quality; do not edit. -->',
  'Measured by `npm run bench:quality` with the same code as `onnx-fla compare` ([how to read it](compare.md)). Every table has the controls beside it: the same softmax attention written again (must not differ), attention zeroed, a window and sinks only (what a linear branch adds is measured from here), and the naive swap.',
  `KL(original || row) in nats a token. For scale, what llama.cpp reports of quantised models, mean KL divergence and same top token: ${yardsticks}; \`like\` names the finest of these that differs more.`,
  '[Calibration](calibration.md) has numbers of its own.',
  ...SETS.map(section),
  ocr(),
  embeddings(),
].join('\n\n');
fs.writeFileSync(path.join(ROOT, 'docs/quality.md'), `${text}\n`);

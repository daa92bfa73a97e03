/** `npm run bench:docs`: writes docs/benchmarks.md from bench/results/*.json. */
import fs from 'node:fs';
import path from 'node:path';
import { ROOT } from '../test/support/models.js';
import { plot } from './plot.js';
import { median, RESULTS, type ResultFile, type Row } from './results.js';

const number = (n: number | null, digits = 3) =>
  n === null ? '' : String(Number(n.toPrecision(digits)));

function size(bytes: number | null): string {
  if (bytes === null) return '';
  const units = ['B', 'KB', 'MB', 'GB'];
  const i = Math.min(3, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  return `${number(bytes / 1000 ** i)} ${units[i]}`;
}

function table(rows: readonly Row[]): string {
  const extra = rows.some((r) => r.workspace_bytes);
  const head = `op | mode | B | T | H | K x V | dtype | ms | peer ms | ratio | bytes | of copy${extra ? ' | workspace' : ''}`;
  const lines = rows.map((r) =>
    [
      r.op,
      r.mode,
      r.B,
      r.T,
      r.H,
      `${r.K} x ${r.V}`,
      r.dtype,
      number(r.ms),
      number(r.peer_ms),
      r.ratio === null ? (r.note ?? '') : `${number(r.ratio)}x`,
      size(r.bytes),
      number(r.fraction_of_copy, 2),
      ...(extra ? [r.workspace_bytes ? size(r.workspace_bytes) : '0'] : []),
    ].join(' | '),
  );
  const rule = head.replace(/[^|]+/g, '---');
  return [head, rule, ...lines].map((l) => `| ${l} |`).join('\n');
}

function summary(rows: readonly Row[]): string {
  const ratios = rows.flatMap((r) => (r.ratio === null ? [] : [r.ratio]));
  if (ratios.length === 0) return '';
  const slower = ratios.filter((r) => r < 1).length;
  return `Ratio (peer time over ours): lowest ${number(Math.min(...ratios))}, median ${number(median(ratios))}, highest ${number(Math.max(...ratios))}; slower than the peer in ${slower} of ${ratios.length} rows.`;
}

function errors(file: ResultFile): string {
  if (!file.errors) return '';
  const lines = Object.entries(file.errors).map(
    ([op, { ours, peer }]) => `| ${op} | ${ours.toExponential(2)} | ${peer.toExponential(2)} |`,
  );
  return [
    'Relative errors against float64 on the same inputs (1 x 16384 x 8 x 64, bfloat16):',
    ['| op | ours | flash-linear-attention |', '| --- | --- | --- |', ...lines].join('\n'),
  ].join('\n\n');
}

async function section(file: ResultFile): Promise<string> {
  const peers = [...new Set(file.rows.map((r) => r.peer))];
  const versions = Object.entries(file.versions).map(([k, v]) => `${k} ${v}`);
  const parts = [
    `## ${file.name}: ${file.device}`,
    file.about,
    `Measured ${file.date} at commit ${file.commit} with ${versions.join(', ')}; copy bandwidth in the same run ${number(file.copy_bytes_per_second / 1e9)} GB/s.`,
  ];
  const image = await plot(file);
  if (image) parts.push(`![Time against length](${image})`);
  parts.push(errors(file));
  for (const peer of peers) {
    const rows = file.rows.filter((r) => r.peer === peer);
    parts.push(`### Against ${peer}`, summary(rows), table(rows));
  }
  return parts.filter(Boolean).join('\n\n');
}

const files = fs
  .readdirSync(RESULTS)
  .filter((f) => f.endsWith('.json') && !f.includes('-partial-'))
  .sort()
  .map((f) => JSON.parse(fs.readFileSync(path.join(RESULTS, f), 'utf8')) as ResultFile);
const text = [
  '# Benchmarks',
  '<!-- Made by `npm run bench:docs` from bench/results; do not edit. -->',
  'A ratio compares two times of one run on one machine; numbers of different machines do not compare. `of copy` is the bandwidth reached over the bandwidth of a plain copy in the same run.',
  ...(await Promise.all(files.map(section))),
].join('\n\n');
fs.writeFileSync(path.join(ROOT, 'docs/benchmarks.md'), `${text}\n`);

/** Time against length for docs/benchmarks.md: both axes logarithmic, one panel per operator, the floor of bytes drawn in. */
import fs from 'node:fs';
import path from 'node:path';
import * as vega from 'vega';
import { compile, type TopLevelSpec } from 'vega-lite';
import { ROOT } from '../test/support/models.js';
import type { ResultFile, Row } from './results.js';

interface Point {
  op: string;
  line: string;
  tokens: number;
  ms: number;
}

/** The rows of the shape that was measured at most lengths, or nothing where that are fewer than three. */
function lengths(rows: readonly Row[]): Row[] {
  const groups = new Map<string, Row[]>();
  for (const row of rows) {
    if (row.mode !== 'prefill' || /\(/.test(row.op)) continue;
    const key = [row.B, row.H, row.K, row.dtype].join();
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  const count = (group: readonly Row[]) => new Set(group.map((row) => row.T)).size;
  const most = [...groups.values()].sort((a, b) => count(b) - count(a))[0] ?? [];
  return count(most) < 3 ? [] : most;
}

function points(rows: readonly Row[], copy: number): Point[] {
  return rows.flatMap((row) => {
    const at = { op: row.op.replace('LinearAttention ', ''), tokens: row.T };
    return [
      { ...at, line: 'onnx-fla', ms: row.ms },
      ...(row.peer_ms ? [{ ...at, line: row.peer, ms: row.peer_ms }] : []),
      { ...at, line: 'bytes / copy bandwidth', ms: (row.bytes / copy) * 1000 },
    ];
  });
}

/** 4096 as 4K, 1048576 as 1M. */
const LENGTH =
  "datum.value >= 1048576 ? datum.value / 1048576 + 'M' : datum.value >= 1024 ? datum.value / 1024 + 'K' : datum.value";

/** Writes docs/images/<name>-<machine>.svg. Returns its path inside docs/, or nothing where there is nothing to draw. */
export async function plot(file: ResultFile): Promise<string | undefined> {
  const rows = lengths(file.rows);
  const first = rows[0];
  if (!first) return undefined;
  const spec: TopLevelSpec = {
    title: `Milliseconds against tokens: B=${first.B}, ${first.H} heads of ${first.K}, ${first.dtype}, ${file.device}`,
    data: { values: points(rows, file.copy_bytes_per_second) },
    background: 'white',
    facet: { field: 'op', type: 'nominal', title: null, sort: null },
    columns: 3,
    spec: {
      width: 220,
      height: 180,
      mark: { type: 'line', point: { size: 20 } },
      encoding: {
        x: {
          field: 'tokens',
          type: 'quantitative',
          scale: { type: 'log', base: 2 },
          axis: { values: [...new Set(rows.map((row) => row.T))], labelExpr: LENGTH },
        },
        y: {
          field: 'ms',
          aggregate: 'min',
          type: 'quantitative',
          scale: { type: 'log' },
          title: 'ms',
        },
        color: { field: 'line', type: 'nominal', title: null, sort: null },
        strokeDash: { field: 'line', type: 'nominal', title: null, sort: null },
      },
    },
    config: { legend: { orient: 'bottom', labelLimit: 0 } },
  };
  const view = new vega.View(vega.parse(compile(spec).spec), { renderer: 'none' });
  const name = `images/${file.name}-${file.machine}.svg`;
  fs.mkdirSync(path.join(ROOT, 'docs/images'), { recursive: true });
  fs.writeFileSync(path.join(ROOT, 'docs', name), await view.toSVG());
  return name;
}

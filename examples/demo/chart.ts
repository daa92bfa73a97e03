import fs from 'node:fs';
import * as asciichart from 'asciichart';
import * as vega from 'vega';
import { compile, type TopLevelSpec } from 'vega-lite';
import { formatMs } from '../../exporter/cli/format.js';
import type { CostRow } from '../../exporter/compare/index.js';

interface Point {
  model: string;
  tokens: number;
  seconds: number;
}

function points(cost: readonly CostRow[]): Point[] {
  return cost.flatMap(({ length, original_ms, rewritten_ms }) => [
    ...(original_ms === null
      ? []
      : [{ model: 'original', tokens: length, seconds: original_ms / 1000 }]),
    ...(rewritten_ms === null
      ? []
      : [{ model: 'rewritten', tokens: length, seconds: rewritten_ms / 1000 }]),
  ]);
}

/** Draws seconds against tokens for the terminal, lengths being equally spaced powers of two. */
export function terminalChart(cost: readonly CostRow[]): string {
  const seconds = (pick: (row: CostRow) => number | null) =>
    spread(cost.map((row) => (pick(row) ?? Number.NaN) / 1000));
  const chart = asciichart.plot([seconds((r) => r.original_ms), seconds((r) => r.rewritten_ms)], {
    height: 10,
    colors: process.stdout.isTTY ? [asciichart.red, asciichart.blue] : [],
    format: (x) => `${x.toFixed(2)} s`.padStart(9),
  });
  const axis = cost.map((row) => String(row.length).padEnd(STEP)).join('');
  const last = (ms: number | null | undefined) => formatMs(ms ?? null);
  const legend = `original (to ${last(cost.at(-1)?.original_ms)}), rewritten (to ${last(cost.at(-1)?.rewritten_ms)})`;
  return `Time: ${legend}\n${chart}\n${' '.repeat(10)}${axis}tokens`;
}

const STEP = 12; // columns from one length to the next

/** Puts straight lines between values, so that a few points make a curve. */
function spread(values: readonly number[]): number[] {
  return values.flatMap((a, i) => {
    const b = values[i + 1];
    if (b === undefined) return [a];
    return Array.from({ length: STEP }, (_, k) => a + ((b - a) * k) / STEP);
  });
}

/** Writes seconds against tokens, both axes logarithmic, as SVG. */
export async function svgChart(cost: readonly CostRow[], file: string): Promise<void> {
  const spec: TopLevelSpec = {
    title: 'Time to read a text, tinylm, CPU',
    width: 480,
    height: 300,
    data: { values: points(cost) },
    mark: { type: 'line', point: true },
    encoding: {
      x: { field: 'tokens', type: 'quantitative', scale: { type: 'log', base: 2 } },
      y: { field: 'seconds', type: 'quantitative', scale: { type: 'log' } },
      color: { field: 'model', type: 'nominal' },
    },
  };
  const view = new vega.View(vega.parse(compile(spec).spec), { renderer: 'none' });
  fs.writeFileSync(file, await view.toSVG());
}

import * as Plot from '@observablehq/plot';
import { parseHTML } from 'linkedom';
import { YARDSTICKS } from '../yardsticks.js';
import { formatLength, recallByLength } from './lengths.js';
import type { ParetoPoint, ReportRow } from './schema.js';

/** Charts are SVG whose colours are CSS variables, so that one file is right in light and dark. */
const { document } = parseHTML('<!doctype html><html><body></body></html>');

const WIDTH = 640;
const NARROW = 420;

/** A row with its place in the report, from which its colour follows. */
export interface Shown {
  row: ReportRow;
  index: number;
}

export const colour = (index: number) => `var(--row-${index})`;

/** Controls are dashed. */
const dash = ({ role }: ReportRow) => (role === 'control' ? '5 3' : undefined);

function draw(options: Plot.PlotOptions & { label: string }): string {
  const { label, ...rest } = options;
  const figure = Plot.plot({
    width: WIDTH,
    height: 300,
    marginLeft: 60,
    marginBottom: 40,
    document,
    ariaLabel: label,
    style: { fontFamily: 'inherit', fontSize: '12px', background: 'none' },
    ...rest,
  } as Plot.PlotOptions);
  // The picture has one name; its parts need none.
  for (const part of figure.querySelectorAll('[aria-label]')) part.removeAttribute('aria-label');
  figure.setAttribute('role', 'img');
  return figure.outerHTML;
}

interface Point {
  x: number;
  y: number;
  error?: number | null;
  title: string;
}

/** One line per row, with a dot at each point. */
function lines(shown: readonly Shown[], points: (row: ReportRow) => Point[]): Plot.Markish[] {
  return shown.flatMap(({ row, index }) => {
    const data = points(row);
    const stroke = colour(index);
    return [
      Plot.lineY(data, { x: 'x', y: 'y', stroke, strokeDasharray: dash(row), strokeWidth: 1.75 }),
      Plot.dot(data, { x: 'x', y: 'y', fill: stroke, r: 2.5, title: 'title' }),
    ];
  });
}

const grid = { grid: true, nice: true } as const;
const logX = (values: readonly number[]): Plot.ScaleOptions => ({
  type: 'log',
  base: 2,
  ticks: [...new Set(values)],
  tickFormat: formatLength,
});

/** A KL divergence that a logarithmic axis can show. */
const LEAST = 1e-5;
const positive = (x: number | null) => (x === null ? null : Math.max(x, LEAST));

/** Mean KL divergence of each row, with what quantisation does beside it. */
export function divergenceChart(shown: readonly Shown[]): string | undefined {
  const data = shown.flatMap(({ row, index }) => {
    const kld = row.language?.kld;
    const mean = positive(kld?.mean.value ?? null);
    if (!kld || mean === null) return [];
    const [median, p99] = [positive(kld.median.value) ?? mean, positive(kld.p99.value) ?? mean];
    return [{ name: row.name, index, mean, median, p99 }];
  });
  if (data.length === 0) return undefined;
  const at = { y: 'name', stroke: (d: (typeof data)[number]) => colour(d.index) };
  return draw({
    label: 'Mean KL divergence of every row on a logarithmic axis, and those of quantised models',
    height: 70 + 30 * data.length,
    marginLeft: 190,
    marginTop: 34,
    x: {
      type: 'log',
      label: 'KL divergence, nats: mean, and a line from the median to the 99 % quantile',
      grid: true,
      tickFormat: '~g',
    },
    y: { label: null, domain: data.map((d) => d.name) },
    color: { type: 'identity' },
    marks: [
      Plot.ruleX(YARDSTICKS, { x: 'kld', stroke: 'var(--faint)', strokeDasharray: '2 3' }),
      Plot.text(YARDSTICKS, {
        x: 'kld',
        text: 'name',
        frameAnchor: 'top',
        dy: -12,
        fill: 'var(--soft)',
      }),
      Plot.link(data, {
        ...at,
        x1: 'median',
        x2: 'p99',
        y1: 'name',
        y2: 'name',
        strokeOpacity: 0.45,
        strokeWidth: 3,
      }),
      Plot.dot(data, {
        x: 'mean',
        y: 'name',
        fill: (d) => colour(d.index),
        r: 5,
        title: (d) => `${d.name}: ${d.mean.toPrecision(3)} nats`,
      }),
    ],
  });
}

/** How often a KL divergence occurs, row by row. */
export function histogramChart(shown: readonly Shown[]): string | undefined {
  const some = shown.filter(({ row }) => row.language && row.id !== 'parity');
  const bars = some.flatMap(({ row, index }) => {
    const { edges, counts } = row.language!.histogram;
    const total = counts.reduce((a, b) => a + b, 0);
    return counts.flatMap((n, i) =>
      n > 0
        ? [{ from: edges[i]!, to: edges[i + 1]!, share: n / total, name: row.name, index }]
        : [],
    );
  });
  if (bars.length === 0) return undefined;
  return draw({
    label: 'Histogram of the KL divergences of single tokens, one strip for each row',
    height: 60 + 74 * some.length,
    marginRight: 190,
    x: { type: 'log', label: 'KL divergence of a token, nats', tickFormat: '~g' },
    y: { label: 'share of tokens', tickFormat: '%', ticks: 2, grid: true },
    fy: { label: null, domain: some.map(({ row }) => row.name), padding: 0.15 },
    color: { type: 'identity' },
    marks: [
      Plot.rectY(bars, {
        x1: 'from',
        x2: 'to',
        y: 'share',
        fy: 'name',
        fill: (d) => colour(d.index),
        insetLeft: 0.5,
        insetRight: 0.5,
        title: (d) => `${d.name}: ${(100 * d.share).toFixed(1)} % from ${d.from} to ${d.to}`,
      }),
      Plot.ruleX(YARDSTICKS, { x: 'kld', stroke: 'var(--faint)', strokeDasharray: '2 3' }),
      Plot.ruleY([0], { stroke: 'var(--faint)' }),
    ],
  });
}

/** KL divergence against position in the window. */
export function driftChart(shown: readonly Shown[]): string | undefined {
  const some = shown.filter(({ row }) => row.language && row.id !== 'parity');
  if (some.length === 0) return undefined;
  const points = (row: ReportRow) =>
    row.language!.drift.flatMap((d) => {
      const y = positive(d.kld.value);
      const x = (d.from + d.to) / 2;
      return y === null
        ? []
        : [{ x, y, title: `${row.name}: ${y.toPrecision(3)} at ${d.from}..${d.to - 1}` }];
    });
  return draw({
    label: 'Mean KL divergence against position in the window',
    x: { label: 'position in the window, tokens', ...grid },
    y: { type: 'log', label: 'KL divergence, nats', grid: true, tickFormat: '~g' },
    marks: lines(some, points),
  });
}

/** Loss against position, the original's too. */
export function lossChart(shown: readonly Shown[]): string | undefined {
  const some = shown.filter(({ row }) => row.language && row.id !== 'parity');
  const [first] = some;
  if (!first) return undefined;
  const points = (row: ReportRow, key: 'nll_original' | 'nll_rewritten') =>
    row.language!.drift.flatMap((d) => {
      const [x, y] = [(d.from + d.to) / 2, d[key]];
      return y === null
        ? []
        : [{ x, y, title: `${row.name}: ${y.toFixed(3)} at ${d.from}..${d.to - 1}` }];
    });
  const original = points({ ...first.row, name: 'original' }, 'nll_original');
  return draw({
    label: 'Loss against position in the window',
    x: { label: 'position in the window, tokens', ...grid },
    y: { label: 'loss, nats a token', ...grid },
    marks: [
      ...lines(some, (row) => points(row, 'nll_rewritten')),
      Plot.lineY(original, { x: 'x', y: 'y', stroke: colour(0), strokeWidth: 1.75 }),
    ],
  });
}

/** Recall of one task against length. */
export function recallChart(shown: readonly Shown[], task: string): string | undefined {
  const some = shown.filter(({ row }) => row.tasks && row.id !== 'parity');
  const all = some.flatMap(({ row }) => [...recallByLength(row.tasks!, task).keys()]);
  if (all.length === 0) return undefined;
  const points = (row: ReportRow) =>
    [...recallByLength(row.tasks!, task)].map(([x, y]) => ({
      x,
      y,
      title: `${row.name}: ${(100 * y).toFixed(1)} % at ${x}`,
    }));
  return draw({
    label: `Recall of task ${task} against length`,
    width: NARROW,
    height: 240,
    x: { label: 'tokens', ...logX(all) },
    y: { label: 'recall', domain: [0, 1], tickFormat: '%', grid: true },
    marks: lines(some, points),
  });
}

/** Recall by length and depth, one panel a row. */
export function depthChart(shown: readonly Shown[], task: string): string | undefined {
  const some = shown.filter(({ row }) => row.id !== 'parity');
  const cells = some.flatMap(({ row }) =>
    (row.tasks ?? []).flatMap(({ task: name, length, depth, recall }) =>
      name === task && depth !== null && recall.value !== null
        ? [
            {
              row: row.name,
              length: formatLength(length),
              order: length,
              depth: `${Math.round(100 * depth)} %`,
              recall: recall.value,
            },
          ]
        : [],
    ),
  );
  if (cells.length === 0) return undefined;
  const lengths = [...new Set(cells.map((c) => c.order))].sort((a, b) => a - b).map(formatLength);
  const panels = some.filter(({ row }) => cells.some((c) => c.row === row.name)).length;
  const columns = Math.min(panels, 3);
  const place = new Map([...new Set(cells.map((c) => c.row))].map((name, i) => [name, i]));
  const fx = (c: { row: string }) => place.get(c.row)! % columns;
  const fy = (c: { row: string }) => Math.floor(place.get(c.row)! / columns);
  const at = { x: 'length', y: 'depth', fx, fy };
  const titles = [...place.keys()].map((row) => ({ row }));
  const rowsOfPanels = Math.ceil(panels / columns);
  return draw({
    label: `Recall of task ${task} by length and depth, one panel for each row`,
    width: 70 + columns * Math.max(210, lengths.length * 46),
    height: 60 + rowsOfPanels * 190,
    marginTop: 34,
    x: { label: 'tokens', domain: lengths },
    y: { label: 'depth', domain: [...new Set(cells.map((c) => c.depth))] },
    fx: { axis: null, padding: 0.06 },
    fy: { axis: null, padding: 0.2 },
    marks: [
      Plot.cell(cells, {
        ...at,
        fill: 'var(--heat)',
        fillOpacity: (c) => 0.06 + 0.94 * c.recall,
        stroke: 'var(--faint)',
        strokeOpacity: 0.5,
        inset: 0.5,
        title: (c) =>
          `${c.row}: ${(100 * c.recall).toFixed(0)} % of answers right at ${c.length} tokens, depth ${c.depth}`,
      }),
      Plot.text(cells, {
        ...at,
        text: (c) => (100 * c.recall).toFixed(0),
        fill: (c) => (c.recall > 0.55 ? 'var(--on-heat)' : 'var(--ink)'),
      }),
      Plot.text(titles, {
        fx,
        fy,
        text: 'row',
        frameAnchor: 'top',
        dy: -14,
        fill: 'var(--ink)',
        fontWeight: 600,
      }),
    ],
    opacity: { type: 'identity' },
    color: { type: 'identity' },
  });
}

export type CostKey = 'ms' | 'decode_ms' | 'peak_bytes' | 'state_bytes';

/** Round numbers between the smallest and the largest value: 1, 2, 5 for times, powers of two for bytes. */
function ticksOf(values: readonly number[], key: CostKey): number[] {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const powers = (base: number, factors: readonly number[]) =>
    Array.from({ length: 60 }, (_, i) => i - 12)
      .flatMap((power) => factors.map((f) => f * base ** power))
      .filter((x) => x >= low / 1.05 && x <= high * 1.05);
  if (key === 'ms' || key === 'decode_ms') {
    const decades = powers(10, [1]);
    return decades.length > 2 ? decades : powers(10, [1, 2, 5]);
  }
  const fours = powers(4, [1]);
  return fours.length > 2 ? fours : powers(2, [1]);
}

/** One cost against length, both axes logarithmic: the original by the first model's measurement, and every model. */
export function costChart(
  shown: readonly Shown[],
  key: CostKey,
  label: string,
  format: (value: number) => string,
): string | undefined {
  const some = shown.filter(({ row }) => row.cost && row.cost.length > 0);
  const [first] = some;
  if (!first) return undefined;
  const points = (row: ReportRow, who: 'original' | 'rewritten'): Point[] =>
    row.cost!.flatMap((c) => {
      const y = c[`${who}_${key}`];
      const name = who === 'original' ? who : row.name;
      return y === null || y <= 0
        ? []
        : [{ x: c.length, y, title: `${name}: ${format(y)} at ${c.length}` }];
    });
  const original = { ...first.row, role: 'original' as const };
  const series = [
    ...lines([{ row: original, index: 0 }], (row) => points(row, 'original')),
    ...lines(some, (row) => points(row, 'rewritten')),
  ];
  const any = [
    ...points(first.row, 'original'),
    ...some.flatMap(({ row }) => points(row, 'rewritten')),
  ];
  if (any.length === 0) return undefined;
  const lengths = some.flatMap(({ row }) => row.cost!.map((c) => c.length));
  return draw({
    label: `${label} against length`,
    width: NARROW,
    height: 260,
    marginLeft: 74,
    x: { label: 'tokens', ...logX(lengths) },
    y: {
      type: 'log',
      label,
      grid: true,
      tickFormat: format,
      ticks: ticksOf(
        any.map((p) => p.y),
        key,
      ),
    },
    marks: series,
  });
}

/** What a choice of layers costs: divergence against bytes carried, or against layers kept where those are unknown. */
export function paretoChart(points: readonly ParetoPoint[]): string | undefined {
  const known = points.flatMap((p) => {
    const y = positive(p.kld);
    return y === null ? [] : [{ ...p, y }];
  });
  if (known.length === 0) return undefined;
  const bytes = known.every((p) => p.state_bytes !== null && p.state_bytes > 0);
  const x = bytes ? 'state_bytes' : 'kept';
  return draw({
    label: 'KL divergence against what is carried, for every number of layers left as softmax',
    x: bytes
      ? { type: 'log', label: 'carried from token to token, bytes', tickFormat: '~s', grid: true }
      : { label: 'layers left as softmax', ...grid },
    y: { type: 'log', label: 'KL divergence, nats', tickFormat: '~g', grid: true },
    marks: [
      Plot.lineY(
        [...known].sort((a, b) => a.kept - b.kept),
        { x, y: 'y', stroke: 'var(--heat)', strokeWidth: 1.75 },
      ),
      Plot.dot(known, {
        x,
        y: 'y',
        fill: 'var(--heat)',
        r: 4,
        title: (p) => `${p.kept} layers: ${p.y.toPrecision(3)} nats`,
      }),
      Plot.text(known, { x, y: 'y', text: (p) => String(p.kept), dy: -11, fill: 'var(--ink)' }),
    ],
  });
}

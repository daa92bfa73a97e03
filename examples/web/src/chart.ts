import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import { h } from './dom.js';
import { SIDES, type Side } from './protocol.js';
import { colour } from './theme.js';

const FONT = '12px "IBM Plex Sans", sans-serif';

/** Two lines against the length of the text, growing while it is measured. */
export class LengthChart {
  readonly element: HTMLElement;
  readonly #title: HTMLElement;
  readonly #plot = h('div', { className: 'plot', attributes: { 'aria-hidden': 'true' } });
  readonly #summary = h('p', { className: 'visually-hidden' });
  readonly #latest: Record<Side, HTMLElement> = { original: h('b'), rewritten: h('b') };
  readonly #values: Record<Side, Map<number, number>> = {
    original: new Map(),
    rewritten: new Map(),
  };
  #uplot: uPlot | undefined;
  #longest = 0;

  constructor(
    title: string,
    readonly format: (value: number) => string,
    /** What the axis counts in: values of one of its units, and the unit's name. */
    readonly unit: { readonly size: number; readonly name: string },
  ) {
    this.#title = h('span', { className: 'chart-title' }, title);
    const key = (side: Side) =>
      h(
        'span',
        { className: `key ${side}` },
        side === 'original' ? 'Original' : 'Rewritten',
        ' ',
        this.#latest[side],
      );
    this.element = h(
      'figure',
      { className: 'chart' },
      h('figcaption', {}, this.#title, ...SIDES.map(key)),
      this.#plot,
      this.#summary,
    );
    new ResizeObserver(() => this.#resize()).observe(this.#plot);
    document.addEventListener('theme', () => this.#draw());
  }

  set title(text: string) {
    this.#title.textContent = text;
  }

  /** An empty chart for texts up to `longest` tokens. */
  clear(longest: number): void {
    this.#longest = longest;
    for (const side of SIDES) {
      this.#values[side].clear();
      this.#latest[side].textContent = '';
    }
    this.#draw();
  }

  add(side: Side, tokens: number, value: number): void {
    this.#values[side].set(tokens, value);
    this.#latest[side].textContent = this.format(value);
    const points = (s: Side) =>
      [...this.#values[s]].map(([n, v]) => `${this.format(v)} at ${n.toLocaleString('en')} tokens`);
    this.#summary.textContent = `${this.#title.textContent}. ${SIDES.map((s) => `${s}: ${points(s).join(', ')}`).join('. ')}.`;
    if (this.#uplot) this.#uplot.setData(this.#data());
    else this.#draw();
  }

  #data(): uPlot.AlignedData {
    const lengths = [...new Set(SIDES.flatMap((side) => [...this.#values[side].keys()]))].sort(
      (a, b) => a - b,
    );
    const { size } = this.unit;
    const line = (side: Side) =>
      lengths.map((length) => {
        const value = this.#values[side].get(length);
        return value === undefined ? null : value / size;
      });
    return [lengths, line('original'), line('rewritten')];
  }

  #draw(): void {
    this.#uplot?.destroy();
    this.#uplot = undefined;
    if (this.#plot.clientWidth === 0) return;
    const [text, line] = [colour('muted'), colour('line')];
    const series = (side: Side): uPlot.Series => ({
      label: side,
      stroke: colour(side),
      width: 2,
      spanGaps: true,
      dash: side === 'original' ? [5, 4] : undefined,
      points: { show: true, size: 7, fill: colour(side), stroke: colour('page'), width: 1.5 },
    });
    const axis = {
      stroke: text,
      font: FONT,
      grid: { stroke: line, width: 1 },
      ticks: { show: false },
    };
    this.#uplot = new uPlot(
      {
        ...this.#size(),
        padding: [12, 12, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: {
          x: { time: false, range: () => [0, this.#longest] },
          y: { range: (_, __, max) => [0, (max ?? 1) * 1.12 || 1] },
        },
        axes: [
          {
            ...axis,
            space: 64,
            size: 28,
            gap: 8,
            label: 'tokens read',
            labelFont: FONT,
            labelSize: 22,
            values: (_, splits) => splits.map((v) => v.toLocaleString('en')),
          },
          {
            ...axis,
            size: 68,
            gap: 8,
            values: (_, splits) => splits.map((v) => `${v.toLocaleString('en')} ${this.unit.name}`),
          },
        ],
        series: [{}, series('original'), series('rewritten')],
      },
      this.#data(),
      this.#plot,
    );
  }

  #size(): { width: number; height: number } {
    const width = this.#plot.clientWidth;
    return { width, height: Math.round(Math.min(260, Math.max(190, width * 0.55))) };
  }

  #resize(): void {
    if (!this.#uplot) this.#draw();
    else if (this.#uplot.width !== this.#plot.clientWidth) this.#uplot.setSize(this.#size());
  }
}

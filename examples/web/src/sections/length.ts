import { LengthChart } from '../chart.js';
import { call } from '../client.js';
import { byId, field, h } from '../dom.js';
import { bytes, count, duration } from '../format.js';
import { type LengthPoint, type ModelFacts, SIDES, type Side } from '../protocol.js';
import { ProgressBar, Task } from '../task.js';

const LENGTHS = [256, 1024, 2048, 4096, 8192, 16384, 32768];
const DEFAULT_LENGTH = 2048;

/** Time and memory against the length of the text. */
export class LengthSection {
  readonly #body = byId('length').querySelector<HTMLElement>('.body')!;
  #task: Task | undefined;

  constructor() {
    this.clear();
  }

  clear(): void {
    this.#task?.stop();
    this.#body.replaceChildren(
      h('p', { className: 'empty' }, 'Rewrite a language model to measure what length costs.'),
    );
  }

  show(model: ModelFacts): void {
    if (model.kind === 'other') return;
    const longest = h(
      'select',
      {},
      ...LENGTHS.map((n) =>
        h('option', { value: `${n}`, selected: n === DEFAULT_LENGTH }, `${count(n)} tokens`),
      ),
    );
    const progress = new ProgressBar();
    const charts = {
      time: new LengthChart('Next token', duration, { size: 1, name: 'ms' }),
      memory: new LengthChart('GPU memory', bytes, { size: 2 ** 20, name: 'MiB' }),
    };
    const area = h(
      'div',
      { className: 'charts', hidden: true },
      charts.time.element,
      charts.memory.element,
    );
    const rows = h('tbody');
    const details = h(
      'details',
      { hidden: true },
      h('summary', {}, 'The numbers'),
      h(
        'div',
        {
          className: 'scroll',
          tabIndex: 0,
          attributes: { role: 'region', 'aria-label': 'Measurements' },
        },
        h(
          'table',
          {},
          h(
            'thead',
            {},
            h(
              'tr',
              {},
              ...['Tokens', 'Model', 'Read in', 'Next token', 'Carried along', 'GPU memory'].map(
                (text) => h('th', { scope: 'col' }, text),
              ),
            ),
          ),
          rows,
        ),
      ),
    );
    const add = (point: LengthPoint) => {
      charts.time.add(point.side, point.tokens, point.tokenMs);
      charts.memory.title = point.gpuBytes === undefined ? 'Carried along' : 'GPU memory';
      charts.memory.add(point.side, point.tokens, point.gpuBytes ?? point.stateBytes);
      rows.append(row(point));
      details.hidden = false;
    };
    const done = h('p', { className: 'result', hidden: true, attributes: { role: 'status' } });
    const task = new Task('Measure', async (signal) => {
      area.hidden = false;
      for (const chart of Object.values(charts)) chart.clear(Number(longest.value));
      rows.replaceChildren();
      done.hidden = true;
      const last: Partial<Record<Side, LengthPoint>> = {};
      try {
        await call(
          'length',
          { longest: Number(longest.value) },
          {
            signal,
            onEvent: (event) => {
              if ('progress' in event) return progress.show(event.progress);
              last[event.point.side] = event.point;
              add(event.point);
            },
          },
        );
        done.textContent = verdict(last);
        done.hidden = false;
      } finally {
        progress.hide();
      }
    });
    this.#task = task;
    this.#body.replaceChildren(
      h('div', { className: 'fields' }, field('Up to', longest)),
      h('div', { className: 'actions' }, task.button),
      progress.element,
      task.error,
      area,
      done,
      details,
    );
  }
}

function row({ tokens, side, readMs, tokenMs, stateBytes, gpuBytes }: LengthPoint): HTMLElement {
  const cells = [
    count(tokens),
    side === 'original' ? 'Original' : 'Rewritten',
    duration(readMs),
    duration(tokenMs),
    bytes(stateBytes),
    gpuBytes === undefined ? '' : bytes(gpuBytes),
  ];
  return h(
    'tr',
    {},
    ...cells.map((text, i) => h('td', { className: i === 1 ? '' : 'number' }, text)),
  );
}

/** The last length in a sentence. */
function verdict(last: Partial<Record<Side, LengthPoint>>): string {
  const { original, rewritten } = last;
  if (!original || !rewritten) return '';
  const carried = SIDES.map((side) => bytes(last[side]!.stateBytes)).join(' and ');
  return `After ${count(rewritten.tokens)} tokens the original and the rewritten model carry along ${carried}; the next token takes ${duration(original.tokenMs)} and ${duration(rewritten.tokenMs)}.`;
}

import { call } from '../client.js';
import { byId, field, h, numberInput } from '../dom.js';
import { bytes, count, duration } from '../format.js';
import type {
  FreeDim,
  GenerateEvent,
  ModelFacts,
  RewriteFacts,
  RunFacts,
  Side,
} from '../protocol.js';
import { ProgressBar, Task } from '../task.js';

const PROMPT = 'Mr. Speaker, Members of the Congress:';

/** What one model writes, and how fast. */
class Panel {
  readonly element: HTMLElement;
  readonly #status = h('span', { className: 'status' });
  readonly #prompt = h('span', { className: 'prompt' });
  readonly #text = h('span');
  readonly #output: HTMLElement;
  readonly #numbers = h('dl', { className: 'numbers' });
  #last: GenerateEvent | undefined;

  constructor(
    readonly side: Side,
    name: string,
  ) {
    this.#output = h(
      'p',
      {
        className: 'output',
        tabIndex: 0,
        attributes: { role: 'region', 'aria-label': `Text of the ${side} model` },
      },
      this.#prompt,
      this.#text,
    );
    this.element = h(
      'article',
      { className: `panel ${side}` },
      h(
        'header',
        {},
        h('h3', {}, side === 'original' ? 'Original' : 'Rewritten'),
        h('span', { className: 'file', title: name }, name),
      ),
      this.#output,
      this.#status,
      this.#numbers,
    );
    this.reset('');
  }

  reset(prompt: string): void {
    this.#prompt.textContent = prompt;
    this.#text.textContent = '';
    this.#status.textContent = '';
    this.#last = undefined;
    this.#numbers.replaceChildren();
    this.element.classList.toggle('blank', prompt === '');
  }

  set status(text: string) {
    const tokens = this.#last?.tokens ?? 0;
    const count = tokens === 1 ? '1 token' : `${tokens} tokens`;
    this.#status.textContent = tokens > 0 ? `${text}, ${count}` : text;
  }

  show(event: GenerateEvent): void {
    const atEnd =
      this.#output.scrollTop + this.#output.clientHeight >= this.#output.scrollHeight - 24;
    if (event.text) this.#text.append(event.text);
    if (atEnd) this.#output.scrollTop = this.#output.scrollHeight;
    this.#last = event;
    this.status = event.status;
    const entries: [string, string][] = [
      [
        'Prompt',
        event.prefillMs === undefined
          ? `${count(event.promptTokens)} tokens`
          : `${count(event.promptTokens)} tokens, ${duration(event.prefillMs)}`,
      ],
      ['Next token', event.tokenMs === undefined ? '–' : duration(event.tokenMs)],
      ['Carried along', event.stateBytes > 0 ? bytes(event.stateBytes) : '–'],
    ];
    if (event.gpuBytes !== undefined) entries.push(['GPU memory', bytes(event.gpuBytes)]);
    this.#numbers.replaceChildren(
      ...entries.map(([term, text]) => h('div', {}, h('dt', {}, term), h('dd', {}, text))),
    );
  }
}

/** Both models at work. */
export class WriteSection {
  readonly #body = byId('write').querySelector<HTMLElement>('.body')!;
  #task: Task | undefined;

  constructor() {
    this.clear();
  }

  clear(): void {
    this.#task?.stop();
    this.#body.replaceChildren(
      h('p', { className: 'empty' }, 'Rewrite a model to run it beside the original.'),
    );
  }

  show(model: ModelFacts, rewritten: RewriteFacts): void {
    if (model.kind === 'other') this.#showRuns(model.dims);
    else this.#showText(model, rewritten);
  }

  #showText(model: ModelFacts, rewritten: RewriteFacts): void {
    const panels: Record<Side, Panel> = {
      original: new Panel('original', model.name),
      rewritten: new Panel('rewritten', rewritten.name),
    };
    const prompt = h('textarea', {
      rows: 3,
      value: model.tokenizer ? PROMPT : '1 2 3',
      attributes: { spellcheck: 'false' },
    });
    const tokens = numberInput(48, { min: 1, max: 4096, step: 1 });
    const temperature = numberInput(0.7, { min: 0, max: 2, step: 0.1 });
    const seed = numberInput(1, { min: 0, max: 2 ** 31 - 1, step: 1 });
    const task = new Task('Write', async (signal) => {
      const request = {
        prompt: prompt.value,
        tokens: tokens.valueAsNumber,
        temperature: temperature.valueAsNumber,
        seed: seed.valueAsNumber,
      };
      for (const panel of Object.values(panels)) panel.reset(request.prompt);
      try {
        await call('generate', request, {
          signal,
          onEvent: (event) => panels[event.side].show(event),
        });
      } catch (error) {
        for (const panel of Object.values(panels)) panel.status = 'Stopped';
        throw error;
      }
    });
    const inputs = [tokens, temperature, seed];
    for (const input of inputs)
      input.addEventListener(
        'input',
        () => (task.enabled = inputs.every(({ validity }) => validity.valid)),
      );
    this.#task = task;
    this.#body.replaceChildren(
      field(
        'Prompt',
        prompt,
        model.tokenizer ? undefined : 'Token ids: whole numbers with spaces in between.',
      ),
      h(
        'div',
        { className: 'fields' },
        field('New tokens', tokens),
        field('Temperature', temperature),
        field('Seed', seed),
      ),
      h('div', { className: 'actions' }, task.button),
      task.error,
      h('div', { className: 'panels' }, panels.original.element, panels.rewritten.element),
    );
  }

  /** For what writes no text: the same random input for both. */
  #showRuns(dims: readonly FreeDim[]): void {
    const inputs = dims.map(({ name, value }) => ({
      name,
      input: numberInput(value, { min: 1, max: 65536, step: 1 }),
    }));
    const progress = new ProgressBar();
    const result = h('div', { className: 'result', hidden: true, attributes: { role: 'status' } });
    const task = new Task('Run both', async (signal) => {
      result.hidden = true;
      try {
        const sizes = Object.fromEntries(
          inputs.map(({ name, input }) => [name, input.valueAsNumber]),
        );
        const facts = await call(
          'run',
          { dims: sizes },
          { signal, onEvent: (event) => progress.show(event) },
        );
        result.replaceChildren(runTable(facts));
        result.hidden = false;
      } finally {
        progress.hide();
      }
    });
    this.#task = task;
    this.#body.replaceChildren(
      h(
        'p',
        { className: 'hint' },
        'This model takes no text. Both run on the same random input, which says what they cost and how far apart they are, and nothing about quality.',
      ),
      h('div', { className: 'fields' }, ...inputs.map(({ name, input }) => field(name, input))),
      h('div', { className: 'actions' }, task.button),
      progress.element,
      task.error,
      result,
    );
  }
}

function runTable({ sides, outputs }: RunFacts): HTMLElement {
  const rows: [string, string][] = sides.flatMap(({ side, ms, gpuBytes }): [string, string][] => {
    const name = side === 'original' ? 'Original' : 'Rewritten';
    const memory = gpuBytes === undefined ? '' : `, ${bytes(gpuBytes)} of GPU memory`;
    return [[name, `${duration(ms)}${memory}`]];
  });
  for (const { name, shape, difference } of outputs)
    rows.push([`Output ${name}`, `${shape}, relative difference ${difference.toPrecision(2)}`]);
  return h(
    'dl',
    { className: 'facts' },
    ...rows.map(([term, text]) => h('div', {}, h('dt', {}, term), h('dd', {}, text))),
  );
}

import { call } from '../client.js';
import { byId, field, h, numberInput } from '../dom.js';
import { bytes, count, duration } from '../format.js';
import type { ModelFacts, RewriteFacts, RewriteRequest, SiteFacts } from '../protocol.js';
import { ProgressBar, Task } from '../task.js';

type Variant = RewriteRequest['variant'];

const VARIANTS: Record<Variant, { name: string; says: string; causal: boolean }> = {
  'gated-delta': {
    name: 'Gated delta rule',
    says: 'Forgets slowly, and corrects what it remembers of a key. Two constants for all layers; trained gates would do better.',
    causal: true,
  },
  linear: {
    name: 'Linear, elu + 1',
    says: 'Remembers everything, softened: weights are divided by their sum, as softmax does.',
    causal: false,
  },
  retention: {
    name: 'Retention',
    says: 'Every head forgets at its own fixed rate.',
    causal: true,
  },
};

/** The sites, which of them to rewrite, and into what. */
export class AttentionSection {
  readonly #body = byId('attention').querySelector<HTMLElement>('.body')!;
  #url: string | undefined;

  constructor(
    readonly onRewrite: (facts: RewriteFacts) => void,
    readonly onClear: () => void,
  ) {
    this.clear();
  }

  clear(): void {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = undefined;
    this.#body.replaceChildren(
      h('p', { className: 'empty' }, 'Open a model to see its attention.'),
    );
  }

  show({ sites }: ModelFacts): void {
    if (sites.length === 0) {
      this.#body.replaceChildren(
        h(
          'p',
          { className: 'empty' },
          'This model has no Softmax and no fused attention: there is nothing to rewrite.',
        ),
      );
      return;
    }
    const boxes = new Map<number, HTMLInputElement>();
    const table = this.#table(sites, boxes);
    const causal = sites.every(
      ({ rewritable, mask }) => !rewritable || /causal|window/.test(mask ?? ''),
    );
    this.#body.replaceChildren(
      table,
      boxes.size > 0 ? this.#form(boxes, causal) : noneRewritable(),
    );
  }

  #table(sites: readonly SiteFacts[], boxes: Map<number, HTMLInputElement>): HTMLElement {
    const hasReasons = sites.some(({ reason }) => reason !== null);
    const row = ({ layer, node, heads, mask, cache, rewritable, reason }: SiteFacts) => {
      let choice: Node | string = '';
      if (rewritable && layer !== null) {
        const attributes = { 'aria-label': `Rewrite layer ${layer}` };
        const box = h('input', { type: 'checkbox', checked: true, attributes });
        boxes.set(layer, box);
        choice = box;
      }
      return h(
        'tr',
        { className: rewritable ? '' : 'kept' },
        h('td', { className: 'choice' }, choice),
        h('td', { className: 'number' }, layer === null ? '' : String(layer)),
        h('td', {}, mask?.replaceAll('+', ' + ') ?? ''),
        h('td', { className: 'number' }, heads),
        h('td', {}, layer === null ? '' : cache ? 'yes' : 'no'),
        h('td', { className: 'code', title: node }, node),
        hasReasons && h('td', { className: 'reason' }, reason ?? ''),
      );
    };
    const names = ['Rewrite', 'Layer', 'Sees', 'Heads', 'Cache', 'Node'];
    const head = [...names, ...(hasReasons ? ['Why not'] : [])].map((text) =>
      h('th', { scope: 'col' }, text),
    );
    return h(
      'div',
      {
        className: 'scroll',
        tabIndex: 0,
        attributes: { role: 'region', 'aria-label': 'Attention sites' },
      },
      h('table', {}, h('thead', {}, h('tr', {}, ...head)), h('tbody', {}, ...sites.map(row))),
    );
  }

  #form(boxes: ReadonlyMap<number, HTMLInputElement>, causal: boolean): HTMLElement {
    const offered = (Object.keys(VARIANTS) as Variant[]).filter(
      (variant) => causal || !VARIANTS[variant].causal,
    );
    const variant = h(
      'select',
      {},
      ...offered.map((key) => h('option', { value: key }, VARIANTS[key].name)),
    );
    const says = h('p', { className: 'hint' });
    const decay = numberInput(-0.1, { min: -5, max: 0, step: 0.05 });
    const beta = numberInput(1, { min: 0, max: 2, step: 0.1 });
    const gates = [field('Log decay', decay), field('Beta', beta)];
    const progress = new ProgressBar();
    const result = h('div', { className: 'result', hidden: true, attributes: { role: 'status' } });
    const chosen = () => [...boxes].filter(([, box]) => box.checked).map(([layer]) => layer);
    const task = new Task('Rewrite', async (signal) => {
      result.hidden = true;
      this.onClear();
      try {
        const facts = await call(
          'rewrite',
          {
            variant: variant.value as Variant,
            layers: chosen(),
            decay: decay.valueAsNumber,
            beta: beta.valueAsNumber,
          },
          { signal, onEvent: (event) => progress.show(event) },
        );
        this.#showResult(result, facts);
        this.onRewrite(facts);
      } finally {
        progress.hide();
      }
    });
    const update = () => {
      const layers = chosen().length;
      task.label = layers === 1 ? 'Rewrite 1 layer' : `Rewrite ${layers} layers`;
      const valid = decay.validity.valid && beta.validity.valid;
      task.enabled = layers > 0 && valid;
      says.textContent = VARIANTS[variant.value as Variant].says;
      for (const gate of gates) gate.hidden = variant.value !== 'gated-delta';
    };
    for (const control of [variant, decay, beta, ...boxes.values()])
      control.addEventListener('input', update);
    update();
    const fields = h('div', { className: 'fields' }, field('Replace by', variant), ...gates);
    return h(
      'div',
      { className: 'form' },
      fields,
      says,
      h('div', { className: 'actions' }, task.button),
      progress.element,
      task.error,
      result,
    );
  }

  #showResult(element: HTMLElement, facts: RewriteFacts): void {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = URL.createObjectURL(new Blob([facts.file], { type: 'application/octet-stream' }));
    const weights =
      facts.weights.length > 0 ? ` Its weights stay in ${facts.weights.join(', ')}.` : '';
    element.replaceChildren(
      h(
        'p',
        {},
        `${facts.rewritten} of ${facts.of} layers rewritten in ${duration(facts.ms)}, ${count(facts.removedNodes)} nodes taken out.`,
      ),
      h(
        'p',
        {},
        h('a', { href: this.#url, download: facts.name }, `Download ${facts.name}`),
        `, ${bytes(facts.file.length)}.${weights}`,
      ),
    );
    element.hidden = false;
  }
}

function noneRewritable(): HTMLElement {
  return h('p', { className: 'hint' }, 'None of them can be rewritten; the last column says why.');
}

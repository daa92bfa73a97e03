/** A few lines in place of a framework. */

type Child = Node | string | undefined | false;
type Properties<T> = Partial<Omit<T, 'style' | 'dataset' | 'children' | 'attributes'>> & {
  readonly attributes?: Readonly<Record<string, string>>;
  readonly dataset?: Readonly<Record<string, string>>;
};

/** Makes an element: `h('p', { className: 'hint' }, 'text')`. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  { attributes = {}, dataset = {}, ...properties }: Properties<HTMLElementTagNameMap[K]> = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[K] {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  Object.assign(element.dataset, dataset);
  element.append(...children.filter((child): child is Node | string => !!child));
  return element;
}

/** The element with this id. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

let labels = 0;

/** A control with its label above it. */
export function field(label: string, control: HTMLElement, hint?: string): HTMLElement {
  control.id ||= `field-${++labels}`;
  const note = hint ? h('span', { className: 'hint', id: `${control.id}-hint` }, hint) : undefined;
  if (note) control.setAttribute('aria-describedby', note.id);
  return h(
    'div',
    { className: 'field' },
    h('label', { htmlFor: control.id }, label),
    control,
    note,
  );
}

/** A number to be chosen. */
export function numberInput(
  value: number,
  { min, max, step }: { min: number; max: number; step: number },
): HTMLInputElement {
  const attributes = { min: `${min}`, max: `${max}`, step: `${step}`, inputmode: 'decimal' };
  return h('input', { type: 'number', value: `${value}`, attributes });
}

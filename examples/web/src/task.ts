import { WorkerError } from './client.js';
import { h } from './dom.js';
import type { Progress } from './protocol.js';

/** A bar with a label; without a part it moves to and fro. */
export class ProgressBar {
  readonly element: HTMLElement;
  readonly #label = h('span', { className: 'progress-label' });
  readonly #bar = h('progress', { max: 1 });

  constructor(element = h('div', { className: 'progress' })) {
    this.element = element;
    this.element.replaceChildren(this.#label, this.#bar);
    this.element.hidden = true;
    this.#bar.setAttribute('aria-label', 'Progress');
  }

  show({ label, part }: Progress): void {
    this.element.hidden = false;
    this.#label.textContent = label;
    if (part === undefined) this.#bar.removeAttribute('value');
    else this.#bar.value = part;
  }

  hide(): void {
    this.element.hidden = true;
  }
}

/** What went wrong and what helps. */
export function explain(error: unknown): string {
  if (!(error instanceof WorkerError)) return (error as Error).message;
  const help: Record<string, string> = {
    device_lost:
      'The GPU was taken away from this page, by its driver or because a run took too long. Try again; with a shorter text if it happens again.',
    invalid_model: `${error.message}. Is it an ONNX file, and complete?`,
    unsupported: error.message,
  };
  const text = help[error.code] ?? error.message;
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/**
 * Something that is started by a button, can be stopped, and may fail: the button becomes Stop while it goes on, and
 * errors are said in words.
 */
export class Task {
  readonly button: HTMLButtonElement;
  readonly error = h('div', { className: 'error', hidden: true, attributes: { role: 'alert' } });
  readonly #label: string;
  #controller: AbortController | undefined;
  #enabled = true;

  constructor(label: string, run: (signal: AbortSignal) => Promise<void>) {
    this.#label = label;
    this.button = h('button', { type: 'button', className: 'primary', textContent: label });
    this.button.addEventListener('click', () => this.#toggle(run));
  }

  get running(): boolean {
    return this.#controller !== undefined;
  }

  set label(text: string) {
    if (!this.running) this.button.textContent = text;
  }

  set enabled(enabled: boolean) {
    this.#enabled = enabled;
    this.button.disabled = !enabled && !this.running;
  }

  stop(): void {
    this.#controller?.abort();
  }

  async #toggle(run: (signal: AbortSignal) => Promise<void>): Promise<void> {
    if (this.#controller) {
      this.button.disabled = true;
      this.button.textContent = 'Stopping';
      this.#controller.abort();
      return;
    }
    const label = this.button.textContent ?? this.#label;
    this.#controller = new AbortController();
    this.error.hidden = true;
    this.button.textContent = 'Stop';
    this.button.classList.add('stop');
    document.dispatchEvent(new CustomEvent('task', { detail: this }));
    try {
      await run(this.#controller.signal);
    } catch (error) {
      if (!(error instanceof WorkerError && error.code === 'aborted')) {
        this.error.textContent = explain(error);
        this.error.hidden = false;
      }
    } finally {
      this.#controller = undefined;
      this.button.textContent = label;
      this.button.classList.remove('stop');
      this.button.disabled = !this.#enabled;
      document.dispatchEvent(new CustomEvent('task', { detail: null }));
    }
  }
}

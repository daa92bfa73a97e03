import { call } from '../client.js';
import { byId, h } from '../dom.js';
import { about, bytes, count, duration } from '../format.js';
import type { GivenFile, ModelFacts, Progress } from '../protocol.js';
import { explain, ProgressBar } from '../task.js';

const MEMORY: Record<ModelFacts['kind'], string> = {
  remembers: 'language model with a cache',
  forgets: 'language model without a cache: every token reads the whole text again',
  other: 'no language model: runs on random input',
};

async function read(files: Iterable<File>): Promise<GivenFile[]> {
  return Promise.all(
    [...files].map(async (file) => ({
      name: file.name,
      bytes: new Uint8Array(await file.arrayBuffer()),
    })),
  );
}

/** Lets the visitor open a model, and says what it is. */
export class ModelSection {
  readonly #drop = byId('drop');
  readonly #input = byId<HTMLInputElement>('files');
  readonly #sample = byId<HTMLButtonElement>('sample');
  readonly #choose = byId<HTMLButtonElement>('choose');
  readonly #error = byId('model-error');
  readonly #facts = byId('facts');
  readonly #progress = new ProgressBar(byId('model-progress'));

  constructor(
    readonly onOpen: (facts: ModelFacts) => void,
    readonly onClear: () => void,
  ) {
    this.#sample.addEventListener('click', () => this.#open());
    this.#choose.addEventListener('click', () => this.#input.click());
    this.#input.addEventListener('change', () => {
      if (this.#input.files?.length) this.#open(this.#input.files);
      this.#input.value = '';
    });
    this.#acceptDrops();
  }

  #acceptDrops(): void {
    const over = (is: boolean) => this.#drop.classList.toggle('over', is);
    document.addEventListener('dragover', (event) => {
      event.preventDefault();
      over(true);
    });
    document.addEventListener('dragleave', (event) => event.relatedTarget === null && over(false));
    document.addEventListener('drop', (event) => {
      event.preventDefault();
      over(false);
      const files = event.dataTransfer?.files;
      if (files?.length && !this.#sample.disabled) this.#open(files);
    });
  }

  set enabled(enabled: boolean) {
    this.#sample.disabled = !enabled;
    this.#choose.disabled = !enabled;
  }

  async #open(files?: Iterable<File>): Promise<void> {
    this.enabled = false;
    this.#error.hidden = true;
    this.#facts.hidden = true;
    this.onClear();
    const onEvent = (progress: Progress) => this.#progress.show(progress);
    onEvent({ label: 'Loading' });
    try {
      const facts = files
        ? await this.#openFiles(files, onEvent)
        : await call('sample', undefined, { onEvent });
      this.#show(facts);
      this.onOpen(facts);
    } catch (error) {
      this.#error.textContent = explain(error);
      this.#error.hidden = false;
    } finally {
      this.#progress.hide();
      this.enabled = true;
    }
  }

  async #openFiles(
    files: Iterable<File>,
    onEvent: (progress: Progress) => void,
  ): Promise<ModelFacts> {
    const given = await read(files);
    const transfer = given.map(({ bytes }) => bytes.buffer as ArrayBuffer);
    return call('open', given, { onEvent, transfer });
  }

  #show(facts: ModelFacts): void {
    const entries: [string, string][] = [
      ['File', facts.name],
      ['Size', `${bytes(facts.bytes)}, ${about(facts.parameters)} weights`],
      ['Graph', `${count(facts.nodes)} nodes, opset ${facts.opset}`],
      ['Kind', MEMORY[facts.kind]],
    ];
    if (facts.kind !== 'other')
      entries.push(['Tokenizer', facts.tokenizer ? 'found' : 'none: prompts are token ids']);
    entries.push(['Read in', duration(facts.ms)]);
    const list = h('dl', { className: 'facts' });
    for (const [term, text] of entries)
      list.append(h('div', {}, h('dt', {}, term), h('dd', {}, text)));
    this.#facts.replaceChildren(list);
    this.#facts.hidden = false;
    this.#drop.classList.add('small');
    this.#drop.querySelector('.drop-lead')!.textContent = 'Drop another model here';
  }
}

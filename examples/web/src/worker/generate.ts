/** Both models continue a text: each reads a piece or writes a token, then it is the other's turn. */
import { seededRandom } from '../../../../exporter/random.js';
import { sampleToken } from '../../../../exporter/text/sample.js';
import { TextStream } from '../../../../exporter/text/tokens.js';
import { FlaError } from '../../../../ops/error.js';
import { type GenerateEvent, type GenerateRequest, SIDES, type Side } from '../protocol.js';
import { modelOf, readerOf } from './desk.js';
import { Prefill, type Reader } from './readers.js';

/** Token times are told as the median of so many. */
const WINDOW = 9;

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

/** Token ids of a prompt: text where there is a tokenizer, else numbers. */
export function encode(prompt: string): number[] {
  const { tokenizer } = modelOf('original');
  if (tokenizer) return tokenizer.encode(prompt);
  const ids = prompt
    .split(/[\s,]+/)
    .filter((word) => word !== '')
    .map(Number);
  if (ids.length > 0 && ids.every((id) => Number.isInteger(id) && id >= 0)) return ids;
  throw new FlaError(
    'invalid_argument',
    'Without a tokenizer.json the prompt must be token ids: whole numbers with spaces in between.',
  );
}

class Writer {
  readonly #random: () => number;
  readonly #stream: TextStream | undefined;
  readonly #times: number[] = [];
  #state: Omit<GenerateEvent, 'side' | 'stateBytes' | 'gpuBytes'>;

  constructor(
    readonly side: Side,
    readonly reader: Reader,
    readonly request: GenerateRequest,
    readonly prompt: readonly number[],
    readonly tell: (event: GenerateEvent) => void,
  ) {
    const { tokenizer } = modelOf(side);
    this.#random = seededRandom(request.seed);
    this.#stream = tokenizer && new TextStream(tokenizer);
    this.#state = { promptTokens: prompt.length, tokens: 0, status: 'Waiting' };
  }

  #say(change: Partial<GenerateEvent>): void {
    const { text, ...rest } = change;
    this.#state = { ...this.#state, ...rest };
    const { side, reader } = this;
    const { stateBytes, memory } = reader;
    this.tell({ ...this.#state, text, side, stateBytes, gpuBytes: memory?.bytes });
  }

  /** Reads the prompt and writes; every turn ends with a yield. */
  async *work(): AsyncGenerator<void, void> {
    const { prompt, reader, request } = this;
    await reader.reset();
    this.#say({ status: 'Reading the prompt' });
    let logits = new Float32Array() as Float32Array;
    let prefillMs = 0;
    for await (const run of new Prefill(reader).read(prompt)) {
      logits = run.logits;
      prefillMs += run.ms;
      if (run.done === prompt.length) this.#say({ status: 'Writing', prefillMs });
      else this.#say({ status: `Reading the prompt, ${run.done} of ${prompt.length}` });
      yield;
    }
    for (let written = 1; ; written++) {
      const { temperature, tokens } = request;
      const id = sampleToken(logits, { temperature, topK: 0, topP: 0.95 }, this.#random);
      if (modelOf(this.side).tokenizer?.endIds.has(id))
        return this.#finish('Done: the model ended its text');
      this.#say({ text: this.#stream ? this.#stream.push(id) : ` ${id}`, tokens: written });
      if (written === tokens) return this.#finish('Done');
      const start = performance.now();
      logits = await reader.read([id], true);
      this.#times.push(performance.now() - start);
      if (this.#times.length > WINDOW) this.#times.shift();
      this.#say({ tokenMs: median(this.#times) });
      yield;
    }
  }

  #finish(status: string): void {
    this.#say({ text: this.#stream?.end(), status });
  }
}

export async function generate(
  request: GenerateRequest,
  tell: (event: GenerateEvent) => void,
  signal: AbortSignal,
): Promise<undefined> {
  const prompt = encode(request.prompt);
  if (prompt.length === 0)
    throw new FlaError('invalid_argument', 'The prompt is empty. Write a few words.');
  const writers: Writer[] = [];
  for (const side of SIDES) {
    const waiting = { side, promptTokens: prompt.length, tokens: 0, stateBytes: 0 };
    tell({ ...waiting, status: 'Loading' });
  }
  for (const side of SIDES)
    writers.push(new Writer(side, await readerOf(side), request, prompt, tell));
  const going = new Set(writers.map((writer) => writer.work()));
  while (going.size > 0) {
    for (const work of going) {
      signal.throwIfAborted();
      if ((await work.next()).done) going.delete(work);
    }
  }
}

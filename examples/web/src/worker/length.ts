/** What a token costs after longer and longer texts. */
import type { LengthEvent, LengthRequest } from '../protocol.js';
import { SIDES } from '../protocol.js';
import { modelOf, readerOf } from './desk.js';
import { Prefill, type Reader } from './readers.js';

const SHORTEST = 128;
/** The next token is timed so often. */
const STEPS = 3;

/** Text that goes on and on: the numbers are the same for both models. */
function* tokens(): Generator<number> {
  const { tokenizer } = modelOf('original');
  const text =
    'The state of the Union is a state of movement. The whale lay still upon the water, and the men sat waiting in the boats. ';
  const ids = tokenizer ? tokenizer.encode(text) : Array.from({ length: 64 }, (_, i) => i + 1);
  for (;;) yield* ids;
}

class Measured {
  readonly #ids = tokens();
  readonly #prefill: Prefill;
  #readMs = 0;

  constructor(readonly reader: Reader) {
    this.#prefill = new Prefill(reader);
  }

  take(count: number): number[] {
    return Array.from({ length: count }, () => this.#ids.next().value as number);
  }

  /** Reads on to `length` tokens, then times the next ones. */
  async to(length: number, signal: AbortSignal, onRun: (position: number) => void) {
    const { reader } = this;
    reader.memory?.reset();
    const from = reader.position;
    for await (const { done, ms } of this.#prefill.read(this.take(length - from))) {
      this.#readMs += ms;
      onRun(from + done);
      signal.throwIfAborted();
    }
    const times: number[] = [];
    for (let i = 0; i < STEPS; i++) {
      signal.throwIfAborted();
      const before = performance.now();
      await reader.read(this.take(1), true);
      times.push(performance.now() - before);
    }
    times.sort((a, b) => a - b);
    return {
      tokens: length,
      readMs: this.#readMs,
      tokenMs: times[STEPS >> 1],
      stateBytes: reader.stateBytes,
      gpuBytes: reader.memory?.peak,
    };
  }
}

export async function measure(
  { longest }: LengthRequest,
  tell: (event: LengthEvent) => void,
  signal: AbortSignal,
): Promise<undefined> {
  const measured = [];
  for (const side of SIDES) {
    tell({ progress: { label: `Loading the ${side} model` } });
    const reader = await readerOf(side);
    await reader.reset();
    measured.push({ side, to: new Measured(reader) });
  }
  // Everything is compiled before anything is timed.
  for (const { to } of measured) {
    await to.to(SHORTEST / 2, signal, () => {});
    await to.reader.reset();
  }
  const lengths: number[] = [];
  for (let length = SHORTEST; length <= longest; length *= 2) lengths.push(length);
  // A model that forgets reads everything again for every token: so many tokens are read in all.
  const total = longest * measured.length;
  const read = new Map(measured.map(({ side }) => [side, 0]));
  for (const length of lengths) {
    for (const { side, to } of measured) {
      const point = await to.to(length, signal, (position) => {
        read.set(side, position);
        const done = [...read.values()].reduce((a, b) => a + b, 0);
        tell({
          progress: {
            label: `${position.toLocaleString('en')} tokens read by the ${side} model`,
            part: Math.min(done / total, 1),
          },
        });
      });
      tell({ point: { side, ...point } });
    }
  }
}

import type { Tokenizer } from '../../text/tokenizer.js';
import { CITIES, THINGS } from './words.js';

/** What haystacks are made of. */
export type Material = TextMaterial | TokenMaterial;

export function pick<T>(random: () => number, from: readonly T[]): T {
  return from[Math.floor(random() * from.length)]!;
}

/** `count` different elements, in random order. */
export function sample<T>(random: () => number, from: readonly T[], count: number): T[] {
  const rest = [...from];
  const wanted = Math.min(count, rest.length);
  for (let i = 0; i < wanted; i++) {
    const j = i + Math.floor(random() * (rest.length - i));
    [rest[i], rest[j]] = [rest[j]!, rest[i]!];
  }
  return rest.slice(0, wanted);
}

/** Five digits. */
export function digits(random: () => number): string {
  return String(10_000 + Math.floor(random() * 90_000));
}

/** Random ids, for models without a tokenizer. */
export class TokenMaterial {
  readonly mode = 'tokens';
  readonly start: readonly number[] = [];

  /** @param vocabulary ids are drawn below this */
  constructor(readonly vocabulary: number) {}

  ids(random: () => number, count: number): number[] {
    return Array.from({ length: count }, () => Math.floor(random() * this.vocabulary));
  }

  /** Endless pieces of a haystack: single tokens. */
  *hay(random: () => number): Generator<number[]> {
    for (;;) yield this.ids(random, 1);
  }
}

/** A part of a text; graded parts are answers. */
export interface TextPart {
  text: string;
  graded?: boolean;
}

/** Sentences of a book, or made-up ones. */
export class TextMaterial {
  readonly mode = 'text';
  /** Ids that every text begins with. */
  readonly start: readonly number[];
  private readonly sentences: readonly string[];
  private readonly encoded = new Map<string, number[]>();

  /** @param book a text for haystacks; without one they are made of short sentences */
  constructor(
    private readonly tokenizer: Tokenizer,
    book?: string,
  ) {
    const [empty, word] = [tokenizer.encode(''), tokenizer.encode('a')];
    this.start = empty.slice(0, commonPrefix(empty, word));
    this.sentences = book ? splitSentences(book) : [];
  }

  encode(text: string): number[] {
    const known = this.encoded.get(text) ?? this.tokenizer.encodePiece(text);
    this.encoded.set(text, known);
    return known;
  }

  /** Encodes parts as one text. A token that reaches over a boundary belongs to the later part. */
  parts(parts: readonly TextPart[]): { ids: number[]; graded: { from: number; to: number }[] } {
    const texts = parts.map((p) => p.text);
    const ids = this.tokenizer.encodePiece(texts.join(''));
    const ends = parts.map((_, i) =>
      i + 1 === parts.length
        ? ids.length
        : commonPrefix(ids, this.tokenizer.encodePiece(texts.slice(0, i + 1).join(''))),
    );
    const graded = parts.flatMap((p, i) =>
      p.graded ? [{ from: i === 0 ? 0 : ends[i - 1]!, to: ends[i]! }] : [],
    );
    return { ids, graded };
  }

  /** Endless pieces of a haystack: sentences from somewhere in the book on. */
  *hay(random: () => number): Generator<number[]> {
    if (this.sentences.length === 0) for (;;) yield this.encode(madeUp(random));
    for (let at = Math.floor(random() * this.sentences.length); ; at++) {
      yield this.encode(this.sentences[at % this.sentences.length]!);
    }
  }

  /** Ids in an order without sense: what follows what can only be known from a copy. */
  scrambled(random: () => number, count: number): number[] {
    const pool: number[] = [];
    for (const piece of this.hay(random)) {
      pool.push(...piece);
      if (pool.length >= 4 * count) break;
    }
    return sample(random, pool, count);
  }
}

function commonPrefix(a: readonly number[], b: readonly number[]): number {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

/** Sentences with the blanks in front of them; joined, they are the text again but for its line ends. */
function splitSentences(text: string): string[] {
  return (text.replace(/\s+/g, ' ').match(/[^.!?]+[.!?]+["')\]]*|[^.!?]+$/g) ?? []).filter(
    (s) => s.trim().length > 0,
  );
}

const ADJECTIVES = 'old quiet narrow bright broken little heavy green wooden distant'.split(' ');
const VERBS = 'stands lies waits rests shines leans turns sleeps remains fades'.split(' ');
const PLACES =
  'by the river, near the gate, under the bridge, behind the mill, along the road'.split(', ');

function madeUp(random: () => number): string {
  const of = <T>(from: readonly T[]) => pick(random, from);
  return ` The ${of(ADJECTIVES)} ${of(THINGS)} ${of(VERBS)} ${of(PLACES)} in ${of(CITIES)}.`;
}

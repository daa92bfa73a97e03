import { FlaError } from '../../../ops/error.js';
import type { Item, Setting, Span } from './task.js';

/** Something to be put into a haystack. */
export interface Needle {
  ids: readonly number[];
  depth: number;
}

/**
 * A haystack of the setting's length with needles at their depths and a tail behind it. Needles stand between sentences, in the
 * order of their depths.
 *
 * @param answers spans of the tail
 * @throws FlaError `invalid_argument` when needles and tail alone are too long
 */
export function bury(
  { length, random, material }: Setting,
  needles: readonly Needle[],
  tail: readonly number[],
  answers: readonly Span[],
): Pick<Item, 'tokens' | 'answers'> {
  const { start } = material;
  const fixed = needles.reduce((sum, n) => sum + n.ids.length, start.length + tail.length);
  if (fixed > length) tooShort(fixed, length);
  const hay = takeHay(material.hay(random), length - fixed);
  const tokens = [...start];
  const waiting = [...needles].sort((a, b) => a.depth - b.depth);
  for (let i = 0; i <= hay.length; i++) {
    while (waiting.length > 0 && Math.round(waiting[0]!.depth * hay.length) <= i) {
      tokens.push(...waiting.shift()!.ids);
    }
    if (i < hay.length) tokens.push(...hay[i]!);
  }
  const from = tokens.length;
  tokens.push(...tail);
  return { tokens, answers: answers.map((a) => ({ from: a.from + from, to: a.to + from })) };
}

export function tooShort(needed: number, length: number): never {
  throw new FlaError(
    'invalid_argument',
    `length must be at least ${needed} tokens for this task and tokenizer, received ${length}`,
  );
}

const MOST_MISSES = 20; // pieces too long for what is left, before the rest stays empty

/** As many pieces as fit into `room` tokens. */
function takeHay(pieces: Generator<number[]>, room: number): number[][] {
  const taken: number[][] = [];
  let left = room;
  for (let misses = 0; left > 0 && misses < MOST_MISSES; ) {
    const piece = pieces.next().value as number[];
    if (piece.length > left || piece.length === 0) misses++;
    else {
      taken.push(piece);
      left -= piece.length;
    }
  }
  return taken;
}

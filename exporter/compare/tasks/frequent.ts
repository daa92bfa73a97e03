import { sum } from '../statistics.js';
import { tooShort } from './bury.js';
import { sample } from './material.js';
import type { Task } from './task.js';
import { THINGS } from './words.js';

/** Shares of the text that the three most frequent words have; the others share the rest. */
const SHARES = [0.3, 0.2, 0.12];

const FEWEST = 20; // words in a list

function wordList(common: readonly string[], rare: readonly string[], count: number): string[] {
  const list = SHARES.flatMap((share, i) =>
    new Array<string>(Math.round(share * count)).fill(common[i]!),
  );
  for (let i = 0; list.length < count; i++) list.push(rare[i % rare.length]!);
  return list;
}

export const words: Task = {
  name: 'words',
  about: 'a list of words, of which the three most frequent are asked for in their order',
  source: {
    title: 'Hsieh et al. 2024, RULER (frequent words extraction)',
    url: 'https://arxiv.org/abs/2404.06654',
  },
  depths: false,
  needsWords: true,
  make({ length, random, material }) {
    if (material.mode === 'tokens') throw new TypeError('words were expected');
    const order = sample(random, THINGS, THINGS.length);
    const common = order.slice(0, SHARES.length);
    const rare = order.slice(SHARES.length);
    const { ids: tail, graded } = material.parts([
      { text: ' The three most frequent words, the most frequent first:' },
      ...common.flatMap((word, i) => [
        ...(i > 0 ? [{ text: ',' }] : []),
        { text: ` ${word}`, graded: true },
      ]),
      { text: '.' },
    ]);
    const room = length - material.start.length - tail.length;
    const pieces = new Map(order.map((word) => [word, material.encode(` ${word}`)]));
    const used = (list: readonly string[]) => sum(list.map((word) => pieces.get(word)!.length));
    const size = Math.max(...[...pieces.values()].map((ids) => ids.length));
    if (room < FEWEST * size) tooShort(FEWEST * size + length - room, length);
    let list = wordList(common, rare, Math.floor(room / size));
    for (let left = room - used(list); left >= size; left = room - used(list)) {
      list = wordList(common, rare, list.length + Math.floor(left / size));
    }
    const context = sample(random, list, list.length).flatMap((word) => pieces.get(word)!);
    const tokens = [...material.start, ...context];
    const answers = graded.map((a) => ({ from: a.from + tokens.length, to: a.to + tokens.length }));
    return { tokens: [...tokens, ...tail], answers, written: common };
  },
};

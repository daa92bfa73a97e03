import { bury, tooShort } from './bury.js';
import { sample } from './material.js';
import type { Task } from './task.js';
import { CITIES } from './words.js';

const SHORTEST_SEGMENT = 32;
/** Tokens of the second copy that are given: what they continue cannot be known before. */
const GIVEN = 4;

export const repeat: Task = {
  name: 'repeat',
  about:
    'a segment without sense that comes a second time; each token of the second copy is an answer',
  source: {
    title: 'Olsson et al. 2022, In-context Learning and Induction Heads',
    url: 'https://arxiv.org/abs/2209.11895',
  },
  depths: true,
  needsWords: false,
  make(setting) {
    const { random, depth, material, length } = setting;
    const longest = Math.floor(length / 3);
    if (longest <= GIVEN) tooShort(3 * (GIVEN + 1), length);
    const shortest = Math.min(SHORTEST_SEGMENT, longest);
    const size = shortest + Math.floor(random() * (longest - shortest + 1));
    const segment =
      material.mode === 'tokens' ? material.ids(random, size) : material.scrambled(random, size);
    const answers = segment.slice(GIVEN).map((_, i) => ({ from: GIVEN + i, to: GIVEN + i + 1 }));
    return { ...bury(setting, [{ ids: segment, depth }], segment, answers), written: null };
  },
};

const PAIRS = 8;
const PAIR_KEY = 3;

export const mqar: Task = {
  name: 'mqar',
  about:
    'pairs of keys and values spread over a text; every key comes again, its value is an answer',
  source: {
    title: 'Arora et al. 2023, Zoology (multi-query associative recall)',
    url: 'https://arxiv.org/abs/2312.04927',
  },
  depths: false,
  needsWords: false,
  make(setting) {
    const { random, material } = setting;
    const depths = Array.from({ length: PAIRS }, () => random());
    if (material.mode === 'tokens') {
      const pairs = depths.map(() => material.ids(random, PAIR_KEY + 1));
      const tail = sample(random, pairs, PAIRS).flat();
      const answers = pairs.map((_, i) => ({
        from: (i + 1) * (PAIR_KEY + 1) - 1,
        to: (i + 1) * (PAIR_KEY + 1),
      }));
      const needles = pairs.map((ids, i) => ({ ids, depth: depths[i]! }));
      return { ...bury(setting, needles, tail, answers), written: null };
    }
    const pairs = sample(random, CITIES, PAIRS).map((city) => ({
      city,
      value: String(100 + Math.floor(random() * 900)),
    }));
    const needles = pairs.map(({ city, value }, i) => ({
      ids: material.encode(` ${city}: ${value};`),
      depth: depths[i]!,
    }));
    const { ids, graded } = material.parts(
      sample(random, pairs, PAIRS).flatMap(({ city, value }) => [
        { text: ` ${city}:` },
        { text: ` ${value}`, graded: true },
        { text: ';' },
      ]),
    );
    return { ...bury(setting, needles, ids, graded), written: null };
  },
};

import { bury } from './bury.js';
import { digits, pick } from './material.js';
import type { Task } from './task.js';

const HOPS = 4;
const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'.split('');

export const tracking: Task = {
  name: 'tracking',
  about:
    'variables assigned to one another in a chain, beside a second chain; which of them have one value?',
  source: {
    title: 'Hsieh et al. 2024, RULER (variable tracking)',
    url: 'https://arxiv.org/abs/2404.06654',
  },
  depths: false,
  needsWords: true,
  make(setting) {
    const { random, material } = setting;
    if (material.mode === 'tokens') throw new TypeError('words were expected');
    const names = new Set<string>();
    while (names.size < 2 * (HOPS + 1)) {
      names.add(Array.from({ length: 3 }, () => pick(random, LETTERS)).join(''));
    }
    const chains = [[...names].slice(0, HOPS + 1), [...names].slice(HOPS + 1)];
    const values = chains.map(() => digits(random));
    const needles = chains.flatMap((chain, c) => {
      const depths = chain.map(() => random()).sort((a, b) => a - b);
      return chain.map((name, i) => ({
        ids: material.encode(` VAR ${name} = ${i === 0 ? values[c] : `VAR ${chain[i - 1]}`}.`),
        depth: depths[i]!,
      }));
    });
    const [chain] = chains;
    const { ids, graded } = material.parts([
      { text: ` The variables that have the value ${values[0]} are: VAR` },
      ...chain!.flatMap((name, i) => [
        ...(i > 0 ? [{ text: ', VAR' }] : []),
        { text: ` ${name}`, graded: true },
      ]),
    ]);
    return { ...bury(setting, needles, ids, graded), written: chain! };
  },
};

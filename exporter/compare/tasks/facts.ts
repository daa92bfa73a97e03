import { bury } from './bury.js';
import { pick, sample } from './material.js';
import type { Task } from './task.js';
import { OBJECTS, PEOPLE, ROOMS } from './words.js';

const BYSTANDERS = 3;

export const facts: Task = {
  name: 'facts',
  about:
    'who went where and took what, spread over a text; where is the thing now? Two facts must be joined',
  source: {
    title: 'Kuratov et al. 2024, BABILong (two supporting facts)',
    url: 'https://arxiv.org/abs/2406.10149',
  },
  depths: false,
  needsWords: true,
  make(setting) {
    const { random, material } = setting;
    if (material.mode === 'tokens') throw new TypeError('words were expected');
    const [carrier, ...others] = sample(random, PEOPLE, BYSTANDERS + 1);
    const [thing, ...otherThings] = sample(random, OBJECTS, BYSTANDERS + 1);
    const [first, last] = sample(random, ROOMS, 2);
    const story = [
      `${carrier} went to the ${first}.`,
      `${carrier} took the ${thing}.`,
      `${carrier} went to the ${last}.`,
    ];
    // Each bystander goes somewhere, takes something and goes on, in between.
    const threads = [
      story,
      ...others.map((name, i) => [
        `${name} went to the ${pick(random, ROOMS)}.`,
        `${name} took the ${otherThings[i]}.`,
        `${name} went to the ${pick(random, ROOMS)}.`,
      ]),
    ];
    const needles = threads.flatMap((thread) => {
      const depths = thread.map(() => random()).sort((a, b) => a - b);
      return thread.map((fact, i) => ({ ids: material.encode(` ${fact}`), depth: depths[i]! }));
    });
    const { ids, graded } = material.parts([
      { text: ` Where is the ${thing}? The ${thing} is in the` },
      { text: ` ${last}`, graded: true },
    ]);
    return { ...bury(setting, needles, ids, graded), written: [last!] };
  },
};

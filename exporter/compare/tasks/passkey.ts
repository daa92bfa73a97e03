import { bury } from './bury.js';
import { digits, sample } from './material.js';
import type { Item, Setting, Task } from './task.js';
import { CITIES } from './words.js';

const MARKER = 4; // ids that introduce a key
const KEY = 8;

/** A marker and a key behind it, the marker again at the end: for models without words. */
function markedKeys(setting: Setting, others: number): Item {
  const { random, depth, material } = setting;
  if (material.mode !== 'tokens') throw new TypeError('words were expected');
  const make = (at: number) => ({
    marker: material.ids(random, MARKER),
    key: material.ids(random, KEY),
    depth: at,
  });
  const wanted = make(depth);
  const all = [wanted, ...Array.from({ length: others }, () => make(random()))];
  const needles = all.map((n) => ({ ids: [...n.marker, ...n.key], depth: n.depth }));
  const tail = [...wanted.marker, ...wanted.key];
  return { ...bury(setting, needles, tail, [{ from: MARKER, to: tail.length }]), written: null };
}

export const passkey: Task = {
  name: 'passkey',
  about: 'one number hidden in a text, asked for at its end',
  source: {
    title: 'Mohtashami, Jaggi 2023, Landmark Attention',
    url: 'https://arxiv.org/abs/2305.16300',
  },
  depths: true,
  needsWords: false,
  make(setting) {
    const { random, depth, material } = setting;
    if (material.mode === 'tokens') return markedKeys(setting, 0);
    const key = digits(random);
    const needle = material.encode(` The pass key is ${key}. Remember it. ${key} is the pass key.`);
    const { ids, graded } = material.parts([
      { text: ' What is the pass key? The pass key is' },
      { text: ` ${key}`, graded: true },
    ]);
    return { ...bury(setting, [{ ids: needle, depth }], ids, graded), written: [key] };
  },
};

const DISTRACTORS = 3;

export const needle: Task = {
  name: 'needle',
  about: 'several facts of one form hidden in a text, one of them asked for',
  source: {
    title: 'Kamradt 2023, Needle in a Haystack; Hsieh et al. 2024, RULER (multi-key)',
    url: 'https://arxiv.org/abs/2404.06654',
  },
  depths: true,
  needsWords: false,
  make(setting) {
    const { random, depth, material } = setting;
    if (material.mode === 'tokens') return markedKeys(setting, DISTRACTORS);
    const cities = sample(random, CITIES, DISTRACTORS + 1);
    const facts = cities.map((city, i) => ({
      city,
      code: digits(random),
      depth: i === 0 ? depth : random(),
    }));
    const needles = facts.map((f) => ({
      ids: material.encode(` The secret number of ${f.city} is ${f.code}.`),
      depth: f.depth,
    }));
    const [asked] = facts;
    const { ids, graded } = material.parts([
      { text: ` The secret number of ${asked!.city} is` },
      { text: ` ${asked!.code}`, graded: true },
    ]);
    return { ...bury(setting, needles, ids, graded), written: [asked!.code] };
  },
};

import type { Material } from './material.js';

/** Tokens `from` <= i < `to` of an item. */
export interface Span {
  from: number;
  to: number;
}

/** One question: a sequence of tokens, some of which follow from what stands before them. */
export interface Item {
  tokens: number[];
  /** What is graded, in order; everything before the first is context. */
  answers: Span[];
  /** What a model that goes on by itself from the first answer must write; null where its own words do not count. */
  written: string[] | null;
}

/** What an item is made from. */
export interface Setting {
  /** The most tokens it may have. */
  length: number;
  /** Where what is asked for lies: 0 at the start, 1 just before the question. */
  depth: number;
  /** Numbers in [0, 1). */
  random: () => number;
  material: Material;
}

/** A kind of question. */
export interface Task {
  readonly name: string;
  /** What is asked. */
  readonly about: string;
  readonly source: { readonly title: string; readonly url: string };
  /** Does the depth matter? */
  readonly depths: boolean;
  /** Does it make sense with words only? */
  readonly needsWords: boolean;
  /** @throws FlaError `invalid_argument` when the length does not hold the question */
  make(setting: Setting): Item;
}

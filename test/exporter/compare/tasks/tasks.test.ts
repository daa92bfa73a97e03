import fs from 'node:fs';
import { describe, expect, test } from 'vitest';
import {
  chooseTasks,
  fits,
  type Item,
  items,
  runTasks,
  TASKS,
  type TaskPlan,
  TextMaterial,
  TokenMaterial,
} from '../../../../exporter/compare/tasks/index.js';
import { seededRandom } from '../../../../exporter/random.js';
import { loadTokenizer } from '../../../../exporter/text/tokenizer.js';
import { TINYLM } from '../../../support/models.js';
import { induction, RuleReader } from '../support.js';

const tokenizer = loadTokenizer(TINYLM.tokenizer);
const book = fs.readFileSync(TINYLM.text, 'utf8').slice(0, 100_000);
const text = new TextMaterial(tokenizer, book);
const tokens = new TokenMaterial(128);
const VOCABULARY = 2048;
const names = Object.keys(TASKS);
const wordless = names.filter((n) => !TASKS[n]!.needsWords);

const make = (
  name: string,
  length: number,
  depth = 0.5,
  seed = 1,
  material: TaskPlan['material'] = text,
) => TASKS[name]!.make({ length, depth, random: seededRandom(seed), material });
const answers = ({ tokens, answers }: Item) =>
  answers.map(({ from, to }) => tokenizer.decode(tokens.slice(from, to)));
const context = ({ tokens, answers }: Item) => tokenizer.decode(tokens.slice(0, answers[0]!.from));

describe.each(names)('%s', (name) => {
  test('is the same for the same seed, and another for another', () => {
    expect(make(name, 600)).toEqual(make(name, 600));
    expect(make(name, 600, 0.5, 2).tokens).not.toEqual(make(name, 600).tokens);
  });
  test.each([300, 1024])(
    'fills %i tokens and not more; answers lie in order at the end',
    (length) => {
      for (const depth of [0, 0.5, 1]) {
        const item = make(name, length, depth);
        expect(item.tokens.length).toBeLessThanOrEqual(length);
        expect(item.tokens.length).toBeGreaterThan(0.9 * length);
        let before = 0;
        for (const { from, to } of item.answers) {
          expect(from).toBeGreaterThanOrEqual(before);
          expect(to).toBeGreaterThan(from);
          before = to;
        }
        expect(before).toBeLessThanOrEqual(item.tokens.length);
        expect(item.tokens.every((id) => Number.isInteger(id) && id >= 0 && id < VOCABULARY)).toBe(
          true,
        );
      }
    },
  );
  test('refuses a length that does not hold it', () => {
    expect(() => make(name, 14)).toThrow(/length must be at least \d+ tokens .*, received 14/);
  });
  test('names its source', () => {
    expect(TASKS[name]!.source.url).toMatch(/^https:\/\/arxiv\.org\/abs\//);
  });
});

describe('what is asked follows from the text', () => {
  test('passkey', () => {
    const item = make('passkey', 500);
    const [key] = answers(item);
    expect(item.written).toEqual([key!.trim()]);
    expect(context(item)).toContain(`The pass key is ${key!.trim()}. Remember it.`);
    expect(context(item)).toMatch(/What is the pass key\? The pass key is$/);
  });
  test('depth is where the needle stands', () => {
    const at = (depth: number) => {
      const item = make('passkey', 1000, depth);
      return context(item).indexOf('Remember it.') / context(item).length;
    };
    expect(at(0)).toBeLessThan(0.03);
    expect(at(0.5)).toBeGreaterThan(0.4);
    expect(at(0.5)).toBeLessThan(0.6);
    expect(at(1)).toBeGreaterThan(0.9);
  });
  test('needle: the number of the city that is asked for, of four', () => {
    const item = make('needle', 500);
    const facts = [...context(item).matchAll(/secret number of (\w+) is (\d{5})\./g)];
    const asked = /secret number of (\w+) is$/.exec(context(item))![1];
    expect(facts).toHaveLength(4);
    expect(new Set(facts.map((f) => f[1])).size).toBe(4);
    expect(answers(item)[0]!.trim()).toBe(facts.find((f) => f[1] === asked)![2]);
  });
  test('mqar: every pair again', () => {
    const item = make('mqar', 500);
    const all = tokenizer.decode(item.tokens);
    const pairs = [...all.matchAll(/ ([A-Z][a-z]+): (\d{3});/g)].map((m) => `${m[1]} ${m[2]}`);
    expect(pairs).toHaveLength(16);
    expect(pairs.slice(8).sort()).toEqual(pairs.slice(0, 8).sort());
    expect(answers(item).map((a) => a.trim())).toEqual(pairs.slice(8).map((p) => p.split(' ')[1]));
  });
  test('repeat: the second copy is the first, but for the tokens that are given', () => {
    const item = make('repeat', 400, 0.3);
    const from = item.answers[0]!.from - 4;
    const copy = item.tokens.slice(from);
    expect(copy.length).toBeGreaterThanOrEqual(32);
    const at = item.tokens.findIndex((_, i) => copy.every((id, j) => item.tokens[i + j] === id));
    expect(at).toBeLessThan(from);
    expect(item.answers).toHaveLength(copy.length - 4);
  });
  test('tracking: following the assignments gives the answers', () => {
    const item = make('tracking', 500);
    const values = new Map<string, string>();
    for (const [, name, other, value] of context(item).matchAll(
      /VAR ([A-Z]{3}) = (?:VAR ([A-Z]{3})|(\d+))\./g,
    )) {
      values.set(name!, value ?? values.get(other!)!);
    }
    const asked = /have the value (\d+) are/.exec(context(item))![1];
    const right = [...values].filter(([, v]) => v === asked).map(([name]) => name);
    expect(values.size).toBe(10);
    expect(right).toHaveLength(5);
    expect(answers(item).map((a) => a.trim())).toEqual(right);
  });
  test('words: counting them gives the answers', () => {
    const item = make('words', 500);
    const list = context(item)
      .replace(/ The three most.*$/, '')
      .trim()
      .split(' ');
    const counts = new Map<string, number>();
    for (const word of list) counts.set(word, (counts.get(word) ?? 0) + 1);
    const [a, b, c, d] = [...counts].sort((x, y) => y[1] - x[1]);
    expect(answers(item).map((w) => w.trim())).toEqual([a![0], b![0], c![0]]);
    expect(a![1]).toBeGreaterThan(b![1]);
    expect(b![1]).toBeGreaterThan(c![1]);
    expect(c![1]).toBeGreaterThan(d![1]);
  });
  test('facts: the last room of whoever took it', () => {
    const item = make('facts', 500);
    const where = new Map<string, string>();
    const holder = new Map<string, string>();
    for (const [, who, room, thing] of context(item).matchAll(
      /(\w+) (?:went to the (\w+)|took the (\w+))\./g,
    )) {
      if (room) where.set(who!, room);
      else holder.set(thing!, who!);
    }
    const asked = /Where is the (\w+)\?/.exec(context(item))![1]!;
    expect(answers(item)[0]!.trim()).toBe(where.get(holder.get(asked)!));
  });
  test('haystacks are the book, or made-up sentences', () => {
    const sentence = /[A-Z][^.!?]{30,}[.!?]/.exec(context(make('passkey', 800)).slice(200))![0];
    expect(book.replace(/\s+/g, ' ')).toContain(sentence.trim());
    const plain = make('passkey', 300, 0.5, 1, new TextMaterial(tokenizer));
    expect(context(plain)).toMatch(/The \w+ \w+ \w+ [a-z ]+ in [A-Z][a-z]+\./);
  });
});

describe('scores', () => {
  const plan = (tasks: string[], material: TaskPlan['material'], lengths = [256]): TaskPlan => ({
    tasks: chooseTasks(tasks, material.mode === 'text'),
    lengths,
    material,
    samples: 2,
  });
  /** A model that knows every question of a plan by heart. */
  const oracle = (options: TaskPlan, vocabulary: number) => {
    const known = [...items(options)].map((item) => item.tokens);
    return new RuleReader(vocabulary, (seen) => {
      const match = known.find((k) => seen.every((id, i) => k[i] === id));
      return match?.[seen.length];
    });
  };

  test('an oracle gets everything right, at each length and depth', async () => {
    const options = plan(names, text, [300, 500]);
    const scores = await runTasks(oracle(options, VOCABULARY), {
      ...options,
      decode: tokenizer.decode,
    });
    expect(scores).toHaveLength(2 * (3 * 5 + 4)); // three tasks with depths
    for (const score of scores) {
      expect(score).toMatchObject({ recall: { value: 1, error: 0 }, tokens: 1 });
      expect(score.logprob).toBeGreaterThan(-1e-4);
      expect(score.greedy).toBe(
        TASKS[score.task]!.make({ length: 300, depth: 0, random: seededRandom(0), material: text })
          .written
          ? 1
          : null,
      );
      expect(score.answers).toBeGreaterThanOrEqual(score.samples);
    }
  });
  test('a model that knows nothing gets nothing right, and all tokens are equally likely', async () => {
    const options = plan(wordless, tokens);
    const scores = await runTasks(new RuleReader(128, () => undefined), options);
    for (const { recall, logprob, greedy } of scores) {
      expect(recall.value).toBeLessThan(0.1);
      expect(logprob).toBeCloseTo(-Math.log(128), 6);
      expect(greedy).toBeNull();
    }
  });
  test('induction solves what needs recall only, a short window none of it that lies far away', async () => {
    const options = plan(wordless, tokens);
    const head = await runTasks(new RuleReader(128, induction(3)), options);
    for (const { recall } of head) expect(recall.value).toBeGreaterThan(0.9);
    const near = await runTasks(new RuleReader(128, induction(3, 64)), options);
    for (const { recall } of near.filter((s) => s.depth === 0 && s.task === 'passkey')) {
      expect(recall.value).toBe(0);
    }
  });
  test('reading at once, in pieces, and everything again are scored alike', async () => {
    const options = plan(['mqar', 'repeat'], tokens);
    const whole = await runTasks(new RuleReader(128, induction(3)), options);
    expect(await runTasks(new RuleReader(128, induction(3)), { ...options, chunk: 7 })).toEqual(
      whole,
    );
    expect(await runTasks(new RuleReader(128, induction(3), 'none'), options)).toEqual(whole);
  });
  test('an answer is right only when all of its tokens are', async () => {
    const options = plan(['passkey'], tokens);
    const known = [...items(options)];
    const almost = new RuleReader(128, (seen) => {
      const item = known.find((k) => seen.every((id, i) => k.tokens[i] === id));
      const right = item?.tokens[seen.length];
      const last = seen.length === (item?.answers[0]?.to ?? 0) - 1;
      return right !== undefined && last ? (right + 1) % 128 : right;
    });
    const scores = await runTasks(almost, options);
    for (const { recall, tokens } of scores) expect([recall.value, tokens]).toEqual([0, 7 / 8]);
  });
  test('progress goes to the end; an interrupt is heard', async () => {
    const options = plan(['mqar'], tokens);
    const seen: number[][] = [];
    await runTasks(new RuleReader(128, induction(3)), {
      ...options,
      onProgress: (...x) => seen.push(x),
    });
    expect(seen.at(-1)![0]).toBe(seen.at(-1)![1]);
    const stop = new AbortController();
    stop.abort(new Error('enough'));
    await expect(
      runTasks(new RuleReader(128, induction(3)), { ...options, signal: stop.signal }),
    ).rejects.toThrow('enough');
  });
  test('fits tells which lengths hold a task', () => {
    expect(fits(plan(['mqar'], text, [64]))).toBe(false);
    expect(fits(plan(['mqar'], text, [512]))).toBe(true);
  });
});

describe('choice', () => {
  test('unknown names and missing words are refused', () => {
    expect(() => chooseTasks(['chess'], true)).toThrow(
      /task must be one of passkey, .*, received chess/,
    );
    expect(() => chooseTasks(['facts'], false)).toThrow(
      'task facts needs a tokenizer, received none',
    );
  });
});

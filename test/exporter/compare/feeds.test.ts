import * as ort from 'onnxruntime-node';
import { describe, expect, test } from 'vitest';
import {
  inputShape,
  inputVocabularies,
  makeFeeds,
  type TensorInput,
  tensorValues,
} from '../../../exporter/compare/feeds.js';
import { loadModel } from '../../../exporter/ir/file.js';
import { TINYLM } from '../../support/models.js';

const input = (name: string, type: string, shape: (number | string)[]): TensorInput => ({
  name,
  type,
  shape,
});

describe('inputShape', () => {
  test('batch of one, free dimensions of the length, fixed ones kept', () => {
    expect(inputShape(input('x', 'float32', ['n', 3, 48, 'w']), { length: 320 })).toEqual([
      1, 3, 48, 320,
    ]);
    expect(inputShape(input('input_ids', 'int64', ['batch', 'sequence']), { length: 7 })).toEqual([
      1, 7,
    ]);
  });
  test('what came before is empty, and named dimensions win', () => {
    const past = input('past_key_values.0.key', 'float32', ['batch', 2, 'past_sequence', 64]);
    expect(inputShape(past, { length: 7 })).toEqual([1, 2, 0, 64]);
    expect(inputShape(past, { length: 7, dims: { batch: 3, past_sequence: 5 } })).toEqual([
      3, 2, 5, 64,
    ]);
  });
});

describe('makeFeeds', () => {
  const options = { length: 64, seed: 1, vocabularies: new Map([['input_ids', 50]]) };
  const ids = input('input_ids', 'int64', ['b', 't']);

  test('draws ids below the vocabulary, masks of ones, types of zeros, positions in order', () => {
    const feeds = makeFeeds(
      ort,
      [
        ids,
        ...['attention_mask', 'token_type_ids', 'position_ids'].map((n) =>
          input(n, 'int64', ['b', 't']),
        ),
      ],
      options,
    );
    const drawn = [...Array.from(tensorValues(feeds.input_ids!))];
    expect(Math.min(...drawn)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...drawn)).toBeLessThan(50);
    expect(new Set(drawn).size).toBeGreaterThan(10);
    expect(new Set(Array.from(tensorValues(feeds.attention_mask!)))).toEqual(new Set([1]));
    expect(new Set(Array.from(tensorValues(feeds.token_type_ids!)))).toEqual(new Set([0]));
    expect(Array.from(tensorValues(feeds.position_ids!)).slice(0, 3)).toEqual([0, 1, 2]);
  });

  test('gives an input the same data whatever the other inputs are', () => {
    const alone = makeFeeds(ort, [ids], options);
    const among = makeFeeds(ort, [input('past', 'float32', ['b', 4]), ids], options);
    expect(among.input_ids!.data).toEqual(alone.input_ids!.data);
    const other = makeFeeds(ort, [ids], { ...options, seed: 2 });
    expect(other.input_ids!.data).not.toEqual(alone.input_ids!.data);
  });

  test('half precision goes in and comes out as numbers', () => {
    const feeds = makeFeeds(ort, [input('x', 'float16', ['b', 1000])], options);
    const values = Array.from(tensorValues(feeds.x!));
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    expect(Math.abs(mean)).toBeLessThan(0.15); // 1000 standard normal values: 4.7 standard errors
    expect(new Set(values).size).toBeGreaterThan(500);
  });
});

test('the vocabulary is found behind a converted embedding table', () => {
  expect(inputVocabularies(loadModel(TINYLM.model)).get('input_ids')).toBe(2048);
});

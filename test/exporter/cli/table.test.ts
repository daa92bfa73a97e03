import { describe, expect, test } from 'vitest';
import { formatTable, wrap } from '../../../exporter/cli/table.js';

const HEAD = ['layer', 'node', 'mask', ''];
const ROWS = [
  ['0', '/model/layers.0/self_attn/Softmax', 'causal+padding', 'can be rewritten'],
  [
    '-',
    '/model/head/Softmax',
    '-',
    'the scores are a product with a constant weight: a classifier',
  ],
];
const lines = (width: number) => formatTable(HEAD, ROWS, width).split('\n');
const longest = (all: readonly string[]) => Math.max(...all.map((l) => l.length));

describe('tables', () => {
  test('are as wide as they need to be where that fits', () => {
    const natural = lines(1000);
    expect(natural).toHaveLength(3 + 2 + 1); // no lines between rows
    expect(lines(longest(natural))).toEqual(natural);
  });
  test('keep words whole where that is possible', () => {
    for (const word of ['classifier', 'causal+', 'padding', 'layers.', 'rewritten'])
      expect(lines(60).join('\n')).toContain(word);
  });
  test.each([120, 80, 60])('fit into %i columns, with nothing lost', (width) => {
    const fitted = lines(width);
    expect(longest(fitted)).toBeLessThanOrEqual(width);
    const letters = (text: string) => text.replace(/[^a-zA-Z]/g, '').length;
    expect(letters(fitted.join(''))).toBe(letters([...HEAD, ...ROWS.flat()].join('')));
  });
  test('have no head where it would be empty', () => {
    expect(formatTable(['', ''], [['isa', 'avx2']], 80).split('\n')).toHaveLength(3);
  });
});

test('text breaks at blanks, behind punctuation, and else anywhere', () => {
  expect(wrap('of the model', 6)).toBe('of the\nmodel');
  expect(wrap('/layers/0/Softmax', 10)).toBe('/layers/0/\nSoftmax');
  expect(wrap('abcdefgh', 3)).toBe('abc\ndef\ngh');
  expect(wrap('', 3)).toBe('');
});

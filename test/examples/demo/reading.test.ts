import { describe, expect, test } from 'vitest';
import { align } from '../../../examples/demo/edits.js';
import { decodeCtc, drawLine, loadAlphabet } from '../../../examples/demo/line_image.js';
import { RECOGNISER_KEYS } from '../../../examples/demo/paths.js';

describe('align', () => {
  test('equal texts', () => {
    expect(align('same', 'same')).toEqual({ distance: 0, a: 'same', b: 'same', marks: '    ' });
  });
  test('a replacement, a loss, an addition', () => {
    expect(align('kitten', 'sitting').distance).toBe(3);
    expect(align('abc', 'ac')).toEqual({ distance: 1, a: 'abc', b: 'a·c', marks: ' ^ ' });
    expect(align('ac', 'abc')).toEqual({ distance: 1, a: 'a·c', b: 'abc', marks: ' ^ ' });
    expect(align('', 'xy').distance).toBe(2);
  });
});

describe('decodeCtc', () => {
  const alphabet = ['', 'a', 'b', ' '];
  const steps = (...best: number[]) =>
    Float32Array.from(best.flatMap((b) => alphabet.map((_, i) => (i === b ? 0.9 : 0.03))));

  test('joins repetitions, leaves blanks out, keeps letters that a blank parts', () => {
    expect(decodeCtc(steps(0, 1, 1, 0, 1, 2, 2, 3, 3, 2, 0), alphabet)).toBe('aab b');
    expect(decodeCtc(steps(0, 0), alphabet)).toBe('');
  });
});

test('the alphabet has a blank, 6623 characters and a space', () => {
  const alphabet = loadAlphabet(RECOGNISER_KEYS);
  expect(alphabet).toHaveLength(6625);
  expect([alphabet[0], alphabet.at(-1)]).toEqual(['', ' ']);
});

test('a line is drawn black on white, 48 pixels high', () => {
  const image = drawLine('Ink');
  expect(image.pixels).toHaveLength(3 * 48 * image.width);
  expect(image.pixels[0]).toBe(1);
  expect(Math.min(...image.pixels)).toBeLessThan(-0.9);
  const ink = image.pixels.filter((x) => x < 0).length / image.pixels.length;
  expect(ink).toBeGreaterThan(0.03);
  expect(ink).toBeLessThan(0.3);
});

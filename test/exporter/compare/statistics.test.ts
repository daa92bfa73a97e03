import { describe, expect, test } from 'vitest';
import {
  argmax,
  cosine,
  klDivergence,
  logSoftmax,
  maxAbsDifference,
  mean,
  median,
  quantile,
  standardError,
} from '../../../exporter/compare/statistics.js';

const logs = (p: readonly number[]) => p.map(Math.log);

describe('quantile', () => {
  test('lies linearly between neighbours, whatever the order', () => {
    const values = [40, 10, 30, 20];
    expect(quantile(values, 0)).toBe(10);
    expect(quantile(values, 0.5)).toBe(25);
    expect(quantile(values, 0.99)).toBeCloseTo(39.7, 12);
    expect(quantile(values, 1)).toBe(40);
    expect(median([3, 1, 2])).toBe(2);
  });
  test('sorts numbers, not their spelling', () => {
    expect(quantile([10, 9, 100], 1)).toBe(100);
  });
  test('of nothing is NaN', () => {
    expect(quantile([], 0.5)).toBeNaN();
  });
});

describe('mean and standard error', () => {
  test('of 2, 4, 4, 4, 5, 5, 7, 9', () => {
    const values = [2, 4, 4, 4, 5, 5, 7, 9];
    expect(mean(values)).toBe(5);
    // squares add up to 32; sqrt(32 / 7 / 8)
    expect(standardError(values)).toBeCloseTo(0.755929, 6);
  });
});

describe('logSoftmax', () => {
  test('of log-probabilities gives them back', () => {
    const p = [0.1, 0.2, 0.7];
    [...logSoftmax(logs(p))].forEach((x, i) => {
      expect(x).toBeCloseTo(Math.log(p[i]!), 14);
    });
  });
  test('does not overflow', () => {
    expect([...logSoftmax([1000, 1000])]).toEqual(
      [-Math.LN2, -Math.LN2].map((x) => expect.closeTo(x, 12)),
    );
  });
});

describe('klDivergence', () => {
  test('of equal distributions is 0', () => {
    expect(klDivergence(logs([0.3, 0.7]), logs([0.3, 0.7]))).toBe(0);
  });
  test('of (1/2, 1/2) against (1/4, 3/4) is log(4/3) / 2, and not symmetric', () => {
    expect(klDivergence(logs([0.5, 0.5]), logs([0.25, 0.75]))).toBeCloseTo(Math.log(4 / 3) / 2, 14);
    expect(klDivergence(logs([0.25, 0.75]), logs([0.5, 0.5]))).toBeCloseTo(
      0.25 * Math.log(0.5) + 0.75 * Math.log(1.5),
      14,
    );
  });
  test('leaves out what p gives no chance', () => {
    expect(klDivergence(logs([1, 0]), logs([0.5, 0.5]))).toBeCloseTo(Math.LN2, 14);
  });
  test('is infinite where q excludes what p allows', () => {
    expect(klDivergence(logs([0.5, 0.5]), logs([1, 0]))).toBe(Number.POSITIVE_INFINITY);
  });
});

describe('distances', () => {
  test('max absolute difference', () => {
    expect(maxAbsDifference([1, 2, 3], [1, 5, 2.5])).toBe(3);
    expect(maxAbsDifference([1, Number.NaN, 9], [1, 2, 3])).toBeNaN();
    expect(maxAbsDifference([Number.NEGATIVE_INFINITY], [Number.NEGATIVE_INFINITY])).toBe(0);
  });
  test('cosine', () => {
    expect(cosine([1, 0], [0, 2])).toBe(0);
    expect(cosine([1, 2], [2, 4])).toBeCloseTo(1, 15);
    expect(cosine([3, 4], [4, 3])).toBeCloseTo(0.96, 15);
    expect(cosine([0, 0], [0, 0])).toBe(1);
    expect(cosine([0, 0], [1, 0])).toBeNaN();
  });
  test('argmax takes the first of equals', () => {
    expect(argmax([1, 3, 3, 2])).toBe(1);
  });
});

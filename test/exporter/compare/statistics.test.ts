import { describe, expect, test } from 'vitest';
import {
  argmax,
  correlation,
  cosine,
  histogram,
  klDivergence,
  logSoftmax,
  maxAbsDifference,
  mean,
  meanEstimate,
  median,
  quantile,
  quantileEstimate,
  rankCorrelation,
  ranks,
  rmsEstimate,
  shareEstimate,
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

describe('estimates', () => {
  test('a mean has its standard error, one value has none', () => {
    expect(meanEstimate([2, 4, 4, 4, 5, 5, 7, 9])).toEqual({
      value: 5,
      error: expect.closeTo(0.755929, 6),
    });
    expect(meanEstimate([3])).toEqual({ value: 3, error: null });
  });
  test('a share: 3 of 4 is 0.75 +- sqrt(0.1875 / 3)', () => {
    expect(shareEstimate(3, 4)).toEqual({ value: 0.75, error: 0.25 });
    expect(shareEstimate(1, 1)).toEqual({ value: 1, error: null });
  });
  test('a median of 0..99: the order statistics at 45 % and 55 %', () => {
    const values = Array.from({ length: 100 }, (_, i) => i);
    expect(quantileEstimate(values, 0.5)).toEqual({
      value: 49.5,
      error: expect.closeTo(4.95, 12),
    });
  });
  test('a quantile beyond what the number of values can tell has no error', () => {
    expect(quantileEstimate([1, 2, 3], 0.999).error).toBeNull();
    expect(quantileEstimate([1, 2, 3], 1)).toEqual({ value: 3, error: null });
  });
  test('a root mean square: of 1 and 7 it is 5, of squares 1 and 49 the error is 24 / 10', () => {
    expect(rmsEstimate([1, -7])).toEqual({ value: 5, error: expect.closeTo(2.4, 12) });
    expect(rmsEstimate([0, 0])).toEqual({ value: 0, error: null });
  });
});

describe('correlations', () => {
  test('of 1, 2, 3 and 1, 3, 2 is 1/2', () => {
    expect(correlation([1, 2, 3], [1, 3, 2])).toBeCloseTo(0.5, 14);
    expect(correlation([1, 2, 3], [-2, -4, -6])).toBeCloseTo(-1, 14);
    expect(correlation([1, 1], [1, 2])).toBeNaN();
  });
  test('equal values share their ranks', () => {
    expect([...ranks([10, 20, 20, 5])]).toEqual([2, 3.5, 3.5, 1]);
  });
  test('of ranks sees order only', () => {
    expect(rankCorrelation([1, 2, 3, 4], [1, 10, 100, 1000])).toBeCloseTo(1, 14);
    expect(rankCorrelation([1, 2, 3, 4], [4, 3, 2, 1])).toBeCloseTo(-1, 14);
  });
});

test('histogram: lower edges belong to a class, outliers to the outer ones', () => {
  expect(histogram([-5, 0, 0.5, 1, 1.9, 2, 99], [0, 1, 2, 3])).toEqual([3, 2, 2]);
});

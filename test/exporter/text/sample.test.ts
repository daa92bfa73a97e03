import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../../exporter/random.js';
import { sampleToken } from '../../../exporter/text/sample.js';

const logits = [0.1, 0.4, 0.2, 0.3].map(Math.log);
const all = { temperature: 1, topK: 0, topP: 1 };

/** How often each id comes up in `n` draws. */
function frequencies(options: typeof all, n = 20_000): number[] {
  const random = seededRandom(3);
  const counts = [0, 0, 0, 0];
  for (let i = 0; i < n; i++) counts[sampleToken(logits, options, random)]! += 1;
  return counts.map((c) => c / n);
}

describe('sampleToken', () => {
  test('temperature 0 takes the likeliest', () => {
    expect(sampleToken(logits, { ...all, temperature: 0 }, () => 0.99)).toBe(1);
  });
  test('draws with the probabilities of the softmax', () => {
    // standard error of a frequency: at most 0.0035
    const seen = frequencies(all);
    [0.1, 0.4, 0.2, 0.3].forEach((p, id) => {
      expect(Math.abs(seen[id]! - p)).toBeLessThan(0.015);
    });
  });
  test('a low temperature sharpens: p^2, normalised', () => {
    const seen = frequencies({ ...all, temperature: 0.5 });
    expect(Math.abs(seen[1]! - 0.16 / 0.3)).toBeLessThan(0.015);
  });
  test('top-k keeps the k likeliest', () => {
    const seen = frequencies({ ...all, topK: 2 });
    expect([seen[0], seen[2]]).toEqual([0, 0]);
    expect(Math.abs(seen[1]! - 4 / 7)).toBeLessThan(0.015);
  });
  test('top-p keeps the fewest that reach p', () => {
    const seen = frequencies({ ...all, topP: 0.65 });
    expect([seen[0], seen[2]]).toEqual([0, 0]);
    const more = frequencies({ ...all, topP: 0.75 });
    expect(more[0]).toBe(0);
    expect(more[2]).toBeGreaterThan(0.15);
  });
});

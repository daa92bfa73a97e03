import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { typeCombinations } from '../../ops/define.js';
import { generate, outOfDate } from '../../ops/generate.js';
import { linearAttention, ops } from '../../ops/index.js';

describe('generated files', () => {
  it.each(generate())('$path is what `npm run gen` writes', ({ path, text }) => {
    expect(readFileSync(path, 'utf8')).toBe(text);
  });

  it('are all there', () => {
    expect(outOfDate()).toEqual([]);
    expect(generate().length).toBeGreaterThanOrEqual(2 * Object.keys(ops).length);
  });
});

describe('typeCombinations', () => {
  const combinations = typeCombinations(linearAttention);

  it('lists every combination once, the one for absent past_state first', () => {
    const texts = combinations.map((types) => JSON.stringify(types));
    expect(new Set(texts).size).toBe(texts.length);
    for (const T of linearAttention.types.T) {
      expect(combinations.find((types) => types.T === T)?.S).toBe(T);
    }
  });

  it('allows float32 or T for the state, decay, beta and bonus', () => {
    for (const { T, S, TD, TB, TU } of combinations) {
      for (const type of [S, TD, TB, TU]) expect([T, 'float32']).toContain(type);
    }
  });
});

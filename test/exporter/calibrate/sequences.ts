import type { Random } from '../../../exporter/random.js';

/** Random tokens below 128 in which a segment of `shortest` to T/3 tokens comes a second time. */
export function recallSequence(random: Random, T: number, shortest = 16) {
  const ids = Array.from({ length: T }, () => random.below(128));
  const length = shortest + random.below(Math.floor(T / 3) - shortest + 1);
  const second = length + random.below(T - 2 * length + 1);
  const first = random.below(second - length + 1);
  for (let i = 0; i < length; i++) ids[second + i] = ids[first + i]!;
  return { ids, first, second, length };
}

import type { Sdpa } from '../match/sdpa.js';

/** One slope for each query head. */
export function querySlopes(slopes: readonly number[], { q }: Sdpa): readonly number[] {
  return slopes.length === 1 ? Array(q.heads).fill(slopes[0]) : slopes;
}

/** One slope for each key head; undefined when the query heads of one differ. */
export function keySlopes(slopes: readonly number[], sdpa: Sdpa): readonly number[] | undefined {
  const all = querySlopes(slopes, sdpa);
  const groups = sdpa.q.heads / sdpa.v.heads;
  const own = Array.from({ length: sdpa.v.heads }, (_, h) => all[h * groups]!);
  return all.every((s, i) => s === own[Math.floor(i / groups)]) ? own : undefined;
}

/** How closely a bias must follow its slope: what bfloat16 keeps of a number. */
const ROUNDING = 2 ** -8;

/** A bias [B,H,Tq,Tk], row by row, and which keys are seen. */
export interface Bias {
  readonly data: Float32Array;
  readonly dims: readonly [number, number, number, number];
  readonly seen: (value: number) => boolean;
}

/** The largest difference between what seen keys of one query get added, when there is any. */
export function unevenRow(bias: Bias): number | undefined {
  let worst = 0;
  for (const { low, high } of rowsOf(bias)) worst = Math.max(worst, high - low);
  return worst > 1e-5 ? worst : undefined;
}

/**
 * ALiBi (Press et al. 2021, https://arxiv.org/abs/2108.12409): each head adds `-slope * (i - j)` to the score of query i and key j,
 * up to a number that all keys of a query share.
 *
 * @returns the slopes, H numbers >= 0; or undefined when the bias is something else
 */
export function alibiSlopes(bias: Bias): number[] | undefined {
  const { data, dims, seen } = bias;
  const [, H, , K] = dims;
  const slopes: number[] = Array(H).fill(0);
  const spans: number[] = Array(H).fill(0);
  for (const { head, at, first, last } of rowsOf(bias)) {
    if (last - first <= spans[head]!) continue;
    spans[head] = last - first;
    slopes[head] = (data[at + last]! - data[at + first]!) / (last - first);
  }
  for (const { head, at, first, last } of rowsOf(bias)) {
    const slope = slopes[head]!;
    if (slope < 0) return undefined;
    const size = Math.max(Math.abs(data[at + first]!), Math.abs(data[at + last]!));
    const allowed = ROUNDING * slope * (last - first) + 1e-6 * (1 + size);
    for (let j = first; j < Math.min(last, K); j++) {
      const value = data[at + j]!;
      const expected = data[at + last]! - slope * (last - j);
      if (seen(value) && Math.abs(value - expected) > allowed) return undefined;
    }
  }
  return slopes;
}

/** Do two lists of slopes agree? */
export function sameSlopes(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((x, h) => Math.abs(x - b[h]!) <= 2 * ROUNDING * x + 1e-6);
}

/**
 * A bias by distance: query i adds f(h, i - j) to the score of key j <= i, as T5 does (Raffel et al. 2019,
 * https://arxiv.org/abs/1910.10683).
 *
 * @param past how many keys come before the first query
 * @returns f, [H][Tk]; or undefined when the bias is something else
 */
export function distanceBias({ data, dims, seen }: Bias, past: number): number[][] | undefined {
  const [B, H, T, K] = dims;
  const found: number[][] = Array.from({ length: H }, () => []);
  for (let b = 0; b < B; b++)
    for (let h = 0; h < H; h++)
      for (let i = 0; i < T; i++)
        for (let j = 0; j < K; j++) {
          const value = data[((b * H + h) * T + i) * K + j]!;
          if (!seen(value)) continue;
          const distance = past + i - j;
          if (distance < 0) return undefined;
          const known = (found[h]![distance] ??= value);
          if (Math.abs(value - known) > 1e-5 * (1 + Math.abs(known))) return undefined;
        }
  // Distances that no query showed: a window hides them.
  return found.every((f) => f.length > 0 && !f.includes(undefined as never)) ? found : undefined;
}

/** Do two lists by distance agree as far as both go? */
export function sameDistances(
  a: readonly (readonly number[])[],
  b: readonly (readonly number[])[],
): boolean {
  return (
    a.length === b.length &&
    a.every((f, h) => f.every((x, d) => Math.abs(x - (b[h]![d] ?? x)) <= 1e-5 * (1 + Math.abs(x))))
  );
}

interface Row {
  readonly head: number;
  /** Where it starts. */
  readonly at: number;
  /** The first and the last key that is seen. */
  readonly first: number;
  readonly last: number;
  readonly low: number;
  readonly high: number;
}

/** Rows in which a key is seen. */
function* rowsOf({ data, dims, seen }: Bias): Generator<Row> {
  const [, H, T, K] = dims;
  for (let at = 0, row = 0; at < data.length; at += K, row++) {
    let [first, last] = [-1, -1];
    let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
    for (let j = 0; j < K; j++) {
      const value = data[at + j]!;
      if (!seen(value)) continue;
      if (first < 0) first = j;
      last = j;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    const head = Math.floor(row / T) % H;
    if (first >= 0) yield { head, at, first, last, low, high };
  }
}

/** The sum of values. */
export function sum(values: ArrayLike<number>): number {
  let total = 0;
  for (let i = 0; i < values.length; i++) total += values[i]!;
  return total;
}

/** The arithmetic mean; NaN of nothing. */
export function mean(values: ArrayLike<number>): number {
  return sum(values) / values.length;
}

/** The standard error of the mean of independent values; NaN of fewer than two. */
export function standardError(values: ArrayLike<number>): number {
  const center = mean(values);
  let squares = 0;
  for (let i = 0; i < values.length; i++) squares += (values[i]! - center) ** 2;
  return Math.sqrt(squares / (values.length - 1) / values.length);
}

/** The value below which a share `q` (0..1) of the values lies, linear between neighbours; NaN of nothing. */
export function quantile(values: ArrayLike<number>, q: number): number {
  return quantileOfSorted(Float64Array.from(values).sort(), q);
}

/** The same of values in increasing order. */
function quantileOfSorted(sorted: ArrayLike<number>, q: number): number {
  if (sorted.length === 0) return Number.NaN;
  const at = (sorted.length - 1) * q;
  const low = Math.floor(at);
  const high = Math.ceil(at);
  return sorted[low]! + (sorted[high]! - sorted[low]!) * (at - low);
}

/** The median; NaN of nothing. */
export function median(values: ArrayLike<number>): number {
  return quantile(values, 0.5);
}

/** The largest absolute difference of two vectors of equal length; NaN when either holds a NaN. */
export function maxAbsDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let most = 0;
  for (let i = 0; i < a.length; i++) {
    const d = a[i] === b[i] ? 0 : Math.abs(a[i]! - b[i]!); // equal infinities do not differ
    if (!(d <= most)) most = d;
    if (Number.isNaN(d)) return Number.NaN;
  }
  return most;
}

/** The cosine of the angle between two vectors of equal length; 1 for two null vectors. */
export function cosine(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let dot = 0;
  let aa = 0;
  let bb = 0;
  for (let i = 0; i < a.length; i++) {
    dot += a[i]! * b[i]!;
    aa += a[i]! * a[i]!;
    bb += b[i]! * b[i]!;
  }
  if (aa === 0 && bb === 0) return 1;
  return dot / Math.sqrt(aa * bb);
}

/** log(softmax(logits)), in nats, in float64. */
export function logSoftmax(logits: ArrayLike<number>): Float64Array {
  let top = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < logits.length; i++) if (logits[i]! > top) top = logits[i]!;
  let total = 0;
  for (let i = 0; i < logits.length; i++) total += Math.exp(logits[i]! - top);
  const shift = top + Math.log(total);
  const result = new Float64Array(logits.length);
  for (let i = 0; i < logits.length; i++) result[i] = logits[i]! - shift;
  return result;
}

/** KL(p || q) in nats, from log-probabilities; terms with p = 0 count nothing. */
export function klDivergence(logP: ArrayLike<number>, logQ: ArrayLike<number>): number {
  let total = 0;
  for (let i = 0; i < logP.length; i++) {
    const p = Math.exp(logP[i]!);
    if (p > 0) total += p * (logP[i]! - logQ[i]!);
  }
  return Math.max(total, 0); // rounding can leave equal distributions a hair below zero
}

/** The index of the largest value; the first of equals. */
export function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i;
  return best;
}

/** A number and its standard error; null where there is none to be had. */
export interface Estimate {
  value: number;
  error: number | null;
}

/** The mean of independent values. */
export function meanEstimate(values: ArrayLike<number>): Estimate {
  return { value: mean(values), error: values.length > 1 ? standardError(values) : null };
}

/**
 * A quantile and its standard error, by order statistics: the number of values below the true quantile is binomial, so the
 * quantiles one standard deviation of that number to either side are one standard error away.
 */
export function quantileEstimate(sorted: ArrayLike<number>, q: number): Estimate {
  const value = quantileOfSorted(sorted, q);
  const spread = Math.sqrt((q * (1 - q)) / sorted.length);
  const [low, high] = [q - spread, q + spread];
  // Beyond the largest value nothing is known of the distribution.
  if (!(low >= 0 && high <= 1 && spread > 0)) return { value, error: null };
  return { value, error: (quantileOfSorted(sorted, high) - quantileOfSorted(sorted, low)) / 2 };
}

/** The root of the mean square, its error propagated from that of the mean square. */
export function rmsEstimate(values: ArrayLike<number>): Estimate {
  const squares = Float64Array.from(values, (x) => x * x);
  const { value, error } = meanEstimate(squares);
  const rms = Math.sqrt(value);
  return { value: rms, error: error === null || rms === 0 ? null : error / (2 * rms) };
}

/** A share of independent trials, with the error of the normal approximation to the binomial. */
export function shareEstimate(hits: number, trials: number): Estimate {
  const value = hits / trials;
  return { value, error: trials > 1 ? Math.sqrt((value * (1 - value)) / (trials - 1)) : null };
}

/** Pearson's correlation coefficient; NaN when either side does not vary. */
export function correlation(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const [ma, mb] = [mean(a), mean(b)];
  let [ab, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    const [x, y] = [a[i]! - ma, b[i]! - mb];
    ab += x * y;
    aa += x * x;
    bb += y * y;
  }
  return ab / Math.sqrt(aa * bb);
}

/** Spearman's rank correlation: Pearson's, of the ranks. */
export function rankCorrelation(a: ArrayLike<number>, b: ArrayLike<number>): number {
  return correlation(ranks(a), ranks(b));
}

/** Ranks from 1; equal values share the mean of theirs. */
export function ranks(values: ArrayLike<number>): Float64Array {
  const order = Array.from(values, (_, i) => i).sort((i, j) => values[i]! - values[j]!);
  const result = new Float64Array(values.length);
  for (let from = 0; from < order.length; ) {
    let to = from + 1;
    while (to < order.length && values[order[to]!] === values[order[from]!]) to++;
    for (let i = from; i < to; i++) result[order[i]!] = (from + 1 + to) / 2;
    from = to;
  }
  return result;
}

/** How many values lie in each class; `edges` increase, and what lies beyond the outer ones counts in the outer classes. */
export function histogram(values: ArrayLike<number>, edges: readonly number[]): number[] {
  const counts = new Array<number>(edges.length - 1).fill(0);
  for (let i = 0; i < values.length; i++) {
    let at = edges.findIndex((edge) => values[i]! < edge);
    if (at < 0) at = edges.length;
    counts[Math.min(Math.max(at - 1, 0), counts.length - 1)]!++;
  }
  return counts;
}

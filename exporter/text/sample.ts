import { argmax } from '../compare/statistics.js';

export interface SamplingOptions {
  /** 0 takes the likeliest token every time. */
  temperature: number;
  /** Keep this many of the likeliest tokens; 0 keeps all. */
  topK: number;
  /** Keep the fewest likeliest tokens whose probabilities reach this sum; 1 keeps all. */
  topP: number;
}

/** Draws a token id from logits. @param random gives numbers in [0, 1) */
export function sampleToken(
  logits: ArrayLike<number>,
  { temperature, topK, topP }: SamplingOptions,
  random: () => number,
): number {
  if (temperature === 0) return argmax(logits);
  const top = logits[argmax(logits)]!;
  const weights = Array.from(logits, (x, id) => ({ id, p: Math.exp((x - top) / temperature) }));
  weights.sort((a, b) => b.p - a.p);
  let kept = topK > 0 ? weights.slice(0, topK) : weights;
  const total = kept.reduce((sum, w) => sum + w.p, 0);
  if (topP < 1) {
    let reached = 0;
    const enough = kept.findIndex((w) => (reached += w.p) >= topP * total);
    kept = kept.slice(0, enough < 0 ? kept.length : enough + 1);
  }
  let left = random() * kept.reduce((sum, w) => sum + w.p, 0);
  for (const { id, p } of kept) if ((left -= p) < 0) return id;
  return kept.at(-1)!.id;
}

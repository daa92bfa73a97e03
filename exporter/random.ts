/** A source of numbers in [0, 1) that gives the same sequence for the same seed (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** One value of the standard normal distribution (Box-Muller). */
export function normal(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/** A seed from a text (FNV-1a). */
export function hashText(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) {
    hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  }
  return hash >>> 0;
}

/** A stream of its own for each list of seeds, such as a seed and a position. */
export class Random {
  /** A number in [0, 1). */
  readonly next: () => number;

  constructor(...seeds: readonly number[]) {
    let state = 0x9e3779b9;
    for (const seed of seeds) {
      state = (Math.imul(state ^ (seed >>> 0), 0x85ebca6b) + 0x6d2b79f5) >>> 0;
    }
    this.next = seededRandom(state);
  }

  /** A whole number below n. */
  below(n: number): number {
    return Math.floor(this.next() * n);
  }

  /** One value of the standard normal distribution. */
  normal(): number {
    return normal(this.next);
  }

  /** `count` different numbers from `from` to below `to`, in increasing order. */
  choose(count: number, from: number, to: number): number[] {
    const all = Array.from({ length: to - from }, (_, i) => from + i);
    for (let i = 0; i < count; i++) {
      const j = i + this.below(all.length - i);
      [all[i], all[j]] = [all[j]!, all[i]!];
    }
    return all.slice(0, count).sort((a, b) => a - b);
  }
}

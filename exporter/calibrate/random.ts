/** A stream of numbers in [0, 1) that a seed and a position fix: mulberry32, hashed twice. */
export class Random {
  private s: number;

  constructor(...seeds: readonly number[]) {
    this.s = 0x9e3779b9;
    for (const seed of seeds) {
      this.s = Math.imul(this.s ^ (seed >>> 0), 0x85ebca6b) >>> 0;
      this.next();
    }
  }

  next(): number {
    this.s = (this.s + 0x6d2b79f5) >>> 0;
    let t = Math.imul(this.s ^ (this.s >>> 15), this.s | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** A whole number below n. */
  below(n: number): number {
    return Math.floor(this.next() * n);
  }

  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.next())) * Math.cos(2 * Math.PI * this.next());
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

/** Rotary position embedding as the tests define it: frequencies 1 / 100^(2i/R). */
export interface RopeSpec {
  /** How many elements of a head are rotated. */
  readonly rotary: number;
  readonly interleaved?: boolean;
}

const angle = (position: number, i: number, rotary: number) => position / 100 ** ((2 * i) / rotary);

/** A table [limit, R/2] of cosines or sines. */
export function ropeTable(what: 'cos' | 'sin', { rotary }: RopeSpec, limit = 32): number[] {
  return Array.from({ length: (limit * rotary) / 2 }, (_, n) =>
    Math.fround(Math[what](angle(Math.floor(n / (rotary / 2)), n % (rotary / 2), rotary))),
  );
}

/** One head's vector at a position, rotated. */
export function rotated(
  x: readonly number[],
  position: number,
  { rotary, interleaved }: RopeSpec,
): number[] {
  const out = [...x];
  for (let i = 0; i < rotary / 2; i++) {
    const [a, b] = interleaved ? [2 * i, 2 * i + 1] : [i, i + rotary / 2];
    const [cos, sin] = [Math.cos(angle(position, i, rotary)), Math.sin(angle(position, i, rotary))];
    out[a] = x[a]! * cos - x[b]! * sin;
    out[b] = x[b]! * cos + x[a]! * sin;
  }
  return out;
}

/** x / sqrt(mean(x^2) + epsilon) * weight */
export function rmsNorm(x: readonly number[], weight: readonly number[], epsilon = 1e-6): number[] {
  const mean = x.reduce((sum, v) => sum + v * v, 0) / x.length;
  return x.map((v, i) => (v / Math.sqrt(mean + epsilon)) * weight[i]!);
}

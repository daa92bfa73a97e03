import type { Dim } from '../ir/index.js';

/** A small tensor known at rewrite time, element by element; a symbol stands for a dimension. */
export interface Known {
  /** Rank 0 or 1. */
  readonly rank: 0 | 1;
  readonly items: readonly Dim[];
  readonly integer: boolean;
}

/** Operators on one small tensor. */
export const UNARY: Record<string, (x: number) => number> = {
  Sqrt: Math.sqrt,
  Neg: (x) => -x,
  Reciprocal: (x) => 1 / x,
  Floor: Math.floor,
};
/** Operators on two. */
export const BINARY: Record<string, (x: number, y: number, integer: boolean) => number> = {
  Add: (x, y) => x + y,
  Sub: (x, y) => x - y,
  Mul: (x, y) => x * y,
  Div: (x, y, integer) => (integer ? Math.trunc(x / y) : x / y),
  Mod: (x, y) => ((x % y) + y) % y,
  Pow: (x, y) => x ** y,
  Equal: (x, y) => (x === y ? 1 : 0),
};

/** The smallest and the largest number of the types that values are quantised to. */
export const INTEGERS: Record<string, readonly [number, number]> = {
  uint8: [0, 255],
  int8: [-128, 127],
  uint16: [0, 65535],
  int16: [-32768, 32767],
};

/** QuantizeLinear's rounding. */
export function roundHalfEven(x: number): number {
  const down = Math.floor(x);
  if (x - down !== 0.5) return Math.round(x);
  return down % 2 === 0 ? down : down + 1;
}

export function map1(x: Known, f: (v: number) => number): Known {
  return { ...x, items: x.items.map((d) => (typeof d === 'number' ? f(d) : undefined)) };
}
/** Applies an operator element by element, one of the two being repeated when it has one element. */
export function map2(
  x: Known,
  y: Known,
  f: (a: number, b: number, integer: boolean) => number,
): Known | undefined {
  const n = Math.max(x.items.length, y.items.length);
  const at = (k: Known, i: number) => k.items[k.items.length === 1 ? 0 : i];
  const items = Array.from({ length: n }, (_, i): Dim => {
    const [a, b] = [at(x, i), at(y, i)];
    if (typeof a === 'number' && typeof b === 'number') return f(a, b, x.integer && y.integer);
    // A dimension (>= 0) is never -1, which is what exporters compare it with.
    if (
      f === BINARY.Equal &&
      (a === -1 || b === -1) &&
      (typeof a === 'string' || typeof b === 'string')
    ) {
      return 0;
    }
    if (f === BINARY.Mul && (a === 1 || b === 1)) return a === 1 ? b : a;
    return undefined;
  });
  return { rank: Math.max(x.rank, y.rank) as 0 | 1, items, integer: x.integer && y.integer };
}

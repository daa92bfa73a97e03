import { FlaError } from '../../ops/error.js';
import type { Dim, Node } from '../ir/index.js';

// Shapes of results, from shapes of operands, undefined being what is not known.

/** Stands for a dimension of which nothing is known but whose it is. */
export function unnamedDim(value: string, axis: number): string {
  return `?${value}[${axis}]`;
}
export function isUnnamed(d: Dim): boolean {
  return typeof d === 'string' && d.startsWith('?');
}
/** How much is known of a dimension: nothing, whose it is, its name, its length. */
function certainty(d: Dim): number {
  if (typeof d === 'number') return 3;
  return d === undefined ? 0 : isUnnamed(d) ? 1 : 2;
}

/** A shape for a message. */
export function shown(dims: readonly Dim[] | undefined): string {
  return dims ? dims.map((d) => (d === undefined || isUnnamed(d) ? '?' : d)).join(',') : '?';
}

export function merge(a: Dim[] | undefined, b: Dim[] | undefined): Dim[] | undefined {
  if (!a || !b || a.length !== b.length) return a ?? b;
  return a.map((d, i) => (certainty(b[i]) > certainty(d) ? b[i] : d));
}

export function broadcast(shapes: readonly (Dim[] | undefined)[]): Dim[] | undefined {
  if (!shapes.every((s) => s !== undefined)) return undefined;
  const rank = Math.max(...shapes.map((s) => s.length));
  return Array.from({ length: rank }, (_, i) => {
    const dims = shapes.map((s) => (i < rank - s.length ? 1 : s[i - rank + s.length]));
    const big = dims.filter((d) => d !== 1);
    if (big.length === 0) return 1;
    return (
      big.find((d) => typeof d === 'number') ??
      (big.every((d) => d === big[0]) ? big[0] : undefined)
    );
  });
}

export function matmul(x: Dim[] | undefined, y: Dim[] | undefined, node: Node): Dim[] | undefined {
  if (!x || !y || x.length < 2 || y.length < 2) return undefined;
  const swap = node.is('FusedMatMul', 'com.microsoft') && node.int('transB') === 1;
  const [rows, columns] = swap ? [y.at(-1), y.at(-2)] : [y.at(-2), y.at(-1)];
  const swapA = node.is('FusedMatMul', 'com.microsoft') && node.int('transA') === 1;
  const inner = x.at(-1);
  if (!swapA && typeof inner === 'number' && typeof rows === 'number' && inner !== rows) {
    throw new FlaError(
      'invalid_model',
      `node '${node.name}' (${node.opType}): inner dimensions must agree, received [${shown(x)}] and [${shown(y)}]`,
    );
  }
  return [...(broadcast([x.slice(0, -2), y.slice(0, -2)]) ?? []), x.at(-2), columns];
}

export function transposed(x: Dim[], node: Node): Dim[] {
  const perm = node.ints('perm')?.length ? node.ints('perm')! : [...x.keys()].reverse();
  if (perm.length !== x.length) {
    throw new FlaError(
      'invalid_model',
      `node '${node.name}' (Transpose): perm must have ${x.length} entries, the rank of '${node.inputs[0]}', received [${perm}]`,
    );
  }
  return perm.map((p) => x[p]);
}

export function gemm(x: Dim[] | undefined, y: Dim[] | undefined, node: Node): Dim[] {
  return [node.int('transA') === 1 ? x?.[1] : x?.[0], node.int('transB') === 1 ? y?.[0] : y?.[1]];
}

export function unsqueeze(x: Dim[] | undefined, axes: number[] | undefined): Dim[] | undefined {
  if (!x || !axes) return undefined;
  const rank = x.length + axes.length;
  const at = new Set(axes.map((a) => (a + rank) % rank));
  const rest = [...x];
  return Array.from({ length: rank }, (_, i) => (at.has(i) ? 1 : rest.shift()));
}

export function squeeze(x: Dim[] | undefined, axes: number[] | undefined): Dim[] | undefined {
  if (!x) return undefined;
  if (!axes) return x.every((d) => typeof d === 'number') ? x.filter((d) => d !== 1) : undefined;
  const at = new Set(axes.map((a) => (a + x.length) % x.length));
  return x.filter((_, i) => !at.has(i));
}

export function concat(shapes: readonly (Dim[] | undefined)[], axis: number): Dim[] | undefined {
  const some = shapes.find((s) => s !== undefined);
  if (!some || !shapes.every((s) => s?.length === some.length)) return undefined;
  const at = (axis + some.length) % some.length;
  return some.map((_, i) => {
    const dims = shapes.map((s) => s![i]);
    if (i === at) {
      return dims.every((d) => typeof d === 'number')
        ? dims.reduce((a: number, b) => a + (b as number), 0)
        : undefined;
    }
    return dims.find((d) => typeof d === 'number') ?? dims.find((d) => d !== undefined);
  });
}

export function gather(
  x: Dim[] | undefined,
  index: Dim[] | undefined,
  axis: number,
): Dim[] | undefined {
  if (!x || !index) return undefined;
  const at = (axis + x.length) % x.length;
  return [...x.slice(0, at), ...index, ...x.slice(at + 1)];
}

export function sliceLength(d: Dim, start: Dim, end: Dim, step: number): Dim {
  if (typeof start !== 'number' || typeof end !== 'number') return undefined;
  if (start === 0 && step === 1 && end > 2 ** 31) return d;
  if (typeof d !== 'number') {
    return start >= 0 && end >= start && end < 2 ** 31 && end - start === 1 ? 1 : undefined;
  }
  const clamp = (v: number) => Math.min(Math.max(v < 0 ? v + d : v, 0), d);
  return Math.max(0, Math.ceil((clamp(end) - clamp(start)) / step));
}

/** Lengths after a convolution or pooling, of those that are numbers. */
export function convolved(x: Dim[], kernel: readonly Dim[] | undefined, node: Node): Dim[] {
  const auto = node.string('auto_pad') ?? 'NOTSET';
  const pads = node.ints('pads') ?? [];
  return x.map((d, axis) => {
    const size = kernel?.[axis];
    const stride = node.ints('strides')?.[axis] ?? 1;
    if (typeof d !== 'number' || typeof size !== 'number') return undefined;
    if (auto.startsWith('SAME')) return Math.ceil(d / stride);
    const [before, after] = auto === 'VALID' ? [0, 0] : [pads[axis], pads[axis + x.length]];
    const reach = (node.ints('dilations')?.[axis] ?? 1) * (size - 1) + 1;
    const steps = (d + (before ?? 0) + (after ?? 0) - reach) / stride;
    return node.int('ceil_mode') === 1 ? undefined : Math.max(0, Math.floor(steps) + 1);
  });
}

/** prod(x) / prod(rest) when it is a single dimension. */
export function quotient(x: readonly Dim[], rest: readonly Dim[]): Dim {
  const left = [...x];
  let number = 1;
  for (const d of rest) {
    if (typeof d === 'number') {
      number /= d;
      continue;
    }
    const at = d === undefined ? -1 : left.indexOf(d);
    if (at < 0) return undefined;
    left.splice(at, 1);
  }
  const symbols: Dim[] = [];
  for (const d of left) {
    if (typeof d === 'number') number *= d;
    else symbols.push(d);
  }
  if (symbols.length === 0) return Number.isInteger(number) ? number : undefined;
  return symbols.length === 1 && Math.abs(number - 1) < 1e-9 ? symbols[0] : undefined;
}

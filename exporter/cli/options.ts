import { InvalidArgumentError, Option } from 'commander';

/** Parses '0,2-3' into [0, 2, 3]. */
export function parseLayers(text: string): number[] {
  const layers = text.split(',').flatMap((part) => {
    const [, from, to] = /^\s*(\d+)(?:-(\d+))?\s*$/.exec(part) ?? [];
    if (from === undefined) throw new InvalidArgumentError(`expected layers like 0,2-3`);
    const first = Number(from);
    const last = Number(to ?? from);
    if (last < first || last > 100_000) throw new InvalidArgumentError(`${part} is no range`);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
  return [...new Set(layers)].sort((a, b) => a - b);
}

/** Parses '128,512' into increasing positive integers. */
export function parseLengths(text: string): number[] {
  return text.split(',').map((part) => parsePositive(part.trim()));
}

export function parsePositive(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1) {
    throw new InvalidArgumentError('expected a positive integer');
  }
  return value;
}

export function parseCount(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isSafeInteger(value) || value < 0) {
    throw new InvalidArgumentError('expected 0 or a positive integer');
  }
  return value;
}

/** A number in [low, high]. */
export function parseWithin(low: number, high: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === '' || !(value >= low && value <= high)) {
      throw new InvalidArgumentError(`expected a number from ${low} to ${high}`);
    }
    return value;
  };
}

export function parseNumbers(text: string): number[] {
  return text.split(',').map(parseWithin(-Number.MAX_VALUE, Number.MAX_VALUE));
}

/** A length in tokens, or in windows. */
export interface TaskLength {
  count: number;
  unit: 'tokens' | 'windows';
}

/** Parses '512,4x,16x': tokens, and times the window. */
export function parseTaskLengths(text: string): TaskLength[] {
  return text.split(',').map((part) => {
    const [, number, times] = /^\s*(\d+)(x?)\s*$/.exec(part) ?? [];
    if (number === undefined) throw new InvalidArgumentError('expected lengths like 512,4x,16x');
    return { count: parsePositive(number), unit: times ? 'windows' : 'tokens' };
  });
}

/** Parses '0,0.5,1'. */
export function parseShares(text: string): number[] {
  return text.split(',').map(parseWithin(0, 1));
}

/** Collects repeated `name=length`. */
export function collectDim(text: string, before: Record<string, number>): Record<string, number> {
  const at = text.lastIndexOf('=');
  if (at < 1) throw new InvalidArgumentError('expected name=length');
  return { ...before, [text.slice(0, at)]: parseCount(text.slice(at + 1)) };
}

const THREADS = "threads inside an operator (default: ONNX Runtime's choice)";

export function threadsOption(): Option {
  return new Option('--threads <n>', THREADS).argParser(parsePositive);
}

const CACHE_LENGTH =
  'tokens that a growing cache has room for, in one buffer for past and present (GroupQueryAttention)';

export function cacheLengthOption(): Option {
  return new Option('--cache-length <n>', CACHE_LENGTH).argParser(parsePositive);
}

/** Who runs a model. */
export function backendOption(
  flags = '--backend <name>',
  what = 'who runs a model with our ops: our library, or stock ONNX Runtime',
): Option {
  return new Option(flags, what).choices(['auto', 'fla', 'stock']).default('auto');
}

/** How an option is written whose value commander calls `flag`. */
export function optionOf(flag: string): string {
  return `--${flag.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`;
}

/** What a call comes down to on a device: a list of dispatches, made by pure functions (`wgsl/<op>.ts`) and run by `Kernels`. */
import type { ShaderName } from './gen/shaders.js';
import type { Params } from './params.js';

/** What a plan may depend on besides the call. */
export interface Traits {
  /** Largest storage binding, bytes. */
  readonly maxBinding: number;
  /** Largest buffer, bytes. */
  readonly maxBuffer: number;
  /** Alignment of the offset of a storage binding, bytes. */
  readonly alignment: number;
  /** Most workgroups along one dimension of a dispatch. */
  readonly maxGroups: number;
  /** Workgroups that it takes to keep the device busy: sequences are cut into as many segments as that asks for. */
  readonly parallel: number;
  /** Most bytes of scratch memory; longer sequences are worked off in pieces. */
  readonly scratchBytes: number;
}

/** Bytes `from`.. of a tensor's buffer or, when the name starts with '#', of scratch memory. */
export interface Range {
  readonly name: string;
  readonly from: number;
  readonly bytes: number;
}

/** What a shader finds at one binding: memory, 'none' (declared but not used by this call), or nothing (not in the entry point's layout). */
export type Binding = Range | 'none' | undefined;

export interface Dispatch {
  readonly shader: ShaderName;
  /** Default: main. */
  readonly entry?: string;
  readonly constants: Readonly<Record<string, number>>;
  readonly params: Params;
  /** Of bindings 1, 2, ... */
  readonly bindings: readonly Binding[];
  readonly groups: readonly [number, number, number];
}

export interface Copy {
  readonly source: Range;
  readonly target: Range;
}

export interface Plan {
  readonly steps: readonly (Dispatch | Copy)[];
  /** Bytes of each piece of scratch memory, by name. */
  readonly scratch: Readonly<Record<string, number>>;
}

export const roundUp = (n: number, multiple: number): number => Math.ceil(n / multiple) * multiple;
export const ceilDiv = (n: number, by: number): number => Math.ceil(n / by);

/** Workgroups for `count` invocations of 64 each, over two dimensions where one does not hold them. */
export function spread(count: number, { maxGroups }: Traits): [number, number, number] {
  const groups = ceilDiv(count, 64);
  const rows = ceilDiv(groups, maxGroups);
  return [ceilDiv(groups, rows), rows, 1];
}

/**
 * The part of a tensor that a dispatch sees: bytes `from`..`from + bytes` of its buffer widened to what a binding may be, and where in the
 * binding the part starts (in elements of `size` bytes).
 */
export function view(
  name: string,
  from: number,
  bytes: number,
  size: number,
  { alignment }: Traits,
): { range: Range; base: number } {
  const start = Math.floor(from / alignment) * alignment;
  return {
    range: { name, from: start, bytes: roundUp(from - start + bytes, 4) },
    base: (from - start) / size,
  };
}

/** Names scratch memory and remembers the most that was asked of each name. */
export class Scratch {
  readonly sizes: Record<string, number> = {};

  take(name: string, bytes: number): Range {
    const rounded = Math.max(16, roundUp(bytes, 16));
    this.sizes[`#${name}`] = Math.max(this.sizes[`#${name}`] ?? 0, rounded);
    return { name: `#${name}`, from: 0, bytes: rounded };
  }
}

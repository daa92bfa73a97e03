import { FlaError } from '../../ops/error.js';
import type { Node } from '../ir/index.js';
import type { Facts } from './facts.js';
import { lookThrough } from './pattern.js';
import type { Heads, Sdpa } from './sdpa.js';
import { shown } from './shapes.js';

export { shown };

/** A value traced towards its source, and the factor that was multiplied in on the way. */
interface Traced {
  readonly value: string;
  readonly scale: number;
}

/** Looks through casts and multiplications or divisions by a constant number. */
export function unscale(value: string, facts: Facts): Traced {
  let at = value;
  let scale = 1;
  for (;;) {
    const { node } = lookThrough(at, facts);
    const [a, b] = node?.inputs ?? [];
    const [x, y] = [facts.scalar(a ?? ''), facts.scalar(b ?? '')];
    if (node?.is('Mul') && (x !== undefined) !== (y !== undefined)) {
      at = x === undefined ? a! : b!;
      scale *= (x ?? y)!;
    } else if (node?.is('Div') && y !== undefined) {
      at = a!;
      scale /= y;
    } else {
      return { value: at, scale };
    }
  }
}

/**
 * The keys behind the second operand of the score MatMul, which holds them transposed: perm 0132 or 0231 of a rank-4
 * value, perm 021 or 120 of a rank-3 one, or Reshape, Transpose 021, Reshape.
 */
export function untransposeKeys(
  value: string,
  facts: Facts,
): (Traced & { layout: 'bhtd' | 'bthd' | 'ntd' | 'tnd' }) | string {
  const outer = unscale(value, facts);
  const { node } = lookThrough(outer.value, facts);
  const done = (source: string, layout: 'bhtd' | 'bthd' | 'ntd' | 'tnd') => {
    const inner = unscale(source, facts);
    return { value: inner.value, scale: outer.scale * inner.scale, layout };
  };
  if (node?.is('Transpose')) {
    const perm = node.ints('perm')?.join('') ?? '';
    if (perm === '0132') return done(node.inputs[0]!, 'bhtd');
    if (perm === '0231') return done(node.inputs[0]!, 'bthd');
    if (perm === '021') return done(node.inputs[0]!, 'ntd');
    if (perm === '120') return done(node.inputs[0]!, 'tnd');
    return `keys must be transposed by perm 0132, 0231, 021 or 120, received ${perm} at '${node.name}'`;
  }
  if (node?.is('Reshape')) {
    const middle = lookThrough(node.inputs[0]!, facts).node;
    // Transposed before it is flattened.
    const perm = middle?.is('Transpose') ? middle.ints('perm')?.join('') : undefined;
    if (perm === '0132') return done(middle!.inputs[0]!, 'bhtd');
    if (perm === '0231') return done(middle!.inputs[0]!, 'bthd');
    if (perm === '021') {
      const first = lookThrough(middle!.inputs[0]!, facts).node;
      if (first?.is('Reshape') && facts.rank(first.inputs[0]!) === 4)
        return done(first.inputs[0]!, 'bhtd');
    }
  }
  return `'${outer.value}', the second factor of the scores, must be transposed keys, received ${node ? `${node.opType} '${node.name}'` : 'a graph input or constant'}`;
}

/** The [B,H,T,D] value behind a [B*H,T,D] one (or itself, if it is one), or undefined. */
export function unflatten(value: string, facts: Facts): string | undefined {
  if (facts.rank(value) === 4) return value;
  const { node } = lookThrough(value, facts);
  const source = node?.is('Reshape') ? node.inputs[0]! : undefined;
  if (source && facts.rank(source) === undefined) facts.wanted.add(source);
  return source && facts.rank(source) === 4 ? source : undefined;
}

/** The [T,B,H*D] value behind a [T,B*H,D] one (`tnd`) or behind its transposition [B*H,T,D] (`ntd`), as in torch.nn. */
export function timeFirst(value: string, layout: 'ntd' | 'tnd', facts: Facts): Heads | undefined {
  const swap = layout === 'ntd' ? lookThrough(value, facts).node : undefined;
  if (layout === 'ntd' && !(swap?.is('Transpose') && swap.ints('perm')?.join('') === '102')) {
    return undefined;
  }
  const flat = swap?.inputs[0] ?? value;
  const reshape = lookThrough(flat, facts).node;
  const source = reshape?.is('Reshape') ? reshape.inputs[0]! : undefined;
  const from = source ? facts.dims(source) : undefined;
  const to = facts.dims(flat);
  const [width, dim] = [from?.[2], to?.[2]];
  const tokensKept = from?.[0] !== undefined && from[0] === to?.[0];
  if (from?.length !== 3 || to?.length !== 3 || !tokensKept) return undefined;
  if (typeof width !== 'number' || typeof dim !== 'number' || width % dim !== 0) return undefined;
  return { value: source!, layout: 'time-first', heads: width / dim, dim };
}

/**
 * Undoes repeat_kv, the repetition of each key/value head for its group of query heads: Unsqueeze(axis 2), Expand or
 * Tile, Reshape from [B,H,T,D] to [B,H*n,T,D]; or Gather with indices 0, 0, 1, 1, ..
 */
export function unrepeat(value: string, facts: Facts): string {
  const reshape = lookThrough(value, facts).node;
  if (reshape?.is('Gather')) return repeatedByIndex(reshape, facts) ? reshape.inputs[0]! : value;
  const expand = reshape?.is('Reshape') ? lookThrough(reshape.inputs[0]!, facts).node : undefined;
  const repeats = expand?.is('Expand') || expand?.is('Tile');
  const unsqueeze = repeats ? lookThrough(expand!.inputs[0]!, facts).node : undefined;
  if (!unsqueeze?.is('Unsqueeze')) return value;
  const source = unsqueeze.inputs[0]!;
  const from = facts.dims(source);
  const to = facts.dims(value);
  const times = expand!.is('Tile') ? facts.ints(expand!.inputs[1]!) : undefined;
  if (times?.some((n, axis) => n !== 1 && axis !== 2)) return value;
  const groups = times ? times[2] : facts.dims(expand!.outputs[0]!)?.[2];
  const axis = facts.axes(unsqueeze);
  const fits =
    from?.length === 4 &&
    to?.length === 4 &&
    axis?.length === 1 &&
    (axis[0] === 2 || axis[0] === -3) &&
    typeof from[1] === 'number' &&
    typeof groups === 'number' &&
    to[1] === from[1] * groups;
  if (!fits) for (const v of [source, value, expand!.outputs[0]!]) facts.wanted.add(v);
  return fits ? source : value;
}

function repeatedByIndex(gather: Node, facts: Facts): boolean {
  const heads = facts.dims(gather.inputs[0]!)?.[1];
  const index = facts.ints(gather.inputs[1]!);
  if (gather.int('axis') !== 1 || typeof heads !== 'number' || !index) return false;
  const groups = index.length / heads;
  return Number.isInteger(groups) && index.every((at, i) => at === Math.floor(i / groups));
}

/** Describes a rank-4 value as heads, going back to where they still lie together. Undefined without known H and D. */
export function headsOf(value: string, layout: 'bhtd' | 'bthd', facts: Facts): Heads | undefined {
  const dims = facts.dims(value);
  const heads = dims?.[layout === 'bhtd' ? 1 : 2];
  const dim = dims?.[3];
  if (dims?.length !== 4 || typeof heads !== 'number' || typeof dim !== 'number') {
    facts.wanted.add(value);
    return undefined;
  }
  if (layout === 'bthd')
    return packedSource(value, heads, dim, facts) ?? { value, layout, heads, dim };
  const { node } = lookThrough(value, facts);
  if (node?.is('Transpose') && node.ints('perm')?.join('') === '0213') {
    const inner = node.inputs[0]!;
    return packedSource(inner, heads, dim, facts) ?? { value: inner, layout: 'bthd', heads, dim };
  }
  return (node && stackedSource(node, heads, dim, facts)) ?? { value, layout, heads, dim };
}

/** The [B,T,H*D] value that a Reshape made [B,T,H,D], when B and T are seen to be kept. */
function packedSource(value: string, heads: number, dim: number, facts: Facts): Heads | undefined {
  const { node } = lookThrough(value, facts);
  if (!node?.is('Reshape')) return undefined;
  const source = node.inputs[0]!;
  const from = facts.dims(source);
  const to = facts.dims(value);
  const kept = (i: number) => from?.[i] !== undefined && from[i] === to?.[i];
  if (from?.length !== 3 || typeof from[2] !== 'number' || !kept(0) || !kept(1)) return undefined;
  const fits = from[2] === heads * dim;
  if (!fits && typeof to?.[2] === 'number') {
    throw new FlaError(
      'invalid_model',
      `node '${node.name}' (Reshape): cannot make [${shown(to)}] of [${shown(from)}]`,
    );
  }
  return fits ? { value: source, layout: 'packed', heads, dim } : undefined;
}

/** Entry i of a [B,T,N,H,D] value that was transposed to [N,B,H,T,D]: Gather, or Slice and Squeeze, or Split and Squeeze. */
function stackedSource(node: Node, heads: number, dim: number, facts: Facts): Heads | undefined {
  const pick = pickFirst(node, facts);
  const transpose = pick && lookThrough(pick.source, facts).node;
  if (!transpose?.is('Transpose') || transpose.ints('perm')?.join('') !== '20314') return undefined;
  return {
    value: transpose.inputs[0]!,
    layout: 'stacked',
    index: pick!.index,
    axis: 2,
    heads,
    dim,
  };
}

/** Which entry of axis 0 a node takes out of its source. */
function pickFirst(node: Node, facts: Facts): { source: string; index: number } | undefined {
  if (node.is('Gather') && (node.int('axis') ?? 0) === 0) {
    const index = facts.known(node.inputs[1]!);
    const at = index?.rank === 0 ? index.items[0] : undefined;
    return typeof at === 'number' && at >= 0 ? { source: node.inputs[0]!, index: at } : undefined;
  }
  if (!node.is('Squeeze') || facts.axes(node)?.join() !== '0') return undefined;
  const cut = lookThrough(node.inputs[0]!, facts).node;
  if (cut?.is('Slice')) {
    const parts = facts.sliceOf(cut);
    const [p] = parts ?? [];
    const one = parts?.length === 1 && p!.axis === 0 && p!.step === 1;
    if (!one || typeof p!.start !== 'number' || p!.end !== p!.start + 1) return undefined;
    return { source: cut.inputs[0]!, index: p!.start };
  }
  if (cut?.is('Split') && (cut.int('axis') ?? 0) === 0) {
    const sizes = cut.outputs.map((o) => facts.dims(o)?.[0]);
    const index = cut.outputs.indexOf(lookThroughOutput(node, facts));
    return sizes.every((s) => s === 1) && index >= 0
      ? { source: cut.inputs[0]!, index }
      : undefined;
  }
  return undefined;
}

function lookThroughOutput(node: Node, facts: Facts): string {
  let value = node.inputs[0]!;
  const { passed } = lookThrough(value, facts);
  if (passed.length > 0) value = passed[passed.length - 1]!.inputs[0]!;
  return value;
}

/** Follows a site's result [B,H,T,D] through Transpose 0213, as long as nobody else reads it. */
export function siteOutput(value: string, facts: Facts): Sdpa['output'] {
  if (facts.rank(value) === 3) return { value, layout: 'packed' };
  const next = onlyReader(value, facts);
  if (next?.is('Transpose') && next.ints('perm')?.join('') === '0213') {
    return { value: next.outputs[0]!, layout: 'bthd' };
  }
  return { value, layout: 'bhtd' };
}

/** The one node that reads a value, not only its shape; undefined when there are several or it is a graph output. */
export function onlyReader(value: string, facts: Facts): Node | undefined {
  const uses = facts.graph.uses(value).filter((u) => !u.node.is('Shape'));
  return uses.length === 1 && !facts.graph.isOutput(value) ? uses[0]!.node : undefined;
}

/** Head counts and sizes that no attention can have, or undefined. */
export function headMismatch(q: Heads, k: Heads, v: Heads): string | undefined {
  if (q.dim !== k.dim)
    return `query and key head dims must be equal, received ${q.dim} and ${k.dim}`;
  if (k.heads !== v.heads)
    return `keys and values must have as many heads, received ${k.heads} and ${v.heads}`;
  if (q.heads % k.heads !== 0)
    return `key heads must divide query heads, received ${k.heads} and ${q.heads}`;
  return undefined;
}

import type { Node } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import { headsOf, onlyReader, shown, timeFirst, unflatten, unscale } from '../match/heads.js';
import type { Heads, Sdpa } from '../match/sdpa.js';
import { weightLike } from '../match/sources.js';
import type { Loose } from './decomposed_keys.js';

/** What `flatten` finds: heads, and the node or value that a rewritten site must supply, if not the weighted sum. */
export interface Flattened {
  readonly q: Heads;
  readonly k: Loose;
  readonly v: Loose;
  readonly output?: Node;
  readonly timeFirst?: Sdpa['output'];
}

/** Query, keys and values as [B*H,T,D] (or as [B,T,D] of a single head), and the value that the site computes. */
export function flatten(
  factors: Readonly<Record<'q' | 'k' | 'v', { value: string; layout: string }>>,
  root: Node,
  facts: Facts,
): Flattened | string {
  const all = [factors.q, factors.k, factors.v];
  const [q, k, v] = all.map((f) => f.value) as [string, string, string];
  const tokensFirst = all.find((f) => f.layout === 'tnd');
  const [tq, tk, tv] = all.map((f) =>
    timeFirst(f.value, f.layout === 'tnd' ? 'tnd' : 'ntd', facts),
  );
  if (tq && tk && tv) {
    const after = onlyReader(root.outputs[0]!, facts);
    if (!after?.is('Transpose') || after.ints('perm')?.join('') !== '102') {
      return `'${root.outputs[0]}' [B*H,T,D] must go to a Transpose to [T,B*H,D], received ${after?.opType ?? 'several readers'}`;
    }
    return { q: tq, k: tk, v: tv, timeFirst: { value: after.outputs[0]!, layout: 'tnd' } };
  }
  if (tokensFirst) {
    const source = facts.graph.producer(tokensFirst.value)?.inputs[0] ?? '';
    const shapes = [source, tokensFirst.value].map((value) => `[${shown(facts.dims(value))}]`);
    return `'${tokensFirst.value}' [T,B*H,D] must be reshaped from [T,B,H*D] with known H and D, received ${shapes.join(' to ')}`;
  }
  const sources = [q, k, unscale(v, facts).value].map((x) => unflatten(x, facts));
  const [q4, k4, v4] = sources;
  if (q4 && k4 && v4) {
    const heads = headsOf(q4, 'bhtd', facts);
    if (!heads)
      return `query '${q4}' must be [B,H,T,D] with known H and D, received [${shown(facts.dims(q4))}]`;
    // The scores may have got their heads back before Softmax.
    const after = facts.rank(v) === 4 ? root : onlyReader(root.outputs[0]!, facts);
    if (after !== root && (!after?.is('Reshape') || facts.rank(after.outputs[0]!) !== 4)) {
      return `'${root.outputs[0]}' [B*H,T,D] must go to a Reshape to [B,H,T,D], received ${after?.opType ?? 'several readers'}`;
    }
    return {
      q: heads,
      k: { value: k4, layout: factors.k.layout === 'bthd' ? 'bthd' : 'bhtd' },
      v: { value: v4, layout: 'bhtd' as const },
      output: after,
    };
  }
  if (sources.some((s) => s))
    return `'${q}', '${k}' and '${v}' must all come from [B,H,T,D] values`;
  // [B,T,D]: one head, unless a Transpose may have put heads into the first dimension.
  const dims = [q, k, v].map((x) => facts.dims(x));
  const dim = dims[0]?.[2];
  const valueDim = dims[2]?.[2];
  const projected = [q, k, v].every((x) => straightProjection(x, facts));
  if (typeof dim !== 'number' || typeof valueDim !== 'number' || !projected) {
    return `'${q}' has rank 3 and no [B,H,T,D] value behind it: heads cannot be told from batch`;
  }
  const packed = (value: string, d: number): Heads => ({
    value,
    layout: 'packed',
    heads: 1,
    dim: d,
  });
  return { q: packed(q, dim), k: packed(k, dim), v: packed(v, valueDim) };
}

/** Is a rank-3 value a projection of rank-3 input, with nothing but additions and factors after it? */
function straightProjection(value: string, facts: Facts): boolean {
  let at = value;
  for (let depth = 0; depth < 8; depth++) {
    const node = facts.graph.producer(at);
    if (node?.is('MatMul'))
      return weightLike(node.inputs[1], facts) && facts.rank(node.inputs[0]!) === 3;
    if (!node || !/^(Add|Mul|Div|Cast|Identity|Split|Slice)$/.test(node.opType)) return false;
    const constant = facts.graph.constant(node.inputs[0]!) !== undefined;
    at = node.inputs[constant ? 1 : 0]!;
  }
  return false;
}

import type { Dim, Node } from '../ir/index.js';
import type { Facts } from './facts.js';
import { isUnnamed } from './shapes.js';

/** What a pattern found: named values, and the nodes it went through. */
export interface Found<S> {
  readonly values: Readonly<Record<string, string>>;
  readonly nodes: readonly Node[];
  /** What the rule gathered on the way, in the order from the matched value towards its inputs. */
  readonly notes: readonly S[];
}

/** Why a pattern did not match, and how far it came. */
export interface Miss {
  readonly reason: string;
  readonly depth: number;
}

export type Result<S> = Found<S> | Miss;

/**
 * A pattern over a value and what computes it. Combinators below build larger ones; a pattern that
 * refers to itself is written with `lazy`.
 */
export type Pattern<S> = (value: string, found: Found<S>, facts: Facts) => Result<S>;

/** Operators that change no value that matters to a pattern; looked through everywhere. */
const TRANSPARENT = new Set(['Cast', 'Identity', 'Dropout']);
const COMMUTATIVE = new Set(['Add', 'Mul', 'Max', 'Min']);

export function isMiss<S>(r: Result<S>): r is Miss {
  return 'reason' in r;
}

/** Starts a match at a value. */
export function match<S>(pattern: Pattern<S>, value: string, facts: Facts): Result<S> {
  return pattern(value, { values: {}, nodes: [], notes: [] }, facts);
}

/** Any value; it gets a name. */
export function any<S>(name: string): Pattern<S> {
  return (value, found) => ({ ...found, values: { ...found.values, [name]: value } });
}

/** A value known to be one number. */
export function number<S>(name: string): Pattern<S> {
  return (value, found, facts) =>
    facts.scalar(value) === undefined
      ? miss(found, `'${value}' must be a constant number`)
      : { ...found, values: { ...found.values, [name]: value } };
}

/**
 * An operator with these operands; several are written 'Mul|Div', other domains 'com.microsoft.FusedMatMul'. Casts, Identity and Dropout above the operator are looked
 * through, and Add and Mul match in either order.
 */
export function op<S>(
  opTypes: string,
  operands: readonly Pattern<S>[],
  check?: (node: Node, facts: Facts) => string | undefined,
): Pattern<S> {
  const types = opTypes.split('|');
  return (value, found, facts) => {
    const { node, passed } = lookThrough(value, facts);
    if (!node)
      return miss(
        found,
        `'${value}' must come from ${opTypes}, received a graph input or constant`,
      );
    const name = node.domain === '' ? node.opType : `${node.domain}.${node.opType}`;
    if (!types.includes(name)) {
      return miss(found, `'${node.name}' must be ${opTypes}, received ${name}`);
    }
    const failed = check?.(node, facts);
    if (failed) return { reason: failed, depth: found.nodes.length + 1 };
    const inside = { ...found, nodes: [...found.nodes, ...passed, node] };
    return inOrder(operands, orders(node, operands.length), inside, facts);
  };
}

/** The first pattern that matches; when none does, the miss of the one that came furthest. */
export function either<S>(...patterns: readonly Pattern<S>[]): Pattern<S> {
  return (value, found, facts) => {
    let best: Miss | undefined;
    for (const p of patterns) {
      const r = p(value, found, facts);
      if (!isMiss(r)) return r;
      if (!best || r.depth > best.depth) best = r;
    }
    return best ?? miss(found, `'${value}' matches nothing`);
  };
}

/** A pattern named before it is defined. Operands written so are matched before the others, which may then bind again. */
export function lazy<S>(pattern: () => Pattern<S>): Pattern<S> {
  return Object.assign<Pattern<S>, { first: true }>(
    (value, found, facts) => pattern()(value, found, facts),
    { first: true },
  );
}

/** Adds a note after a match; the note may use and consume values bound in it, and the matched value. */
export function note<S>(
  pattern: Pattern<S>,
  make: (values: Readonly<Record<string, string>>, facts: Facts, value: string) => S,
): Pattern<S> {
  return (value, found, facts) => {
    const r = pattern(value, { ...found, notes: [] }, facts);
    return isMiss(r)
      ? r
      : { ...r, notes: [...found.notes, make(r.values, facts, value), ...r.notes] };
  };
}

/** The node behind a value, transparent operators skipped, and those that were. */
export function lookThrough(value: string, facts: Facts): { node?: Node; passed: Node[] } {
  const passed: Node[] = [];
  let node = facts.graph.producer(value);
  for (;;) {
    const skipped = node ? transparent(node, facts) : [];
    if (skipped.length === 0) return { node, passed };
    passed.push(...skipped);
    node = skipped.at(-1)!.producer(0);
  }
}

/** The nodes, this one first, that change nothing: none, one, or a pair that quantises and back. */
function transparent(node: Node, facts: Facts): Node[] {
  if (node.domain !== '') return [];
  if (TRANSPARENT.has(node.opType)) return [node];
  if (node.is('Expand')) return sameShape(node, facts) ? [node] : [];
  if (node.is('Slice')) return takesAll(node, facts) ? [node] : [];
  if (!node.is('DequantizeLinear')) return [];
  const quantize = node.producer(0);
  const same = [1, 2].every((i) => (node.inputs[i] ?? '') === (quantize?.inputs[i] ?? ''));
  return quantize?.is('QuantizeLinear') && same ? [node, quantize] : [];
}

/** Does a Slice cut nothing off, as x[:, :] that was not optimised away? */
function takesAll(node: Node, facts: Facts): boolean {
  const parts = facts.sliceOf(node);
  const whole = ({ start, end, step }: NonNullable<typeof parts>[number]) =>
    start === 0 && step === 1 && typeof end === 'number' && end >= 2 ** 31 - 1;
  return parts !== undefined && parts.length > 0 && parts.every(whole);
}

/** Does a node repeat nothing, as far as shapes are known? */
function sameShape(node: Node, facts: Facts): boolean {
  const [from, to] = [facts.dims(node.inputs[0]!), facts.dims(node.outputs[0]!)];
  const open = (d: Dim) => d === undefined || isUnnamed(d);
  const same = (d: Dim, i: number) => d === to![i] || (open(d) && open(to![i]));
  return from !== undefined && from.length === to?.length && from.every(same);
}

function orders(node: Node, count: number): string[][] {
  const inputs = [...node.inputs].slice(0, count);
  return COMMUTATIVE.has(node.opType) && count === 2 ? [inputs, [...inputs].reverse()] : [inputs];
}

function inOrder<S>(
  operands: readonly Pattern<S>[],
  candidates: readonly string[][],
  start: Found<S>,
  facts: Facts,
): Result<S> {
  let best: Miss | undefined;
  for (const inputs of candidates) {
    let at: Result<S> = start;
    const sequence = [...operands.entries()].sort(
      ([, p], [, q]) => Number('first' in q) - Number('first' in p),
    );
    for (const [i, pattern] of sequence) {
      at = pattern(inputs[i] ?? '', at as Found<S>, facts);
      if (isMiss(at)) break;
    }
    if (!isMiss(at)) return at;
    if (!best || at.depth > best.depth) best = at;
  }
  return best!;
}

function miss<S>(found: Found<S>, reason: string): Miss {
  return { reason, depth: found.nodes.length };
}

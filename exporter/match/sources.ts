import type { Node } from '../ir/index.js';
import type { Facts } from './facts.js';
import { type Heads, tokenAxis } from './sdpa.js';

const PROJECTIONS = new Set([
  'DynamicQuantizeMatMul',
  'MatMul',
  'MatMulBnb4',
  'MatMulIntegerToFloat',
  'Gemm',
  'Conv',
  'Einsum',
  'MatMulNBits',
  'FusedMatMul',
  'MatMulInteger',
  'QLinearMatMul',
]);
const LIMIT = 2000; // nodes walked back before giving up

/**
 * The inputs of the projections behind a value: what multiplies a constant weight on the way back from
 * it, graph inputs where there is no projection. Shape computations are not followed.
 */
export function projectionInputs(value: string, facts: Facts): Set<string> {
  const found = new Set<string>();
  const seen = new Set<string>();
  const stack = [value];
  while (stack.length > 0 && seen.size < LIMIT) {
    const at = stack.pop()!;
    if (!at || seen.has(at)) continue;
    seen.add(at);
    const node = facts.graph.producer(at);
    if (!node) {
      if (!facts.graph.constant(at)) found.add(at);
      continue;
    }
    if (node.is('If')) found.add(at);
    const source = projectionInput(node, facts);
    if (source !== undefined) found.add(source);
    else stack.push(...dataInputs(node));
  }
  return found;
}

/** The same for heads, whose projection may be part of the attention. */
export function sourcesOf(h: Heads, facts: Facts): Set<string> {
  if (!h.weight) return projectionInputs(h.value, facts);
  return new Set([h.quantised ? unquantised(h.value, facts) : h.value]);
}

function projectionInput(node: Node, facts: Facts): string | undefined {
  if (!PROJECTIONS.has(node.opType)) return undefined;
  const [a] = node.inputs;
  const b = node.is('QLinearMatMul') ? node.inputs[3] : node.inputs[1];
  if (weightLike(b, facts)) return unquantised(a!, facts);
  return weightLike(a, facts) && node.is('MatMul') ? b : undefined;
}

/** What was quantised to be multiplied with weights of 8 bits. */
function unquantised(value: string, facts: Facts): string {
  const node = facts.graph.producer(value);
  return node && /^(Dynamic)?QuantizeLinear$/.test(node.opType) ? node.inputs[0]! : value;
}

/** A constant, or a constant behind Cast, Transpose or DequantizeLinear. */
export function weightLike(value: string | undefined, facts: Facts): boolean {
  let at = value ?? '';
  for (let depth = 0; at && depth < 6; depth++) {
    if (facts.graph.constant(at)) return true;
    const node = facts.graph.producer(at);
    if (!node || !/^(Cast|Transpose|Identity|DequantizeLinear|Reshape)$/.test(node.opType))
      return false;
    at = node.inputs[0] ?? '';
  }
  return false;
}

/** Inputs that carry data, not shapes, indices or slice bounds. */
function dataInputs(node: Node): string[] {
  switch (node.opType) {
    case 'Shape':
    case 'If':
      return [];
    case 'Reshape':
    case 'Expand':
    case 'Slice':
    case 'Gather':
    case 'Unsqueeze':
    case 'Squeeze':
    case 'Split':
    case 'Tile':
      return [node.inputs[0]!];
    default:
      return node.inputs.filter((v) => v);
  }
}

/** Keys and values must come from what the queries come from. */
export function crossAttention(q: Heads, k: Heads, v: Heads, facts: Facts): string | undefined {
  const [ofQ, ofK, ofV] = [q, k, v].map((h) => sourcesOf(h, facts));
  const tokens = [q, k].map((h) => facts.dims(h.value)?.[tokenAxis(h)]);
  const sameTokens = tokens[0] !== undefined && tokens[0] === tokens[1];
  const meet = (a: Set<string>, b: Set<string>) =>
    [...a].some((x) => b.has(x) || summands(x, facts).some((y) => b.has(y))) ||
    (sameTokens && [...a].some((x) => [...tokenByToken(x, facts)].some((y) => b.has(y))));
  if (meet(ofQ!, ofV!) && meet(ofK!, ofV!)) return undefined;
  const inputs = [...ofQ!, ...ofK!, ...ofV!].every((x) => facts.graph.isInput(x));
  if (inputs && sameTokens) return undefined;
  const names = (s: Set<string>) => [...s].join(', ') || 'nothing';
  return `cross-attention: queries are made from ${names(ofQ!)}, values from ${names(ofV!)}`;
}

/** What a value is the sum of: DETR adds position embeddings for queries and keys only. */
function summands(value: string, facts: Facts): readonly string[] {
  const node = facts.graph.producer(value);
  return node?.is('Add') ? node.inputs : [];
}

/** What a value is made of without mixing tokens: Conformers rotate hidden states before they project queries and keys. */
function tokenByToken(value: string, facts: Facts): Set<string> {
  const found = new Set<string>();
  const stack = [value];
  while (stack.length > 0 && found.size < 40) {
    const at = stack.pop()!;
    const node = facts.graph.producer(at);
    if (!node || found.has(at)) continue;
    found.add(at);
    if (/^(Add|Cast|Concat|Identity|Mul|Neg|Reshape|Slice|Split|Sub|Transpose)$/.test(node.opType))
      stack.push(...dataInputs(node));
  }
  return found;
}

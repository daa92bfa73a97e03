import type { Facts } from './facts.js';
import { unscale } from './heads.js';
import { lookThrough } from './pattern.js';
import type { Heads, Sdpa } from './sdpa.js';

/**
 * Moves positive constant factors of queries and keys into the scale: BART and Whisper scale queries before they are split into
 * heads, or in front of a fused node. Feature maps get queries and keys as they are, whoever exported them.
 */
export function scaleTakenOut(sdpa: Sdpa, facts: Facts): Sdpa {
  const q = unscaled(sdpa.q, facts);
  // A cache holds keys with their factor.
  const k = sdpa.cache ? { heads: sdpa.k, scale: 1 } : unscaled(sdpa.k, facts);
  return { ...sdpa, q: q.heads, k: k.heads, scale: sdpa.scale * q.scale * k.scale };
}

function unscaled(heads: Heads, facts: Facts): { heads: Heads; scale: number } {
  // A bias comes after the factor; a norm would take it away; before a weight lie hidden states.
  if (heads.bias || heads.norm || heads.weight) return { heads, scale: 1 };
  const own = factorOf(heads.value, facts);
  if (own) return { heads: { ...heads, value: own.value }, scale: own.scale };
  // Where a Reshape into heads is not seen to keep batch and tokens, it stays.
  const { node } = lookThrough(heads.value, facts);
  const view = node?.is('Reshape') || node?.is('Transpose');
  const inner = view ? factorOf(node!.inputs[0]!, facts) : undefined;
  return inner && facts.dtype(inner.value) === facts.dtype(heads.value)
    ? { heads: { ...heads, viewed: { node: node!, value: inner.value } }, scale: inner.scale }
    : { heads, scale: 1 };
}

/** What a value is a multiple of, in the same type and as many dimensions. */
function factorOf(value: string, facts: Facts): { value: string; scale: number } | undefined {
  const found = unscale(value, facts);
  const alike =
    facts.rank(found.value) === facts.rank(value) &&
    facts.dtype(found.value) === facts.dtype(value);
  return found.value !== value && alike && found.scale > 0 && Number.isFinite(found.scale)
    ? found
    : undefined;
}

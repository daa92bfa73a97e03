import type { Node } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import { headsOf, shown, unrepeat } from '../match/heads.js';
import type { Cache, Heads } from '../match/sdpa.js';

/** Keys or values: heads that are known already, or a value whose heads are to be found. */
export type Loose = Heads | { readonly value: string; readonly layout: 'bhtd' | 'bthd' };

/** What `keysAndValues` finds, or why it finds nothing. */
export type KeysAndValues =
  | { readonly k: Heads; readonly v: Heads; readonly cache?: Cache }
  | { readonly reason: string };

/** Undoes repeat_kv and finds the cache, for keys and values alike. */
export function keysAndValues(k: Loose, v: Loose, facts: Facts): KeysAndValues {
  const key = oneSide(k, 'keys', facts);
  if ('reason' in key) return key;
  const value = oneSide(v, 'values', facts);
  if ('reason' in value) return value;
  if ((key.past === undefined) !== (value.past === undefined)) {
    return { reason: 'keys and values must both have a cache, or neither' };
  }
  const stacked = key.entry !== undefined || value.entry !== undefined;
  if (stacked && !paired(key, value)) {
    return { reason: 'a cache that holds both must hold keys first, and values behind them' };
  }
  const cache = key.past !== undefined && {
    ...(stacked && { stacked }),
    pastKey: key.past,
    pastValue: value.past!,
    presentKey: key.present!,
    presentValue: value.present!,
  };
  return { k: key.heads, v: value.heads, ...(cache && { cache }) };
}

/** What is cached of keys or of values; `entry`: where in a cache that holds both. */
interface Carried {
  readonly past: string;
  readonly present: string;
  readonly entry?: number;
}

function paired(key: Partial<Carried>, value: Partial<Carried>): boolean {
  const inOrder = key.entry === 0 && value.entry === 1;
  return inOrder && key.past === value.past && key.present === value.present;
}

function oneSide(
  side: Loose,
  what: string,
  facts: Facts,
): ({ heads: Heads } & Partial<Carried>) | { reason: string } {
  if ('heads' in side) return { heads: side };
  const whole = side.layout === 'bhtd' ? unrepeat(side.value, facts) : side.value;
  const concat = facts.graph.producer(whole);
  if (!concat?.is('Concat')) {
    const heads = headsOf(whole, side.layout, facts);
    return heads
      ? { heads }
      : {
          reason: `${what} '${whole}' must be [B,H,T,D] with known H and D, received [${shown(facts.dims(whole))}]`,
        };
  }
  const axis = concat.int('axis') ?? 0;
  const [past, current] = concat.inputs;
  const overTokens =
    side.layout === 'bhtd' && (axis === 2 || axis === -2) && concat.inputs.length === 2;
  if (!overTokens) {
    // Rotary embeddings end in a Concat over the head dimension.
    const heads = axis === 3 || axis === -1 ? headsOf(whole, side.layout, facts) : undefined;
    return heads
      ? { heads }
      : {
          reason: `${what} come from Concat '${concat.name}' over axis ${axis}, which is no cache [B,H,T,D] over axis 2`,
        };
  }
  const cache = carried(past!, whole, facts);
  if (!cache) {
    return {
      reason: `${what} are concatenated with '${past}', which is not a graph input: only caches that come in as inputs are understood`,
    };
  }
  const heads = headsOf(current!, 'bhtd', facts);
  return heads
    ? { heads, ...cache }
    : {
        reason: `${what} '${current}' must be [B,H,T,D] with known H and D, received [${shown(facts.dims(current!))}]`,
      };
}

/** The graph input behind the cached part, and what goes out; both may be cast (models in half precision whose inputs are not). */
function carried(past: string, whole: string, facts: Facts): Carried | undefined {
  const { graph } = facts;
  if (graph.isInput(past)) return { past, present: whole };
  const cast = graph.producer(past);
  if (cast?.is('Gather')) return entryOf(cast, whole, facts);
  if (!cast?.is('Cast') || !graph.isInput(cast.inputs[0]!)) return undefined;
  const outputs = graph.uses(whole).flatMap(({ node }) => (node.is('Cast') ? node.outputs : []));
  const present = outputs.find((v) => graph.isOutput(v));
  return { past: cast.inputs[0]!, present: present ?? whole };
}

/** GPT-2 of old: past [2,B,H,T,D] is taken apart by Gather, present joined by Unsqueeze and Concat. */
function entryOf(gather: Node, whole: string, facts: Facts): Carried | undefined {
  const { graph } = facts;
  const [past, index] = gather.inputs as [string, string];
  const entry = facts.scalar(index);
  const apart = (gather.int('axis') ?? 0) === 0 && facts.dims(past)?.length === 5;
  if (!graph.isInput(past) || !apart || entry === undefined) return undefined;
  const joined = graph
    .uses(whole)
    .flatMap(({ node }) => (node.is('Unsqueeze') ? graph.uses(node.outputs[0]!) : []))
    .find(({ node, index: at }) => at === entry && isPair(node, facts));
  return joined && { past, present: joined.node.outputs[0]!, entry };
}

/** Does a node join two values to a graph output of rank 5? */
function isPair(node: Node, { graph }: Facts): boolean {
  const joins = node.is('Concat') && node.int('axis') === 0 && node.inputs.length === 2;
  return joins && graph.isOutput(node.outputs[0]!) && graph.uses(node.outputs[0]!).length === 0;
}

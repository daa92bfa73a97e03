import { FlaError } from '../../ops/error.js';
import type { Model, Node } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import type { Runner } from '../match/runner.js';
import { emit, type Target } from './emit.js';
import { type Lifted, lift } from './lift.js';
import { readLoop } from './read_loop.js';
import { readScan } from './read_scan.js';
import { recurrenceOf } from './recurrence.js';
import type { Token, TokenLoop } from './token_loop.js';
import { formOf, tryStep } from './trial.js';

/** What the outside is asked for before `raiseLoop`: shapes that decide, where batch and time may stay open. */
export function loopShapesNeeded(node: Node, facts: Facts): string[] {
  const loops = readings(node, facts);
  if (typeof loops === 'string') return [];
  const [loop] = loops as [TokenLoop];
  const isOpen = (value: string, axis: number) => {
    const dims = facts.dims(value)?.filter((_, d) => d !== axis);
    return dims?.slice(1).some((d) => typeof d !== 'number') ?? true;
  };
  const held = [
    // Where one of two may be the state, the other one's axis of tokens is open.
    ...loops
      .map((l) => l.state.initial)
      .filter((v) => loops.length === 1 || !facts.dims(v)?.every((d) => d !== undefined))
      .map((value) => ({ value, axis: -1 })),
    ...loop.tokens,
  ];
  // What a graph input declares is all that there is to know of it.
  return held
    .filter(({ value, axis }) => isOpen(value, axis) && !facts.graph.root.isInput(value))
    .map(({ value }) => value);
}

function readings(node: Node, facts: Facts): TokenLoop[] | string {
  const loops = node.is('Scan') ? readScan(node) : readLoop(node, facts);
  if (typeof loops === 'string') return loops;
  /** Axes count from the front, once the rank is known. */
  const fromFront = (token: Token): Token => {
    const axis = token.axis < 0 ? token.axis + (facts.rank(token.value) ?? 0) : token.axis;
    return { ...token, axis };
  };
  return loops.map((loop) => ({ ...loop, tokens: loop.tokens.map(fromFront) }));
}

/**
 * Recognises a Scan or Loop over tokens whose body is a linear-attention recurrence, and replaces it by com.fla.LinearAttention.
 *
 * Bodies are written in many ways; so they are not read but tried: run once on random numbers, the results are compared with those of each
 * rule, for each assignment of the inputs to query, key, value, decay (or its exponential) and beta.
 *
 * @returns nothing when it was replaced, or why not
 */
export async function raiseLoop(
  model: Model,
  node: Node,
  facts: Facts,
  runner: Runner,
  target: Target,
): Promise<string | undefined> {
  const loops = readings(node, facts);
  if (typeof loops === 'string') return loops;
  let reason = '';
  for (const loop of loops) {
    const form = formOf(loop, facts);
    if (typeof form === 'string') {
      reason ||= form;
      continue;
    }
    const original: Lifted = { loop, form, emit: (_, tokens) => [...tokens] };
    for (const products of [undefined, false, true]) {
      const lifted = products === undefined ? original : lift(loop, form, facts, products);
      if (!lifted) continue;
      const tried = await tryStep(lifted.loop, lifted.form, facts, runner);
      if (typeof tried === 'string') {
        reason ||= tried;
        break;
      }
      const recurrence = recurrenceOf(tried.step);
      if (recurrence) {
        try {
          emit(model, { original, lifted, tried, recurrence }, facts, target);
          return undefined;
        } catch (error) {
          if (error instanceof FlaError) return error.message;
          throw error;
        }
      }
      reason = 'its body is none of the rules linear, gated, delta and gated_delta';
    }
  }
  return reason;
}

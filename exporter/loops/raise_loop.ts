import { BodyEmitter } from '../../ops/function/emitter.js';
import { linearAttentionFunction } from '../../ops/linear_attention/function.js';
import type { LinearAttentionAttributes } from '../../ops/linear_attention/schema.js';
import { linearAttention } from '../../ops/linear_attention/schema.js';
import { declareFunction } from '../calls.js';
import { type Dim, type Model, makeAttribute, type Node } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import type { Runner } from '../match/runner.js';
import { type Lifted, lift } from './lift.js';
import { readLoop } from './read_loop.js';
import { readScan } from './read_scan.js';
import { type Recurrence, recurrenceOf } from './recurrence.js';
import type { Token, TokenLoop } from './token_loop.js';
import { formOf, product, type Tried, tryStep } from './trial.js';

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
  target: 'auto' | 'com.microsoft' | 'standard',
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
        emit(model, original, lifted, tried, recurrence, facts, target);
        return undefined;
      }
      reason = 'its body is none of the rules linear, gated, delta and gated_delta';
    }
  }
  return reason;
}

function emit(
  model: Model,
  { loop, form: read }: Lifted,
  lifted: Lifted,
  tried: Tried,
  found: Recurrence,
  facts: Facts,
  target: 'auto' | 'com.microsoft' | 'standard',
): void {
  const { form } = lifted;
  const { node, state, output } = loop;
  const { graph } = node;
  const { K, V } = found;
  const opset = model.opset() ?? 1;
  const e = new BodyEmitter(opset, (stem) => graph.fresh(`${node.name}/${stem}`));
  const hasHeads = form.state.length === 4;
  const heads = hasHeads ? form.state[1]! : 1;
  const steps = stepsOf(loop, e);
  const sources = loop.tokens.map(({ value, axis }) =>
    steps && !isLength(loop, facts, value, axis) ? e.window(value, axis, 0, steps) : value,
  );
  const isLifted = lifted.loop !== loop;
  const timeFirst = (x: string, i: number) => {
    const { axis } = loop.tokens[i]!;
    const rest = read.tokens[i]!.map((_, d) => d + +(d >= axis));
    return axis === 0 ? x : e.transpose(x, [axis, ...rest]);
  };
  const values = isLifted ? lifted.emit(e, sources.map(timeFirst)) : sources;
  /** The tokens [B,T,n] that input `i` holds. */
  const packed = (i: number) => {
    const { axis } = lifted.loop.tokens[i]!;
    const x = values[i]!;
    const rank = form.tokens[i]!.length + 1;
    const others = Array.from({ length: rank }, (_, d) => d).filter((d) => d !== axis);
    const perm = [others[0]!, axis, ...others.slice(1)];
    const inOrder = perm.every((d, j) => d === j) ? x : e.transpose(x, perm);
    return e.reshape(inOrder, [0, 0, product(form.tokens[i]!) / form.state[0]!]);
  };
  const swap = (x: string) => (found.transposed ? e.transpose(x, [0, 1, 3, 2]) : x);
  const past = swap(hasHeads ? state.initial : e.unsqueeze(state.initial, 1));
  const query = packed(found.query);
  const decay = found.decay ? logDecay(found.decay, packed, query, e) : '';
  const attributes: LinearAttentionAttributes = {
    q_num_heads: heads * found.group,
    kv_num_heads: heads,
    update_rule: found.rule,
    scale: Math.fround(found.scale),
    chunk_size: 64,
    feature_map: 'identity',
    normalize: 0,
    causal: 1,
    qk_l2norm: 0,
    read: found.read,
  };
  const betaWidth =
    found.beta === undefined ? 0 : product(form.tokens[found.beta]!) / form.state[0]!;
  const body = linearAttentionFunction(
    {
      attributes,
      present: {
        past_state: true,
        decay: decay !== '',
        beta: found.beta !== undefined,
        mask: false,
      },
      ...(found.decay && { decayKind: found.decay.perKey ? 'key' : 'head' }),
      ...(found.beta !== undefined && { betaKind: betaWidth === heads ? 'head' : 'shared' }),
      dtype: 'float32',
      stateDtype: 'float32',
      opset,
      headDimK: K,
      headDimV: V,
    },
    { target },
  );
  const inputs = [
    query,
    packed(found.key),
    packed(found.value),
    past,
    decay,
    found.beta === undefined ? '' : packed(found.beta),
  ];
  const isFinal = hasHeads && !found.transposed && state.final !== '';
  const [y, last] = e.ops(
    'LinearAttention',
    inputs,
    ['output', 'state'].map((stem) =>
      stem === 'state' && isFinal ? state.final : graph.fresh(`${node.name}/${stem}`),
    ),
    {},
    { domain: 'com.fla', overload: body.overload },
  ) as [string, string];
  e.nodes.at(-1)!.attribute = Object.entries(linearAttention.attributes).map(([name, { type }]) => {
    const value = attributes[name as keyof LinearAttentionAttributes];
    return makeAttribute(name, type === 'float' ? { float: value as number } : value);
  });
  writeOutput(loop, tried, y, steps, facts, e);
  if (state.final && !isFinal) {
    const form4 = swap(last);
    if (hasHeads) e.nodes.at(-1)!.output = [state.final];
    else e.reshape(form4, [0, ...form.state.slice(1)], state.final);
  }
  for (const [name, value] of loop.same) e.op('Identity', [value], {}, { output: name });
  const joined = output.result && graph.producer(output.result);
  graph.insert(e.nodes, node);
  graph.remove(joined && joined !== node ? [node, joined] : [node]);
  declareFunction(model, body);
}

/** The number of steps, at least 0, as an int64 vector of one element; undefined when the operator goes over all tokens. */
function stepsOf({ steps }: TokenLoop, e: BodyEmitter): string | undefined {
  if (steps.length === 0) return undefined;
  const all = steps.map((value) => e.op('Reshape', [e.cast(value, 'int64'), e.ints(1)]));
  return e.larger(
    all.reduce((a, b) => e.smaller(a, b)),
    e.ints(0),
  );
}

/** Whether an axis is known to be as long as the loop has steps. */
function isLength({ steps }: TokenLoop, facts: Facts, value: string, axis: number): boolean {
  const length: Dim = facts.graph.dims(value)?.[axis] ?? facts.dims(value)?.[axis];
  const isSure = typeof length === 'string' || facts.graph.dims(value)?.[axis] === length;
  return (
    isSure &&
    steps.length === 1 &&
    length !== undefined &&
    facts.known(steps[0]!)?.items[0] === length
  );
}

function logDecay(
  decay: NonNullable<Recurrence['decay']>,
  packed: (input: number) => string,
  query: string,
  e: BodyEmitter,
): string {
  if ('factors' in decay) {
    const { factors } = decay;
    const tokens = e.slice(e.op('Shape', [query]), 0, 0, 2);
    const logs = e.constant('float32', [...factors].map(Math.log), [1, 1, factors.length]);
    return e.op('Expand', [logs, e.op('Concat', [tokens, e.ints(1)], { axis: 0 })]);
  }
  const given = packed(decay.input);
  return decay.logarithmic ? given : e.op('Log', [e.op('Max', [given, e.scalar(1e-37)])]);
}

/** Outputs [B,T,n] as the loop gives them: the dimensions of a token, with time among them. */
function writeOutput(
  loop: TokenLoop,
  { output: token, axis, keeps }: Tried,
  y: string,
  steps: string | undefined,
  facts: Facts,
  e: BodyEmitter,
): void {
  const { output } = loop;
  if (!output.result) return;
  const isWhole = (initial: string) =>
    keeps === 'before' ? facts.dims(initial)?.[axis] === 0 : isLength(loop, facts, initial, axis);
  const isAll = output.kind !== 'buffer' || isWhole(output.initial);
  const result = isAll ? output.result : undefined;
  const perm = Array.from({ length: token.length + 1 }, (_, d) =>
    d === axis ? 1 : d - +(d > axis) === 0 ? 0 : d - +(d > axis) + 1,
  );
  const wide = [0, 0, ...token.slice(1)];
  const all = perm.every((p, d) => p === d)
    ? e.reshape(y, wide, result)
    : e.op('Transpose', [e.reshape(y, wide)], { perm }, { output: result });
  if (isAll) return;
  if (keeps === 'before') {
    e.op('Concat', [output.initial, all], { axis }, { output: output.result });
  } else {
    const rest = e.op('Slice', [output.initial, steps!, e.ints(2 ** 31 - 1), e.ints(axis)]);
    e.op('Concat', [all, rest], { axis }, { output: output.result });
  }
}

import type { FunctionTarget, OpFunction } from '../../ops/function/define.js';
import { BodyEmitter } from '../../ops/function/emitter.js';
import { linearAttentionFunction } from '../../ops/linear_attention/function.js';
import {
  type LinearAttentionAttributes,
  linearAttention,
} from '../../ops/linear_attention/schema.js';
import { declareFunction } from '../calls.js';
import { type Dim, type Model, makeAttribute } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import type { Lifted } from './lift.js';
import type { Recurrence } from './recurrence.js';
import type { TokenLoop } from './token_loop.js';
import { type Form, product, type Tried } from './trial.js';

/** What the call's function body is made of. */
export type Target = FunctionTarget | 'auto';

/** What is known of a loop that is a recurrence. */
interface Found {
  readonly original: Lifted;
  readonly lifted: Lifted;
  readonly tried: Tried;
  readonly recurrence: Recurrence;
}

/** Writes the call in the place of the loop. @throws FlaError `unsupported` for what a function body for `target` cannot say */
export function emit(model: Model, found: Found, facts: Facts, target: Target): void {
  const { lifted, tried, recurrence } = found;
  const { loop } = found.original;
  const { form } = lifted;
  const { node, state, output } = loop;
  const { graph } = node;
  const opset = model.opset() ?? 1;
  const e = new BodyEmitter(opset, (stem) => graph.fresh(`${node.name}/${stem}`));
  const hasHeads = form.state.length === 4;
  const steps = stepsOf(loop, e);
  const packed = tokensOf(found, steps, facts, e);
  const swap = (x: string) => (recurrence.transposed ? e.transpose(x, [0, 1, 3, 2]) : x);
  const past = swap(hasHeads ? state.initial : e.unsqueeze(state.initial, 1));
  const query = packed(recurrence.query);
  const decay = recurrence.decay ? logDecay(recurrence.decay, packed, query, e) : '';
  const { attributes, body } = callOf(recurrence, form, opset, target);
  const inputs = [
    query,
    packed(recurrence.key),
    packed(recurrence.value),
    past,
    decay,
    recurrence.beta === undefined ? '' : packed(recurrence.beta),
  ];
  const isFinal = hasHeads && !recurrence.transposed && state.final !== '';
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

/** Writes what the call's tokens come from; returns what gives those of an input as [B,T,n]. */
function tokensOf(
  { original, lifted }: Found,
  steps: string | undefined,
  facts: Facts,
  e: BodyEmitter,
): (input: number) => string {
  const { loop, form } = original;
  const sources = loop.tokens.map(({ value, axis }) =>
    steps && !isLength(loop, facts, value, axis) ? e.window(value, axis, 0, steps) : value,
  );
  const timeFirst = (x: string, i: number) => {
    const { axis } = loop.tokens[i]!;
    const rest = form.tokens[i]!.map((_, d) => d + +(d >= axis));
    return axis === 0 ? x : e.transpose(x, [axis, ...rest]);
  };
  const values = lifted === original ? sources : lifted.emit(e, sources.map(timeFirst));
  return (input) => {
    const { axis } = lifted.loop.tokens[input]!;
    const dims = lifted.form.tokens[input]!;
    const others = Array.from({ length: dims.length + 1 }, (_, d) => d).filter((d) => d !== axis);
    const perm = [others[0]!, axis, ...others.slice(1)];
    const isInOrder = perm.every((d, j) => d === j);
    const x = isInOrder ? values[input]! : e.transpose(values[input]!, perm);
    return e.reshape(x, [0, 0, product(dims) / lifted.form.state[0]!]);
  };
}

/** Attributes of the call, and its function body. */
function callOf(
  found: Recurrence,
  form: Form,
  opset: number,
  target: Target,
): { attributes: LinearAttentionAttributes; body: OpFunction } {
  const heads = form.state.length === 4 ? form.state[1]! : 1;
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
        decay: found.decay !== undefined,
        beta: found.beta !== undefined,
        mask: false,
      },
      ...(found.decay && { decayKind: found.decay.perKey ? 'key' : 'head' }),
      ...(found.beta !== undefined && { betaKind: betaWidth === heads ? 'head' : 'shared' }),
      dtype: 'float32',
      stateDtype: 'float32',
      opset,
      headDimK: found.K,
      headDimV: found.V,
    },
    { target },
  );
  return { attributes, body };
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

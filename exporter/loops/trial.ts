import { DATA_TYPE, type Dim, Graph, makeNode, makeValueInfo } from '../ir/index.js';
import { Facts } from '../match/facts.js';
import type { Runner, RunTensor } from '../match/runner.js';
import { feedsFor, inputShapes, type Situation } from '../match/situation.js';
import { cutOut } from '../match/submodel.js';
import { seededRandom } from '../random.js';
import { close, type Step } from './recurrence.js';
import type { Token, TokenLoop } from './token_loop.js';

/** The shapes of a loop, open dimensions having a length for a trial. */
export interface Form {
  readonly state: readonly number[];
  /** Of a token, without the axis of tokens. */
  readonly tokens: readonly (readonly number[])[];
}

/** What a step of a loop did. */
export interface Tried {
  readonly step: Step;
  /** A token's output, and the axis that tokens have in the result. */
  readonly output: readonly number[];
  readonly axis: number;
  /** A result that is carried: what it starts with stays before the outputs, or where no output is written. */
  readonly keeps?: 'before' | 'rest';
}

const BATCH = 2;
const LARGEST = 2 ** 24; // elements of a state or token in a trial: many times those of a real one
const BUFFER = 3; // length of a carried result in a trial

/** The shapes of a loop's state and tokens, or what is wrong with them. */
export function formOf(loop: TokenLoop, facts: Facts): Form | string {
  const stateDims = facts.dims(loop.state.initial);
  if (!stateDims || stateDims.length < 3 || stateDims.length > 4) {
    return `its state must be [B,H,K,V] or [N,K,V], received [${stateDims ?? 'unknown'}]`;
  }
  const state = numbers(stateDims);
  const tokens: number[][] = [];
  for (const { value, axis } of loop.tokens) {
    const dims = facts.dims(value);
    if (!dims) return `the shape of '${value}' must be known`;
    const token = numbers(dims.filter((_, d) => d !== axis));
    if (token[0] !== state[0] && typeof dims.find((_, d) => d !== axis) !== 'number')
      token[0] = state[0]!; // the batch, which may be open in one of both
    if (token[0] !== state[0])
      return `'${value}' must hold [${state[0]}, ...] a token, received [${token}]`;
    tokens.push(token);
  }
  if ([state, ...tokens].flat().some((d) => !(d >= 1)))
    return 'all its dimensions but batch and time must be known';
  const other = [loop.state.initial, ...loop.tokens.map((t) => t.value)].find(
    (v) => (facts.dtype(v) ?? 'float32') !== 'float32',
  );
  if (other) return `'${other}' must be float32, received ${facts.dtype(other)}`;
  return facts.dtype(loop.state.initial)
    ? { state, tokens }
    : `its state must be float32, received an unknown type`;
}

const numbers = (dims: readonly Dim[]): number[] =>
  dims.map((d, i) => (typeof d === 'number' ? d : i === 0 ? BATCH : Number.NaN));

/** Runs one step of a loop on random numbers, or says why that is impossible. */
export async function tryStep(
  loop: TokenLoop,
  form: Form,
  facts: Facts,
  runner: Runner,
): Promise<Tried | string> {
  const { output } = loop;
  if (output.kind !== 'buffer') {
    const ran = await runStep(loop, form, facts, runner);
    if (typeof ran === 'string') return ran;
    const { dims, data } = ran.output;
    if (output.kind === 'stack') {
      const axis = output.axis < 0 ? output.axis + dims.length + 1 : output.axis;
      return { step: { ...ran.step, output: data }, output: dims, axis };
    }
    const axis = output.axis < 0 ? output.axis + dims.length : output.axis;
    if (dims[axis] !== 1)
      return `its outputs, of length ${dims[axis]}, are joined along axis ${axis}`;
    return { step: { ...ran.step, output: data }, output: without(dims, axis), axis };
  }
  const dims = facts.dims(output.initial);
  if (!dims) return `the shape of '${output.initial}' must be known`;
  let failed = 'no axis of it is that of tokens';
  for (const axis of dims.keys()) {
    const shape = dims.map((d, i) =>
      typeof d === 'number' && (d > 1 || i !== axis)
        ? d
        : i === axis
          ? BUFFER
          : i === 0 || (axis === 0 && i === 1)
            ? form.state[0]!
            : Number.NaN,
    );
    if (shape.some(Number.isNaN)) continue;
    const ran = await runStep(loop, form, facts, runner, { shape, axis });
    if (typeof ran === 'string') failed = ran;
    else {
      const {
        step,
        output: { data },
        keeps,
      } = ran;
      return { step: { ...step, output: data }, output: without(shape, axis), axis, keeps };
    }
  }
  return `'${output.initial}' does not collect an output a token: ${failed}`;
}

const without = (dims: readonly number[], axis: number) => dims.filter((_, d) => d !== axis);

interface Ran {
  readonly step: Omit<Step, 'output'>;
  readonly output: { readonly dims: readonly number[]; readonly data: Float32Array };
  readonly keeps?: Tried['keeps'];
}

/** What goes to the place of two different tokens in a carried result must be the same. */
async function runStep(
  loop: TokenLoop,
  form: Form,
  facts: Facts,
  runner: Runner,
  buffer?: Buffer,
): Promise<Ran | string> {
  const runs: Ran[] = [];
  for (const count of buffer ? [0, buffer.shape[buffer.axis]! - 1] : [0]) {
    const ran = await runOnce(loop, form, facts, runner, count, buffer);
    if (typeof ran === 'string') return ran;
    runs.push(ran);
  }
  const [first, second] = runs as [Ran, Ran | undefined];
  if (
    second &&
    !(close(first.output.data, second.output.data) && close(first.step.after, second.step.after))
  )
    return 'what it writes depends on the number of the token';
  return second ?? first;
}

interface Buffer {
  readonly shape: readonly number[];
  readonly axis: number;
}

async function runOnce(
  loop: TokenLoop,
  form: Form,
  outer: Facts,
  runner: Runner,
  count: number,
  buffer?: Buffer,
): Promise<Ran | string> {
  const { body, state, tokens, output } = loop;
  const shapes = [form.state, ...form.tokens, ...(buffer ? [buffer.shape] : [])];
  const large = shapes.find((dims) => product(dims) > LARGEST);
  if (large)
    return `its body cannot be tried: at most ${LARGEST} elements expected, received [${large}]`;
  const random = seededRandom(7);
  const floats = (dims: readonly number[], next = random): RunTensor => ({
    ...{ type: 'float32', dims },
    data: Float32Array.from({ length: product(dims) }, () => 1.8 * next() - 0.9),
  });
  const feeds = new Map<string, RunTensor>([[state.before, floats(form.state)]]);
  for (const [i, token] of tokens.entries()) {
    feeds.set(token.name, floats(tokenDims(token, form.tokens[i]!)));
  }
  const [before, ...inputs] = [...feeds.values()].map((t) => t.data as Float32Array);
  for (const name of loop.counters) {
    const dims = body.dims(name)?.length === 1 ? [1] : [];
    const dtype = body.dtype(name) === 'int32' ? 'int32' : 'int64';
    const data = dtype === 'int32' ? Int32Array.of(count) : BigInt64Array.of(BigInt(count));
    feeds.set(name, { type: dtype, dims, data });
  }
  if (buffer && output.kind === 'buffer')
    feeds.set(output.before, floats(buffer.shape, seededRandom(count + 1)));
  const wanted = [state.after, output.value];
  const results = await runBody(loop, feeds, wanted, outer, situationOf(form), runner);
  if (typeof results === 'string') return results;
  const [after, y] = results as [RunTensor, RunTensor];
  const step = { state: form.state, before: before!, inputs, after: after.data as Float32Array };
  if (!buffer || output.kind !== 'buffer')
    return { step, output: { dims: y.dims, data: y.data as Float32Array } };
  const written = addedTo(feeds.get(output.before)!, y, buffer.axis, count);
  return typeof written === 'string' ? written : { step, ...written };
}

/** What a step added to a carried result: a slice behind it, or one of its slices. */
function addedTo(
  before: RunTensor,
  after: RunTensor,
  axis: number,
  count: number,
): Pick<Ran, 'output' | 'keeps'> | string {
  const length = before.dims[axis]!;
  const grown = after.dims[axis]! - length;
  const same = after.dims.every((d, i) => i === axis || d === before.dims[i]);
  if (after.dims.length !== before.dims.length || !same || (grown !== 0 && grown !== 1))
    return `[${before.dims}] becomes [${after.dims}]`;
  const slot = grown === 1 ? length : count;
  const inner = product(before.dims.slice(axis + 1));
  const outer = product(before.dims.slice(0, axis));
  const data = new Float32Array(outer * inner);
  for (let o = 0; o < outer; o++) {
    for (let t = 0; t < length + grown; t++) {
      for (let i = 0; i < inner; i++) {
        const x = after.data[(o * (length + grown) + t) * inner + i] as number;
        if (t === slot) data[o * inner + i] = x;
        else if (x !== before.data[(o * length + t) * inner + i])
          return 'more than one of its slices changes';
      }
    }
  }
  return {
    output: { dims: without(before.dims, axis), data },
    keeps: grown === 1 ? 'before' : 'rest',
  };
}

/** The body of a loop as a graph of its own, tokens being inputs, with the shapes of a trial. */
export function bodyGraph(
  { body, reads, again }: TokenLoop,
  inputs: Iterable<readonly [name: string, { type: string; dims: readonly number[] }]>,
  outer: Facts,
  situation: Situation,
): { graph: Graph; facts: Facts } {
  const all = [...inputs];
  const cut = new Set(reads.map((n) => n.proto));
  const graph = new Graph(
    {
      ...body.proto,
      node: [
        ...again.map(([name, token]) => makeNode('Identity', [token], [name])),
        ...body.proto.node.filter((n) => !cut.has(n)),
      ],
      input: all.map(([name, { type, dims }]) =>
        makeValueInfo(name, DATA_TYPE[type as 'float32'], dims),
      ),
      valueInfo: [],
    },
    body.model,
    body.parent,
  );
  const shapes = inputShapes(body.parent!, situation);
  const around = outer.graph.parent ? outer : Facts.of(outer.graph, shapes);
  const own = Object.fromEntries(all.map(([name, { dims }]) => [name, dims]));
  return { graph, facts: new Facts(graph, own, around) };
}

/** A made-up call of a model for a loop of that form. */
export const situationOf = ({ state }: Form): Situation => ({
  batch: state[0]!,
  tokens: 5,
  past: 2,
});

/** A token in a trial: its axis of tokens stays where the body wants that. */
export function tokenDims({ axis, kept }: Token, dims: readonly number[]): readonly number[] {
  return kept ? dims.toSpliced(axis, 0, 1) : dims;
}

/** Runs the body of a loop as a model of its own. */
async function runBody(
  loop: TokenLoop,
  feeds: ReadonlyMap<string, RunTensor>,
  wanted: readonly string[],
  outer: Facts,
  situation: Situation,
  runner: Runner,
): Promise<RunTensor[] | string> {
  const { body, state, output, counters } = loop;
  const { graph, facts } = bodyGraph(loop, feeds, outer, situation);
  const model = cutOut(graph, { values: wanted }, facts);
  if (typeof model === 'string') return `its body cannot be tried: ${model}`;
  // Only the place in a carried result may depend on how many tokens there were.
  const results = output.kind === 'buffer' ? [state.after] : wanted;
  const cutResults = cutOut(graph, { values: results }, facts);
  if (typeof cutResults !== 'string' && counters.some((c) => cutResults.valueInputs.includes(c)))
    return 'what it computes depends on the number of the token';
  const captured = model.inputs.filter((name) => !feeds.has(name));
  const read = captured.find((name) => model.valueInputs.includes(name));
  if (read) return `its body reads '${read}' from outside`;
  const shapes = inputShapes(body.parent!, situation);
  const others = feedsFor(body.parent!, captured, shapes, situation);
  if (typeof others === 'string') return `its body cannot be tried: ${others}`;
  try {
    const given = Object.fromEntries([...feeds].filter(([name]) => model.inputs.includes(name)));
    const names = wanted.map((name) => model.outputs.get(name)!);
    const ran = await runner.run(model.bytes, { ...given, ...others }, names);
    return names.map((name) => ran[name]!);
  } catch (error) {
    return `its body cannot be tried: ${(error as Error).message.split('\n')[0]}`;
  }
}

export const product = (dims: readonly number[]) => dims.reduce((x, y) => x * y, 1);

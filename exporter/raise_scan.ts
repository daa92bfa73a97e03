import { BodyEmitter } from '../ops/function/emitter.js';
import { linearAttentionFunction } from '../ops/linear_attention/function.js';
import type { LinearAttentionAttributes, UpdateRule } from '../ops/linear_attention/schema.js';
import { linearAttention } from '../ops/linear_attention/schema.js';
import { declareFunction } from './calls.js';
import { type DTypeName, type Model, makeAttribute, type Node } from './ir/index.js';
import { Facts } from './match/facts.js';
import type { Runner, RunTensor } from './match/runner.js';
import { cutOut } from './match/submodel.js';
import { seededRandom } from './random.js';

/** How a Scan, one token a step, is a LinearAttention. Indices are those of its scan inputs. */
interface Recurrence {
  readonly rule: UpdateRule;
  readonly query: number;
  readonly key: number;
  readonly value: number;
  readonly decay?: {
    readonly input: number;
    readonly logarithmic: boolean;
    readonly perKey: boolean;
  };
  readonly beta?: number;
  readonly read: 'after' | 'before';
  readonly scale: number;
  /** The state is kept as [..., V, K]. */
  readonly transposed: boolean;
}

/** Shapes of a Scan: `lead` are batch and heads, or one dimension for both. */
interface Form {
  readonly state: readonly number[];
  readonly lead: readonly number[];
  readonly steps: readonly (readonly number[])[];
  readonly axes: readonly number[];
  readonly outputAxis: number;
  readonly output: readonly number[];
}

const BATCH = 2;
const TOLERANCE = 1e-4;

/**
 * Recognises a Scan over tokens whose body is a linear-attention recurrence, and replaces it by com.fla.LinearAttention.
 *
 * Bodies are written in many ways; so it is not read but tried: run once on random numbers, its results are compared with those of each rule,
 * for each assignment of its inputs to query, key, value, decay (or its exponential) and beta.
 *
 * @returns nothing when it was replaced, or why not
 */
export async function raiseScan(
  model: Model,
  node: Node,
  facts: Facts,
  runner: Runner,
  target: 'auto' | 'com.microsoft' | 'standard',
): Promise<string | undefined> {
  const opset = model.opset() ?? 1;
  const [body] = node.subgraphs;
  const count = node.int('num_scan_inputs');
  const states = node.inputs.length - (count ?? 0);
  if (!body || opset < 9 || count === undefined) return 'it is no Scan of opset 9 or later';
  if (states !== 1 || node.outputs.length !== 2 || !node.outputs[1]) {
    return `it must have one state and one output a token, received ${states} and ${node.outputs.length - states}`;
  }
  const forward = [
    ...(node.ints('scan_input_directions') ?? []),
    ...(node.ints('scan_output_directions') ?? []),
  ];
  if (forward.some((d) => d !== 0)) return 'it runs backwards';
  const form = formOf(node, facts, count);
  if (typeof form === 'string') return form;
  const dtype = facts.dtype(node.inputs[0]!) as DTypeName | undefined;
  if (dtype !== 'float32')
    return `its state must be float32, received ${dtype ?? 'an unknown type'}`;
  const found = await recognise(node, form, runner);
  if (typeof found === 'string') return found;
  emit(model, node, { ...form, output: found.output }, found.recurrence, opset, target);
  return undefined;
}

function formOf(node: Node, facts: Facts, count: number): Omit<Form, 'output'> | string {
  const numbers = (dims: readonly unknown[]) =>
    dims.map((d, i) => (typeof d === 'number' ? d : i === 0 ? BATCH : Number.NaN));
  const stateDims = facts.dims(node.inputs[0]!);
  if (!stateDims || stateDims.length < 3 || stateDims.length > 4) {
    return `its state must be [B,H,K,V] or [N,K,V], received [${stateDims ?? 'unknown'}]`;
  }
  const state = numbers(stateDims);
  const lead = state.slice(0, -2);
  const given = node.ints('scan_input_axes') ?? [];
  const steps: number[][] = [];
  const axes: number[] = [];
  for (let i = 0; i < count; i++) {
    const name = node.inputs[1 + i]!;
    const dims = facts.dims(name);
    if (!dims) return `the shape of '${name}' must be known`;
    const axis = ((given[i] ?? 0) + dims.length) % dims.length;
    const step = numbers(dims.filter((_, d) => d !== axis));
    step[0] = lead[0]!; // the batch, which may be open in one of both
    if (step.slice(0, lead.length).some((d, j) => d !== lead[j])) {
      return `'${name}' must hold [${lead}, ...] a token, received [${step}]`;
    }
    steps.push(step);
    axes.push(axis);
  }
  if ([state, ...steps].flat().some((d) => !(d >= 1)))
    return 'all its dimensions but batch and time must be known';
  return { state, lead, steps, axes, outputAxis: node.ints('scan_output_axes')?.[0] ?? 0 };
}

/** Runs the body once and looks for the rule that gives the same. */
async function recognise(
  node: Node,
  form: Omit<Form, 'output'>,
  runner: Runner,
): Promise<{ recurrence: Recurrence; output: readonly number[] } | string> {
  const [body] = node.subgraphs;
  const names = body!.inputs.map((i) => i.name);
  const shapes = Object.fromEntries(
    names.map((name, i) => [name, [form.state, ...form.steps][i]!]),
  );
  const cut = cutOut(body!, { values: body!.outputs.map((o) => o.name) }, new Facts(body!, shapes));
  if (typeof cut === 'string') return `its body cannot be tried: ${cut}`;
  const outside = cut.inputs.find((name) => !names.includes(name));
  if (outside) return `its body reads '${outside}' from outside`;
  const random = seededRandom(7);
  const feeds = names.map((name): [string, RunTensor] => {
    const dims = shapes[name]!;
    const data = Float32Array.from({ length: product(dims) }, () => 1.8 * random() - 0.9);
    return [name, { type: 'float32', dims, data }];
  });
  let results: Record<string, RunTensor>;
  const wanted = body!.outputs.map((o) => cut.outputs.get(o.name)!);
  try {
    results = await runner.run(
      cut.bytes,
      Object.fromEntries(feeds.filter(([n]) => cut.inputs.includes(n))),
      wanted,
    );
  } catch (error) {
    return `its body cannot be tried: ${(error as Error).message.split('\n')[0]}`;
  }
  const [after, output] = wanted.map((name) => results[name]!);
  const data = feeds.map(([, t]) => t.data as Float32Array);
  const recurrence = search(form, data, after!.data as Float32Array, output!.data as Float32Array);
  return recurrence
    ? { recurrence, output: output!.dims }
    : 'its body is none of the rules linear, gated, delta and gated_delta';
}

function search(
  form: Omit<Form, 'output'>,
  [state, ...steps]: readonly Float32Array[],
  after: Float32Array,
  output: Float32Array,
): Recurrence | undefined {
  const N = product(form.lead);
  const widths = form.steps.map((s) => product(s) / N);
  const inputs = widths.map((_, i) => i);
  const [a, b] = form.state.slice(-2) as [number, number];
  for (const transposed of [false, true]) {
    const [K, V] = transposed ? [b, a] : [a, b];
    const at = (n: number, i: number, j: number) =>
      n * a * b + (transposed ? j * b + i : i * b + j);
    if (output.length !== N * V) continue;
    for (const [key, value, query] of permutations(inputs, 3)) {
      if (widths[key!] !== K || widths[value!] !== V || widths[query!] !== K) continue;
      const rest = inputs.filter((i) => i !== key && i !== value && i !== query);
      for (const { decay, beta } of gates(rest, widths, K)) {
        const factor = (n: number, i: number) => {
          if (!decay) return 1;
          const x = steps[decay.input]![decay.perKey ? n * K + i : n]!;
          return decay.logarithmic ? Math.exp(x) : x;
        };
        const next = new Float64Array(state!.length);
        for (let n = 0; n < N; n++) {
          for (let j = 0; j < V; j++) {
            let write = steps[value!]![n * V + j]!;
            if (beta !== undefined) {
              for (let i = 0; i < K; i++)
                write -= factor(n, i) * state![at(n, i, j)]! * steps[key!]![n * K + i]!;
              write *= steps[beta]![n]!;
            }
            for (let i = 0; i < K; i++) {
              next[at(n, i, j)] =
                factor(n, i) * state![at(n, i, j)]! + steps[key!]![n * K + i]! * write;
            }
          }
        }
        if (!close(after, next)) continue;
        for (const read of ['after', 'before'] as const) {
          const from = read === 'after' ? next : state!;
          const y = new Float64Array(N * V);
          for (let n = 0; n < N; n++) {
            for (let j = 0; j < V; j++) {
              for (let i = 0; i < K; i++)
                y[n * V + j]! += from[at(n, i, j)]! * steps[query!]![n * K + i]!;
            }
          }
          const scale = dot(output, y) / dot(y, y);
          if (
            !close(
              output,
              y.map((x) => x * scale),
            )
          )
            continue;
          const rule =
            beta === undefined ? (decay ? 'gated' : 'linear') : decay ? 'gated_delta' : 'delta';
          return {
            rule,
            query: query!,
            key: key!,
            value: value!,
            decay,
            beta,
            read,
            scale,
            transposed,
          };
        }
      }
    }
  }
  return undefined;
}

type Gates = Pick<Recurrence, 'decay' | 'beta'>;

/** What the inputs left over may be: every one of them has to be something. */
function* gates(rest: readonly number[], widths: readonly number[], K: number): Iterable<Gates> {
  const decays = (input: number) =>
    [true, false].flatMap((logarithmic) => [
      ...(widths[input] === 1 ? [{ input, logarithmic, perKey: false }] : []),
      ...(widths[input] === K ? [{ input, logarithmic, perKey: true }] : []),
    ]);
  if (rest.length === 0) yield {};
  if (rest.length === 1) {
    for (const decay of decays(rest[0]!)) yield { decay };
    if (widths[rest[0]!] === 1) yield { beta: rest[0]! };
  }
  if (rest.length === 2) {
    for (const [d, beta] of permutations(rest, 2)) {
      if (widths[beta!] === 1) for (const decay of decays(d!)) yield { decay, beta };
    }
  }
}

function emit(
  model: Model,
  node: Node,
  form: Form,
  found: Recurrence,
  opset: number,
  target: 'auto' | 'com.microsoft' | 'standard',
): void {
  const { graph } = node;
  const e = new BodyEmitter(opset, (stem) => graph.fresh(`${node.name}/${stem}`));
  const heads = form.lead.length === 2 ? form.lead[1]! : 1;
  const [a, b] = form.state.slice(-2) as [number, number];
  const [K, V] = found.transposed ? [b, a] : [a, b];
  /** A scan input as [B,T,H*n]. */
  const packed = (i: number) => {
    const rank = form.steps[i]!.length + 1;
    const axis = form.axes[i]!;
    const others = Array.from({ length: rank }, (_, d) => d).filter((d) => d !== axis);
    const perm = [others[0]!, axis, ...others.slice(1)];
    const x = node.inputs[1 + i]!;
    const inOrder = perm.every((d, j) => d === j) ? x : e.transpose(x, perm);
    return e.reshape(inOrder, [0, 0, product(form.steps[i]!) / form.lead[0]!]);
  };
  const swap = (x: string) => (found.transposed ? e.transpose(x, [0, 1, 3, 2]) : x);
  const past = node.inputs[0]!;
  const past4 = swap(form.lead.length === 2 ? past : e.unsqueeze(past, 1));
  const direct = found.decay && packed(found.decay.input);
  const decay = !direct
    ? ''
    : found.decay!.logarithmic
      ? direct
      : e.op('Log', [e.op('Max', [direct, e.scalar(1e-37)])]);
  const attributes: LinearAttentionAttributes = {
    q_num_heads: heads,
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
  const body = linearAttentionFunction(
    {
      attributes,
      present: {
        past_state: true,
        decay: decay !== '',
        beta: found.beta !== undefined,
        mask: false,
      },
      ...(decay && { decayKind: found.decay!.perKey ? 'key' : 'head' }),
      ...(found.beta !== undefined && { betaKind: 'head' }),
      dtype: 'float32',
      stateDtype: 'float32',
      opset,
      headDimK: K,
      headDimV: V,
    },
    { target },
  );
  const inputs = [
    packed(found.query),
    packed(found.key),
    packed(found.value),
    past4,
    decay,
    found.beta === undefined ? '' : packed(found.beta),
  ];
  const [y, state] = e.ops(
    'LinearAttention',
    inputs,
    2,
    {},
    { domain: 'com.fla', overload: body.overload },
  );
  e.nodes.at(-1)!.attribute = Object.entries(linearAttention.attributes).map(([name, { type }]) => {
    const value = attributes[name as keyof LinearAttentionAttributes];
    return makeAttribute(name, type === 'float' ? { float: value as number } : value);
  });
  // [B,T,H*V] as the Scan has it: the dimensions of a token, with time among them.
  const step = [...form.output];
  const rank = step.length + 1;
  const axis = (form.outputAxis + rank) % rank;
  const wide = e.reshape(y!, [0, 0, ...step.slice(1)]); // [B,T,...]
  const perm = Array.from({ length: rank }, (_, d) =>
    d === axis ? 1 : d - +(d > axis) === 0 ? 0 : d - +(d > axis) + 1,
  );
  e.op('Transpose', [wide], { perm }, { output: node.outputs[1]! });
  if (node.outputs[0]) {
    const last = form.lead.length === 2 ? swap(state!) : e.squeeze(swap(state!), 1);
    e.op('Identity', [last], {}, { output: node.outputs[0] });
  }
  graph.insert(e.nodes, node);
  graph.remove([node]);
  declareFunction(model, body);
}

function close(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length) return false;
  let size = 0;
  let difference = 0;
  for (let i = 0; i < a.length; i++) {
    size = Math.max(size, Math.abs(b[i]!));
    difference = Math.max(difference, Math.abs(a[i]! - b[i]!));
  }
  return difference <= TOLERANCE * size;
}

function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

const product = (dims: readonly number[]) => dims.reduce((x, y) => x * y, 1);

function* permutations(items: readonly number[], count: number): Iterable<number[]> {
  if (count === 0) return yield [];
  for (const item of items) {
    for (const others of permutations(
      items.filter((i) => i !== item),
      count - 1,
    ))
      yield [item, ...others];
  }
}

/**
 * `npm run bench:hybrid [-- --threads 1]`: com.fla.HybridAttention on the CPU against LinearAttention, which knows the far part only,
 * and against its own function body in the stock runtime. One-node models in one process, calls of ours and of one peer interleaved.
 */
import { parseArgs } from 'node:util';
import Table from 'cli-table3';
import * as ort from 'onnxruntime-node';
import { buildModel, makeNode, modelBytes, type ValueSpec } from '../../exporter/ir/index.js';
import { checkAttributes, type OpSchema } from '../../ops/define.js';
import {
  type HybridOptionalInput,
  hybridAttentionFunction,
} from '../../ops/hybrid_attention/function.js';
import {
  type HybridAttentionAttributeInput,
  hybridAttention,
} from '../../ops/hybrid_attention/schema.js';
import { nativeInfo } from '../../runtime/node/index.js';
import { interleaved, type Row } from '../results.js';
import { copyBandwidth, OPTIONS, random, record } from './shared.js';

const { values: flags } = parseArgs({ options: OPTIONS });
const threads = Number(flags.threads);
const [H, d, window, sinks] = [8, 64, 64, 4];
const LENGTHS = [1, 4096, 16384];

interface Config {
  name: string;
  /** Columns of the weights; none without weights. */
  M?: number;
  attributes: Pick<HybridAttentionAttributeInput, 'feature_map' | 'signs'>;
}

const CONFIGS: readonly Config[] = [
  { name: 'exp', attributes: { feature_map: 'exp', signs: 1 } },
  { name: 'Hedgehog, 64 features', M: 32, attributes: { feature_map: 'exp', signs: 2 } },
  { name: 'Hedgehog, 128 features', M: 64, attributes: { feature_map: 'exp', signs: 2 } },
];

const tokens: ValueSpec = ['float32', ['B', 'T', H * d]];
const float = (...dims: (string | number)[]): ValueSpec => ['float32', dims];
const tensor = (data: Float32Array, shape: readonly number[]) =>
  new ort.Tensor('float32', data, [...shape]);
const size = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

interface Runner {
  run: () => Promise<void>;
  states: readonly (readonly number[])[];
  output: ort.Tensor;
  release: () => Promise<void>;
}

/** Runs a model whose states go back and forth between two buffers each. */
async function runner(
  model: Uint8Array,
  provider: 'fla' | 'cpu',
  feeds: Record<string, ort.Tensor>,
  states: Record<string, readonly number[]>,
): Promise<Runner> {
  const session = await ort.InferenceSession.create(model, {
    executionProviders: [provider],
    intraOpNumThreads: threads,
  });
  const { dims } = feeds.query!;
  const output = tensor(new Float32Array(size(dims)), dims);
  const buffers = () =>
    Object.entries(states).map(
      ([name, shape]) => [name, tensor(new Float32Array(size(shape)), shape)] as const,
    );
  let [from, to] = [buffers(), buffers()];
  const named = (prefix: string, all: typeof from) =>
    Object.fromEntries(all.map(([name, x]) => [`${prefix}_${name}`, x]));
  const run = async () => {
    await session.run({ ...feeds, ...named('past', from) }, { output, ...named('present', to) });
    [from, to] = [to, from];
  };
  return { run, states: Object.values(states), output, release: () => session.release() };
}

const heads = { q_num_heads: H, kv_num_heads: H };

/** The far part alone, over all tokens; `normalized` with the same features and a denominator. */
function linearRunner(feeds: Record<string, ort.Tensor>, normalized: boolean): Promise<Runner> {
  const { query, key, value } = feeds as Record<'query' | 'key' | 'value', ort.Tensor>;
  const state = [1, H, d, d + Number(normalized)];
  const attributes = {
    ...{ ...heads, update_rule: 'linear', scale: { float: 0 }, chunk_size: 64, causal: 1 },
    ...{ feature_map: normalized ? 'exp' : 'identity', normalize: Number(normalized) },
    ...{ qk_l2norm: 0, read: 'after' },
  };
  const model = buildModel({
    inputs: { query: tokens, key: tokens, value: tokens, past_state: float(...state) },
    outputs: { output: tokens, present_state: float(...state) },
    nodes: [
      makeNode(
        'LinearAttention',
        ['query', 'key', 'value', 'past_state', '', '', ''],
        ['output', 'present_state'],
        attributes,
        { domain: 'com.fla' },
      ),
    ],
    opsets: { '': 17, 'com.fla': 1 },
  });
  return runner(modelBytes(model), 'fla', { query, key, value }, { state });
}

/** HybridAttention by our kernel, or by its function body in the stock runtime. */
function hybridRunner(
  config: Config,
  feeds: Record<string, ort.Tensor>,
  provider: 'fla' | 'cpu',
): Promise<Runner> {
  const states = {
    window: [1, H, sinks + window + 1, 2 * d],
    state: [1, H, (config.M ?? d) * config.attributes.signs!, d + 1],
  };
  const given = [...Object.keys(feeds), 'past_window', 'past_state'];
  const attributes = checkAttributes(hybridAttention, {
    ...{ ...heads, window, sinks },
    ...config.attributes,
  });
  const schema: OpSchema = hybridAttention;
  const optional = schema.inputs.filter((input) => input.optional);
  const body = hybridAttentionFunction({
    attributes,
    present: Object.fromEntries(optional.map(({ name }) => [name, given.includes(name)])) as Record<
      HybridOptionalInput,
      boolean
    >,
    ...{ dtype: 'float32', windowDtype: 'float32', opset: 17 },
  });
  const written = Object.entries(attributes).map(([name, value]) => [
    name,
    schema.attributes[name]!.type === 'float' ? { float: value as number } : value,
  ]);
  const shapes = { ...states };
  const model = buildModel({
    inputs: {
      ...{ query: tokens, key: tokens, value: tokens },
      ...(config.M && { query_weight: float(H, d, config.M), key_weight: float(H, d, config.M) }),
      past_window: float(...shapes.window),
      past_state: float(...shapes.state),
    },
    outputs: {
      output: tokens,
      present_window: float(...shapes.window),
      present_state: float(...shapes.state),
    },
    nodes: [
      makeNode(
        'HybridAttention',
        schema.inputs.map(({ name }) => (given.includes(name) ? name : '')),
        ['output', 'present_window', 'present_state'],
        Object.fromEntries(written),
        { domain: 'com.fla', overload: body.overload },
      ),
    ],
    functions: [body.fn],
    opsets: body.opsets,
  });
  return runner(modelBytes(model), provider, feeds, states);
}

function feedsOf({ M }: Config, T: number): Record<string, ort.Tensor> {
  const draw = (high: number, ...shape: number[]) =>
    tensor(random(size(shape), -high, high), shape);
  return {
    ...{ query: draw(1, 1, T, H * d), key: draw(1, 1, T, H * d), value: draw(1, 1, T, H * d) },
    ...(M && { query_weight: draw(0.2, H, d, M), key_weight: draw(0.2, H, d, M) }),
  };
}

/** Kernel and body must compute the same. */
function checkSame(a: ort.Tensor, b: ort.Tensor): void {
  const [x, y] = [a.data as Float32Array, b.data as Float32Array];
  const off = x.reduce((worst, e, i) => Math.max(worst, Math.abs(e - y[i]!)), 0);
  if (!(off < 1e-4)) throw new Error(`kernel and function body differ by ${off}`);
}

async function measure(config: Config, T: number, copy: number): Promise<Row[]> {
  const feeds = feedsOf(config, T);
  const ours = await hybridRunner(config, feeds, 'fla');
  await ours.run();
  const inputs = Object.values(feeds).reduce((sum, x) => sum + x.size, 0);
  const carried = ours.states.reduce((sum, shape) => sum + 2 * size(shape), 0);
  nativeInfo();
  await ours.run();
  const base = {
    ...{ op: `HybridAttention (${config.name})`, B: 1, T, H, K: d, V: d, dtype: 'float32' },
    mode: T === 1 ? 'decode' : 'prefill',
    bytes: 4 * (inputs + T * H * d + carried),
    workspace_bytes: nativeInfo().ops.workspace_peak as number,
  };
  const rows: Row[] = [];
  const against = async (peer: string, { run, release }: Runner) => {
    const [ms, peer_ms] = (await interleaved([ours.run, run], {
      budgetMs: T > 1 ? 2000 : 800,
    })) as [number, number];
    await release();
    const fraction_of_copy = base.bytes / (ms / 1000) / copy;
    rows.push({ ...base, ms, fraction_of_copy, peer, peer_ms, ratio: peer_ms / ms });
  };
  await against('LinearAttention (exp, normalize)', await linearRunner(feeds, true));
  await against('LinearAttention (no features, no normalizer)', await linearRunner(feeds, false));
  const body = await hybridRunner(config, feeds, 'cpu');
  const fresh = await hybridRunner(config, feeds, 'fla');
  await body.run();
  await fresh.run();
  checkSame(fresh.output, body.output);
  await fresh.release();
  await against('its function body in stock onnxruntime-node', body);
  await ours.release();
  return rows;
}

const copy = copyBandwidth();
const rows: Row[] = [];
for (const config of CONFIGS) {
  for (const T of LENGTHS) {
    process.stderr.write(`${config.name}, T=${T}\n`);
    rows.push(...(await measure(config, T, copy)));
  }
}
const result = record(
  `cpu-hybrid-${threads}t`,
  `HybridAttention with a window of ${window} and ${sinks} sinks, batch 1, float32, ${threads === 1 ? 'one thread' : `${threads} threads`}, states ` +
    'carried in and out, outputs preallocated; ours and one peer at a time interleaved in one process through the same ONNX Runtime, ' +
    'medians of wall time including the JavaScript call. LinearAttention does less: it has no window. Its ratio below 1 is the price of the window.',
  copy,
  rows,
);
const table = new Table({ head: ['op', 'T', 'ms', 'peer', 'peer ms', 'ratio', 'ours / peer'] });
for (const r of result.rows) {
  table.push([r.op, r.T, r.ms, r.peer, r.peer_ms, r.ratio, (r.ms / r.peer_ms!).toFixed(2)]);
}
console.log(table.toString());

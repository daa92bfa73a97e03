/**
 * `npm run bench:cpu [-- --quick] [-- --only linear,gated_delta]`: com.fla.LinearAttention on the
 * CPU against com.microsoft.LinearAttention and causal com.microsoft.MultiHeadAttention, as
 * single-node models in one process, through the same ONNX Runtime and the same JavaScript path,
 * calls of ours and of one peer interleaved.
 */
import { parseArgs } from 'node:util';
import cliProgress from 'cli-progress';
import Table from 'cli-table3';
import * as ort from 'onnxruntime-node';
import { buildModel, makeNode, modelBytes, type ValueSpec } from '../../exporter/ir/index.js';
import { nativeInfo } from '../../runtime/node/index.js';
import { interleaved, median, type Row } from '../results.js';
import { copyBandwidth, OPTIONS, random, record } from './shared.js';

const RULES = ['linear', 'gated', 'gated_per_key', 'delta', 'gated_delta'] as const;
type Rule = (typeof RULES)[number];

interface Shape {
  T: number;
  H: number;
  d: number;
}

const { values: flags } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    only: { type: 'string' },
    ...OPTIONS,
  },
});
const threads = Number(flags.threads);
const lengths = flags.quick ? [1, 128, 1024] : [1, 128, 1024, 4096, 16384, 65536];
const heads = flags.quick ? [8] : [8, 32];
const dims = flags.quick ? [64] : [64, 128];
const rules = RULES.filter((r) => !flags.only || flags.only.split(',').includes(r));
/** Softmax attention holds T x T scores per head; it is run where they fit into this many bytes. */
const SOFTMAX_MAX_BYTES = 9e9;
/** Tokens in the cache that a decode step of softmax attention reads. */
const SOFTMAX_CACHE = 4096;

const float = (dims: (string | number)[]): ValueSpec => ['float32', dims];

/** A one-node model of LinearAttention in either domain. */
function linearModel(domain: 'com.fla' | 'com.microsoft', rule: Rule, { H, d }: Shape): Uint8Array {
  const update = rule === 'gated_per_key' ? 'gated' : rule;
  const decay = update.startsWith('gated');
  const beta = update.includes('delta');
  const ours = domain === 'com.fla';
  const node = makeNode(
    'LinearAttention',
    [
      'query',
      'key',
      'value',
      'past_state',
      decay ? 'decay' : '',
      beta ? 'beta' : '',
      ...(ours ? [''] : []),
    ],
    ['output', 'present_state'],
    {
      q_num_heads: H,
      kv_num_heads: H,
      update_rule: update,
      scale: { float: 0 },
      ...(ours && {
        chunk_size: 64,
        feature_map: 'identity',
        normalize: 0,
        causal: 1,
        qk_l2norm: 0,
        read: 'after',
      }),
    },
    { domain },
  );
  return modelBytes(
    buildModel({
      inputs: {
        query: float(['B', 'T', H * d]),
        key: float(['B', 'T', H * d]),
        value: float(['B', 'T', H * d]),
        past_state: float(['B', H, d, d]),
        ...(decay && { decay: float(['B', 'T', rule === 'gated_per_key' ? H * d : H]) }),
        ...(beta && { beta: float(['B', 'T', H]) }),
      },
      outputs: { output: float(['B', 'T', H * d]), present_state: float(['B', H, d, d]) },
      nodes: [node],
      opsets: { '': 17, [domain]: 1 },
    }),
  );
}

/**
 * A one-node model of causal softmax attention. A decode step (T = 1) takes a cache and gives back
 * the longer one, as exported decoders do.
 */
function softmaxModel({ T, H, d }: Shape): Uint8Array {
  const cached = T === 1;
  const cache = float(['B', H, 'P', d]);
  const pasts = cached ? ['', '', '', 'past_key', 'past_value'] : [];
  const presents = cached ? ['present_key', 'present_value'] : [];
  return modelBytes(
    buildModel({
      inputs: {
        query: float(['B', 'T', H * d]),
        key: float(['B', 'T', H * d]),
        value: float(['B', 'T', H * d]),
        ...(cached && { past_key: cache, past_value: cache }),
      },
      outputs: {
        output: float(['B', 'T', H * d]),
        ...(cached && {
          present_key: float(['B', H, 'N', d]),
          present_value: float(['B', H, 'N', d]),
        }),
      },
      nodes: [
        makeNode(
          'MultiHeadAttention',
          ['query', 'key', 'value', ...pasts],
          ['output', ...presents],
          { num_heads: H, unidirectional: 1 },
          { domain: 'com.microsoft' },
        ),
      ],
      opsets: { '': 17, 'com.microsoft': 1 },
    }),
  );
}

/** Random inputs; keys and queries of unit length, as the delta rules need to stay bounded. */
function inputs(rule: Rule, { T, H, d }: Shape): Record<string, ort.Tensor> {
  const tensor = (data: Float32Array, ...shape: number[]) => new ort.Tensor('float32', data, shape);
  const a = Math.sqrt(3 / d); // variance 1/d: unit length on average
  const decays: Partial<Record<Rule, number>> = { gated: H, gated_delta: H, gated_per_key: H * d };
  const width = decays[rule];
  return {
    query: tensor(random(T * H * d, -a, a), 1, T, H * d),
    key: tensor(random(T * H * d, -a, a), 1, T, H * d),
    value: tensor(random(T * H * d, -1, 1), 1, T, H * d),
    ...(width && { decay: tensor(random(T * width, -0.1, 0), 1, T, width) }),
    ...(rule.includes('delta') && { beta: tensor(random(T * H, 0, 1), 1, T, H) }),
  };
}

/** Inputs of softmax attention: the same query, key and value, and at T = 1 a cache. */
function softmaxFeeds(
  feeds: Record<string, ort.Tensor>,
  { T, H, d }: Shape,
): Record<string, ort.Tensor> {
  const { query, key, value } = feeds as Record<'query' | 'key' | 'value', ort.Tensor>;
  if (T > 1) return { query, key, value };
  const cache = () =>
    new ort.Tensor('float32', random(H * SOFTMAX_CACHE * d, -1, 1), [1, H, SOFTMAX_CACHE, d]);
  return { query, key, value, past_key: cache(), past_value: cache() };
}

interface Runner {
  run: () => Promise<unknown>;
  output: ort.Tensor;
  release: () => Promise<void>;
}

/** A session whose run writes into preallocated outputs, state going back and forth in two buffers. */
async function runner(
  model: Uint8Array,
  feeds: Record<string, ort.Tensor>,
  shape: Shape,
): Promise<Runner> {
  const session = await ort.InferenceSession.create(model, {
    executionProviders: ['fla'],
    intraOpNumThreads: threads,
  });
  const { T, H, d } = shape;
  const state = () => new ort.Tensor('float32', new Float32Array(H * d * d), [1, H, d, d]);
  const output = new ort.Tensor('float32', new Float32Array(T * H * d), [1, T, H * d]);
  const stateful = session.inputNames.includes('past_state');
  const grown = () =>
    new ort.Tensor('float32', new Float32Array(H * (SOFTMAX_CACHE + 1) * d), [
      1,
      H,
      SOFTMAX_CACHE + 1,
      d,
    ]);
  const caches: Record<string, ort.Tensor> = session.outputNames.includes('present_key')
    ? { present_key: grown(), present_value: grown() }
    : {};
  let [from, to] = [state(), state()];
  const run = async () => {
    if (!stateful) return session.run(feeds, { output, ...caches });
    await session.run({ ...feeds, past_state: from }, { output, present_state: to });
    [from, to] = [to, from];
  };
  return { run, output, release: () => session.release() };
}

/** Largest difference of two outputs over the largest value: both sides must compute the same. */
function difference(a: ort.Tensor, b: ort.Tensor): number {
  const [x, y] = [a.data as Float32Array, b.data as Float32Array];
  let worst = 0;
  let top = 0;
  for (let i = 0; i < x.length; i++) {
    worst = Math.max(worst, Math.abs(x[i]! - y[i]!));
    top = Math.max(top, Math.abs(x[i]!));
  }
  return worst / top;
}

async function measure(rule: Rule, shape: Shape, copy: number): Promise<Row[]> {
  const { T, H, d } = shape;
  const feeds = inputs(rule, shape);
  const ours = await runner(linearModel('com.fla', rule, shape), feeds, shape);
  const theirs = await runner(linearModel('com.microsoft', rule, shape), feeds, shape);
  await ours.run();
  await theirs.run();
  const off = difference(ours.output, theirs.output);
  if (!(off < 1e-3)) throw new Error(`${rule} ${JSON.stringify(shape)}: outputs differ by ${off}`);
  const work = T * H * d * d;
  const effort = { budgetMs: work > 1e9 ? 2000 : 800, minRounds: work > 1e9 ? 3 : 5 };
  const floats =
    Object.values(feeds).reduce((sum, t) => sum + t.size, 0) + T * H * d + 2 * H * d * d;
  const base = {
    op: `LinearAttention ${rule}`,
    B: 1,
    T,
    H,
    K: d,
    V: d,
    dtype: 'float32',
    mode: T === 1 ? 'decode' : 'prefill',
    bytes: 4 * floats,
    workspace_bytes: await workspace(ours.run),
  };
  // One peer at a time: the threads of three sessions would spin in each other's way.
  const against = async (peer: string, { run, release }: Runner): Promise<Row> => {
    const [ms, peer_ms] = (await interleaved([ours.run, run], effort)) as [number, number];
    await release();
    const fraction_of_copy = base.bytes / (ms / 1000) / copy;
    return { ...base, ms, fraction_of_copy, peer, peer_ms, ratio: peer_ms / ms };
  };
  const rows = [await against('com.microsoft.LinearAttention', theirs)];
  if (rule === 'linear' && H * T * T * 4 <= SOFTMAX_MAX_BYTES) {
    const softmax = await runner(softmaxModel(shape), softmaxFeeds(feeds, shape), shape);
    await softmax.run();
    if (T > 1) checkCausal(softmax.output, feeds.value!, H * d);
    rows.push(await against('com.microsoft.MultiHeadAttention (causal)', softmax));
  }
  await ours.release();
  return rows;
}

/** The first token of causal attention sees nothing but itself: its output is its value. */
function checkCausal(output: ort.Tensor, value: ort.Tensor, width: number): void {
  const [o, v] = [output, value].map((x) => (x.data as Float32Array).subarray(0, width));
  if (o!.some((x, i) => Math.abs(x - v![i]!) > 1e-5)) throw new Error('softmax is not causal');
}

/** The most work memory that our kernel held at one time during a call. */
async function workspace(run: () => Promise<unknown>): Promise<number> {
  nativeInfo();
  await run();
  return nativeInfo().ops.workspace_peak as number;
}

const copy = copyBandwidth();
const plan = rules.flatMap((rule) =>
  heads.flatMap((H) => dims.flatMap((d) => lengths.map((T) => ({ rule, shape: { T, H, d } })))),
);
const bar = new cliProgress.SingleBar(
  { format: 'bench {bar} {value}/{total} {what}', stream: process.stderr, clearOnComplete: true },
  cliProgress.Presets.shades_grey,
);
bar.start(plan.length, 0, { what: '' });
const rows: Row[] = [];
for (const { rule, shape } of plan) {
  bar.update({ what: `${rule} T=${shape.T} H=${shape.H} d=${shape.d}` });
  rows.push(...(await measure(rule, shape, copy)));
  bar.increment();
}
bar.stop();

const result = record(
  flags.quick || flags.only ? 'cpu-partial' : 'cpu',
  `One-node models, batch 1, float32, ${threads} threads, state carried in and out, outputs preallocated; ` +
    'ours and one peer at a time interleaved in one process through the same ONNX Runtime, medians of wall time ' +
    'including the JavaScript call. Copy bandwidth is one typed-array copy on one thread. ' +
    `Softmax attention is quadratic in T and was run where its scores fit into ${SOFTMAX_MAX_BYTES / 1e9} GB; its ` +
    `decode step reads a cache of ${SOFTMAX_CACHE} tokens.`,
  copy,
  rows,
);
const table = new Table({ head: ['op', 'T', 'H', 'd', 'ms', 'peer', 'peer ms', 'ratio'] });
for (const r of result.rows) {
  table.push([r.op, r.T, r.H, r.K, r.ms, r.peer, r.peer_ms ?? '-', r.ratio ?? '-']);
}
console.log(table.toString());
for (const peer of new Set(rows.map((r) => r.peer))) {
  const ratios = rows.filter((r) => r.peer === peer).map((r) => r.ratio!);
  console.log(
    `${peer}: ratio min ${Math.min(...ratios).toFixed(2)}, median ${median(ratios).toFixed(2)}, max ${Math.max(...ratios).toFixed(1)}`,
  );
}

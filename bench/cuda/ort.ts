/**
 * LinearAttention on a GPU through ONNX Runtime and the Node backend, tensors on the device, each peer in the same run:
 *
 * - the operator alone, against com.microsoft.LinearAttention
 * - the rewritten test language model: prefill of 128K tokens and decoding, against the same file without the operator
 *   library (its bodies call com.microsoft.LinearAttention) and against the softmax model that it was made from
 *
 *   npm run build:cuda && node dist/bench/cuda/ort.js [--quick] [--out <folder>]
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { loadModel, rewriteModel, saveModel } from '../../exporter/index.js';
import { buildModel, makeNode, modelBytes, type ValueSpec } from '../../exporter/ir/index.js';
import {
  FlaSession,
  type NativeTensor,
  nativeInfo,
  StatefulSession,
} from '../../runtime/node/index.js';
import { TINYLM } from '../../test/support/models.js';
import { commit, median, type ResultFile, type Row, writeResults } from '../results.js';

const { values: flags } = parseArgs({
  options: { quick: { type: 'boolean', default: false }, out: { type: 'string' } },
});
const device = { name: 'fla', device: 'cuda' } as const;
/** ONNX Runtime warns that nodes which compute with shapes are on the CPU. */
const quiet = { logSeverityLevel: 3 } as const;
const rows: Row[] = [];
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'onnx-fla-bench-'));

/** Median milliseconds of calls for about half a second; a run returns when the GPU is done. */
async function time(run: () => Promise<unknown>): Promise<number> {
  const samples: number[] = [];
  const step = async () => {
    const start = performance.now();
    await run();
    return performance.now() - start;
  };
  // The first runs load modules, choose algorithms, and capture CUDA graphs.
  for (let i = 0; i < 3; i++) await step();
  const end = performance.now() + 500;
  while (samples.length < 5 || performance.now() < end) samples.push(await step());
  return median(samples);
}

// ---- copy bandwidth ----

async function copyBandwidth(): Promise<number> {
  const n = 2 ** 29;
  const model = modelBytes(
    buildModel({
      inputs: { x: ['float32', [n]] },
      outputs: { y: ['float32', [n]] },
      nodes: [makeNode('Identity', ['x'], ['y'])],
    }),
  );
  const session = await FlaSession.create(model, { executionProviders: [device], ...quiet });
  const x = session.zeros('float32', [n]);
  const y = session.zeros('float32', [n]);
  const noise = Float32Array.from({ length: 2 ** 16 }, (_, i) => Math.sin(i * 12.9898));
  for (let i = 0; i < n; i += noise.length) x.write(noise, i * 4);
  const ms = await time(() => session.run({ x }, { y }));
  x.dispose();
  y.dispose();
  await session.dispose();
  return (2 * 4 * n) / (ms / 1000);
}

// ---- one operator ----

type Domain = 'com.fla' | 'com.microsoft';
interface Shape {
  rule: string;
  B: number;
  T: number;
  H: number;
  d: number;
}

/** Decay per head for com.fla; com.microsoft's CUDA kernel takes the same shape. */
function operatorModel(domain: Domain, { rule, B, T, H, d }: Shape): Uint8Array {
  const wide: ValueSpec = ['float16', [B, T, H * d]];
  const gate: ValueSpec = ['float16', [B, T, H]];
  const state: ValueSpec = ['float16', [B, H, d, d]];
  const decay = rule.startsWith('gated') ? 'decay' : '';
  const beta = rule.endsWith('delta') ? 'beta' : '';
  return modelBytes(
    buildModel({
      opsets: { '': 17, [domain]: 1 },
      inputs: {
        query: wide,
        key: wide,
        value: wide,
        past_state: state,
        ...(decay && { decay: gate }),
        ...(beta && { beta: gate }),
      },
      outputs: { output: wide, present_state: state },
      nodes: [
        makeNode(
          'LinearAttention',
          ['query', 'key', 'value', 'past_state', decay, beta],
          ['output', 'present_state'],
          { q_num_heads: H, kv_num_heads: H, update_rule: rule, scale: { float: 1 / d } },
          { domain },
        ),
      ],
    }),
  );
}

/** float16 bits of numbers in [2^(e-15), 2^(e-14)), either sign unless `negative` says which. */
function halves(length: number, e: number, negative?: boolean): Uint16Array {
  let seed = length;
  return Uint16Array.from({ length }, () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const sign = negative === undefined ? seed & 0x8000 : negative ? 0x8000 : 0;
    return sign | (e << 10) | ((seed >>> 20) & 0x3ff);
  });
}

/** Keys shorter than 1, so that the delta rules stay bounded; decays about -0.05, betas about 0.4. */
function contents(name: string, size: number): Uint16Array {
  if (name === 'decay') return halves(size, 10, true);
  if (name === 'beta') return halves(size, 13, false);
  return halves(size, name === 'key' ? 11 : 13);
}

async function operatorTime(domain: Domain, shape: Shape, graph: boolean): Promise<number> {
  const session = await FlaSession.create(operatorModel(domain, shape), {
    executionProviders: [{ ...device, cuda: { enable_cuda_graph: graph } }],
    ...quiet,
  });
  const tensors: Record<string, NativeTensor> = {};
  for (const { name, type, shape: dims } of [...session.inputs, ...session.outputs]) {
    const tensor = session.zeros(type!, dims as number[]);
    if (session.inputNames.includes(name)) tensor.assign(contents(name, tensor.size));
    tensors[name] = tensor;
  }
  const pick = (names: readonly string[]) =>
    Object.fromEntries(names.map((name) => [name, tensors[name]]));
  const run = () => session.run(pick(session.inputNames), pick(session.outputNames));
  const ms = await time(run);
  for (const tensor of Object.values(tensors)) tensor.dispose();
  await session.dispose();
  return ms;
}

async function operators(copy: number): Promise<void> {
  const rules = ['linear', 'gated', 'delta', 'gated_delta'];
  const shapes: Shape[] = [
    ...rules.map((rule) => ({ rule, B: 1, T: 65536, H: 8, d: 64 })),
    ...rules.map((rule) => ({ rule, B: 1, T: 1, H: 32, d: 128 })),
    { rule: 'gated_delta', B: 64, T: 1, H: 32, d: 128 },
  ];
  for (const shape of flags.quick ? shapes.slice(0, 1) : shapes) {
    const { rule, B, T, H, d } = shape;
    const peer_ms = await operatorTime('com.microsoft', shape, false);
    for (const graph of [false, true]) {
      const ms = await operatorTime('com.fla', shape, graph);
      const gates = (rule.startsWith('gated') ? 1 : 0) + (rule.endsWith('delta') ? 1 : 0);
      const bytes = 2 * (B * T * H * (4 * d + gates) + 2 * B * H * d * d);
      rows.push({
        op: rule,
        B,
        T,
        H,
        K: d,
        V: d,
        dtype: 'float16',
        mode: `${T === 1 ? 'decode' : 'prefill'} through ORT${graph ? ', CUDA graph' : ''}`,
        ms,
        peer: 'com.microsoft.LinearAttention',
        peer_ms,
        ratio: peer_ms / ms,
        bytes,
        fraction_of_copy: bytes / (ms / 1000) / copy,
        workspace_bytes: null,
      });
      console.log(JSON.stringify(rows.at(-1)));
    }
  }
}

// ---- a language model ----

interface Contestant {
  name: string;
  file: string;
  library?: false;
  /** Tokens per run of the prefill. */
  chunk: number;
}

interface Timing {
  prefill: number;
  /** Milliseconds per token. */
  decode: number;
}

/** Prefill of `tokens` tokens (median of three, after one to warm up) and then single steps, on one session. */
async function languageModel(
  { file, library, chunk }: Contestant,
  tokens: number,
): Promise<Timing> {
  const session = await StatefulSession.create(file, {
    executionProviders: [{ ...device, library }],
    ...quiet,
  });
  const ids = BigInt64Array.from({ length: tokens }, (_, i) => BigInt((i * 7919 + 11) % 2048));
  const prefills: number[] = [];
  for (let run = 0; run < 4; run++) {
    await session.reset();
    const start = performance.now();
    await session.prefill(ids, { chunk });
    prefills.push(performance.now() - start);
  }
  const steps: number[] = [];
  for (let step = 0; step < 200; step++) {
    const start = performance.now();
    await session.step(step);
    steps.push(performance.now() - start);
  }
  await session.dispose();
  return { prefill: median(prefills.slice(1)), decode: median(steps) };
}

async function languageModels(copy: number): Promise<void> {
  const tokens = flags.quick ? 8192 : 131072;
  for (const variant of ['linear', 'retention', 'gated-delta'] as const) {
    const file = path.join(folder, `${variant}.onnx`);
    const model = loadModel(TINYLM.modelKv);
    const gates = { default: { decay: { constant: -0.05 }, beta: { constant: 0.6 } } };
    await rewriteModel(model, {
      variant,
      gates: variant === 'gated-delta' ? gates : undefined,
      body: 'com.microsoft',
    });
    saveModel(model, file);
    const ours = await languageModel({ name: variant, file, chunk: 32768 }, tokens);
    const peers: Contestant[] = [
      { name: 'com.microsoft.LinearAttention', file, library: false, chunk: 32768 },
      ...(variant === 'linear'
        ? [{ name: 'original softmax model', file: TINYLM.modelKv, chunk: 2048 }]
        : []),
    ];
    for (const peer of peers) {
      const note = `chunks of ${peer.chunk} tokens`;
      const theirs = await languageModel(peer, tokens).catch((error: Error) => error);
      modelRow(variant, 'prefill', tokens, ours, theirs, peer.name, copy, note);
      modelRow(variant, 'decode', 1, ours, theirs, peer.name, copy, `after ${tokens} tokens`);
    }
  }
}

/** Bytes: the weights as float32 and the four layers' states, read once, and the logits of one position. */
const WEIGHT_BYTES = 4 * 2.9e6;

function modelRow(
  variant: string,
  mode: 'prefill' | 'decode',
  T: number,
  ours: Timing,
  theirs: Timing | Error,
  peer: string,
  copy: number,
  note: string,
): void {
  const ms = ours[mode];
  const peer_ms = theirs instanceof Error ? null : theirs[mode];
  const bytes = WEIGHT_BYTES + 4 * 2 * (2 * 64 * 65 * 4) + 2048 * 4;
  rows.push({
    op: `tinylm ${variant}`,
    B: 1,
    T,
    H: 4,
    K: 64,
    V: 64,
    dtype: 'float32',
    mode: `model, ${mode}`,
    ms,
    peer,
    peer_ms,
    ratio: peer_ms === null ? null : peer_ms / ms,
    bytes,
    fraction_of_copy: bytes / (ms / 1000) / copy,
    workspace_bytes: null,
    note: theirs instanceof Error ? theirs.message.slice(0, 200) : note,
  });
  console.log(JSON.stringify(rows.at(-1)));
}

const info = nativeInfo();
const copy = await copyBandwidth();
console.log(`copy ${(copy / 1e12).toFixed(2)} TB/s`);
await languageModels(copy);
await operators(copy);
fs.rmSync(folder, { recursive: true });
const result: ResultFile = {
  name: 'cuda-ort',
  about:
    'Through ONNX Runtime and the Node backend, tensors on the GPU; wall-clock time of a run until the GPU is done, JavaScript included, medians. ' +
    'Copy bandwidth: Identity, from one tensor of 2 GiB to another.',
  machine: process.env.FLA_MACHINE ?? 'gpu',
  device: process.env.FLA_GPU ?? 'CUDA device 0',
  date: new Date().toISOString().slice(0, 10),
  commit: process.env.FLA_COMMIT ?? commit(),
  versions: { 'onnx-fla': String(info.ops.version), onnxruntime: info.runtime.version },
  copy_bytes_per_second: copy,
  rows,
};
if (flags.out) {
  fs.mkdirSync(flags.out, { recursive: true });
  fs.writeFileSync(path.join(flags.out, 'cuda-ort.json'), JSON.stringify(result, null, 2));
} else {
  console.log(writeResults(result));
}
process.exit(0);

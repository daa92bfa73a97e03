/**
 * LinearAttention on a GPU through ONNX Runtime, tensors on the device, each peer in the same run:
 *
 * - the operator alone, against com.microsoft.LinearAttention, without a language binding in between (ort_op.cc)
 * - the rewritten test language model through the Node backend: prefill of 128K tokens and decoding, against the same file
 *   without the operator library (its bodies call com.microsoft.LinearAttention) and against the softmax model that it was
 *   made from
 */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { loadModel, rewriteModel, saveModel } from '../../exporter/index.js';
import { buildModel, makeNode, modelBytes, type ValueSpec } from '../../exporter/ir/index.js';
import { ortLibrary } from '../../runtime/node/addon.js';
import { FlaSession, nativeInfo, StatefulSession } from '../../runtime/node/index.js';
import { TINYLM } from '../../test/support/models.js';
import { commit, median, type ResultFile, type Row } from '../results.js';

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

/** The latest row, for whoever waits. */
function progress(): void {
  const row = rows.at(-1)!;
  const ms = (n: number | null) => n?.toPrecision(3);
  process.stderr.write(
    `${row.op} ${row.B}x${row.T}x${row.H}x${row.K}, ${row.mode}: ${ms(row.ms)} ms, ${row.peer} ${ms(row.peer_ms)} ms\n`,
  );
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

function operators(program: string, copy: number): void {
  const { library: operatorLibrary } = nativeInfo();
  const rules = ['linear', 'gated', 'delta', 'gated_delta'];
  // From process to process a call of one token moves by 2 us: the median of five.
  const processes = ({ B, T }: Shape) => (B * T === 1 ? 5 : 1);
  const shapes: Shape[] = [
    ...rules.map((rule) => ({ rule, B: 1, T: 65536, H: 8, d: 64 })),
    ...rules.map((rule) => ({ rule, B: 1, T: 1, H: 32, d: 128 })),
    ...['linear', 'gated_delta'].map((rule) => ({ rule, B: 64, T: 1, H: 32, d: 128 })),
  ];
  const time = (domain: Domain, shape: Shape) => {
    const file = path.join(folder, 'op.onnx');
    fs.writeFileSync(file, operatorModel(domain, shape));
    const library = domain === 'com.fla' ? [operatorLibrary] : [];
    const args = [ortLibrary(), file, '500', ...library];
    const text = execFileSync(program, args, { encoding: 'utf8' });
    return JSON.parse(text) as { ms: number; chained_ms: number };
  };
  for (const shape of shapes) {
    const { rule, B, T, H, d } = shape;
    const runs = Array.from({ length: processes(shape) }, () => ({
      theirs: time('com.microsoft', shape),
      ours: time('com.fla', shape),
    }));
    const middle = (side: 'ours' | 'theirs', what: 'ms' | 'chained_ms') =>
      median(runs.map((run) => run[side][what]));
    const spread = (side: 'ours' | 'theirs') => {
      const us = runs.map((run) => 1000 * run[side].ms);
      return `${Math.min(...us).toFixed(1)} to ${Math.max(...us).toFixed(1)} us`;
    };
    const gates = (rule.startsWith('gated') ? 1 : 0) + (rule.endsWith('delta') ? 1 : 0);
    const bytes = 2 * (B * T * H * (4 * d + gates) + 2 * B * H * d * d);
    const entry = (mode: string, ms: number, peer_ms: number): Row => ({
      op: rule,
      B,
      T,
      H,
      K: d,
      V: d,
      dtype: 'float16',
      mode,
      ms,
      peer: 'com.microsoft.LinearAttention',
      peer_ms,
      ratio: peer_ms / ms,
      bytes,
      fraction_of_copy: bytes / (ms / 1000) / copy,
      workspace_bytes: null,
      ...(runs.length > 1 && {
        note: `${runs.length} processes: ${spread('ours')} against ${spread('theirs')}`,
      }),
    });
    const mode = `${T === 1 ? 'decode' : 'prefill'} through ORT`;
    rows.push(entry(mode, middle('ours', 'ms'), middle('theirs', 'ms')));
    rows.push(
      entry(
        `${mode}, runs back to back`,
        middle('ours', 'chained_ms'),
        middle('theirs', 'chained_ms'),
      ),
    );
    progress();
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

/** Prefill of `tokens` tokens (median of up to three, after one to warm up) and then single steps, on one session. */
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
  const enough = performance.now() + 4000;
  for (let run = 0; run < 4 && (run < 2 || performance.now() < enough); run++) {
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
  const tokens = 131072;
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
  progress();
}

/** @param program ort_op, built */
export async function benchOrt(program: string): Promise<ResultFile> {
  const info = nativeInfo();
  const copy = await copyBandwidth();
  operators(program, copy);
  await languageModels(copy);
  fs.rmSync(folder, { recursive: true });
  return {
    name: 'cuda-ort',
    about:
      'Through ONNX Runtime, tensors on the GPU. The operator alone: C API with bound tensors, from the call until the GPU is done (medians), and back to back without waiting in between. ' +
      'The language model: Node backend, JavaScript included; prefill is the median of three (fewer where they take seconds) after one to warm up, decode that of 200 single tokens. ' +
      'Copy bandwidth: Identity, from one tensor of 2 GiB to another.',
    machine: process.env.FLA_MACHINE ?? 'gpu',
    device: process.env.FLA_GPU ?? 'CUDA device 0',
    date: new Date().toISOString().slice(0, 10),
    commit: process.env.FLA_COMMIT ?? commit(),
    versions: { 'onnx-fla': String(info.ops.version), onnxruntime: info.runtime.version },
    copy_bytes_per_second: copy,
    rows,
  };
}

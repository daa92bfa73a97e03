/**
 * `npm run bench:webgpu -- --browser`: the op and the small language model in Chromium, ours against onnxruntime-web's WebGPU bundle, on one
 * adapter in one run.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { chromium } from 'playwright-core';
import { createServer } from 'vite';
import { loadModel, rewriteModel, saveModel } from '../../exporter/index.js';
import { ROOT, TINYLM } from '../../test/support/models.js';
import { commit, packageVersion, type ResultFile, type Row, writeResults } from '../results.js';
import type { Bench, Candidate } from './page/page.js';
import { type Shape, tensorShapes } from './peer.js';

declare global {
  var bench: Bench;
}

export interface BrowserOptions {
  readonly software: boolean;
  readonly seconds: number;
  readonly rules: readonly string[];
  readonly dims: readonly number[];
  readonly lengths: readonly number[];
  readonly heads: number;
  readonly name: string;
}

const PEER = 'com.microsoft.LinearAttention';
const MODEL_PEERS = [
  'onnxruntime-web alone, the same file',
  'onnxruntime-web alone, the original with its KV cache',
];
const CHUNK = 512;
const precise = (n: number) => Number(n.toPrecision(4));
const sizeOf = (dims: readonly number[]) => dims.reduce((a, b) => a * b, 1);

const COMMON = [
  '--no-sandbox',
  '--no-first-run',
  '--disable-background-networking',
  '--enable-unsafe-webgpu',
];
const GPU_FLAGS = ['--ignore-gpu-blocklist', '--enable-features=Vulkan', '--use-angle=vulkan'];

/** The sources and the models, served to the browser. */
async function startServer(folder: string) {
  const server = await createServer({
    root: ROOT,
    configFile: false,
    logLevel: 'error',
    appType: 'mpa',
    cacheDir: path.join(folder, '.vite'),
    server: { port: 0, hmr: false, watch: null, fs: { allow: [ROOT, folder] } },
    optimizeDeps: { include: ['protobufjs', '@petamoriken/float16'], noDiscovery: true },
  });
  await server.listen();
  const { port } = server.httpServer!.address() as { port: number };
  return { server, origin: `http://localhost:${port}` };
}

/** The small language model as it is, and with every layer's attention replaced by the gated delta rule. */
async function makeModels(folder: string): Promise<void> {
  const model = loadModel(TINYLM.modelKv);
  await rewriteModel(model, {
    variant: 'gated-delta',
    gates: { default: { decay: { constant: -0.1 }, beta: { constant: 1 } } },
  });
  saveModel(model, path.join(folder, 'rewritten.onnx'));
}

async function openBrowser(software: boolean) {
  const executablePath = [
    process.env.CHROMIUM_PATH,
    '/usr/bin/chromium',
    '/usr/bin/google-chrome',
  ].find((place) => place && fs.existsSync(place));
  if (!executablePath) throw new Error('no Chromium; set CHROMIUM_PATH');
  const args = [...COMMON, ...(software ? ['--use-webgpu-adapter=swiftshader'] : GPU_FLAGS)];
  return chromium.launch({ executablePath, headless: true, args });
}

export async function benchBrowser(options: BrowserOptions): Promise<void> {
  const start = performance.now();
  const left = () => options.seconds - (performance.now() - start) / 1000;
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'onnx-fla-bench-'));
  await makeModels(folder);
  const { server, origin } = await startServer(folder);
  const browser = await openBrowser(options.software);
  const limit = setTimeout(() => browser.close(), (options.seconds + 240) * 1000);
  try {
    const page = await browser.newPage();
    page.setDefaultTimeout(60_000);
    page.on('pageerror', (error) => console.log(`page: ${error.message}`));
    await page.goto(`${origin}/bench/webgpu/page/index.html`);
    await page.waitForFunction(() => document.title === 'ready');
    const device = await page.evaluate(() => bench.adapter());
    const copy = await page.evaluate(
      (bytes) => bench.copy(bytes),
      2 ** (options.software ? 24 : 27),
    );
    console.log(`${device}, Chromium ${browser.version()}: copy ${(copy / 1e9).toFixed(1)} GB/s`);
    const rows: Row[] = [];
    const say = (row: Row) => {
      rows.push(row);
      const { op, T, K, mode, ms, peer_ms, ratio, note } = row;
      console.log([op, mode, T, K, ms, peer_ms ?? '-', ratio ?? note].join('  '));
    };

    const rewritten = `${origin}/@fs${folder}/rewritten.onnx`;
    const original = `${origin}/test/fixtures/tinylm/model_kv.onnx`;
    const candidates: Candidate[] = [
      { runtime: 'ours', url: rewritten },
      { runtime: 'stock', url: rewritten },
      { runtime: 'stock', url: original },
    ];
    const rounds = { prefill: options.software ? 1 : 5, step: options.software ? 9 : 51 };
    for (const T of options.lengths.filter((length) => length > 1)) {
      if (left() < options.seconds / 2) {
        console.log(`out of time before tinylm, T ${T}`);
        continue;
      }
      const [ours, ...theirs] = await page.evaluate(
        ([candidates, T, chunk, rounds]) => bench.models(candidates, T, chunk, rounds),
        [candidates, T, CHUNK, rounds] as const,
      );
      for (const [i, times] of theirs.entries()) {
        say(modelRow(T, 'prefill', ours.prefillMs, times.prefillMs, MODEL_PEERS[i]));
        say(modelRow(T, 'decode', ours.stepMs, times.stepMs, MODEL_PEERS[i]));
      }
    }

    for (const T of options.lengths)
      for (const d of options.dims)
        for (const rule of options.rules) {
          if (left() < 1) {
            console.log(`out of time before ${rule}, T ${T}, d ${d}`);
            continue;
          }
          const shape: Shape = { rule, T, H: options.heads, d, dtype: 'float32' };
          const budget = Math.min(2000, (left() * 1000) / 20);
          const pair = await page.evaluate(([shape, budget]) => bench.op(shape, budget), [
            shape,
            budget,
          ] as const);
          say(opRow(shape, pair, copy));
        }
    const result: ResultFile = {
      name: options.name,
      about:
        'In Chromium, batch 1, float32, ours and onnxruntime-web’s WebGPU bundle on the same adapter in one run. Times are the page’s clock from an idle ' +
        'queue to an idle queue, short calls many at a time. `tinylm` is the small language model with all four layers rewritten, read in pieces of ' +
        `${CHUNK} tokens; decode is one token after that, logits brought to the host.`,
      machine: device.toLowerCase().replace(/[^a-z0-9]+/g, '-'),
      device: `${device}; ${os.cpus()[0]?.model.trim()}, ${os.cpus().length} cores`,
      date: new Date().toISOString().slice(0, 10),
      commit: commit(),
      versions: {
        chromium: browser.version(),
        'onnxruntime-web': packageVersion('onnxruntime-web'),
      },
      copy_bytes_per_second: Math.round(copy),
      rows,
    };
    console.log(`written: ${writeResults(result)}`);
  } finally {
    clearTimeout(limit);
    await browser.close();
    await server.close();
    fs.rmSync(folder, { recursive: true });
  }
}

function modelRow(T: number, mode: string, ms: number, peerMs: number, peer: string): Row {
  return {
    op: 'tinylm',
    B: 1,
    T,
    H: 2,
    K: 64,
    V: 64,
    dtype: 'float32',
    mode,
    ms: precise(ms),
    peer,
    peer_ms: precise(peerMs),
    ratio: Number((peerMs / ms).toPrecision(3)),
    bytes: 0,
    fraction_of_copy: 0,
    workspace_bytes: null,
  };
}

function opRow(
  shape: Shape,
  { ms, peerMs, scratchBytes }: { ms: number; peerMs: number; scratchBytes: number },
  copy: number,
): Row {
  const { rule, T, H, d, dtype } = shape;
  const bytes = Object.values(tensorShapes(shape)).reduce((sum, dims) => sum + sizeOf(dims) * 4, 0);
  return {
    op: `LinearAttention ${rule}`,
    B: 1,
    T,
    H,
    K: d,
    V: d,
    dtype,
    mode: T === 1 ? 'decode' : 'prefill',
    ms: precise(ms),
    peer: PEER,
    peer_ms: precise(peerMs),
    ratio: Number((peerMs / ms).toPrecision(3)),
    bytes,
    fraction_of_copy: Number((bytes / (ms / 1000) / copy).toPrecision(3)),
    workspace_bytes: scratchBytes,
  };
}

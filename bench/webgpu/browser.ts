/**
 * `npm run bench:webgpu -- --browser`: the op and the small language model in Chromium, ours against onnxruntime-web's WebGPU bundle, on one
 * adapter in one run.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { chromium, type Page } from 'playwright-core';
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

/** What is left of the time that the bench may take. */
type Left = () => number;

/** The small language model at every length; peers that would take too long are left out. */
async function measureModels(
  page: Page,
  { software, seconds, lengths }: BrowserOptions,
  [rewritten, original]: readonly [string, string],
  left: Left,
  say: (row: Row) => void,
): Promise<void> {
  const ours: Candidate = { runtime: 'ours', url: rewritten };
  const peers = [
    { name: 'onnxruntime-web alone, the same file', url: rewritten, power: 1 },
    { name: 'onnxruntime-web alone, the original with its KV cache', url: original, power: 2 },
  ].map((peer) => ({ ...peer, last: { T: 1, prefillMs: 0 } }));
  const rounds = { prefill: software ? 1 : 5, step: software ? 9 : 51 };
  for (const T of lengths.filter((length) => length > 1)) {
    // Half of the time is for the op.
    const mayTake = left() - seconds / 2;
    if (mayTake < 0) {
      console.log(`out of time before tinylm, T ${T}`);
      continue;
    }
    const expected = peers.map(
      ({ last, power }) => (rounds.prefill * last.prefillMs * (T / last.T) ** power) / 1000,
    );
    const taken = peers.filter((_, i) => expected[i] < mayTake);
    const candidates = [ours, ...taken.map(({ url }): Candidate => ({ runtime: 'stock', url }))];
    const [own, ...theirs] = await page.evaluate(
      ([candidates, T, chunk, rounds]) => bench.models(candidates, T, chunk, rounds),
      [candidates, T, CHUNK, rounds] as const,
    );
    for (const [i, peer] of peers.entries()) {
      const times = theirs[taken.indexOf(peer)];
      if (times) peer.last = { T, prefillMs: times.prefillMs };
      for (const [mode, time] of [
        ['prefill', 'prefillMs'],
        ['decode', 'stepMs'],
      ] as const) {
        say({
          ...{ op: 'tinylm', B: 1, T, H: 2, K: 64, V: 64, dtype: 'float32', mode },
          ...against(peer.name, own[time], times?.[time], expected[i]),
          ...{ bytes: 0, fraction_of_copy: 0, workspace_bytes: null },
        });
      }
    }
  }
}

/** The op by itself; the peer is left out where it would take too long. */
async function measureOps(
  page: Page,
  { rules, dims, lengths, heads: H }: BrowserOptions,
  copy: number,
  left: Left,
  say: (row: Row) => void,
): Promise<void> {
  /** Milliseconds per token of the peer. */
  const pace = new Map<string, number>();
  const shapes = lengths.flatMap((T) =>
    dims.flatMap((d) => rules.map((rule): Shape => ({ rule, T, H, d, dtype: 'float32' }))),
  );
  for (const shape of shapes) {
    const { rule, T, d, dtype } = shape;
    if (left() < 1) {
      console.log(`out of time before ${rule}, T ${T}, d ${d}`);
      continue;
    }
    const budget = Math.min(2000, (left() * 1000) / 20);
    // It is run at least twice: once to be compared, once to be timed.
    const expected = ((pace.get(`${rule} ${d}`) ?? 0) * T * 2) / 1000;
    const withPeer = expected < left() / 4;
    const { ms, peerMs, scratchBytes } = await page.evaluate(
      ([shape, budget, withPeer]) => bench.op(shape, budget, withPeer),
      [shape, budget, withPeer] as const,
    );
    if (peerMs && T > 1) pace.set(`${rule} ${d}`, peerMs / T);
    const sizes = Object.values(tensorShapes(shape)).map(sizeOf);
    const bytes = 4 * sizes.reduce((a, b) => a + b, 0);
    say({
      ...{ op: `LinearAttention ${rule}`, B: 1, T, H, K: d, V: d, dtype },
      mode: T === 1 ? 'decode' : 'prefill',
      ...against(PEER, ms, peerMs, expected),
      bytes,
      fraction_of_copy: Number((bytes / (ms / 1000) / copy).toPrecision(3)),
      workspace_bytes: scratchBytes,
    });
  }
}

/** The columns that tell of a peer. */
function against(
  peer: string,
  ms: number,
  peerMs: number | undefined,
  expected: number,
): Pick<Row, 'ms' | 'peer' | 'peer_ms' | 'ratio' | 'note'> {
  if (peerMs === undefined) {
    const note = `peer not run: it would have taken ${expected.toFixed(0)} s`;
    return { ms: precise(ms), peer, peer_ms: null, ratio: null, note };
  }
  const ratio = Number((peerMs / ms).toPrecision(3));
  return { ms: precise(ms), peer, peer_ms: precise(peerMs), ratio };
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
    const models = [
      `${origin}/@fs${folder}/rewritten.onnx`,
      `${origin}/test/fixtures/tinylm/model_kv.onnx`,
    ] as const;
    try {
      await measureModels(page, options, models, left, say);
      await measureOps(page, options, copy, left, say);
    } catch (error) {
      console.log(`stopped: ${(error as Error).message}`);
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

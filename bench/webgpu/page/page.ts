/** The bench's page: measures what it is told to, one thing at a time. `../browser.ts` drives it. */
import * as ort from 'onnxruntime-web/webgpu';
import { requestDevice, StatefulSession } from '../../../runtime/web/index.js';
import { type GpuTensor, type KernelCall, Kernels } from '../../../wgsl/kernels.js';
import { openPeer, type Shape, tensorShapes } from '../peer.js';
import { StockSession } from './stock.js';

/** Medians of one call, in milliseconds. */
export interface Pair {
  readonly ms: number;
  /** Undefined where it was left out. */
  readonly peerMs: number | undefined;
  readonly scratchBytes: number;
}

/** A model in a runtime. */
export interface Candidate {
  readonly runtime: 'ours' | 'stock';
  readonly url: string;
}

/** What reading a prompt and one token after it take. */
export interface ModelTimes {
  readonly prefillMs: number;
  readonly stepMs: number;
}

export interface Bench {
  adapter(): Promise<string>;
  copy(bytes: number): Promise<number>;
  op(shape: Shape, budgetMs: number, withPeer: boolean): Promise<Pair>;
  /** Each candidate's times, measured in turn. */
  models(
    candidates: readonly Candidate[],
    length: number,
    chunk: number,
    rounds: { prefill: number; step: number },
  ): Promise<ModelTimes[]>;
}

const STORAGE = 0x80 | 0x04 | 0x08; // STORAGE, COPY_SRC, COPY_DST

/** Calls shorter than this are timed many at a time: a browser's news of finished work are some milliseconds late. */
const GROUP_MS = 60;

const device = (await requestDevice())!;
const done = () => device.queue.onSubmittedWorkDone();

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

/** From an idle queue to an idle queue. */
async function timed(body: () => unknown, times = 1): Promise<number> {
  await done();
  const start = performance.now();
  for (let i = 0; i < times; i++) await body();
  await done();
  return (performance.now() - start) / times;
}

/**
 * Functions that have been called before, in turn, so that a machine that changes its pace does so for all of them: at least three times, once
 * when that takes much longer than `budgetMs`.
 */
async function inTurn(bodies: readonly (() => unknown)[], budgetMs: number): Promise<number[]> {
  const groups: number[] = [];
  const samples: number[][] = [];
  const start = performance.now();
  const spent = () => (performance.now() - start) / budgetMs;
  for (const body of bodies) {
    const ms = await timed(body);
    groups.push(Math.max(1, Math.ceil(GROUP_MS / ms)));
    samples.push(ms > GROUP_MS ? [ms] : []);
  }
  const fewest = () => Math.min(...samples.map(({ length }) => length));
  while (spent() < 1 || fewest() < (spent() < 4 ? 3 : 1))
    for (const [i, body] of bodies.entries()) samples[i].push(await timed(body, groups[i]));
  return samples.map(median);
}

const sizeOf = (dims: readonly number[]) => dims.reduce((a, b) => a * b, 1);

function makeBuffer(bytes: number): GPUBuffer {
  return device.createBuffer({ size: Math.max(16, Math.ceil(bytes / 16) * 16), usage: STORAGE });
}

/** Random numbers of a size that keeps states tame. */
function fill(shape: Shape): Record<string, GPUBuffer> {
  const unit = Math.sqrt(3 / shape.d);
  const ranges: Record<string, readonly [number, number]> = {
    query: [-unit, unit],
    key: [-unit, unit],
    value: [-1, 1],
    decay: [-0.1, 0],
    beta: [0, 1],
  };
  return Object.fromEntries(
    Object.entries(tensorShapes(shape)).map(([name, dims]) => {
      const buffer = makeBuffer(sizeOf(dims) * 4);
      const [low, high] = ranges[name] ?? [0, 0];
      const values = Float32Array.from(
        { length: sizeOf(dims) },
        () => low + (high - low) * Math.random(),
      );
      device.queue.writeBuffer(buffer, 0, values);
      return [name, buffer];
    }),
  );
}

async function readBack(buffer: GPUBuffer, bytes: number): Promise<Float32Array> {
  const staging = device.createBuffer({ size: bytes, usage: 0x01 | 0x08 });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, staging, 0, bytes);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(0x01);
  const copy = new Float32Array(staging.getMappedRange().slice(0));
  staging.destroy();
  return copy;
}

function assertClose(a: Float32Array, b: Float32Array): void {
  let [worst, top] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    worst = Math.max(worst, Math.abs(a[i] - b[i]));
    top = Math.max(top, Math.abs(b[i]));
  }
  if (!(worst <= 1e-3 * top)) throw new Error(`outputs differ by ${worst} of ${top}`);
}

const bench: Bench = {
  async adapter() {
    const { vendor, architecture, description } = device.adapterInfo;
    return [vendor, architecture, description].filter(Boolean).join(' ');
  },

  async copy(bytes) {
    const [from, to] = [makeBuffer(bytes), makeBuffer(bytes)];
    const copy = () => {
      const encoder = device.createCommandEncoder();
      encoder.copyBufferToBuffer(from, 0, to, 0, bytes);
      device.queue.submit([encoder.finish()]);
    };
    await timed(copy);
    const [ms] = await inTurn([copy], 500);
    from.destroy();
    to.destroy();
    return (2 * bytes) / (ms / 1000);
  },

  async op(shape, budgetMs, withPeer) {
    const buffers = fill(shape);
    const kernels = new Kernels(device);
    const peer = withPeer ? await openPeer(device, shape, buffers) : undefined;
    const tensors = Object.fromEntries(
      Object.entries(tensorShapes(shape)).map(([name, dims]): [string, GpuTensor] => [
        name,
        { buffer: buffers[name], dtype: 'float32', shape: dims },
      ]),
    );
    const { output, present_state, ...inputs } = tensors;
    const { rule, H } = shape;
    const attributes = { q_num_heads: H, kv_num_heads: H, update_rule: rule };
    const call: KernelCall = {
      op: 'LinearAttention',
      attributes,
      inputs,
      outputs: { output, present_state },
    };
    const ours = () => {
      const encoder = device.createCommandEncoder();
      kernels.encode(encoder, call);
      device.queue.submit([encoder.finish()]);
    };
    const bytes = sizeOf(output.shape) * 4;
    ours();
    const mine = await readBack(output.buffer, bytes);
    if (peer) {
      await peer.run();
      assertClose(mine, await readBack(output.buffer, bytes));
    }
    const [ms, peerMs] = await inTurn(peer ? [ours, peer.run] : [ours], budgetMs);
    const { scratchBytes } = kernels.memory;
    await peer?.release();
    kernels.dispose();
    for (const buffer of Object.values(buffers)) buffer.destroy();
    return { ms, peerMs, scratchBytes };
  },

  async models(candidates, length, chunk, rounds) {
    const sessions: (StatefulSession | StockSession)[] = [];
    for (const { runtime, url } of candidates)
      sessions.push(
        runtime === 'ours'
          ? await StatefulSession.create(url, { executionProviders: [{ name: 'fla', device }] })
          : await StockSession.create(url, device),
      );
    const ids = Array.from({ length }, (_, i) => (i * 7919 + 13) % 2048);
    const read = async (session: StatefulSession | StockSession, count: number) => {
      await session.reset();
      await session.prefill(ids.slice(0, count), { chunk });
    };
    for (const session of sessions) {
      await read(session, Math.min(length, chunk));
      await session.step([5]);
    }
    const prefill: number[][] = sessions.map(() => []);
    const step: number[][] = sessions.map(() => []);
    for (let round = 0; round < rounds.prefill; round++)
      for (const [i, session] of sessions.entries())
        prefill[i].push(await timed(() => read(session, length)));
    for (let round = 0; round < rounds.step; round++)
      for (const [i, session] of sessions.entries())
        step[i].push(await timed(() => session.step([5 + round])));
    for (const session of sessions) await session.dispose();
    return sessions.map((_, i) => ({ prefillMs: median(prefill[i]), stepMs: median(step[i]) }));
  },
};

ort.env.wasm.numThreads = 1;
Object.assign(globalThis, { bench });
document.title = 'ready';

/**
 * `npm run bench:webgpu [-- options]`: our kernels against com.microsoft.LinearAttention of onnxruntime-web, both on one GPUDevice in Node,
 * in one run. `npm run bench:webgpu -- cases` checks every test case on the adapter instead.
 *
 *   --browser       in Chromium: the op and the small language model, against onnxruntime-web alone
 *   --software      Chromium's software driver instead of a GPU (small lengths only)
 *   --seconds N     stop after about this long; default 300
 *   --rules a,b  --dims 64,128  --lengths 1,1024  --dtypes float32,float16  --heads 8
 *   --name S        of the result file; default webgpu
 *
 * It runs without the repository, too: bench/webgpu/pack.mjs makes a folder of it.
 */
import os from 'node:os';
import { parseArgs } from 'node:util';
import Table from 'cli-table3';
import { type GpuTensor, type KernelCall, Kernels } from '../../wgsl/kernels.js';
import {
  commit,
  machineName,
  median,
  packageVersion,
  type ResultFile,
  type Row,
  writeResults,
} from '../results.js';
import { runCases } from './cases.js';
import { buffer, Clock, copyBandwidth, type Gpu, openGpu, readBack } from './gpu.js';
import { openPeer, type Peer, type Shape, tensorShapes } from './peer.js';

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    browser: { type: 'boolean', default: false },
    software: { type: 'boolean', default: false },
    seconds: { type: 'string', default: '300' },
    rules: { type: 'string', default: 'linear,gated,delta,gated_delta' },
    dims: { type: 'string', default: '64,128' },
    lengths: { type: 'string', default: '1,1024,4096,16384,65536' },
    dtypes: { type: 'string', default: 'float32,float16' },
    heads: { type: 'string', default: '8' },
    name: { type: 'string' },
  },
});
const PEER = 'com.microsoft.LinearAttention';
const start = performance.now();
const secondsLeft = () => Number(flags.seconds) - (performance.now() - start) / 1000;
const numbers = (text: string) => text.split(',').map(Number);

const sizeOf = (dims: readonly number[]) => dims.reduce((a, b) => a * b, 1);
const bytesPer = { float32: 4, float16: 2 };

/** Uniform numbers in [low, high), as float32 or float16; past a million of them they repeat. */
function random(n: number, low: number, high: number, dtype: Shape['dtype']): Uint8Array {
  const block = new Float32Array(Math.min(n, 1 << 20)).map(
    () => low + (high - low) * Math.random(),
  );
  const bytes = dtype === 'float32' ? new Uint8Array(block.buffer) : halves(block);
  const out = new Uint8Array(Math.ceil((n * bytesPer[dtype]) / 4) * 4);
  for (let at = 0; at < out.length; at += bytes.length) {
    out.set(bytes.subarray(0, Math.min(bytes.length, out.length - at)), at);
  }
  return out;
}

/** Truncated float16 of numbers between 2^-14 and 65504, and zeros. */
function halves(values: Float32Array): Uint8Array {
  const words = new Uint32Array(values.buffer);
  const out = Uint16Array.from(words, (bits) => {
    const size = bits & 0x7fffffff;
    return ((bits >>> 16) & 0x8000) | (size < 0x38800000 ? 0 : (size - 0x38000000) >>> 13);
  });
  return new Uint8Array(out.buffer);
}

function fill(device: GPUDevice, shape: Shape): Record<string, GPUBuffer> {
  const a = Math.sqrt(3 / shape.d); // keys and queries of unit length on average
  const ranges: Record<string, [number, number]> = {
    query: [-a, a],
    key: [-a, a],
    value: [-1, 1],
    decay: [-0.1, 0],
    beta: [0, 1],
  };
  return Object.fromEntries(
    Object.entries(tensorShapes(shape)).map(([name, dims]) => {
      const target = buffer(device, sizeOf(dims) * bytesPer[shape.dtype]);
      const range = ranges[name];
      if (range)
        device.queue.writeBuffer(target, 0, random(sizeOf(dims), ...range, shape.dtype) as never);
      return [name, target];
    }),
  );
}

function ourCall(shape: Shape, buffers: Record<string, GPUBuffer>): KernelCall {
  const tensors = Object.fromEntries(
    Object.entries(tensorShapes(shape)).map(([name, dims]): [string, GpuTensor] => [
      name,
      { buffer: buffers[name]!, dtype: shape.dtype, shape: dims },
    ]),
  );
  const { output, present_state, ...inputs } = tensors;
  return {
    op: 'LinearAttention',
    attributes: { q_num_heads: shape.H, kv_num_heads: shape.H, update_rule: shape.rule },
    inputs,
    outputs: { output, present_state },
  };
}

/** Largest difference of two outputs over the largest value. */
function difference(a: ArrayBuffer, b: ArrayBuffer, dtype: Shape['dtype']): number {
  const values = (buffer: ArrayBuffer) =>
    dtype === 'float32'
      ? new Float32Array(buffer)
      : Float32Array.from(new Uint16Array(buffer), half);
  const [x, y] = [values(a), values(b)];
  let worst = 0;
  let top = 0;
  for (let i = 0; i < x.length; i += 1) {
    worst = Math.max(worst, Math.abs(x[i]! - y[i]!));
    top = Math.max(top, Math.abs(x[i]!));
  }
  return worst / top;
}

function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Runs of `time` until they have taken `seconds`, at least `least` of them; the median. */
async function several(time: () => Promise<number>, seconds: number, least = 3): Promise<number> {
  const samples: number[] = [];
  const began = performance.now();
  while (
    samples.length < least ||
    (samples.length < 50 && performance.now() - began < seconds * 1000)
  ) {
    samples.push(await time());
    if (samples[0]! > 1000 * seconds) break;
  }
  return median(samples);
}

/** Milliseconds per token of the peer, by rule, size and dtype: to know what the next length will take. */
const peerPace = new Map<string, number>();

async function measure(
  { device, errors }: Gpu,
  clock: Clock,
  kernels: Kernels,
  shape: Shape,
  copy: number,
): Promise<Row> {
  const { rule, T, H, d, dtype } = shape;
  const buffers = fill(device, shape);
  const call = ourCall(shape, buffers);
  await kernels.warmUp(call);
  const encode = (encoder: GPUCommandEncoder) => kernels.encode(encoder, call);
  const submit = () => {
    const encoder = device.createCommandEncoder();
    encode(encoder);
    device.queue.submit([encoder.finish()]);
  };
  await clock.ofEncoded(encode);
  const effort = Math.min(2, secondsLeft() / 20);
  const alone = await several(() => clock.ofEncoded(encode), effort);
  const ms = await several(() => clock.ofSubmitted(submit), effort);
  if (errors.length) throw new Error(errors[0]!.slice(0, 300));

  const { output } = tensorShapes(shape) as { output: number[] };
  const outputBytes = sizeOf(output) * bytesPer[dtype];
  const ours = T <= 4096 ? await readBack(device, buffers.output!, outputBytes) : undefined;
  const pace = `${rule} ${d} ${dtype}`;
  let peerMs: number | null = null;
  let why = '';
  let peer: Peer | undefined;
  try {
    const expected = ((peerPace.get(pace) ?? 0) * T * 3) / 1000;
    if (expected > secondsLeft() / 2)
      throw new Error(`it would have taken ${expected.toFixed(0)} s`);
    peer = await openPeer(device, shape, buffers);
    const { run } = peer;
    const first = await clock.ofSubmitted(run);
    if (ours) {
      const off = difference(ours, await readBack(device, buffers.output!, outputBytes), dtype);
      if (!(off < (dtype === 'float32' ? 1e-3 : 2e-2))) throw new Error(`outputs differ by ${off}`);
    }
    const again = first > 1000 * effort ? 1 : 3;
    peerMs = await several(() => clock.ofSubmitted(run), effort, again);
    if (T > 1) peerPace.set(pace, peerMs / T);
  } catch (error) {
    why = `peer not run: ${(error as Error).message.split('\n')[0]!.slice(0, 200)}`;
    errors.length = 0;
  } finally {
    await peer?.release();
  }
  const elements = Object.values(tensorShapes(shape)).reduce((sum, dims) => sum + sizeOf(dims), 0);
  const bytes = elements * bytesPer[dtype];
  await device.queue.onSubmittedWorkDone();
  for (const used of Object.values(buffers)) used.destroy();
  const precise = (n: number) => Number(n.toPrecision(4));
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
    peer_ms: peerMs === null ? null : precise(peerMs),
    ratio: peerMs === null ? null : Number((peerMs / ms).toPrecision(3)),
    bytes,
    fraction_of_copy: Number((bytes / (alone / 1000) / copy).toPrecision(3)),
    workspace_bytes: kernels.memory.scratchBytes,
    note: [`kernels alone ${precise(alone)} ms`, why].filter(Boolean).join('; '),
  };
}

async function bench(gpu: Gpu): Promise<void> {
  const { device, name } = gpu;
  const clock = new Clock(device);
  const copy = await copyBandwidth(gpu, clock);
  console.log(`${name}: copy ${(copy / 1e9).toFixed(1)} GB/s`);
  const dtypes = flags.dtypes
    .split(',')
    .filter((dtype) => dtype === 'float32' || device.features.has('shader-f16'));
  const shapes = numbers(flags.lengths).flatMap((T) =>
    numbers(flags.dims).flatMap((d) =>
      dtypes.flatMap((dtype) =>
        flags.rules
          .split(',')
          .map(
            (rule): Shape => ({ rule, T, H: Number(flags.heads), d, dtype: dtype as 'float32' }),
          ),
      ),
    ),
  );
  const table = new Table({
    head: ['rule', 'T', 'd', 'dtype', 'ms', 'alone', 'peer ms', 'ratio', 'of copy'],
  });
  const rows: Row[] = [];
  for (const shape of shapes) {
    if (secondsLeft() < 1) {
      console.log(`out of time before ${JSON.stringify(shape)}`);
      break;
    }
    // Scratch memory is that of this call alone.
    const kernels = new Kernels(device);
    try {
      const row = await measure(gpu, clock, kernels, shape, copy);
      rows.push(row);
      const alone = /alone ([\d.e+-]+)/.exec(row.note!)![1];
      const line = [shape.rule, row.T, row.K, row.dtype, row.ms, alone, row.peer_ms ?? '-'];
      table.push([...line, row.ratio ?? '-', row.fraction_of_copy]);
      console.log([...line, row.ratio ?? row.note].join('  '));
    } catch (error) {
      console.log(`${JSON.stringify(shape)}: ${(error as Error).message}`);
      gpu.errors.length = 0;
    }
    await device.queue.onSubmittedWorkDone();
    kernels.dispose();
  }
  console.log(table.toString());
  const result: ResultFile = {
    name: flags.name ?? 'webgpu',
    about:
      'In Node on Dawn, batch 1, state in and out in the type of the other tensors, both operators on the same device and buffers, one after ' +
      'the other. Times are from the device’s clock, from an idle queue to its end, so that they hold what the CPU does to submit the ' +
      'work; `kernels alone` is without. Fraction of copy is that of the kernels alone. Medians.',
    machine:
      name
        .toLowerCase()
        .replace(/[^a-z0-9]+/g, '-')
        .replace(/^-|-$/g, '') || machineName(),
    device: `${name}; ${os.cpus()[0]?.model.trim()}, ${os.cpus().length} cores`,
    date: new Date().toISOString().slice(0, 10),
    commit: commit(),
    versions: {
      webgpu: packageVersion('webgpu'),
      'onnxruntime-web': packageVersion('onnxruntime-web'),
      node: process.versions.node,
    },
    copy_bytes_per_second: Math.round(copy),
    rows,
  };
  console.log(`written: ${writeResults(result)}`);
}

async function main(): Promise<number> {
  if (flags.browser) {
    // Only here: a packed bench has no browser.
    const { benchBrowser } = await import('./browser.js');
    await benchBrowser({
      software: flags.software,
      seconds: Number(flags.seconds),
      rules: flags.rules.split(','),
      dims: numbers(flags.dims),
      lengths: numbers(flags.lengths),
      heads: Number(flags.heads),
      name: flags.name ?? 'webgpu-browser',
    });
    return 0;
  }
  const gpu = await openGpu(flags.software);
  if (positionals[0] !== 'cases') {
    await bench(gpu);
    return 0;
  }
  console.log(gpu.name, [...gpu.device.features].join(' '));
  const failed = await runCases(gpu);
  console.log(failed ? `${failed} FAILED` : 'all within tolerance');
  return failed ? 1 : 0;
}

// Dawn and onnxruntime-web keep the process alive.
process.exit(await main());

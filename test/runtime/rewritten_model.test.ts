import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import * as web from 'onnxruntime-web';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadModel, rewriteModel, saveModel } from '../../exporter/index.js';
import '../../runtime/node/index.js';
import { relativeError } from '../cases/tensors.js';
import { TINYLM } from '../support/models.js';

// One rewritten file, three places to run it: our kernels, stock onnxruntime-node, onnxruntime-web.
const BODIES = ['com.microsoft', 'standard'] as const;
const T = 40;
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'onnx-fla-rewritten-'));
const fileOf = (body: string) => path.join(folder, `${body}.onnx`);

beforeAll(async () => {
  for (const body of BODIES) {
    const model = loadModel(TINYLM.model);
    await rewriteModel(model, { variant: 'linear', body });
    saveModel(model, fileOf(body));
  }
});
afterAll(() => fs.rmSync(folder, { recursive: true }));

type Feeds = Record<string, ort.Tensor>;
function feeds(tensor: typeof ort.Tensor | typeof web.Tensor): Feeds {
  const ids = BigInt64Array.from({ length: T }, (_, i) => BigInt((i * 37 + 11) % 2048));
  const mask = new BigInt64Array(T).fill(1n).fill(0n, 0, 5);
  return {
    input_ids: new tensor('int64', ids, [1, T]) as ort.Tensor,
    attention_mask: new tensor('int64', mask, [1, T]) as ort.Tensor,
  };
}

/** Logits, and how often each operator ran, by domain and name, as ONNX Runtime's profile says. */
async function profiled(file: string, options: ort.InferenceSession.SessionOptions) {
  const prefix = path.join(folder, `profile-${Math.random().toString(36).slice(2)}`);
  const session = await ort.InferenceSession.create(file, {
    ...options,
    enableProfiling: true,
    profileFilePrefix: prefix,
  });
  const { logits } = await session.run(feeds(ort.Tensor));
  session.endProfiling();
  await session.release();
  const written = fs.readdirSync(folder).find((f) => f.startsWith(path.basename(prefix)))!;
  const events = JSON.parse(fs.readFileSync(path.join(folder, written), 'utf8')) as {
    name: string;
    args?: { op_name?: string; provider?: string };
  }[];
  const ran = events.filter((e) => e.name.endsWith('_kernel_time'));
  const count = (op: string) => ran.filter((e) => e.args?.op_name === op).length;
  return { logits: logits.data as Float32Array, count };
}

describe.each(BODIES)('a file with %s bodies', (body) => {
  it('runs our kernels where the library is registered, and its bodies where it is not', async () => {
    const ours = await profiled(fileOf(body), { executionProviders: ['fla'] });
    const stock = await profiled(fileOf(body), {});
    // With the library each of the four sites is one kernel and no body is inlined. A profile names no domains, but
    // both bodies compute elu1 of queries and keys with Exp, which the model itself has no use for.
    expect(ours.count('LinearAttention')).toBe(4);
    expect(ours.count('Scan')).toBe(0);
    expect(ours.count('Exp')).toBe(0);
    expect(stock.count('Exp')).toBe(8);
    expect(stock.count('LinearAttention')).toBe(body === 'com.microsoft' ? 4 : 0);
    expect(stock.count('Scan')).toBe(body === 'com.microsoft' ? 0 : 4);
    expect(
      relativeError(Float64Array.from(ours.logits), Float64Array.from(stock.logits)),
    ).toBeLessThan(1e-5);
  });

  it('gives the same logits in onnxruntime-web', async () => {
    web.env.wasm.numThreads = 1;
    const data = `${path.basename(fileOf(body))}.data`;
    const session = await web.InferenceSession.create(
      new Uint8Array(fs.readFileSync(fileOf(body))),
      {
        executionProviders: ['wasm'],
        externalData: [
          { path: data, data: new Uint8Array(fs.readFileSync(path.join(folder, data))) },
        ],
      },
    );
    const { logits } = await session.run(
      feeds(web.Tensor) as unknown as Record<string, web.Tensor>,
    );
    await session.release();
    const stock = await ort.InferenceSession.create(fileOf(body));
    const expected = await stock.run(feeds(ort.Tensor));
    await stock.release();
    expect(
      relativeError(
        Float64Array.from(logits.data as Float32Array),
        Float64Array.from(expected.logits.data as Float32Array),
      ),
    ).toBeLessThan(1e-5);
  });
});

it.each(BODIES)('the kernels are seen in the optimized graph too, %s bodies', async (body) => {
  const optimized = path.join(folder, `optimized-${body}.onnx`);
  const count = async (options: ort.InferenceSession.SessionOptions) => {
    const session = await ort.InferenceSession.create(fileOf(body), {
      ...options,
      optimizedModelFilePath: optimized,
    });
    await session.release();
    const nodes = loadModel(optimized).graph.nodes;
    return ['com.fla', 'com.microsoft'].map(
      (domain) => nodes.filter((n) => n.is('LinearAttention', domain)).length,
    );
  };
  expect(await count({ executionProviders: ['fla'], logSeverityLevel: 3 })).toEqual([4, 0]);
  expect(await count({ logSeverityLevel: 3 })).toEqual([0, body === 'com.microsoft' ? 4 : 0]);
});

/**
 * The operator library and the Node backend on a GPU, through ONNX Runtime's CUDA provider. A program of its own, because
 * machines with a GPU are seldom the ones that run the other tests:
 *
 *   npm run build:cuda && node dist/test/cuda/ort_run.js [seconds for the shared cases, default 60]
 */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { loadModel, rewriteModel, saveModel } from '../../exporter/index.js';
import { buildModel, makeNode, modelBytes } from '../../exporter/ir/index.js';
import { causalConvWithState } from '../../ops/causal_conv_with_state/schema.js';
import { causalConvWithStateReference, linearAttention, type Tensor64 } from '../../ops/index.js';
import {
  FlaSession,
  type NativeTensor,
  nativeInfo,
  StatefulSession,
} from '../../runtime/node/index.js';
import { causalConvCases, causalConvTypes } from '../cases/causal_conv_with_state.js';
import {
  type CaseTypes,
  dtypeOf,
  expectedOf,
  inputsIn,
  linearAttentionCases,
  typesOf,
} from '../cases/linear_attention.js';
import { relativeError, rounded } from '../cases/tensors.js';
import { type KernelCall, openCall, runIn } from '../support/kernels.js';
import { TINYLM } from '../support/models.js';

const GPU = { name: 'fla', device: 'cuda', cuda: { use_tf32: false } } as const;
/** ONNX Runtime warns that nodes which compute with shapes are on the CPU. */
const onGpu = { executionProviders: [GPU], logSeverityLevel: 3 } as const;
const onCpu = { executionProviders: ['fla'] };
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'onnx-fla-cuda-'));
let passed = 0;
let failed = 0;

async function check(name: string, body: () => unknown): Promise<void> {
  try {
    await body();
    passed++;
  } catch (thrown) {
    failed++;
    console.log(`FAILED ${name}: ${(thrown as Error).message.slice(0, 600)}`);
  }
}

function assertClose(actual: Tensor64, expected: Tensor64, limit: number, what: string): void {
  assert.deepEqual(actual.shape, expected.shape, what);
  const error = relativeError(actual.data, expected.data);
  assert.ok(error <= limit, `${what}: relative error ${error.toExponential(2)} > ${limit}`);
}

// ---- the shared cases ----

/**
 * Largest acceptable relative error of a call whose query, key and value are `dtype`. That type is the tensor cores' too, so
 * it decides for a state in float32 as well.
 */
function limitOf(dtype: string, rule = ''): number {
  if (dtype === 'float32') return rule.endsWith('delta') ? 1e-4 : 1e-5;
  return dtype === 'float16' ? 2e-3 : 8e-3;
}

/** Cases that fit the CUDA kernels, each with its types, in an order that mixes rules and types. */
function linearAttentionCalls() {
  const calls = linearAttentionCases
    .filter(({ sizes }) => Math.max(sizes.K, sizes.V) <= 256)
    .flatMap((testCase) => typesOf(testCase).map((types) => ({ testCase, types })));
  const step = 101; // coprime to the count, or the walk would not reach every call
  assert.notEqual(calls.length % step, 0);
  return calls.map((_, i) => calls[(i * step) % calls.length]);
}

async function runCase(call: KernelCall, inPlace: boolean): Promise<Record<string, Tensor64>> {
  const session = await openCall(call, { cudaDevice: 0 });
  try {
    return await runIn(session, call, { inPlace });
  } finally {
    session.dispose();
  }
}

async function sharedCases(seconds: number): Promise<void> {
  const calls = linearAttentionCalls();
  const end = performance.now() + seconds * 1000;
  let count = 0;
  for (const { testCase, types } of calls) {
    if (performance.now() > end) break;
    count++;
    const name = `${testCase.name} (${Object.values(types)})`;
    await check(name, () => linearAttentionCase(testCase, types));
  }
  console.log(`LinearAttention: ${count} of ${calls.length} shared cases`);
}

async function linearAttentionCase(
  testCase: (typeof linearAttentionCases)[number],
  types: CaseTypes,
): Promise<void> {
  const inputs = inputsIn(testCase, types);
  const expected = expectedOf(testCase, inputs);
  const tensors = inputs as unknown as Record<string, Tensor64>;
  const actual = await runCase(
    {
      op: linearAttention,
      attributes: testCase.attributes,
      inputs: tensors,
      dtypes: Object.fromEntries(Object.keys(tensors).map((key) => [key, dtypeOf(key, types)])),
    },
    testCase.state === true && types.S === 'float32',
  );
  const rule = testCase.attributes.update_rule ?? 'gated_delta';
  assertClose(actual.output, expected.output, limitOf(types.T, rule), 'output');
  assertClose(actual.present_state, expected.presentState, limitOf(types.T, rule), 'present_state');
}

async function convolutionCases(): Promise<void> {
  for (const [i, testCase] of causalConvCases.entries()) {
    const dtype = causalConvTypes[i % causalConvTypes.length];
    await check(`CausalConvWithState: ${testCase.name} (${dtype})`, async () => {
      const inputs = Object.fromEntries(
        Object.entries(testCase.inputs()).map(([name, tensor]) => [name, rounded(tensor, dtype)]),
      );
      const expected = causalConvWithStateReference(testCase.attributes, inputs as never);
      const dtypes = Object.fromEntries(Object.keys(inputs).map((name) => [name, dtype]));
      const { attributes } = testCase;
      const call = { op: causalConvWithState, attributes, inputs, dtypes } as KernelCall;
      const actual = await runCase(call, i % 2 === 0);
      assertClose(actual.output, expected.output, limitOf(dtype), 'output');
      assertClose(actual.present_state, expected.presentState, limitOf(dtype), 'present_state');
    });
  }
}

// ---- tensors on the GPU ----

/** `present = past + x`, `y = present * 2`. */
function counterModel(): Uint8Array {
  return modelBytes(
    buildModel({
      inputs: { x: ['float32', ['B', 'T']], past_sum: ['float32', ['B', 4]] },
      outputs: { y: ['float32', ['B', 4]], present_sum: ['float32', ['B', 4]] },
      nodes: [
        makeNode('ReduceSum', ['x'], ['total'], { keepdims: 1 }),
        makeNode('Add', ['past_sum', 'total'], ['present_sum']),
        makeNode('Add', ['present_sum', 'present_sum'], ['y']),
      ],
    }),
  );
}

const row = (...values: number[]) =>
  new ort.Tensor('float32', Float32Array.from(values), [1, values.length]);

async function tensorsOnTheGpu(): Promise<void> {
  const session = await FlaSession.create(counterModel(), onGpu);
  await check('a state stays on the GPU', async () => {
    const past = session.zeros('float32', [1, 4]);
    const present = session.zeros('float32', [1, 4]);
    assert.equal(past.location, 'gpu-buffer');
    for (const [from, to] of [
      [past, present],
      [present, past],
    ]) {
      await session.run({ x: row(1, 2), past_sum: from }, { present_sum: to });
    }
    assert.deepEqual([...(await past.getData())], [6, 6, 6, 6]);
    assert.deepEqual([...new Float32Array(past.read(4, 8))], [6, 6]);
    assert.throws(() => past.data, /use await getData/);
  });
  await check('outputs are on the host unless asked for otherwise', async () => {
    const feeds = { x: row(1), past_sum: session.zeros('float32', [1, 4]) };
    const results = await session.run(feeds, { y: null, present_sum: 'native' });
    assert.deepEqual([...(results.y.data as Float32Array)], [2, 2, 2, 2]);
    const kept = results.present_sum as unknown as NativeTensor;
    assert.equal(kept.location, 'gpu-buffer');
    assert.deepEqual([...(await kept.getData())], [1, 1, 1, 1]);
    kept.write(Float32Array.of(9), 4);
    assert.deepEqual([...(await kept.getData())], [1, 9, 1, 1]);
    kept.dispose();
    await assert.rejects(session.run({ ...feeds, past_sum: kept }, { y: null }), /dispose/);
  });
  await check('preferredOutputLocation', async () => {
    const prefers = await ort.InferenceSession.create(counterModel(), {
      executionProviders: [GPU],
      preferredOutputLocation: { y: 'gpu-buffer' },
    });
    const { y, present_sum } = await prefers.run({ x: row(3), past_sum: row(0, 1, 2, 3) });
    assert.deepEqual([y.location, present_sum.location], ['gpu-buffer', 'cpu']);
    assert.deepEqual([...((await y.getData()) as Float32Array)], [6, 8, 10, 12]);
    await prefers.release();
    assert.deepEqual([...((await y.getData()) as Float32Array)], [6, 8, 10, 12]);
  });
  await check('a session on the CPU refuses a tensor on the GPU', async () => {
    const cpu = await FlaSession.create(counterModel(), onCpu);
    const past_sum = session.zeros('float32', [1, 4]);
    await assert.rejects(
      cpu.run({ x: row(1), past_sum }, { y: null }),
      /must be in the host's memory/,
    );
  });
  await check('a state that is saved, reset and loaded', async () => {
    const stateful = await StatefulSession.create(counterModel(), onGpu);
    await stateful.prefill({ x: row(1, 2, 3, 4, 5) }, { chunk: 2 });
    const snapshot = await stateful.save();
    await stateful.reset();
    const { y: fresh } = await stateful.step({ x: row(1) });
    await stateful.load(snapshot);
    const { y } = await stateful.step({ x: row(1) });
    assert.deepEqual(
      [[...(fresh.data as Float32Array)][0], [...(y.data as Float32Array)][0]],
      [2, 32],
    );
    await stateful.dispose();
  });
  await session.dispose();
}

// ---- CUDA graphs ----

/** ONNX Runtime captures the first runs into a graph and replays it afterwards. */
async function cudaGraph(rule: string, T: number): Promise<void> {
  const [B, H, D] = [1, 4, 64];
  const wide = ['float16', [B, T, H * D]] as const;
  const state = ['float32', [B, H, D, D]] as const;
  const decay = rule.startsWith('gated') ? 'decay' : '';
  const beta = rule.endsWith('delta') ? 'beta' : '';
  const gates = [decay, beta].filter(Boolean).map((name) => [name, ['float32', [B, T, H]]]);
  const model = modelBytes(
    buildModel({
      opsets: { '': 17, 'com.fla': 1 },
      inputs: {
        query: wide,
        key: wide,
        value: wide,
        past_state: state,
        ...Object.fromEntries(gates),
      },
      outputs: { output: wide, present_state: state },
      nodes: [
        makeNode(
          'LinearAttention',
          ['query', 'key', 'value', 'past_state', decay, beta],
          ['output', 'present_state'],
          { q_num_heads: H, kv_num_heads: H, update_rule: rule, qk_l2norm: 1 },
          { domain: 'com.fla' },
        ),
      ],
    }),
  );
  const results: Uint8Array[] = [];
  for (const enable_cuda_graph of [false, true]) {
    const session = await FlaSession.create(model, {
      executionProviders: [{ ...GPU, cuda: { enable_cuda_graph } }],
    });
    const feeds = Object.fromEntries(
      session.inputs.map(({ name, type, shape }) => {
        const tensor = session.zeros(type!, shape as number[]);
        const noise = (i: number) =>
          Math.sin(i * 12.9898 + name.length) * 0.5 - (name === 'decay' ? 0.5 : 0);
        const values = Float32Array.from({ length: tensor.size }, (_, i) => noise(i));
        // A float16 whose bits are 0x3800 to 0x3bff lies in [0.5, 1).
        const halves = Uint16Array.from(
          values,
          (v) => 0x3800 + Math.floor((v + 0.5) * 1023) + (v < 0 ? 0x8000 : 0),
        );
        tensor.assign(type === 'float16' ? halves : values);
        return [name, tensor];
      }),
    );
    const fetches = {
      output: session.zeros('float16', [B, T, H * D]),
      present_state: session.zeros('float32', [B, H, D, D]),
    };
    for (let run = 0; run < 4; run++) {
      fetches.output.assign(new Uint8Array(fetches.output.byteLength).fill(255));
      await session.run(feeds, fetches);
    }
    results.push(
      new Uint8Array(fetches.output.read()),
      new Uint8Array(fetches.present_state.read()),
    );
    await session.dispose();
  }
  const [output, present, replayed, replayedPresent] = results;
  assert.ok(!new Uint16Array(output.buffer).includes(0xffff), 'every element is written');
  assert.deepEqual(Buffer.compare(output, replayed), 0, 'output of the replayed graph');
  assert.deepEqual(Buffer.compare(present, replayedPresent), 0, 'state of the replayed graph');
}

// ---- a rewritten language model ----

/** Nodes by operator that a run gave to each provider, from ONNX Runtime's profile. */
async function placement(file: string, ids: ort.Tensor): Promise<Map<string, string[]>> {
  const prefix = path.join(folder, `profile-${path.basename(file)}`);
  const session = await StatefulSession.create(file, {
    ...onGpu,
    enableProfiling: true,
    profileFilePrefix: prefix,
  });
  await session.step({ input_ids: ids });
  const events = JSON.parse(fs.readFileSync(session.session.endProfiling(), 'utf8')) as {
    name: string;
    args?: { op_name?: string; provider?: string };
  }[];
  await session.dispose();
  const placed = new Map<string, string[]>();
  for (const { name, args } of events) {
    if (!name.endsWith('_kernel_time') || !args?.provider || !args.op_name) continue;
    placed.set(args.provider, [...(placed.get(args.provider) ?? []), args.op_name]);
  }
  return placed;
}

/** What may run on the CPU: nodes that compute with shapes, not with activations. */
const SHAPE_OPS =
  /^(Shape|Gather|Unsqueeze|Squeeze|Concat|Slice|Cast|Add|Sub|Mul|Div|Range|Equal|Where|Expand|ConstantOfShape|Reshape|ReduceMax|Size|Mod|Less|Not)$/;

function count(names: readonly string[]): string {
  const counts = new Map<string, number>();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].map(([name, n]) => `${name} ${n}`).join(', ');
}

async function logitsOf(file: string, options: object, ids: bigint[], chunk: number) {
  const session = await StatefulSession.create(file, options);
  const parts: Float32Array[] = [];
  await session.prefill([ids], {
    chunk,
    outputs: ['logits'],
    onChunk: (outputs) => void parts.push(outputs.logits.data as Float32Array),
  });
  for (let step = 0; step < 16; step++) {
    const { logits } = await session.step(ids[step]);
    parts.push(logits.data as Float32Array);
  }
  await session.dispose();
  return Float64Array.from(parts.flatMap((part) => [...part]));
}

const decay = { constant: -0.05 };
const GATES = {
  gla: { default: { decay } },
  'gated-delta': { default: { decay, beta: { constant: 0.6 } } },
};

async function languageModel(
  variant: 'linear' | 'retention' | 'gla' | 'gated-delta',
): Promise<void> {
  const file = path.join(folder, `${variant}.onnx`);
  const model = loadModel(TINYLM.modelKv);
  const gates = variant === 'gla' || variant === 'gated-delta' ? GATES[variant] : undefined;
  await rewriteModel(model, { variant, gates, body: 'com.microsoft' });
  saveModel(model, file);
  const ids = Array.from({ length: 700 }, (_, i) => BigInt((i * 7919 + ((i * i) % 977)) % 2048));
  await check(`${variant}: logits as on the CPU`, async () => {
    const expected = await logitsOf(file, onCpu, ids, 256);
    const actual = await logitsOf(file, onGpu, ids, 256);
    const whole = await logitsOf(file, onGpu, ids, ids.length);
    const error = relativeError(actual, expected);
    const split = relativeError(whole, actual);
    console.log(
      `${variant}: logits against the CPU's ${error.toExponential(2)}, one run against three ${split.toExponential(2)}`,
    );
    assert.ok(error < 1e-4, `relative error ${error}`);
    assert.ok(split < 1e-4, `relative error ${split} of one run`);
  });
  await check(`${variant}: nothing but shapes is computed on the CPU`, async () => {
    const tensor = new ort.Tensor('int64', BigInt64Array.from(ids.slice(0, 64)), [1, 64]);
    const placed = await placement(file, tensor);
    const host = placed.get('CPUExecutionProvider') ?? [];
    const gpu = placed.get('CUDAExecutionProvider') ?? [];
    console.log(`${variant}: GPU ${gpu.length} nodes; CPU ${host.length}: ${count(host)}`);
    assert.equal(gpu.filter((op) => op === 'LinearAttention').length, 4);
    assert.deepEqual(
      host.filter((op) => !SHAPE_OPS.test(op)),
      [],
    );
  });
}

const seconds = Number(process.argv[2] ?? 60);
const info = nativeInfo();
console.log(JSON.stringify(info));
await check('the library has CUDA kernels and sees a GPU', () => {
  assert.ok((info.ops.cuda as { devices: number }).devices >= 1, JSON.stringify(info.ops.cuda));
});
await tensorsOnTheGpu();
await convolutionCases();
for (const variant of ['linear', 'retention', 'gla', 'gated-delta'] as const) {
  await check(variant, () => languageModel(variant));
}
for (const rule of ['linear', 'gated', 'delta', 'gated_delta']) {
  for (const T of [1, 300]) await check(`CUDA graph: ${rule}, T = ${T}`, () => cudaGraph(rule, T));
}
await sharedCases(seconds);
fs.rmSync(folder, { recursive: true });
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);

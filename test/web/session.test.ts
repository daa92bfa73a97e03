/** `onnx-fla/web` in a real Chromium: the same results as the CPU backend of Node, and the same manners. */
import fs from 'node:fs';
import path from 'node:path';
import type { Page } from 'playwright-core';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { modelBytes } from '../../exporter/index.js';
import { StatefulSession } from '../../runtime/node/index.js';
import { relativeError } from '../cases/tensors.js';
import { binaryModel } from '../runtime/support/models.js';
import { gpuOnlyModel, hardModel, tiedModel } from './support/calls.js';
import { describeInBrowser, launch, openHarness } from './support/chromium.js';
import { rewriteTinylm, temporaryFolder, tokens } from './support/models.js';
import { type Site, startSite } from './support/site.js';

const folder = temporaryFolder();
let site: Site;
let page: Page & { errors: string[]; told: string[] };
const IDS = tokens(12);

/** Prefill and two steps on the CPU in Node, and the state after them. */
async function onNode(file: string) {
  const session = await StatefulSession.create(file);
  const prefill = (await session.prefill(IDS)).logits.data as Float32Array;
  const steps = [];
  for (const token of [7, 11]) steps.push((await session.step(token)).logits.data as Float32Array);
  const snapshot = await session.save();
  await session.dispose();
  return { prefill, steps, snapshot };
}

/**
 * WGSL promises of sin and cos, with which ONNX Runtime's WebGPU provider computes rotary positions, an absolute error of no more than
 * 2^-11, and SwiftShader makes use of it: on one device results agree to rounding, with the CPU they agree to this.
 */
const SINE = 2 ** -11;
const ROUNDING = 1e-5;

function expectClose(ours: Iterable<number>, theirs: Iterable<number>, bound = SINE): void {
  expect(relativeError(Float64Array.from(ours), Float64Array.from(theirs))).toBeLessThan(bound);
}

describeInBrowser('onnx-fla/web in Chromium', () => {
  beforeAll(async () => {
    await rewriteTinylm(folder, 'tinylm.onnx');
    await rewriteTinylm(folder, 'kept.onnx', { variant: 'linear', keepSoftmax: [0] });
    await rewriteTinylm(folder, 'hybrid.onnx', { variant: 'hybrid', window: 4, sinks: 1 });
    fs.writeFileSync(path.join(folder, 'hard.onnx'), modelBytes(hardModel()));
    fs.writeFileSync(path.join(folder, 'tied.onnx'), modelBytes(tiedModel()));
    fs.writeFileSync(path.join(folder, 'gpu.onnx'), modelBytes(gpuOnlyModel()));
    fs.writeFileSync(path.join(folder, 'add.onnx'), binaryModel('Add', 'float32'));
    site = await startSite(folder);
    page = await openHarness(await launch(), site.origin);
  });
  afterAll(async () => {
    await site?.close();
    fs.rmSync(folder, { recursive: true });
  });

  it('hybrid attention, which has no kernel here, runs by its function body', async () => {
    const node = await onNode(path.join(folder, 'hybrid.onnx'));
    const got = await page.evaluate(async (ids) => {
      const session = await fla.StatefulSession.create('/models/hybrid.onnx');
      const numbers = (tensor: { data: unknown }) => [...(tensor.data as Float32Array)];
      const prefill = numbers((await session.prefill(ids, { chunk: 7 })).logits);
      const steps = [];
      for (const token of [7, 11]) steps.push(numbers((await session.step(token)).logits));
      const facts = { device: session.session.device, calls: session.session.kernelCalls };
      await session.dispose();
      return { prefill, steps, facts };
    }, IDS);
    expect(got.facts).toEqual({ device: 'webgpu', calls: 0 });
    expectClose(got.prefill, node.prefill);
    for (const [i, step] of got.steps.entries()) expectClose(step, node.steps[i]!);
  });

  it('prefill at once, in chunks, and token by token: what Node computes', async () => {
    const node = await onNode(path.join(folder, 'tinylm.onnx'));
    const got = await page.evaluate(async (ids) => {
      const session = await fla.StatefulSession.create('/models/tinylm.onnx');
      const numbers = (tensor: { data: unknown }) => [...(tensor.data as Float32Array)];
      const whole = numbers((await session.prefill(ids)).logits);
      const steps = [];
      for (const token of [7, 11]) steps.push(numbers((await session.step(token)).logits));
      const { position, tensors } = await session.save();
      const snapshot = Object.entries(tensors).map(([name, { type, dims, data }]) => ({
        name,
        type,
        dims,
        data: type === 'float32' ? [...new Float32Array(data.buffer)] : [...data],
      }));
      await session.reset();
      const chunked = numbers((await session.prefill(ids, { chunk: 11 })).logits);
      await session.reset();
      let single: number[] = [];
      for (const token of ids) single = numbers((await session.step(token)).logits);
      const facts = {
        device: session.session.device,
        calls: session.session.kernelCalls,
        stateBytes: session.stateBytes,
      };
      await session.dispose();
      const bodies = await fla.StatefulSession.create('/models/tinylm.onnx', {
        executionProviders: [{ name: 'fla', kernels: false }],
      });
      const uncut = numbers((await bodies.prefill(ids)).logits);
      await bodies.dispose();
      return { whole, steps, snapshot, position, chunked, single, uncut, facts };
    }, IDS);
    expect(got.facts).toEqual({ device: 'webgpu', calls: 4, stateBytes: 4 * 2 * 64 * 64 * 4 + 8 });
    expectClose(got.whole, node.prefill);
    expectClose(got.whole, got.uncut, ROUNDING);
    expectClose(got.chunked, got.whole, ROUNDING);
    expectClose(got.single, got.whole, ROUNDING);
    for (const [i, step] of got.steps.entries()) expectClose(step, node.steps[i]);
    expect(got.position).toBe(node.snapshot.position);
    for (const { name, type, dims, data } of got.snapshot) {
      const theirs = node.snapshot.tensors[name];
      expect([type, dims]).toEqual([theirs.type, theirs.dims]);
      expectClose(data, type === 'float32' ? new Float32Array(theirs.data.buffer) : theirs.data);
    }
  });

  it('a snapshot goes on elsewhere: from Node to the browser', async () => {
    const session = await StatefulSession.create(path.join(folder, 'tinylm.onnx'));
    await session.prefill(IDS);
    const { position, tensors } = await session.save();
    const expected = (await session.step(3)).logits.data as Float32Array;
    await session.dispose();
    const plain = Object.entries(tensors).map(
      ([name, t]) => [name, { ...t, data: [...t.data] }] as const,
    );
    const got = await page.evaluate(
      async ({ position, plain }) => {
        const session = await fla.StatefulSession.create('/models/tinylm.onnx');
        const tensors = Object.fromEntries(
          plain.map(([name, t]) => [name, { ...t, data: Uint8Array.from(t.data) }]),
        );
        await session.load({ position, tensors });
        const { logits } = await session.step(3);
        await session.dispose();
        return [...(logits.data as Float32Array)];
      },
      { position, plain },
    );
    expectClose(got, expected);
  });

  it('a layer that keeps softmax keeps its growing cache on the GPU', async () => {
    const node = await onNode(path.join(folder, 'kept.onnx'));
    const got = await page.evaluate(async (ids) => {
      const session = await fla.StatefulSession.create('/models/kept.onnx');
      await session.prefill(ids, { chunk: 10, outputs: 'none' });
      const bytes = session.stateBytes;
      const { logits } = await session.step(7);
      await session.dispose();
      return {
        bytes,
        calls: session.session.kernelCalls,
        logits: [...(logits.data as Float32Array)],
      };
    }, IDS);
    expect(got.calls).toBe(3);
    expect(got.bytes).toBe(3 * 2 * 64 * 65 * 4 + 2 * 2 * IDS.length * 64 * 4);
    expectClose(got.logits, node.steps[0]);
  });

  it('runs through ort.InferenceSession: outputs by name, on the GPU, preallocated', async () => {
    const got = await page.evaluate(async () => {
      const create = (options = {}) =>
        ort.InferenceSession.create('/models/hard.onnx', {
          ...options,
          executionProviders: ['fla'],
        });
      const session = await create();
      const size = (dims: number[]) => dims.reduce((a, b) => a * b, 1);
      const wave = (phase: number, ...dims: number[]) =>
        new ort.Tensor(
          'float32',
          Float32Array.from({ length: size(dims) }, (_, i) => Math.sin(i * 0.7 + phase)),
          dims,
        );
      const feeds = {
        x: wave(0, 2, 5, 16),
        wide: new ort.Tensor('bool', [true], []),
        past_conv: wave(1, 2, 16, 3),
        'past.0': wave(2, 2, 2, 8, 8),
        'past.1': wave(3, 2, 2, 8, 8),
      };
      const all = await session.run(feeds);
      const wasm = await ort.InferenceSession.create('/models/hard.onnx', {
        executionProviders: [{ name: 'fla', device: 'wasm' }],
      });
      const expected = await wasm.run(feeds);
      const worst: Record<string, number> = {};
      for (const [name, tensor] of Object.entries(all)) {
        const a = tensor.data as Float32Array;
        const b = expected[name].data as Float32Array;
        const scale = Math.max(...b.map(Math.abs));
        worst[name] =
          String(tensor.dims) === String(expected[name].dims)
            ? Math.max(...a.map((value, i) => Math.abs(value - b[i]))) / scale
            : Infinity;
      }
      const some = await session.run(feeds, ['z', 'present.1']);

      const onGpu = await create({
        preferredOutputLocation: { attended: 'gpu-buffer', y: 'gpu-buffer' },
      });
      const left = await onGpu.run(feeds, ['attended', 'y', 'z']);
      const locations = Object.values(left).map((tensor) => tensor.location);
      const brought = await left.attended.getData(true);
      const same = (a: unknown, b: unknown) => String(a) === String(b);

      const target = new ort.Tensor('float32', new Float32Array(2 * 5 * 16), [2, 5, 16]);
      const written = await session.run(feeds, { attended: target, y: null });
      // In and out in the same buffer: the caller sees the new state.
      const again = await onGpu.run(
        { ...feeds, x: await onGpu.run(feeds, ['y']).then(({ y }) => y) },
        ['attended'],
      );
      const shapes = { inputs: session.inputMetadata[0], outputs: session.outputNames };
      left.y.dispose();
      await session.release();
      const late = await session.run(feeds).then(
        () => '',
        (error) => `${error.code}`,
      );
      await onGpu.release();
      await wasm.release();
      return {
        worst,
        some: Object.keys(some),
        locations,
        brought: same(brought, all.attended.data),
        written: written.attended === target && same(target.data, all.attended.data),
        again: again.attended.location,
        shapes,
        late,
      };
    });
    for (const error of Object.values(got.worst)) expect(error).toBeLessThan(1e-5);
    expect(Object.keys(got.worst).length).toBe(8);
    expect(got).toMatchObject({
      some: ['z', 'present.1'],
      locations: ['gpu-buffer', 'gpu-buffer', 'cpu'],
      brought: true,
      written: true,
      again: 'gpu-buffer',
      late: 'disposed',
    });
    expect(got.shapes.inputs).toMatchObject({ name: 'x', type: 'float32', shape: ['B', 'T', 16] });
  });

  it('state in place: one tensor as feed and fetch', async () => {
    const got = await page.evaluate(async () => {
      const session = await fla.FlaSession.create('/models/tinylm.onnx');
      const run = async (inPlace: boolean) => {
        const states = [0, 1, 2, 3].map(() => session.zeros('float32', [1, 2, 64, 64]));
        const length = session.zeros('int64', [1]);
        let logits: number[] = [];
        for (const token of [5n, 6n, 7n]) {
          const feeds: Record<string, InstanceType<typeof ort.Tensor> | typeof length> = {
            input_ids: new ort.Tensor('int64', [token], [1, 1]),
            attention_mask: new ort.Tensor('int64', [1n], [1, 1]),
            'past_key_values.length': length,
          };
          const fetches: Record<string, (typeof states)[number] | 'native' | null> = {
            logits: null,
            'present.length': length,
          };
          for (const [i, state] of states.entries()) {
            feeds[`past_key_values.${i}.state`] = state;
            fetches[`present.${i}.state`] = inPlace ? state : 'native';
          }
          const results = await session.run(feeds, fetches);
          logits = [...(results.logits.data as Float32Array)];
          if (!inPlace)
            for (const i of states.keys()) {
              states[i].dispose();
              states[i] = results[`present.${i}.state`] as never;
            }
        }
        for (const state of states) state.dispose();
        return logits;
      };
      const results = [await run(true), await run(false)];
      await session.dispose();
      return results;
    });
    expect(got[0]).toEqual(got[1]);
  });

  it('calls that overlap are carried out one after the other', async () => {
    const got = await page.evaluate(async () => {
      const files = ['/models/tinylm.onnx', '/models/kept.onnx'];
      const sessions = await Promise.all(files.map((file) => fla.StatefulSession.create(file)));
      const runs = sessions.flatMap((session) => [session.step(1), session.step(2)]);
      const overlapping = (await Promise.all(runs)).map(
        ({ logits }) => (logits.data as Float32Array)[0],
      );
      const single: number[] = [];
      for (const session of sessions) {
        await session.reset();
        for (const token of [1, 2])
          single.push(((await session.step(token)).logits.data as Float32Array)[0]);
      }
      await Promise.all(sessions.map((session) => session.dispose()));
      return { overlapping, single };
    });
    expect(got.overlapping).toEqual(got.single);
  });

  it('a signal stops a prefill, and the state is that of the last finished chunk', async () => {
    const got = await page.evaluate(async (ids) => {
      const session = await fla.StatefulSession.create('/models/tinylm.onnx');
      const controller = new AbortController();
      const reason = new Error('enough');
      const error = await session
        .prefill(ids, {
          chunk: 4,
          signal: controller.signal,
          onProgress: (done) => done === 8 && controller.abort(reason),
        })
        .catch((thrown) => thrown);
      const stopped = session.position;
      const after = (await session.step(9)).logits.data as Float32Array;
      await session.reset();
      await session.prefill(ids.slice(0, 8));
      const expected = (await session.step(9)).logits.data as Float32Array;
      await session.dispose();
      return { same: error === reason, stopped, after: [...after], expected: [...expected] };
    }, IDS);
    expect([got.same, got.stopped]).toEqual([true, 8]);
    expectClose(got.after, got.expected, ROUNDING);
  });

  it('external data: from beside the URL, given as bytes, or missing', async () => {
    const got = await page.evaluate(async () => {
      const bytes = async (url: string) => new Uint8Array(await (await fetch(url)).arrayBuffer());
      const model = await bytes('/models/tinylm.onnx');
      const data = await bytes('/models/tinylm.onnx.data');
      const code = (promise: Promise<unknown>) =>
        promise.then(
          () => '',
          (e) => `${e.code}: ${e.message}`,
        );
      const given = await fla.StatefulSession.create(model, {
        externalData: [{ path: 'tinylm.onnx.data', data }],
      });
      const logit = ((await given.step(1)).logits.data as Float32Array)[0];
      await given.dispose();
      const url = await fla.StatefulSession.create('/models/tinylm.onnx');
      const other = ((await url.step(1)).logits.data as Float32Array)[0];
      await url.dispose();
      return {
        same: logit === other,
        missing: await code(fla.StatefulSession.create(model)),
        nowhere: await code(fla.FlaSession.create('/models/none.onnx')),
        page: await code(fla.FlaSession.create('/test/web/support/harness.html')),
      };
    });
    expect(got.same).toBe(true);
    expect(got.missing).toBe(
      "not_found: external data 'tinylm.onnx.data': must be given in the option externalData, as the model is given as bytes; received none",
    );
    expect(got.nowhere).toBe(
      'not_found: Session: /models/none.onnx cannot be read: the server answers 404',
    );
    expect(got.page).toMatch(/^invalid_model: model: not a readable ONNX model/);
  });

  it('says what is wrong', async () => {
    const got = await page.evaluate(async () => {
      const session = await fla.FlaSession.create('/models/hard.onnx');
      const code = (promise: Promise<unknown>) =>
        promise.then(
          () => '',
          (e) => `${e.code}: ${e.message}`,
        );
      const x = new ort.Tensor('float32', new Float32Array(16), [1, 1, 16]);
      const past = new ort.Tensor('float32', new Float32Array(48), [1, 16, 3]);
      const device = await (await navigator.gpu.requestAdapter())!.requestDevice();
      const small = ort.Tensor.fromGpuBuffer(
        device.createBuffer({ size: 16, usage: 0x80 }) as never,
        { dataType: 'float32', dims: [1, 16, 3] },
      );
      const results = [
        await code(session.run({ x }, { present_conv: null })),
        await code(session.run({ x, past_conv: x }, { present_conv: null })),
        await code(
          session.run({ x: new ort.Tensor('int32', [1], [1]), past_conv: past }, { y: null }),
        ),
        await code(session.run({ x, past_conv: past }, { nothing: null })),
        await code(session.run({ x, past_conv: past }, { present_conv: small })),
        await code(
          session.run(
            { x, past_conv: new ort.Tensor('float32', new Float32Array(96), [2, 16, 3]) },
            { present_conv: null },
          ),
        ),
        await code(
          fla.FlaSession.create('/models/hard.onnx', {
            executionProviders: [{ name: 'fla', device: 'cuda' as never }],
          }),
        ),
        await code(fla.FlaSession.create(new Uint8Array(0))),
      ];
      const right = await session.run({ x, past_conv: past }, { present_conv: null });
      await session.dispose();
      device.destroy();
      return { results, right: right.present_conv.dims };
    });
    expect(got.results.slice(0, 5)).toEqual([
      "missing_input: Session: input 'past_conv' must be given, received none",
      "invalid_shape: Session: input 'past_conv' must be [B,16,3], received [1,1,16]",
      "invalid_type: Session: input 'x' must be float32, received int32",
      "invalid_argument: Session: output must be one of y z attended present_conv present.0 present.1 weight fixed, received 'nothing'",
      "invalid_argument: Session: output 'present_conv' must have a buffer of at least 192 bytes, received one of 16",
    ]);
    expect(got.results[5]).toMatch(
      /^invalid_shape: CausalConvWithState: past_state must be \[B,D,W-1\] = \[1,16,3\], received \[2,16,3\]/,
    );
    expect(got.results[6]).toBe(
      "invalid_argument: session options: device must be a GPUDevice or 'wasm', received cuda",
    );
    expect(got.results[7]).toBe('invalid_model: Session: the model is empty');
    expect(got.right).toEqual([1, 16, 3]);
  });

  it('a model with operators that ONNX Runtime has on GPUs only', async () => {
    const y = await page.evaluate(async () => {
      const session = await fla.FlaSession.create('/models/gpu.onnx');
      const x = new ort.Tensor('float32', new Float32Array(16).fill(1), [1, 1, 16]);
      const { y } = await session.run({ x }, { y: null });
      await session.dispose();
      return [...(y.data as Float32Array)];
    });
    // q = 2.5, k = v = 1, heads of 8: q k / sqrt(8).
    expect(y).toEqual(Array(16).fill(expect.closeTo((2.5 * 8) / Math.sqrt(8), 4)));
  });

  it('a large weight that two pieces read is on the GPU once', async () => {
    const got = await page.evaluate(async () => {
      const device = await fla.requestDevice();
      const memory = fla.watchMemory(device!);
      const x = new ort.Tensor(
        'float32',
        Float32Array.from({ length: 512 }, (_, i) => Math.sin(i)),
        [1, 1, 512],
      );
      const results: number[][] = [];
      for (const where of [device, 'wasm'] as const) {
        const session = await fla.FlaSession.create('/models/tied.onnx', {
          executionProviders: [{ name: 'fla', device: where }],
        });
        results.push([...((await session.run({ x }, { y: null })).y.data as Float32Array)]);
        await session.dispose();
      }
      device!.destroy();
      return { results, peak: memory.peak };
    });
    expectClose(got.results[0], got.results[1], ROUNDING);
    expect(got.peak).toBeGreaterThan(2 ** 20);
    // A second copy would be another mebibyte; the state is half of one.
    expect(got.peak).toBeLessThan(1.9 * 2 ** 20);
  });

  it('a tensor on another device is refused', async () => {
    const got = await page.evaluate(async () => {
      const device = await fla.requestDevice();
      const [here, there] = [
        await fla.FlaSession.create('/models/hard.onnx'),
        await fla.FlaSession.create('/models/hard.onnx', {
          executionProviders: [{ name: 'fla', device }],
        }),
      ];
      const x = new ort.Tensor('float32', new Float32Array(16), [1, 1, 16]);
      const past_conv = there.zeros('float32', [1, 16, 3]);
      const told = (promise: Promise<unknown>) =>
        promise.then(
          () => 'ran',
          ({ code, message }) => `${code}: ${message}`,
        );
      const results = [
        await told(there.run({ x, past_conv }, { present_conv: null })),
        await told(here.run({ x, past_conv }, { present_conv: null })),
      ];
      await Promise.all([here.dispose(), there.dispose()]);
      device!.destroy();
      return results;
    });
    expect(got).toEqual([
      'ran',
      "unsupported: Session: input 'past_conv' must be in the host's memory or on the session's GPU device, received a tensor on another device",
    ]);
  });

  it('a run that fails in ONNX Runtime leaves the session usable', async () => {
    const got = await page.evaluate(async () => {
      const bytes = new Uint8Array(await (await fetch('/models/add.onnx')).arrayBuffer());
      const results = [];
      for (const model of ['/models/add.onnx', bytes]) {
        const session = await fla.FlaSession.create(model);
        const rows = (n: number) =>
          new ort.Tensor(
            'float32',
            Float32Array.from({ length: n * 4 }, (_, i) => i),
            [n, 4],
          );
        const error = await session
          .run({ x: rows(2), y: rows(3) }, { z: null })
          .catch(({ code, message }) => `${code}: ${message}`);
        const { z } = await session.run({ x: rows(1), y: rows(1) }, { z: null });
        await session.dispose();
        results.push({ error, z: [...(z.data as Float32Array)] });
      }
      return results;
    });
    for (const { error, z } of got) {
      expect(error).toMatch(/^runtime: left operand cannot broadcast on dim 0/);
      expect(z).toEqual([0, 2, 4, 6]);
    }
  });

  it('nothing was thrown past the caller', () => {
    expect(page.errors).toEqual([]);
  });
});

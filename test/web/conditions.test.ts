/** `onnx-fla/web` where things are not as usual: a lost device, long runs, a Worker, no WebGPU, and the files without this package. */
import fs from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { modelBytes } from '../../exporter/index.js';
import { StatefulSession } from '../../runtime/node/index.js';
import { relativeError } from '../cases/tensors.js';
import { smallModel } from './support/calls.js';
import { describeInBrowser, launch, openHarness, openPage } from './support/chromium.js';
import { rewriteTinylm, temporaryFolder, tokens } from './support/models.js';
import { type Site, startSite } from './support/site.js';

const folder = temporaryFolder();
const model = path.join(folder, 'tinylm.onnx');
let site: Site;
let page: Awaited<ReturnType<typeof openHarness>>;

const IDS = tokens(12);
/** See session.test.ts. */
const SINE = 2 ** -11;
const ROUNDING = 1e-5;

/** Steps of the soak; the bar is 10,000, which takes minutes: FLA_SOAK_STEPS=10000. */
const SOAK_STEPS = Number(process.env.FLA_SOAK_STEPS ?? 300);
const SOAK_MS = 30_000 + SOAK_STEPS * 200;
/** Memory is looked at so often on the way. */
const SOAK_LOOKS = 10;

/** Length of a prompt for the small language model; the bar is 16,384, which takes minutes: FLA_PROMPT_TOKENS=16384. */
const PROMPT_TOKENS = Number(process.env.FLA_PROMPT_TOKENS ?? 0);
const PROMPT_MS = 60_000 + PROMPT_TOKENS * 100;

function expectClose(ours: Iterable<number>, theirs: Iterable<number>, bound: number): void {
  expect(relativeError(Float64Array.from(ours), Float64Array.from(theirs))).toBeLessThan(bound);
}

let expected: Float32Array;

describeInBrowser('onnx-fla/web', () => {
  beforeAll(async () => {
    await rewriteTinylm(folder, 'tinylm.onnx');
    fs.writeFileSync(path.join(folder, 'small.onnx'), modelBytes(smallModel()));
    const session = await StatefulSession.create(model);
    expected = (await session.prefill(IDS)).logits.data as Float32Array;
    await session.dispose();
    site = await startSite(folder);
    page = await openHarness(await launch({ lifeMs: 120_000 + SOAK_MS + PROMPT_MS }), site.origin);
  });
  afterAll(async () => {
    await site?.close();
    fs.rmSync(folder, { recursive: true });
  });

  it.each([0, 20, 200])('a device that is lost after %i ms', async (when) => {
    const got = await page.evaluate(async (when) => {
      const adapter = await navigator.gpu.requestAdapter();
      const device = await adapter!.requestDevice();
      const session = await fla.StatefulSession.create('/models/small.onnx', {
        executionProviders: [{ name: 'fla', device }],
      });
      const x = new ort.Tensor('float32', new Float32Array(16), [1, 1, 16]);
      await session.step({ x });
      const told = (promise: Promise<unknown>) =>
        promise.then(
          () => 'nothing',
          (error) => `${error.name} ${error.code}: ${error.message}`,
        );
      setTimeout(() => device.destroy(), when);
      let during = 'nothing';
      for (let i = 0; i < 1000 && during === 'nothing'; i++)
        during = await told(session.step({ x }));
      const later = [await told(session.step({ x })), await told(session.save())];
      await session.dispose();
      const again = await told(
        fla.StatefulSession.create('/models/small.onnx', {
          executionProviders: [{ name: 'fla', device }],
        }),
      );
      const fresh = await fla.StatefulSession.create('/models/small.onnx');
      const { y } = await fresh.step({ x });
      await fresh.dispose();
      return { during, later, again, works: y.dims };
    }, when);
    const message =
      /^FlaError device_lost: WebGPU: the device must be there, it was lost: .*\. Release the session and create it again$/;
    expect(got.during).toMatch(message);
    for (const error of [...got.later, got.again]) expect(error).toMatch(message);
    expect(got.works).toEqual([1, 1, 16]);
  });

  it(
    `${SOAK_STEPS} steps hold memory flat`,
    async () => {
      const got = await page.evaluate(
        async ({ steps, looks }) => {
          const collect = (globalThis as unknown as { gc: () => void }).gc;
          const device = await (await navigator.gpu.requestAdapter())!.requestDevice();
          const memory = fla.watchMemory(device);
          const session = await fla.StatefulSession.create('/models/small.onnx', {
            executionProviders: [{ name: 'fla', device }],
          });
          const x = new ort.Tensor(
            'float32',
            Float32Array.from({ length: 16 }, (_, i) => Math.sin(i)),
            [1, 1, 16],
          );
          const heap = () => {
            collect();
            return (performance as unknown as { memory: { usedJSHeapSize: number } }).memory
              .usedJSHeapSize;
          };
          const run = async (count: number) => {
            // Every fourth one without outputs, so that runs pile up on the GPU as far as they are let.
            for (let i = 0; i < count; i++)
              await session.step({ x }, { outputs: i % 4 === 3 ? 'none' : 'last' });
          };
          await session.prefill({
            x: new ort.Tensor('float32', new Float32Array(64 * 16), [1, 64, 16]),
          });
          await run(100);
          const wasm = () => wasmMemories.reduce((sum, { buffer }) => sum + buffer.byteLength, 0);
          const usage = () => ({
            gpu: memory.bytes,
            buffers: memory.buffers,
            wasm: wasm(),
            heap: heap(),
          });
          const before = usage();
          memory.reset();
          const curve = [before];
          let ms = 0;
          for (let i = 0; i < looks; i++) {
            const start = performance.now();
            await run(steps / looks);
            ms += performance.now() - start;
            curve.push(usage());
          }
          const { peak } = memory;
          await session.dispose();
          device.destroy();
          return { curve, peak, ms: ms / steps };
        },
        { steps: SOAK_STEPS, looks: SOAK_LOOKS },
      );
      const { curve, peak, ms } = got;
      const told = curve.map(
        ({ gpu, buffers, wasm, heap }, i) =>
          `${(i * SOAK_STEPS) / SOAK_LOOKS}: ${gpu} in ${buffers}, ${wasm}, ${heap}`,
      );
      console.log(
        `soak: ${SOAK_STEPS} steps of ${ms.toFixed(1)} ms, GPU peak ${peak} bytes. Step: bytes on the GPU in buffers, of WebAssembly, of JavaScript\n${told.join('\n')}`,
      );
      const [before, after] = [curve[0], curve.at(-1)!];
      expect(before.wasm).toBeGreaterThan(0);
      for (const { gpu, buffers, wasm } of curve)
        expect({ gpu, buffers, wasm }).toEqual({
          gpu: before.gpu,
          buffers: before.buffers,
          wasm: before.wasm,
        });
      expect(peak - before.gpu).toBeLessThan(16 * 1024);
      // Compiled code and inline caches settle within a megabyte; a leak of 100 bytes a step shows at 10,000 steps.
      expect(after.heap - before.heap).toBeLessThan(1_000_000);
    },
    SOAK_MS,
  );

  it.runIf(PROMPT_TOKENS)(
    `a prompt of ${PROMPT_TOKENS} tokens does not lose the device`,
    async () => {
      const got = await page.evaluate(async (ids) => {
        const device = (await fla.requestDevice())!;
        const memory = fla.watchMemory(device);
        const session = await fla.StatefulSession.create('/models/tinylm.onnx', {
          executionProviders: [{ name: 'fla', device }],
        });
        const start = performance.now();
        const { logits } = await session.prefill(ids);
        const ms = performance.now() - start;
        const next = performance.now();
        await session.step(1);
        const tokenMs = performance.now() - next;
        const { position, stateBytes } = session;
        await session.dispose();
        device.destroy();
        const data = [...(logits.data as Float32Array)];
        return { data, position, stateBytes, ms, tokenMs, peak: memory.peak };
      }, tokens(PROMPT_TOKENS));
      const { data, position, stateBytes, ms, tokenMs, peak } = got;
      console.log(
        `prompt: ${PROMPT_TOKENS} tokens in ${(ms / 1000).toFixed(1)} s, the next one in ${tokenMs.toFixed(0)} ms; state ${stateBytes} bytes, GPU peak ${peak} bytes`,
      );
      const session = await StatefulSession.create(model);
      const { logits } = await session.prefill(tokens(PROMPT_TOKENS));
      await session.dispose();
      expect(position).toBe(PROMPT_TOKENS + 1);
      expectClose(data, logits.data as Float32Array, SINE);
    },
    PROMPT_MS,
  );

  it('in a Worker', async () => {
    const got = await page.evaluate(
      (ids) =>
        new Promise<{ error?: string; device: string; kernelCalls: number; logits: number[] }>(
          (resolve, reject) => {
            const worker = new Worker('/test/web/support/worker.ts', { type: 'module' });
            worker.onmessage = ({ data }) => {
              worker.terminate();
              resolve(data);
            };
            worker.onerror = (event) => reject(new Error(event.message));
            worker.postMessage({ model: '/models/tinylm.onnx', ids });
          },
        ),
      IDS,
    );
    expect(got).toMatchObject({ device: 'webgpu', kernelCalls: 4 });
    expectClose(got.logits, expected, SINE);
  });

  it('under a Content Security Policy', async () => {
    const strict = await openHarness(page.context().browser()!, site.origin, '?csp');
    const got = await strict.evaluate(async () => {
      const session = await fla.StatefulSession.create('/models/small.onnx');
      const x = new ort.Tensor('float32', new Float32Array(16), [1, 1, 16]);
      const { y } = await session.step({ x });
      await session.dispose();
      // To be sure that there is a policy.
      const script = document.createElement('script');
      script.textContent = 'globalThis.inline = true';
      document.head.append(script);
      return { dims: y.dims, device: session.session.device, inline: 'inline' in globalThis };
    });
    expect(got).toEqual({ dims: [1, 1, 16], device: 'webgpu', inline: false });
    expect(strict.errors).toEqual([]);
    await strict.context().close();
  });

  it.each([
    ['default', 'wasm', ROUNDING],
    ['wasm', 'wasm', ROUNDING],
    ['webgpu', 'webgpu', SINE],
  ])('the file in onnxruntime-web alone: bundle %s, on %s', async (bundle, provider, bound) => {
    const stock = await openPage(
      page.context().browser()!,
      `${site.origin}/test/web/support/stock.html?${bundle}`,
    );
    await stock.waitForFunction(() => document.title === 'ready');
    const logits = await stock.evaluate(
      async ({ provider, ids }) => {
        const data = new Uint8Array(await (await fetch('/models/tinylm.onnx.data')).arrayBuffer());
        const session = await ort.InferenceSession.create('/models/tinylm.onnx', {
          executionProviders: [provider],
          externalData: [{ path: 'tinylm.onnx.data', data }],
        });
        const zeros = (...dims: number[]) =>
          new ort.Tensor('float32', new Float32Array(dims.reduce((a, b) => a * b, 1)), dims);
        const feeds: Record<string, InstanceType<typeof ort.Tensor>> = {
          input_ids: new ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]),
          attention_mask: new ort.Tensor('int64', new BigInt64Array(ids.length).fill(1n), [
            1,
            ids.length,
          ]),
          'past_key_values.length': new ort.Tensor('int64', [0n], [1]),
        };
        for (let i = 0; i < 4; i++) feeds[`past_key_values.${i}.state`] = zeros(1, 2, 64, 64);
        const { logits } = await session.run(feeds);
        await session.release();
        return [...(logits.data as Float32Array)].slice(-2048);
      },
      { provider, ids: IDS },
    );
    expect(await stock.evaluate(() => 'fla' in globalThis)).toBe(false);
    expectClose(logits, expected, bound);
    await stock.context().close();
  });

  it('without WebGPU: on wasm, and said once', async () => {
    const bare = await openHarness(await launch({ webgpu: false }), site.origin);
    const got = await bare.evaluate(async (ids) => {
      const first = await fla.StatefulSession.create('/models/tinylm.onnx');
      const { logits } = await first.prefill(ids, { chunk: 5 });
      const session = await ort.InferenceSession.create('/models/small.onnx', {
        executionProviders: ['fla'],
      });
      const x = new ort.Tensor('float32', new Float32Array(16), [1, 1, 16]);
      const past = new ort.Tensor('float32', new Float32Array(128), [1, 2, 8, 8]);
      const target = new ort.Tensor('float32', new Float32Array(16).fill(7), [1, 1, 16]);
      const { y } = await session.run({ x, past_state: past }, { y: target });
      const { device } = first.session;
      await first.dispose();
      await session.release();
      return {
        device,
        logits: [...(logits.data as Float32Array)],
        y: [...(y.data as Float32Array)],
      };
    }, IDS);
    expect(got.device).toBe('wasm');
    expectClose(got.logits, expected, ROUNDING);
    expect(got.y).toEqual(Array(16).fill(0));
    expect(bare.told.filter((text) => text.includes('onnx-fla'))).toEqual([
      expect.stringMatching(
        /^onnx-fla: WebGPU is not used, as there is no .*\. Models run on wasm, com\.fla operators by their function bodies\.$/,
      ),
    ]);
  });

  it('nothing was thrown past the caller', () => {
    expect(page.errors).toEqual([]);
  });
});

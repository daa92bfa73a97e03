import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type * as ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  buildModel,
  Emitter,
  freshNames,
  loadModel,
  makeNode,
  makeTensor,
  modelBytes,
  saveModel,
} from '../../exporter/index.js';
import { ortLibrary } from '../../runtime/node/addon.js';
import { binaryModel } from './support/models.js';
import { createSession, failureOf, floats } from './support/session.js';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'onnx-fla-options-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** `y = -(-x)`, which ONNX Runtime can simplify, with an addition that it can fold. */
function foldable(): Uint8Array {
  const e = new Emitter(freshNames());
  const two = e.op('Add', [e.scalar(1), e.scalar(1)]);
  e.op('Mul', ['x', two], {}, { output: 'y' });
  return modelBytes(
    buildModel({
      inputs: { x: ['float32', ['N', 'M']] },
      outputs: { y: ['float32', ['N', 'M']] },
      nodes: e.nodes,
    }),
  );
}

async function optimizedOps(graphOptimizationLevel: 'disabled' | 'all'): Promise<string[]> {
  const optimizedModelFilePath = join(folder, `${graphOptimizationLevel}.onnx`);
  const options = { graphOptimizationLevel, optimizedModelFilePath, logSeverityLevel: 3 } as const;
  await (await createSession(foldable(), options)).release();
  return loadModel(optimizedModelFilePath).proto.graph!.node.map((node) => node.opType!);
}

describe('session options', () => {
  test('graphOptimizationLevel and optimizedModelFilePath', async () => {
    expect(await optimizedOps('disabled')).toContain('Add');
    expect(await optimizedOps('all')).toEqual(['Mul']);
  });

  test('enableProfiling and profileFilePrefix', async () => {
    const session = await createSession(binaryModel('Add', 'float32'), {
      enableProfiling: true,
      profileFilePrefix: join(folder, 'profile'),
    });
    const z = floats([1, 2, 3, 4], [1, 4]);
    await session.run({ x: z, y: z });
    session.endProfiling();
    const name = readdirSync(folder).find((file) => file.startsWith('profile'))!;
    const events = JSON.parse(readFileSync(join(folder, name), 'utf8')) as {
      args?: { op_name?: string };
    }[];
    expect(events.some((event) => event.args?.op_name === 'Add')).toBe(true);
    await session.release();
  });

  test('freeDimensionOverrides', async () => {
    const overrides = { freeDimensionOverrides: { M: 2 } };
    const session = await createSession(foldable(), overrides);
    expect(session.inputMetadata[0]).toMatchObject({ shape: ['N', 2] });
    const error = await failureOf(session.run({ x: floats([1, 2, 3], [1, 3]) }));
    expect(error.message).toBe("Session: input 'x' must be [N,2], received [1,3]");
    await session.release();
  });

  test('extra reaches ONNX Runtime', async () => {
    const model = foldable();
    const strict = { extra: { session: { disable_prepacking: true, use_env_allocators: '0' } } };
    await (await createSession(model, strict)).release();
    const options = {
      extra: { session: { load_model_format: 'ORT' } },
      logSeverityLevel: 4,
    } as const;
    expect((await failureOf(createSession(model, options))).message).toContain('ORT');
  });

  test('intraOpNumThreads', async () => {
    const threads = () => readdirSync('/proc/self/task').length;
    const model = binaryModel('Add', 'float32');
    const warm = await createSession(model, { intraOpNumThreads: 1 });
    const before = threads();
    const session = await createSession(model, { intraOpNumThreads: 4 });
    expect(threads() - before).toBe(3);
    await session.release();
    expect(threads()).toBe(before);
    await warm.release();
  });

  describe('as ONNX Runtime itself logs them', () => {
    const log = (options: ort.InferenceSession.SessionOptions, run: object = {}) => {
      const child = join(import.meta.dirname, 'support/options_child.ts');
      const args = ['--import', 'tsx', child, JSON.stringify(options), JSON.stringify(run)];
      const { status, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
      expect(status, stderr).toBe(0);
      return stderr;
    };

    test('all of them', () => {
      const text = log({
        intraOpNumThreads: 2,
        interOpNumThreads: 3,
        executionMode: 'parallel',
        enableCpuMemArena: false,
        enableMemPattern: false,
        graphOptimizationLevel: 'extended',
        logId: 'a-session',
        logSeverityLevel: 0,
        logVerbosityLevel: 5,
        extra: { session: { disable_prepacking: '1' } },
      });
      const traced = /Session Options {(.*)}/.exec(text)?.[1];
      for (const part of [
        /intra_op_param:OrtThreadPoolParams { thread_pool_size: 2 /,
        /inter_op_param:OrtThreadPoolParams { thread_pool_size: 3 /,
        /execution_mode:1 /,
        /enable_cpu_mem_arena:0 /,
        /enable_mem_pattern:0 /,
        /graph_optimization_level:2 /,
        /session_logid:a-session /,
        /session_log_severity_level:0 /,
        /session_log_verbosity_level:5 /,
        /session.disable_prepacking: 1 /,
      ]) {
        expect(traced).toMatch(part);
      }
    });

    test('a run: tag and severity', () => {
      const options = { intraOpNumThreads: 1, logSeverityLevel: 1 } as const;
      expect(log(options, { tag: 'first-run' })).toContain('Running with tag: first-run');
      const failure = /\[E:onnxruntime.*Non-zero status code/;
      expect(log({ ...options, logSeverityLevel: 4 }, { logSeverityLevel: 3 })).toMatch(failure);
      expect(log({ ...options, logSeverityLevel: 3 }, { logSeverityLevel: 4 })).toBe('');
    });
  });

  const wrong: [object, string][] = [
    [{ intraOpNumThreads: -1 }, 'intraOpNumThreads must be an integer >= 0, received -1'],
    [{ interOpNumThreads: 1.5 }, 'interOpNumThreads must be an integer >= 0, received 1.5'],
    [
      { graphOptimizationLevel: 'most' },
      'graphOptimizationLevel must be one of disabled basic extended layout all, received most',
    ],
    [{ executionMode: 'fast' }, 'executionMode must be one of sequential parallel, received fast'],
    [{ enableMemPattern: 'yes' }, 'enableMemPattern must be true or false, received yes'],
    [{ logSeverityLevel: 5 }, 'logSeverityLevel must be an integer in [0, 4], received 5'],
    [{ optimizedModelFilePath: '' }, 'optimizedModelFilePath must be a non-empty string'],
  ];
  test.each(wrong)('%o is refused', async (options, message) => {
    const error = await failureOf(createSession(foldable(), options));
    expect(error.code).toBe('invalid_argument');
    expect(error.message).toContain(message);
  });
});

describe('provider options', () => {
  test('a device that is none', async () => {
    const error = await failureOf(createSession(foldable(), {}, { device: 'tpu' as 'cpu' }));
    expect(error.message).toBe("session options: device must be 'cpu' or 'cuda', received tpu");
  });

  const cuda = join(dirname(ortLibrary()), 'libonnxruntime_providers_cuda.so');
  test.skipIf(existsSync(cuda))("device 'cuda' where ONNX Runtime has no CUDA", async () => {
    const error = await failureOf(createSession(foldable(), {}, { device: 'cuda' }));
    expect(error.code).toBe('unsupported');
    expect(error.message).toMatch(
      /device 'cuda' must have .* lacks .*Reinstall onnxruntime-node with/,
    );
  });

  test('a library that is not there', async () => {
    const error = await failureOf(createSession(foldable(), {}, { library: '/no/lib.so' }));
    expect([error.code, error.message]).toEqual([
      'not_found',
      'session options: library /no/lib.so was not found',
    ]);
  });

  test('a library that is none', async () => {
    const error = await failureOf(
      createSession(foldable(), {}, { library: join(import.meta.dirname, 'options.test.ts') }),
    );
    expect(error.message).toContain('options.test.ts');
  });
});

describe('external data', () => {
  const weights = Float32Array.from({ length: 64 }, (_, i) => i);
  const input = floats(new Array(64).fill(1), [64]);
  let model: string;

  beforeAll(() => {
    model = join(folder, 'external.onnx');
    const built = buildModel({
      inputs: { x: ['float32', [64]] },
      outputs: { y: ['float32', [64]] },
      nodes: [makeNode('Mul', ['x', 'w'], ['y'])],
      initializers: [makeTensor('w', 'float32', [64], weights)],
    });
    saveModel(built, model, { externalThreshold: 1 });
    expect(readdirSync(folder)).toContain('external.onnx.data');
  });

  async function check(session: ort.InferenceSession): Promise<void> {
    expect((await session.run({ x: input })).y.data).toEqual(weights);
    await session.release();
  }

  test('beside the model file', async () => check(await createSession(model)));

  test('of a model given as bytes, in modelFolder', async () =>
    check(await createSession(readFileSync(model), {}, { modelFolder: folder })));

  test('of a model given as bytes, in externalData', async () => {
    const path = 'external.onnx.data';
    const moved = join(folder, 'moved');
    renameSync(join(folder, path), moved);
    const data = new Uint8Array(readFileSync(moved));
    await check(await createSession(readFileSync(model), { externalData: [{ path, data }] }));
    await check(
      await createSession(readFileSync(model), { externalData: [{ path, data: moved }] }),
    );
    const error = await failureOf(createSession(model, { logSeverityLevel: 4 }));
    expect(error.message).toContain(path);
    renameSync(moved, join(folder, path));
  });

  test('that cannot be read', async () => {
    const externalData = [{ path: 'external.onnx.data', data: '/no/file' }];
    const error = await failureOf(createSession(model, { externalData }));
    expect([error.code, error.message]).toEqual(['not_found', expect.stringContaining('/no/file')]);
  });
});

import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import type { InferenceSession } from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import type { FlaProviderOption, NodeProviderOption } from '../common/provider.js';
import { nativeFile, OPS_LIBRARY } from '../native.js';
import { type NativeSessionOptions, ortLibrary, type RuntimeInfo } from './addon.js';

export type { NodeProviderOption as FlaExecutionProviderOption } from '../common/provider.js';

declare module 'onnxruntime-node' {
  namespace InferenceSession {
    interface ExecutionProviderOptionMap {
      fla: FlaProviderOption;
    }
  }
}

/** Everything `ort.InferenceSession.create` takes. */
export type SessionOptions = InferenceSession.SessionOptions;

const GRAPH_LEVELS = { disabled: 0, basic: 1, extended: 2, layout: 3, all: 99 };
const EXECUTION_MODES = { sequential: 0, parallel: 1 };

function mustBe(what: string, expected: string, received: unknown): FlaError {
  return new FlaError(
    'invalid_argument',
    `session options: ${what} must be ${expected}, received ${String(received)}`,
  );
}

function integer(
  name: string,
  value: number | undefined,
  low: number,
  high = 2 ** 31 - 1,
): number | undefined {
  if (value === undefined || (Number.isInteger(value) && value >= low && value <= high))
    return value;
  throw mustBe(
    name,
    high < 2 ** 31 - 1 ? `an integer in [${low}, ${high}]` : `an integer >= ${low}`,
    value,
  );
}

function boolean(name: string, value: boolean | undefined): boolean | undefined {
  if (value === undefined || typeof value === 'boolean') return value;
  throw mustBe(name, 'true or false', value);
}

function text(name: string, value: string | undefined): string | undefined {
  if (value === undefined || (typeof value === 'string' && value !== '')) return value;
  throw mustBe(name, 'a non-empty string', value);
}

function choice(
  name: string,
  value: string | undefined,
  choices: Record<string, number>,
): number | undefined {
  if (value === undefined) return undefined;
  if (Object.hasOwn(choices, value)) return choices[value];
  throw mustBe(name, `one of ${Object.keys(choices).join(' ')}`, value);
}

/** `{ session: { a: '1' } }` -> `[['session.a', '1']]`; booleans become 0 and 1, as ONNX Runtime's configuration has them. */
export function flattenExtra(extra: Record<string, unknown>, prefix = ''): [string, string][] {
  return Object.entries(extra).flatMap(([key, value]): [string, string][] => {
    if (typeof value === 'object' && value !== null)
      return flattenExtra(value as Record<string, unknown>, `${prefix}${key}.`);
    return [[prefix + key, typeof value === 'boolean' ? String(Number(value)) : String(value)]];
  });
}

/** The `fla` entry of `executionProviders`. */
export function flaProvider(options: SessionOptions): NodeProviderOption {
  for (const provider of options.executionProviders ?? []) {
    if (typeof provider !== 'string' && provider.name === 'fla')
      return provider as NodeProviderOption;
  }
  return { name: 'fla' };
}

/** Files are read into memory; `path` stays as the model names it. */
async function readExternalData(
  files: NonNullable<SessionOptions['externalData']>,
): Promise<{ path: string; data: Uint8Array }[]> {
  return Promise.all(
    files.map(async (file) => {
      const { path, data } = typeof file === 'string' ? { path: file, data: file } : file;
      if (data instanceof Uint8Array) return { path, data };
      if (data instanceof ArrayBuffer) return { path, data: new Uint8Array(data) };
      if (typeof data !== 'string')
        throw mustBe('externalData', 'bytes or the path of a file', typeof data);
      return { path, data: await readFile(data).catch((cause) => unreadable(data, cause)) };
    }),
  );
}

function unreadable(path: string, cause: Error): never {
  throw new FlaError(
    'not_found',
    `session options: externalData ${path} cannot be read: ${cause.message}`,
    { cause },
  );
}

/** The refusal of device 'cuda', with what to do about it. */
export function cudaError(reason: string, cause?: unknown): FlaError {
  return new FlaError(
    'unsupported',
    `session options: device 'cuda' must have ONNX Runtime's CUDA provider: ${reason}. Reinstall onnxruntime-node with ` +
      'ONNXRUNTIME_NODE_INSTALL=cuda13 (or cuda12) where it can download, or put the CUDA provider libraries of the same ' +
      `version into ${dirname(ortLibrary())}; or use device 'cpu'.`,
    { cause },
  );
}

function cudaOptions(
  provider: NodeProviderOption,
  runtime: RuntimeInfo,
): Pick<NativeSessionOptions, 'cuda' | 'cudaDevice'> {
  const library = 'libonnxruntime_providers_cuda.so';
  const present = existsSync(join(dirname(ortLibrary()), library));
  if (!runtime.providers.includes('CUDAExecutionProvider') || !present) {
    throw cudaError(`onnxruntime-node ${runtime.version} lacks ${library}`);
  }
  const device = integer('deviceId', provider.deviceId, 0) ?? 0;
  return {
    cudaDevice: device,
    cuda: [['device_id', String(device)], ...flattenExtra(provider.cuda ?? {})],
  };
}

/**
 * The outputs, by name, that a session on a GPU leaves there. `preferredOutputLocation` has no meaning on the CPU and is
 * ignored there.
 */
export function outputsOnGpu(options: SessionOptions): (name: string) => boolean {
  const { preferredOutputLocation: preferred } = options;
  if (flaProvider(options).device !== 'cuda' || preferred === undefined) return () => false;
  for (const place of typeof preferred === 'string' ? [preferred] : Object.values(preferred)) {
    if (place !== 'cpu' && place !== 'gpu-buffer')
      throw mustBe('preferredOutputLocation', "'cpu' or 'gpu-buffer'", place);
  }
  return (name) => (typeof preferred === 'string' ? preferred : preferred[name]) === 'gpu-buffer';
}

function opsLibrary(library: string | false | undefined): string | undefined {
  if (library === false) return undefined;
  if (library === undefined) return nativeFile(OPS_LIBRARY);
  if (existsSync(library)) return resolve(library);
  throw new FlaError('not_found', `session options: library ${library} was not found`);
}

function config(options: SessionOptions, provider: NodeProviderOption): [string, string][] {
  const entries = flattenExtra(options.extra ?? {});
  const folder = text('modelFolder', provider.modelFolder);
  if (folder)
    entries.push(['session.model_external_initializers_file_folder_path', resolve(folder)]);
  // Kernels cannot ask ONNX Runtime how large its thread pool is; they split their work by this entry.
  if (options.intraOpNumThreads)
    entries.push(['fla.intra_op_num_threads', String(options.intraOpNumThreads)]);
  return entries;
}

/** ONNX Runtime's form of the options of `ort.InferenceSession.create`. Options of other platforms are ignored. */
export async function nativeOptions(
  options: SessionOptions,
  runtime: RuntimeInfo,
): Promise<NativeSessionOptions> {
  const provider = flaProvider(options);
  const device = provider.device ?? 'cpu';
  if (device !== 'cpu' && device !== 'cuda') throw mustBe('device', "'cpu' or 'cuda'", device);
  return {
    intraOpNumThreads: integer('intraOpNumThreads', options.intraOpNumThreads, 0),
    interOpNumThreads: integer('interOpNumThreads', options.interOpNumThreads, 0),
    graphOptimizationLevel: choice(
      'graphOptimizationLevel',
      options.graphOptimizationLevel,
      GRAPH_LEVELS,
    ),
    executionMode: choice('executionMode', options.executionMode, EXECUTION_MODES),
    optimizedModelFilePath: text('optimizedModelFilePath', options.optimizedModelFilePath),
    freeDimensionOverrides: options.freeDimensionOverrides,
    enableCpuMemArena: boolean('enableCpuMemArena', options.enableCpuMemArena),
    enableMemPattern: boolean('enableMemPattern', options.enableMemPattern),
    profileFilePrefix: boolean('enableProfiling', options.enableProfiling)
      ? (text('profileFilePrefix', options.profileFilePrefix) ?? 'onnxruntime_profile_')
      : undefined,
    logId: text('logId', options.logId),
    logSeverityLevel: integer('logSeverityLevel', options.logSeverityLevel, 0, 4),
    logVerbosityLevel: integer('logVerbosityLevel', options.logVerbosityLevel, 0),
    config: config(options, provider),
    externalData: options.externalData && (await readExternalData(options.externalData)),
    ...(device === 'cuda' ? cudaOptions(provider, runtime) : {}),
    library: opsLibrary(provider.library),
  };
}

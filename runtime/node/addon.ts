import { existsSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { env } from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { toFlaError } from '../common/errors.js';
import { nativeFile, OPS_LIBRARY } from '../native.js';

const require = createRequire(import.meta.url);

/** A tensor in native memory, the host's or a GPU's, as the addon hands it out. Types are ONNX numbers. */
export interface NativeValue {
  readonly type: number;
  readonly dims: number[];
  readonly byteLength: number;
  /** Number of the GPU that holds it, -1 for the host's memory. */
  readonly device: number;
  /** An ArrayBuffer over the tensor's own memory, which stays valid after dispose(). Host memory only. */
  buffer(): ArrayBuffer;
  /** A copy of some bytes. */
  read(byteOffset: number, byteLength: number): ArrayBuffer;
  /** A copy of all bytes, made off the event loop. */
  download(): Promise<ArrayBuffer>;
  write(bytes: Uint8Array, byteOffset: number): void;
  dispose(): void;
}

/** A tensor over JavaScript memory. */
export interface TensorView {
  type: number;
  dims: readonly number[];
  data: Uint8Array | string[];
}

/** An output in JavaScript memory. */
export interface ArrayOutput {
  type: number;
  dims: number[];
  data: ArrayBuffer | string[];
}

/** What to do with an output: new array, new handle, or write into this one. */
export type Fetch = undefined | true | NativeValue | TensorView;

export interface NativeValueInfo {
  name: string;
  /** Absent for what is no tensor. */
  type?: number;
  /** Symbolic sizes by name, '' when nameless. */
  shape?: (number | string)[];
}

export interface NativeRunOptions {
  terminate(): void;
}

export interface NativeSession {
  readonly inputs: NativeValueInfo[];
  readonly outputs: NativeValueInfo[];
  readonly metadata: Record<string, string>;
  /**
   * Resolves to one entry per output: an array, a handle, or undefined where it was written in place. Runs on another thread,
   * or here, before it returns. `milliseconds` is what the run took, the way to the other thread and back left out.
   */
  run(
    inputIndices: number[],
    inputs: (NativeValue | TensorView)[],
    outputIndices: number[],
    fetches: Fetch[],
    options?: NativeRunOptions,
    here?: boolean,
  ): Promise<(ArrayOutput | NativeValue | undefined)[] & { readonly milliseconds: number }>;
  /** Zeros where the session computes: on its GPU, or in the host's memory. */
  allocate(type: number, dims: readonly number[]): NativeValue;
  endProfiling(): string;
  dispose(): void;
}

/** Options as the addon reads them; enumerations are ONNX Runtime's numbers. */
export interface NativeSessionOptions {
  intraOpNumThreads?: number;
  interOpNumThreads?: number;
  graphOptimizationLevel?: number;
  executionMode?: number;
  optimizedModelFilePath?: string;
  freeDimensionOverrides?: Readonly<Record<string, number>>;
  enableCpuMemArena?: boolean;
  enableMemPattern?: boolean;
  profileFilePrefix?: string;
  logId?: string;
  logSeverityLevel?: number;
  logVerbosityLevel?: number;
  config?: [string, string][];
  externalData?: { path: string; data: Uint8Array }[];
  /** Options of the CUDA provider; none: the session runs on the CPU. */
  cuda?: [string, string][];
  /** Its device_id. */
  cudaDevice?: number;
  library?: string;
}

interface Addon {
  init(options: { library: string; logLevel: number; copyOutputs: boolean }): RuntimeInfo;
  opsInfo(library: string): string;
  createSession(model: string | Uint8Array, options: NativeSessionOptions): Promise<NativeSession>;
  Value: new (type: number, dims: readonly number[]) => NativeValue;
  RunOptions: new (options: {
    logSeverityLevel?: number;
    logVerbosityLevel?: number;
    tag?: string;
    terminate?: boolean;
    config?: [string, string][];
  }) => NativeRunOptions;
}

/** The ONNX Runtime in use. */
export interface RuntimeInfo {
  version: string;
  /** Version of the C API's function table that was obtained. */
  apiVersion: number;
  /** Execution providers compiled into it, for example CPUExecutionProvider. */
  providers: string[];
}

/** Path of the ONNX Runtime library inside the user's onnxruntime-node. */
export function ortLibrary(): string {
  const bin = join(dirname(require.resolve('onnxruntime-node/package.json')), 'bin');
  const folders = existsSync(bin)
    ? readdirSync(bin).filter((name) => name.startsWith('napi-v'))
    : [];
  for (const folder of folders) {
    const platform = join(bin, folder, process.platform, process.arch);
    const name =
      existsSync(platform) &&
      readdirSync(platform).find((file) => /^libonnxruntime\.(so|.*dylib)/.test(file));
    if (name) return join(platform, name);
  }
  throw new FlaError(
    'unsupported',
    `onnxruntime-node: platform must be one it ships a libonnxruntime for (looked in ${bin}), received ${process.platform}-${process.arch}`,
  );
}

const LOG_LEVELS = ['verbose', 'info', 'warning', 'error', 'fatal'];

let loaded: { addon: Addon; info: RuntimeInfo } | undefined;

/** Loads the addon and ONNX Runtime into this thread, once. */
export function load(): { addon: Addon; info: RuntimeInfo } {
  if (loaded !== undefined) return loaded;
  const addon = require(nativeFile('fla_node.node')) as Addon;
  try {
    const info = addon.init({
      library: ortLibrary(),
      logLevel: LOG_LEVELS.indexOf(env.logLevel ?? 'warning'),
      copyOutputs: process.env.FLA_COPY_OUTPUTS === '1',
    });
    return (loaded = { addon, info });
  } catch (thrown) {
    throw toFlaError(thrown);
  }
}

/**
 * What the operator library says about itself: version, instruction sets, operators.
 *
 * @throws FlaError `not_found` when it was not built.
 */
export function nativeInfo(): {
  runtime: RuntimeInfo;
  library: string;
  ops: Record<string, unknown>;
} {
  const { addon, info } = load();
  const library = nativeFile(OPS_LIBRARY);
  try {
    return { runtime: info, library, ops: JSON.parse(addon.opsInfo(library)) };
  } catch (thrown) {
    throw toFlaError(thrown);
  }
}

import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { loadModel } from '../ir/file.js';

/** Who runs a model: our backend, ONNX Runtime as installed, or ours where the model needs it. */
export type BackendChoice = 'auto' | 'fla' | 'stock';

/** An open model and who runs it. */
export interface OpenedSession {
  session: Ort.InferenceSession;
  backend: 'fla' | 'stock';
  /** Why `auto` fell back to ONNX Runtime for a model with our ops, if it did. */
  notice?: string;
}

export interface SessionChoice {
  backend?: BackendChoice;
  /** Threads inside an operator; default: ONNX Runtime's choice. */
  threads?: number;
  /** Language models only: growing caches are buffers for so many tokens, which are written in place. */
  cacheLength?: number;
}

const DOMAIN = 'com.fla';

/** Does a model file use our operators? */
export function usesFlaOps(file: string): boolean {
  return loadModel(file).proto.opsetImport.some((o) => o.domain === DOMAIN);
}

/** onnxruntime-node, which is an optional peer. @throws FlaError `not_found` with the remedy */
export async function loadOnnxRuntime(): Promise<typeof Ort> {
  try {
    const ort = await import('onnxruntime-node');
    ort.env.logLevel = 'error';
    return ort;
  } catch (error) {
    throw new FlaError(
      'not_found',
      'onnxruntime-node must be installed to run models: npm install onnxruntime-node',
      { cause: error },
    );
  }
}

/** Who is to run a model file, and why not our backend when `auto` would rather have had it. */
export async function chooseBackend(
  file: string,
  backend: BackendChoice = 'auto',
): Promise<Pick<OpenedSession, 'backend' | 'notice'>> {
  await loadOnnxRuntime();
  if (backend === 'stock' || (backend === 'auto' && !usesFlaOps(file))) return { backend: 'stock' };
  try {
    const { nativeInfo } = await import('../../runtime/node/index.js');
    nativeInfo();
    return { backend: 'fla' };
  } catch (error) {
    if (backend === 'fla') throw error;
    const notice = `ONNX Runtime runs the portable form of the ops: ${(error as Error).message}`;
    return { backend: 'stock', notice };
  }
}

/**
 * Opens a model file for running.
 *
 * @throws FlaError `invalid_model` for a file that is no ONNX model, `runtime` when ONNX Runtime
 *   refuses it, `not_found` when `fla` is asked for and the native library is absent
 */
export async function openSession(
  file: string,
  choice: SessionChoice = {},
): Promise<OpenedSession> {
  const chosen = await chooseBackend(file, choice.backend);
  const ort = await loadOnnxRuntime();
  const session = await namingFile(file, () =>
    ort.InferenceSession.create(file, {
      executionProviders: [chosen.backend === 'fla' ? 'fla' : 'cpu'],
      ...sessionOptions(choice),
    }),
  );
  return { session, ...chosen };
}

/** Options that both backends understand. */
export function sessionOptions({ threads }: SessionChoice): Ort.InferenceSession.SessionOptions {
  return {
    logSeverityLevel: 4, // what goes wrong arrives as an error; the log would repeat it
    ...(threads && { intraOpNumThreads: threads }),
  };
}

const named = new WeakSet<Error>();

/** Runs work on a model; its errors then name the model's file, or that of work on another model inside of it. */
export async function namingFile<T>(file: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const { message } = error as Error;
    if (named.has(error as Error)) throw error;
    if (error instanceof FlaError && message.startsWith(`${file}: `)) throw error;
    const code = error instanceof FlaError ? error.code : 'runtime';
    const naming = new FlaError(code, `${file}: ${message}`, { cause: error });
    named.add(naming);
    throw naming;
  }
}

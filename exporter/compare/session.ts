import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { loadModel } from '../ir/index.js';

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

/**
 * Opens a model file for running.
 *
 * @throws FlaError `invalid_model` for a file that is no ONNX model, `runtime` when ONNX Runtime
 *   refuses it, `not_found` when `fla` is asked for and the native library is absent
 */
export async function openSession(
  file: string,
  { backend = 'auto', threads }: SessionChoice = {},
): Promise<OpenedSession> {
  const ours = usesFlaOps(file);
  const ort = await loadOnnxRuntime();
  const create = async (providers: readonly string[]) => {
    try {
      return await ort.InferenceSession.create(file, {
        executionProviders: [...providers],
        logSeverityLevel: 4, // what goes wrong arrives as an error; the log would repeat it
        ...(threads && { intraOpNumThreads: threads }),
      });
    } catch (error) {
      throw new FlaError('runtime', `${file}: ${(error as Error).message}`, { cause: error });
    }
  };
  if (backend === 'stock' || (backend === 'auto' && !ours)) {
    return { session: await create(['cpu']), backend: 'stock' };
  }
  try {
    const { nativeInfo } = await import('../../runtime/node/index.js');
    nativeInfo();
  } catch (error) {
    if (backend === 'fla') throw error;
    const notice = `${(error as Error).message}; ONNX Runtime runs the portable form of the ops`;
    return { session: await create(['cpu']), backend: 'stock', notice };
  }
  return { session: await create(['fla']), backend: 'fla' };
}

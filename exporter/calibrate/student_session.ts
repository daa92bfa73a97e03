import type * as Ort from 'onnxruntime-node';
import {
  loadOnnxRuntime,
  type OpenedSession,
  type SessionChoice,
  sessionOptions,
} from '../compare/session.js';
import { type Model, modelBytes } from '../ir/index.js';
import { copyModel } from './copy.js';

/** Opens a rewritten model that is in no file: on our backend, or on ONNX Runtime by its function bodies. */
export async function openModel(
  model: Model,
  choice: SessionChoice = {},
): Promise<Pick<OpenedSession, 'session' | 'backend'>> {
  const ort = await loadOnnxRuntime();
  const ours = model.proto.opsetImport.some((o) => o.domain === 'com.fla');
  const backend = ours && choice.backend !== 'stock' && (await haveBackend()) ? 'fla' : 'stock';
  const session: Ort.InferenceSession = await ort.InferenceSession.create(
    modelBytes(copyModel(model)),
    {
      executionProviders: [backend === 'fla' ? 'fla' : 'cpu'],
      ...sessionOptions(choice),
    },
  );
  return { session, backend };
}

async function haveBackend(): Promise<boolean> {
  try {
    const { nativeInfo } = await import('../../runtime/node/index.js');
    nativeInfo();
    return true;
  } catch {
    return false;
  }
}

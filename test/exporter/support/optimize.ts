import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { type Model, modelBytes, parseModel } from '../../../exporter/index.js';

/** A model as ONNX Runtime's optimizer leaves it: fused nodes of com.microsoft in place of chains. */
export async function optimized(
  model: Model,
  level: 'basic' | 'extended' | 'all' = 'extended',
): Promise<Model> {
  const folder = mkdtempSync(path.join(tmpdir(), 'optimized-'));
  const optimizedModelFilePath = path.join(folder, 'model.onnx');
  try {
    const session = await ort.InferenceSession.create(modelBytes(model), {
      graphOptimizationLevel: level,
      optimizedModelFilePath,
      logSeverityLevel: 4,
    });
    await session.release();
    return parseModel(readFileSync(optimizedModelFilePath));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

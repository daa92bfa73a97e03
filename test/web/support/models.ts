/** Rewritten models in a folder of their own, for a test file. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {
  loadModel,
  type RewriteOptions,
  rewriteModel,
  saveModel,
} from '../../../exporter/index.js';
import { TINYLM } from '../../support/models.js';

export function temporaryFolder(): string {
  return fs.mkdtempSync(path.join(os.tmpdir(), 'onnx-fla-web-'));
}

/** The constant gates of the demo. */
export const GATED_DELTA = {
  variant: 'gated-delta',
  gates: { default: { decay: { constant: -0.1 }, beta: { constant: 1 } } },
} as const satisfies RewriteOptions;

/** Rewrites the small language model into `folder`; its weights lie in a file beside it. */
export async function rewriteTinylm(
  folder: string,
  name: string,
  options: RewriteOptions = GATED_DELTA,
  source = TINYLM.modelKv,
): Promise<string> {
  const model = loadModel(source);
  await rewriteModel(model, options);
  const file = path.join(folder, name);
  saveModel(model, file);
  return file;
}

/** Repeatable token ids. */
export function tokens(count: number): number[] {
  return Array.from({ length: count }, (_, i) => (i * 7919 + 13) % 2048);
}

/** The package in a Worker: reads tokens, and answers with the logits of the last one. */
import * as ort from 'onnxruntime-web/webgpu';
import { StatefulSession } from '../../../runtime/web/index.js';

ort.env.logLevel = 'error';
globalThis.onmessage = async ({ data }: MessageEvent<{ model: string; ids: number[] }>) => {
  try {
    const session = await StatefulSession.create(data.model);
    const { logits } = await session.prefill(data.ids, { chunk: 5 });
    const { device, kernelCalls } = session.session;
    await session.dispose();
    postMessage({ device, kernelCalls, logits: [...(logits.data as Float32Array)] });
  } catch (error) {
    postMessage({ error: String(error) });
  }
};

/** Runs in a Node of its own with the npm package `webgpu` (Dawn): reads tokens, prints what came out as JSON. */
import * as ort from 'onnxruntime-web/webgpu';
import { create, globals } from 'webgpu';
import { StatefulSession } from '../../../runtime/web/index.js';

Object.assign(globalThis, globals);
const gpu = create([]);
Object.defineProperty(globalThis, 'navigator', {
  value: { gpu, hardwareConcurrency: 1 },
  configurable: true,
});
ort.env.wasm.numThreads = 1;

const [model, ids] = process.argv.slice(2);
const session = await StatefulSession.create(model);
const { logits } = await session.prefill(JSON.parse(ids), { chunk: 5 });
const { device, kernelCalls } = session.session;
await session.dispose();
console.log(JSON.stringify({ device, kernelCalls, logits: [...(logits.data as Float32Array)] }));
// Dawn keeps the process alive.
process.exit(0);

/** A page with one of onnxruntime-web's bundles, the one that its address asks for, and nothing of this package. */
const bundles = {
  default: () => import('onnxruntime-web'),
  wasm: () => import('onnxruntime-web/wasm'),
  webgpu: () => import('onnxruntime-web/webgpu'),
};
const runtime = await bundles[location.search.slice(1) as keyof typeof bundles]();

runtime.env.logLevel = 'error';
Object.assign(globalThis, { ort: runtime });
document.title = 'ready';

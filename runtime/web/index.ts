/**
 * `import 'onnx-fla/web'` makes `executionProviders: ['fla']` known to onnxruntime-web, so that the same code runs in Node
 * and in the browser. onnxruntime-web cannot load custom operators: a rewritten model runs by its function bodies, on the
 * wasm execution provider. There are no WebGPU kernels of com.fla operators yet; the first session says so once.
 */
import * as ort from 'onnxruntime-web';

let told = false;

function tellOnce(): void {
  if (told) return;
  told = true;
  console.info(
    'onnx-fla: in onnxruntime-web, com.fla operators run by their function bodies on wasm; WebGPU kernels are not used.',
  );
}

/** onnxruntime-web's own session behind the handler's interface. */
function handlerOf(session: ort.InferenceSession): ort.InferenceSessionHandler {
  return {
    inputNames: session.inputNames,
    outputNames: session.outputNames,
    inputMetadata: session.inputMetadata,
    outputMetadata: session.outputMetadata,
    run: (feeds, fetches, options) =>
      session.run(
        feeds as ort.InferenceSession.FeedsType,
        fetches as ort.InferenceSession.FetchesType,
        options,
      ),
    dispose: () => session.release(),
    startProfiling: () => session.startProfiling(),
    endProfiling: () => session.endProfiling(),
  };
}

const backend: ort.Backend = {
  async init() {},
  async createInferenceSessionHandler(model, options = {}) {
    tellOnce();
    const wasm = { ...options, executionProviders: ['wasm'] };
    return handlerOf(await ort.InferenceSession.create(model as string, wasm));
  },
};

ort.registerBackend('fla', backend, -1);

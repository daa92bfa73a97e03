/**
 * `import 'onnx-fla/web'` makes `executionProviders: ['fla']` known to `onnxruntime-web/webgpu`: the same code as in Node runs in
 * the browser, on WebGPU with our kernels, without WebGPU on wasm.
 */
import * as ort from 'onnxruntime-web/webgpu';
import { register } from './register.js';

register(ort);

export * from './exports.js';

/** A page with onnxruntime-web's WebGPU bundle and nothing of this package. */
import * as runtime from 'onnxruntime-web/webgpu';

runtime.env.logLevel = 'error';
Object.assign(globalThis, { ort: runtime });
document.title = 'ready';

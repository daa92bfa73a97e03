/** The page that browser tests run in: the package and onnxruntime-web as globals. */
import * as runtime from 'onnxruntime-web/webgpu';
import * as web from '../../../runtime/web/index.js';

declare global {
  var ort: typeof import('onnxruntime-web/webgpu');
  var fla: typeof import('../../../runtime/web/index.js');
  var wasmMemories: WebAssembly.Memory[];
}

globalThis.wasmMemories = [];
const Memory = WebAssembly.Memory;
WebAssembly.Memory = class extends Memory {
  constructor(descriptor: WebAssembly.MemoryDescriptor) {
    super(descriptor);
    globalThis.wasmMemories.push(this);
  }
};

runtime.env.logLevel = 'error';
globalThis.ort = runtime;
globalThis.fla = web;
document.title = 'ready';

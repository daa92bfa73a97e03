import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vite';

const root = fileURLToPath(new URL('../..', import.meta.url));
/** Shared memory, and with it more than one thread on wasm, needs an isolated page. */
const headers = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
};

export default defineConfig({
  root: fileURLToPath(new URL('.', import.meta.url)),
  base: './',
  assetsInclude: ['**/*.onnx', '**/*.bin'],
  // onnxruntime-web finds its WebAssembly beside its own file.
  optimizeDeps: {
    exclude: ['onnxruntime-web'],
    // Known beforehand, so that the page is not loaded again when they turn up.
    include: ['@huggingface/tokenizers', '@petamoriken/float16', 'protobufjs', 'uplot'],
  },
  worker: { format: 'es' },
  build: { target: 'es2023', assetsInlineLimit: 0, chunkSizeWarningLimit: 1000, emptyOutDir: true },
  server: { headers, fs: { allow: [root] } },
  preview: { headers },
});
